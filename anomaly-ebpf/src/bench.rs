//! Only for `cargo xtask bench xdp`: writes another source address into the packet and calls the
//! program under test, so that a run over one packet meets as many bans as there are.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;

/// Sources, in network byte order: what they are is user space's choice.
#[map]
static SOURCES: Array<[u64; 2]> = Array::with_max_entries(1 << 20, 0);
/// How many of them are used, less one: a power of two less one.
#[map]
static MASK: Array<u64> = Array::with_max_entries(1, 0);
/// Which comes next.
#[map]
static NEXT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The program under test, at 0.
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[inline(always)]
fn next_source() -> Option<&'static [u64; 2]> {
    let next = NEXT.get_ptr_mut(0)?;
    let mask = *MASK.get(0)?;
    // SAFETY: this processor's own entry.
    let n = unsafe {
        *next = (*next).wrapping_add(1);
        *next
    };
    SOURCES.get((n & mask) as u32)
}

/// Ethernet, IPv4.
#[xdp]
pub fn bench_v4(ctx: XdpContext) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if let Some(source) = next_source()
        && data + 34 <= end
    {
        // SAFETY: inside the packet, as just checked.
        unsafe { ((data + 26) as *mut u32).write_volatile(source[0] as u32) };
        // SAFETY: nothing is held across the call.
        let _ = unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    XDP_PASS
}

/// Ethernet, IPv6.
#[xdp]
pub fn bench_v6(ctx: XdpContext) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if let Some(source) = next_source()
        && data + 54 <= end
    {
        // SAFETY: inside the packet, as just checked.
        unsafe {
            ((data + 22) as *mut u64).write_volatile(source[0]);
            ((data + 30) as *mut u64).write_volatile(source[1]);
        }
        // SAFETY: nothing is held across the call.
        let _ = unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    XDP_PASS
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

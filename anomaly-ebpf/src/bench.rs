//! Only for `cargo xtask bench xdp`: writes another source address into the packet and calls the
//! program under test, so that a run over one packet meets as many bans as there are.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;

/// Sources, in network byte order: what they are is user space's choice. Behind an IPv4 source stands the checksum of
/// its header.
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
/// The same for programs that take several buffers: the kernel keeps the two kinds apart.
#[map]
static UNDER_TEST_FRAGS: ProgramArray = ProgramArray::with_max_entries(1, 0);

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

#[inline(always)]
fn call(ctx: &XdpContext, v6: bool, under_test: &ProgramArray) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if let Some(source) = next_source()
        && data + 54 <= end
    {
        // SAFETY: the addresses of both IPs lie inside the packet, as just checked.
        unsafe {
            if v6 {
                ((data + 22) as *mut u64).write_volatile(source[0]);
                ((data + 30) as *mut u64).write_volatile(source[1]);
            } else {
                ((data + 24) as *mut u16).write_volatile((source[0] >> 32) as u16);
                ((data + 26) as *mut u32).write_volatile(source[0] as u32);
            }
        }
        // SAFETY: nothing is held across the call.
        let _ = unsafe { under_test.tail_call(ctx, 0) };
    }
    XDP_PASS
}

/// Ethernet, IPv4.
#[xdp]
pub fn bench_v4(ctx: XdpContext) -> u32 {
    call(&ctx, false, &UNDER_TEST)
}

/// Ethernet, IPv4, for programs that take several buffers.
#[xdp(frags)]
pub fn bench_v4_frags(ctx: XdpContext) -> u32 {
    call(&ctx, false, &UNDER_TEST_FRAGS)
}

/// Ethernet, IPv6, for programs that take several buffers.
#[xdp(frags)]
pub fn bench_v6_frags(ctx: XdpContext) -> u32 {
    call(&ctx, true, &UNDER_TEST_FRAGS)
}

/// Ethernet, IPv6.
#[xdp]
pub fn bench_v6(ctx: XdpContext) -> u32 {
    call(&ctx, true, &UNDER_TEST)
}

/// What the calls above cost by themselves.
#[xdp]
pub fn bench_pass(_: XdpContext) -> u32 {
    XDP_PASS
}

/// The cheapest drop there is.
#[xdp]
pub fn bench_drop(_: XdpContext) -> u32 {
    XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

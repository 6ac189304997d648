//! The XDP program: drops what comes from a banned source address, and passes everything else.
//!
//! It reads the source address of the IP header and nothing behind it, so that fragments, IP options
//! and IPv6 extension headers hide nothing. It allocates nothing, inserts and deletes nothing: user space does.
//! What it cannot read, it passes and counts.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod packet;

use anomaly_common::{Ban, NetBan, State, Totals, switch, tables};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_xdp_get_buff_len};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use aya_ebpf::Global;
use aya_log_ebpf::debug;

use packet::Source;

/// Tries take their memory per entry; the kernel has them no other way.
const NO_PREALLOC: u32 = 1;

/// Banned IPv4 addresses. User space decides the real capacity of this and the next two.
///
/// Their memory is taken at once: inserting is three times faster, and entries lie together. The price is
/// that the entry of a ban which is lifted while a packet meets it may be another ban's a moment later: that one
/// packet is then judged and counted as the other's.
#[map]
static BANS_V4: HashMap<u32, Ban> = HashMap::with_max_entries(1024, 0);
/// Banned IPv6 addresses.
#[map]
static BANS_V6: HashMap<[u64; 2], Ban> = HashMap::with_max_entries(1024, 0);
/// Banned IPv6 /64s.
#[map]
static BANS_V6_64: HashMap<u64, Ban> = HashMap::with_max_entries(1024, 0);
/// Banned IPv4 prefixes that are no single address.
#[map]
static NETS_V4: LpmTrie<u32, NetBan> = LpmTrie::with_max_entries(16384, NO_PREALLOC);
/// Banned IPv6 prefixes that are neither a single address nor a /64.
#[map]
static NETS_V6: LpmTrie<[u64; 2], NetBan> = LpmTrie::with_max_entries(16384, NO_PREALLOC);
/// IPv4 prefixes that are never dropped.
#[map]
static ALLOW_V4: LpmTrie<u32, u64> = LpmTrie::with_max_entries(16384, NO_PREALLOC);
/// IPv6 prefixes that are never dropped.
#[map]
static ALLOW_V6: LpmTrie<[u64; 2], u64> = LpmTrie::with_max_entries(16384, NO_PREALLOC);
/// One of `anomaly_common::switch`.
#[map]
static SWITCH: Array<u64> = Array::with_max_entries(1, 0);
/// What the daemon says.
#[map]
static STATE: Array<State> = Array::with_max_entries(1, 0);
/// What became of the packets.
#[map]
static TOTALS: PerCpuArray<Totals> = PerCpuArray::with_max_entries(1, 0);

/// Set to 0 before loading where the kernel (before 5.11) has no coarse clock. Constant once loaded, so the
/// verifier removes the other branch.
#[unsafe(no_mangle)]
static COARSE_CLOCK: Global<u8> = Global::new(1);

/// For drivers that deliver jumbo frames in several buffers (Linux 5.18).
#[xdp(frags)]
pub fn anomaly_frags(ctx: XdpContext) -> u32 {
    filter(&ctx, true)
}

/// For the rest.
#[xdp]
pub fn anomaly(ctx: XdpContext) -> u32 {
    filter(&ctx, false)
}

/// What a look into the tables gave.
enum Match {
    /// No ban covers the source.
    None,
    /// This one does.
    Host(*mut Ban, u64),
    /// This wider one does.
    Net(*mut Ban, u64),
}

#[inline(always)]
fn filter(ctx: &XdpContext, frags: bool) -> u32 {
    let (Some(totals), Some(state)) = (TOTALS.get_ptr_mut(0), STATE.get(0)) else {
        return XDP_PASS;
    };
    // SAFETY: this processor's own entry of an array that lives as long as the program, which is not
    // preempted by itself here.
    let totals = unsafe { &mut *totals };
    let source = match packet::source(ctx) {
        Ok(source) => source,
        Err(packet::Unreadable::NotIp) => {
            totals.not_ip += 1;
            return XDP_PASS;
        }
        Err(packet::Unreadable::Truncated) => {
            totals.malformed += 1;
            return XDP_PASS;
        }
    };
    let (ban, now, dropped) = match find(&source, state.tables) {
        Match::None => {
            totals.passed += 1;
            return XDP_PASS;
        }
        Match::Host(ban, now) => (ban, now, &mut totals.dropped_host),
        Match::Net(ban, now) => (ban, now, &mut totals.dropped_prefix),
    };
    if allowed(&source, state.tables) {
        totals.allowlisted += 1;
        return XDP_PASS;
    }
    let mode = SWITCH.get(0).copied().unwrap_or(switch::OFF);
    let stale = state.grace_ns != 0 && now.saturating_sub(state.heartbeat_ns) > state.grace_ns;
    if mode == switch::OFF || stale {
        totals.not_enforced += 1;
        return XDP_PASS;
    }
    let bytes = if frags {
        // SAFETY: the context is the one the kernel called us with.
        unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
    } else {
        (ctx.data_end() - ctx.data()) as u64
    };
    // SAFETY: `ban` points into a map, whose memory the kernel keeps until the program is done, also when
    // user space deletes the entry meanwhile.
    //
    // Plain additions: two processors that meet the same ban at the same moment may count one packet
    // for two. Atomic ones cost a sixth of the whole program; the totals are exact in any case.
    unsafe {
        (*ban).packets += 1;
        (*ban).bytes += bytes;
        (&raw mut (*ban).last_hit_ns).write_volatile(now);
    }
    if mode == switch::MONITOR {
        totals.not_enforced += 1;
        return XDP_PASS;
    }
    *dropped += 1;
    totals.dropped_bytes += bytes;
    match source {
        Source::V4(address) => debug!(ctx, "dropped {:i}, {} bytes", u32::from_be(address), bytes),
        Source::V6(high, low) => {
            debug!(ctx, "dropped {:x}{:x}, {} bytes", u64::from_be(high), u64::from_be(low), bytes)
        }
    }
    XDP_DROP
}

/// The first live ban that covers `source`, with the time it was found to be live at.
#[inline(always)]
fn find(source: &Source, used: u64) -> Match {
    match *source {
        Source::V4(address) => {
            if used & tables::V4 != 0
                && let Some((ban, now)) = live(BANS_V4.get_ptr_mut(&address))
            {
                return Match::Host(ban, now);
            }
            if used & tables::NET4 != 0
                && let Some((ban, now)) = live_net(&NETS_V4, &mut Key::new(32, address))
            {
                return Match::Net(ban, now);
            }
        }
        Source::V6(high, low) => {
            if used & tables::V6 != 0
                && let Some((ban, now)) = live(BANS_V6.get_ptr_mut(&[high, low]))
            {
                return Match::Host(ban, now);
            }
            if used & tables::V6_64 != 0
                && let Some((ban, now)) = live(BANS_V6_64.get_ptr_mut(&high))
            {
                return Match::Host(ban, now);
            }
            if used & tables::NET6 != 0
                && let Some((ban, now)) = live_net(&NETS_V6, &mut Key::new(128, [high, low]))
            {
                return Match::Net(ban, now);
            }
        }
    }
    Match::None
}

/// The clock is read on a hit only: passing traffic does not pay for it.
#[inline(always)]
fn live(ban: Option<*mut Ban>) -> Option<(*mut Ban, u64)> {
    let ban = ban?;
    let now = now();
    // SAFETY: see `filter`.
    (unsafe { (&raw const (*ban).until_ns).read_volatile() } > now).then_some((ban, now))
}

/// A trie answers with its longest match only. Where that one has ended, ask for shorter ones.
#[inline(always)]
fn live_net<K>(nets: &LpmTrie<K, NetBan>, key: &mut Key<K>) -> Option<(*mut Ban, u64)> {
    for _ in 0..8 {
        let net = core::ptr::from_ref(nets.get(&*key)?).cast_mut();
        let now = now();
        // SAFETY: see `filter`.
        let (until_ns, prefix_len) = unsafe { ((*net).ban.until_ns, (*net).prefix_len) };
        if until_ns > now {
            // SAFETY: see `filter`.
            return Some((unsafe { &raw mut (*net).ban }, now));
        }
        if prefix_len == 0 {
            return None;
        }
        key.prefix_len = prefix_len as u32 - 1;
    }
    None
}

#[inline(always)]
fn allowed(source: &Source, used: u64) -> bool {
    match *source {
        Source::V4(address) => used & tables::ALLOW4 != 0 && ALLOW_V4.get(&Key::new(32, address)).is_some(),
        Source::V6(high, low) => used & tables::ALLOW6 != 0 && ALLOW_V6.get(&Key::new(128, [high, low])).is_some(),
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, to the tick where the kernel can say it that cheaply.
#[inline(always)]
fn now() -> u64 {
    if COARSE_CLOCK.load() != 0 {
        // SAFETY: takes nothing, returns a number.
        unsafe { bpf_ktime_get_coarse_ns() }
    } else {
        // SAFETY: as above.
        unsafe { bpf_ktime_get_ns() }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Only needed for the helpers that a GPL kernel reserves; none is used that needs it, and the project's
/// licences permit the claim.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

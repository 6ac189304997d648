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
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_xdp_get_buff_len};
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
    Host(*mut Ban),
    /// This wider one does.
    Net(*mut Ban),
}

#[inline(always)]
fn filter(ctx: &XdpContext, frags: bool) -> u32 {
    let (Some(totals), Some(state)) = (TOTALS.get_ptr_mut(0), STATE.get(0)) else {
        return XDP_PASS;
    };
    // SAFETY: this processor's own entry of an array that lives as long as the program, which is not
    // preempted by itself here.
    let totals = unsafe { &mut *totals };
    match packet::source(ctx) {
        Ok(Source::V4(address)) => judge(ctx, V4(address), totals, state, frags),
        Ok(Source::V6(high, low)) => judge(ctx, V6(high, low), totals, state, frags),
        Err(packet::Unreadable::NotIp) => {
            totals.not_ip += 1;
            XDP_PASS
        }
        Err(packet::Unreadable::Truncated) => {
            totals.malformed += 1;
            debug!(ctx, "passed: it ends inside a header");
            XDP_PASS
        }
    }
}

/// A source address. Each version has a path of its own through the program: where the two share one, the compiler carries
/// the words of an IPv6 address through the other's, and the verifier finds them unset there.
trait Address: Copy {
    /// The first live ban that covers it.
    fn find(self, used: u64, clock: &mut Totals) -> Match;
    /// Whether it is on the allow-list.
    fn is_allowed(self, state: &State) -> bool;
    /// For debugging: what became of its packet. Where the log is off (the level is a constant by the time the kernel
    /// checks the program), the kernel removes these instructions.
    fn tell(self, ctx: &XdpContext, what: &'static str);
}

#[inline(always)]
fn judge<A: Address>(ctx: &XdpContext, source: A, totals: &mut Totals, state: &State, frags: bool) -> u32 {
    let (ban, net) = match source.find(state.tables, totals) {
        Match::None => {
            totals.passed += 1;
            return XDP_PASS;
        }
        Match::Host(ban) => (ban, false),
        Match::Net(ban) => (ban, true),
    };
    if source.is_allowed(state) {
        totals.allowlisted += 1;
        source.tell(ctx, "is banned, and passed: it is on the allow-list");
        return XDP_PASS;
    }
    let mode = SWITCH.get(0).copied().unwrap_or(switch::OFF);
    // Finding it has read the clock.
    let now = totals.tick_ns;
    let stale = state.grace_ns != 0 && now.saturating_sub(state.heartbeat_ns) > state.grace_ns;
    if mode == switch::OFF || stale {
        totals.not_enforced += 1;
        source.tell(ctx, "is banned, and passed: dropping is off, or the daemon has been gone for too long");
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
    unsafe {
        add(&raw mut (*ban).packets, 1);
        add(&raw mut (*ban).bytes, bytes);
        (&raw mut (*ban).last_hit_ns).write_volatile(now);
    }
    if mode == switch::MONITOR {
        totals.not_enforced += 1;
        source.tell(ctx, "is banned, and passed: only monitoring");
        return XDP_PASS;
    }
    if net {
        totals.dropped_prefix += 1;
    } else {
        totals.dropped_host += 1;
    }
    totals.dropped_bytes += bytes;
    source.tell(ctx, "dropped");
    XDP_DROP
}

/// Adds in one piece: processors that drop packets of one client at the same moment lose no count.
///
/// # Safety
/// `counter` must point to a number in a map.
#[inline(always)]
unsafe fn add(counter: *mut u64, by: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's. Core's atomics do not compile to this instruction, which every kernel knows.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {by}",
            counter = in(reg) counter,
            by = in(reg) by,
            options(nostack),
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        *counter += by;
    }
}

/// IPv4, in network byte order.
#[derive(Clone, Copy)]
struct V4(u32);

impl Address for V4 {
    #[inline(always)]
    fn find(self, used: u64, clock: &mut Totals) -> Match {
        if used & tables::V4 != 0
            && let Some(ban) = live(BANS_V4.get_ptr_mut(&self.0), clock)
        {
            return Match::Host(ban);
        }
        if used & tables::NET4 != 0
            && let Some(ban) = live_net(&NETS_V4, &mut Key::new(32, self.0), clock)
        {
            return Match::Net(ban);
        }
        Match::None
    }

    #[inline(always)]
    fn is_allowed(self, state: &State) -> bool {
        state.allow.may_hold_v4(self.0) && ALLOW_V4.get(&Key::new(32, self.0)).is_some()
    }

    #[inline(always)]
    fn tell(self, ctx: &XdpContext, what: &'static str) {
        debug!(ctx, "{:i} {}", u32::from_be(self.0), what);
    }
}

/// IPv6, in network byte order: the first and the last eight bytes.
#[derive(Clone, Copy)]
struct V6(u64, u64);

impl Address for V6 {
    #[inline(always)]
    fn find(self, used: u64, clock: &mut Totals) -> Match {
        let Self(high, low) = self;
        if used & tables::V6 != 0
            && let Some(ban) = live(BANS_V6.get_ptr_mut(&[high, low]), clock)
        {
            return Match::Host(ban);
        }
        if used & tables::V6_64 != 0
            && let Some(ban) = live(BANS_V6_64.get_ptr_mut(&high), clock)
        {
            return Match::Host(ban);
        }
        if used & tables::NET6 != 0
            && let Some(ban) = live_net(&NETS_V6, &mut Key::new(128, [high, low]), clock)
        {
            return Match::Net(ban);
        }
        Match::None
    }

    #[inline(always)]
    fn is_allowed(self, state: &State) -> bool {
        state.allow.may_hold_v6(self.0) && ALLOW_V6.get(&Key::new(128, [self.0, self.1])).is_some()
    }

    #[inline(always)]
    fn tell(self, ctx: &XdpContext, what: &'static str) {
        let mut address = [0; 16];
        address[..8].copy_from_slice(&self.0.to_ne_bytes());
        address[8..].copy_from_slice(&self.1.to_ne_bytes());
        debug!(ctx, "{:i} {}", address, what);
    }
}

/// The clock is read on a hit only: passing traffic does not pay for it.
#[inline(always)]
fn live(ban: Option<*mut Ban>, clock: &mut Totals) -> Option<*mut Ban> {
    let ban = ban?;
    // SAFETY: see `filter`.
    (unsafe { (&raw const (*ban).until_ns).read_volatile() } > now(clock)).then_some(ban)
}

/// A trie answers with its longest match only. Where that one has ended, ask for shorter ones.
#[inline(always)]
fn live_net<K>(nets: &LpmTrie<K, NetBan>, key: &mut Key<K>, clock: &mut Totals) -> Option<*mut Ban> {
    for _ in 0..8 {
        let net = core::ptr::from_ref(nets.get(&*key)?).cast_mut();
        // SAFETY: see `filter`.
        let (until_ns, prefix_len) = unsafe { ((*net).ban.until_ns, (*net).prefix_len) };
        if until_ns > now(clock) {
            // SAFETY: see `filter`.
            return Some(unsafe { &raw mut (*net).ban });
        }
        if prefix_len == 0 {
            return None;
        }
        key.prefix_len = prefix_len as u32 - 1;
    }
    None
}

/// Nanoseconds of `CLOCK_MONOTONIC`, to the tick. The clock is read once a tick and processor: the coarse one stands
/// still in between in any case, and asking for the tick costs a load where asking the clock costs a call.
#[inline(always)]
fn now(clock: &mut Totals) -> u64 {
    // SAFETY: takes nothing, returns a number.
    let tick = unsafe { bpf_jiffies64() };
    if clock.tick != tick {
        clock.tick = tick;
        clock.tick_ns = if COARSE_CLOCK.load() != 0 {
            // SAFETY: as above.
            unsafe { bpf_ktime_get_coarse_ns() }
        } else {
            // SAFETY: as above.
            unsafe { bpf_ktime_get_ns() }
        };
    }
    clock.tick_ns
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

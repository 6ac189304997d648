//! The source address of a packet, read at constant offsets.
//!
//! Every offset is a constant: the verifier then accepts the program without `CAP_PERFMON`, too.

use aya_ebpf::programs::XdpContext;

/// A source address in network byte order, as it lies in the packet.
pub enum Source {
    /// IPv4.
    V4(u32),
    /// IPv6: the first and the last eight bytes.
    V6(u64, u64),
}

/// Why there is none.
pub enum Unreadable {
    /// Something else than IP.
    NotIp,
    /// It ends inside a header that it announces.
    Truncated,
}

/// Loads from a constant offset, as an instruction that the compiler cannot merge with the same load from another
/// offset in another branch: that would make the offset a variable, which the verifier takes from nobody
/// without `CAP_PERFMON`.
macro_rules! load {
    ($name:ident, $type:ty, $instruction:literal) => {
        macro_rules! $name {
            ($base:expr, $offset:expr) => {{
                #[cfg(target_arch = "bpf")]
                {
                    let value: u64;
                    core::arch::asm!(
                        $instruction,
                        value = out(reg) value,
                        base = in(reg) $base,
                        offset = const $offset,
                        options(readonly, nostack),
                    );
                    value as $type
                }
                #[cfg(not(target_arch = "bpf"))]
                read::<$type>($base + $offset)
            }};
        }
    };
}
load!(load_u32, u32, "{value} = *(u32 *)({base} + {offset})");
load!(load_u64, u64, "{value} = *(u64 *)({base} + {offset})");

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// EtherTypes as they are read: in network byte order.
mod ethertype {
    pub const IPV4: u16 = 0x0800u16.to_be();
    pub const IPV6: u16 = 0x86ddu16.to_be();
    pub const VLAN: u16 = 0x8100u16.to_be();
    pub const QINQ: u16 = 0x88a8u16.to_be();
    /// What some switches used for QinQ before it had a number of its own.
    pub const OLD_QINQ: u16 = 0x9100u16.to_be();
}

/// The source of an Ethernet frame with up to two VLAN tags.
#[inline(always)]
pub fn source(ctx: &XdpContext) -> Result<Source, Unreadable> {
    match ip::<ETHERNET>(ctx) {
        Err(Below::Tag) => {}
        answer => return answer.map_err(Below::end),
    }
    match ip::<{ ETHERNET + TAG }>(ctx) {
        Err(Below::Tag) => {}
        answer => return answer.map_err(Below::end),
    }
    ip::<{ ETHERNET + 2 * TAG }>(ctx).map_err(Below::end)
}

/// What is at an offset that is no IP header.
enum Below {
    Tag,
    Unreadable(Unreadable),
}

impl Below {
    #[inline(always)]
    fn end(self) -> Unreadable {
        match self {
            // A third tag: nothing here terminates that many.
            Below::Tag => Unreadable::NotIp,
            Below::Unreadable(why) => why,
        }
    }
}

/// Reads the IP header at `AT`, if the EtherType before it says that there is one.
#[inline(always)]
fn ip<const AT: usize>(ctx: &XdpContext) -> Result<Source, Below> {
    const TRUNCATED: Below = Below::Unreadable(Unreadable::Truncated);
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + AT > end {
        return Err(TRUNCATED);
    }
    // SAFETY: bytes up to `AT` are inside the packet.
    match unsafe { read::<u16>(data + AT - 2) } {
        ethertype::IPV4 => {
            if data + AT + IPV4 > end {
                return Err(TRUNCATED);
            }
            // SAFETY: the whole header is inside the packet.
            Ok(Source::V4(unsafe { load_u32!(data, AT + 12) }))
        }
        ethertype::IPV6 => {
            if data + AT + IPV6 > end {
                return Err(TRUNCATED);
            }
            // SAFETY: the whole header is inside the packet.
            Ok(unsafe { Source::V6(load_u64!(data, AT + 8), load_u64!(data, AT + 16)) })
        }
        ethertype::VLAN | ethertype::QINQ | ethertype::OLD_QINQ => Err(Below::Tag),
        _ => Err(Below::Unreadable(Unreadable::NotIp)),
    }
}

#[inline(always)]
unsafe fn read<T>(at: usize) -> T {
    // SAFETY: the caller's. Not `read_unaligned`: that is taken apart into bytes on this target, while
    // every kernel we run on has efficient unaligned loads.
    unsafe { (at as *const T).read_volatile() }
}

//! Our rules as nf_tables has them, asked of the kernel itself.
//!
//! `iptables-nft` lists nothing of a table that holds one rule which it does not understand
//! ("incompatible, use 'nft' tool"), and neither finds nor deletes what stands behind such a rule.
//! The kernel knows all rules and tells them apart by handles. Read are only rules that consist of
//! exactly what we write, as in [`super::rules`]; nothing is added this way.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::rules::{COMMENT, Family, Rule, Saved, Table, What};
use crate::enforce::xdp::{Attributes, align, u16_at, u32_at};

/// Numbers from `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`.
mod uapi {
    pub const NLMSG_ERROR: u16 = 2;
    pub const NLMSG_DONE: u16 = 3;
    pub const NLM_F_REQUEST: u16 = 1;
    pub const NLM_F_ACK: u16 = 4;
    pub const NLM_F_DUMP: u16 = 0x300;
    pub const NLM_F_DUMP_INTR: u16 = 0x10;
    pub const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
    pub const NFNL_MSG_BATCH_END: u16 = 0x11;
    pub const SUBSYSTEM: u16 = 10;
    pub const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
    pub const GETCHAIN: u16 = SUBSYSTEM << 8 | 4;
    pub const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
    pub const GETRULE: u16 = SUBSYSTEM << 8 | 7;
    pub const DELRULE: u16 = SUBSYSTEM << 8 | 8;
    pub const CHAIN_TABLE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const RULE_TABLE: u16 = 1;
    pub const RULE_CHAIN: u16 = 2;
    pub const RULE_HANDLE: u16 = 3;
    pub const RULE_EXPRESSIONS: u16 = 4;
    pub const EXPR_NAME: u16 = 1;
    pub const EXPR_DATA: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const PAYLOAD_BASE: u16 = 2;
    pub const PAYLOAD_OFFSET: u16 = 3;
    pub const NETWORK_HEADER: u32 = 1;
    pub const BITWISE_MASK: u16 = 4;
    pub const BITWISE_XOR: u16 = 5;
    pub const CMP_OP: u16 = 2;
    pub const CMP_DATA: u16 = 3;
    pub const MATCH_NAME: u16 = 1;
    pub const MATCH_INFO: u16 = 3;
    pub const COUNTER_BYTES: u16 = 1;
    pub const COUNTER_PACKETS: u16 = 2;
    pub const IMMEDIATE_DATA: u16 = 2;
    pub const NF_DROP: u32 = 0;
}

/// A list that changes all the time while it is read is read so often at most.
const DUMP_TRIES: usize = 8;
/// So long the kernel may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rules that are deleted in one transaction.
const AT_ONCE: usize = 1000;

/// Our rules in one table, and all its chains. A table that does not exist holds nothing.
///
/// # Errors
/// The kernel's, also when the table never kept still.
pub(super) fn read(family: Family, table: Table) -> io::Result<Saved> {
    for _ in 0..DUMP_TRIES {
        let mut saved = Saved::default();
        let chains = dump(family, uapi::GETCHAIN, uapi::NEWCHAIN, None, |attributes| {
            let of = |kind| attribute(attributes, kind).map(text);
            if of(uapi::CHAIN_TABLE).as_deref() == Some(table.as_str()) {
                saved.chains.extend(of(uapi::CHAIN_NAME));
            }
        })?;
        let mut found = Vec::new();
        let rules = dump(family, uapi::GETRULE, uapi::NEWRULE, Some(table), |attributes| {
            if attribute(attributes, uapi::RULE_TABLE).map(text).as_deref() == Some(table.as_str()) {
                found.extend(rule(attributes, family));
            }
        })?;
        if chains && rules {
            saved.rules = found;
            return Ok(saved);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the rules changed each time while they were read"))
}

/// Deletes these rules of one table, by their handles.
///
/// # Errors
/// The kernel's; of those that go together none has gone then.
pub(super) fn delete(family: Family, table: Table, rules: &[&Rule]) -> io::Result<()> {
    for some in rules.chunks(AT_ONCE) {
        let socket = socket()?;
        let mut batch = message(uapi::NFNL_MSG_BATCH_BEGIN, uapi::NLM_F_REQUEST, 0, uapi::SUBSYSTEM, &[]);
        for (n, rule) in some.iter().enumerate() {
            let Some(handle) = rule.handle else { continue };
            let attributes = [
                (uapi::RULE_TABLE, cstr(table.as_str())),
                (uapi::RULE_CHAIN, cstr(&rule.chain)),
                (uapi::RULE_HANDLE, handle.to_be_bytes().to_vec()),
            ];
            // The last answers for all: either everything of a batch is done or nothing.
            let ack = if n + 1 == some.len() { uapi::NLM_F_ACK } else { 0 };
            batch.extend(message(uapi::DELRULE, uapi::NLM_F_REQUEST | ack, family_number(family), 0, &attributes));
        }
        batch.extend(message(uapi::NFNL_MSG_BATCH_END, uapi::NLM_F_REQUEST, 0, uapi::SUBSYSTEM, &[]));
        net::send(&socket, &batch, SendFlags::empty())?;
        let mut acknowledged = false;
        while !acknowledged {
            receive(&socket, |kind, _, payload| {
                if kind == uapi::NLMSG_ERROR {
                    error_of(payload)?;
                    acknowledged = true;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn family_number(family: Family) -> u8 {
    (match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    }) as u8
}

fn socket() -> io::Result<OwnedFd> {
    let socket =
        net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

/// One message: netlink's header, nfnetlink's, attributes.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    for (kind, value) in attributes {
        bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(align(bytes.len()), 0);
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// Asks for everything of one kind and shows the attributes of each; whether nothing changed meanwhile.
fn dump(family: Family, ask: u16, answer: u16, table: Option<Table>, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
    let socket = socket()?;
    let attributes: Vec<_> = table.map(|table| (uapi::RULE_TABLE, cstr(table.as_str()))).into_iter().collect();
    let flags = uapi::NLM_F_REQUEST | uapi::NLM_F_DUMP;
    net::send(&socket, &message(ask, flags, family_number(family), 0, &attributes), SendFlags::empty())?;
    let (mut whole, mut done) = (true, false);
    while !done {
        receive(&socket, |kind, flags, payload| {
            whole &= flags & uapi::NLM_F_DUMP_INTR == 0;
            match kind {
                // The end of a dump that failed in its middle carries the reason, as an error does.
                uapi::NLMSG_DONE | uapi::NLMSG_ERROR => {
                    done = true;
                    match error_of(payload) {
                        // No table of this name: it holds nothing.
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                        other => other,
                    }
                }
                kind if kind == answer => {
                    each(payload.get(4..).unwrap_or_default());
                    Ok(())
                }
                _ => Ok(()),
            }
        })?;
    }
    Ok(whole)
}

/// Shows the messages of one datagram: kind, flags, what follows netlink's header.
fn receive(socket: &OwnedFd, mut each: impl FnMut(u16, u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0u8; 1 << 17];
    let (filled, whole) = loop {
        match net::recv(socket, &mut buffer[..], RecvFlags::TRUNC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if whole > buffer.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is longer than its buffer"));
    }
    let mut rest = &buffer[..filled];
    while let (Some(len), Some(kind), Some(flags)) = (u32_at(rest, 0), u16_at(rest, 4), u16_at(rest, 6)) {
        let len = (len as usize).max(16);
        let Some(payload) = rest.get(16..len) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut"));
        };
        each(kind, flags, payload)?;
        rest = rest.get(align(len)..).unwrap_or_default();
    }
    Ok(())
}

fn error_of(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map(u32::cast_signed) {
        None | Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
    }
}

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// The text before the first NUL.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn be32(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(attributes, kind)?.try_into().ok()?))
}

fn be64(attributes: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(attribute(attributes, kind)?.try_into().ok()?))
}

/// The bytes of a nested value.
fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    attribute(attribute(attributes, kind)?, uapi::DATA_VALUE)
}

/// A rule; `None` when it is not ours.
fn rule(attributes: &[u8], family: Family) -> Option<Rule> {
    let source_at = match family {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    let (mut source, mut mask, mut reads_source) = (None, None, false);
    let (mut set, mut marked, mut drops, mut counted) = (false, false, false, (0, 0));
    for (_, expression) in Attributes(attribute(attributes, uapi::RULE_EXPRESSIONS)?) {
        let name = text(attribute(expression, uapi::EXPR_NAME)?);
        let data = attribute(expression, uapi::EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "payload" if !reads_source => {
                reads_source = be32(data, uapi::PAYLOAD_BASE)? == uapi::NETWORK_HEADER
                    && be32(data, uapi::PAYLOAD_OFFSET)? == source_at;
                reads_source.then_some(())?;
            }
            "bitwise" if reads_source && mask.is_none() => {
                value(data, uapi::BITWISE_XOR)?.iter().all(|byte| *byte == 0).then_some(())?;
                mask = Some(value(data, uapi::BITWISE_MASK)?);
            }
            "cmp" if reads_source && source.is_none() => {
                (be32(data, uapi::CMP_OP)? == 0).then_some(())?;
                source = Some(value(data, uapi::CMP_DATA)?);
            }
            "match" => match text(attribute(data, uapi::MATCH_NAME)?).as_str() {
                "comment" if text(attribute(data, uapi::MATCH_INFO)?) == COMMENT => marked = true,
                // A set is named by a number, and which one that is cannot be told: an index, dimensions, and which of them
                // are sources.
                "set" if matches!(attribute(data, uapi::MATCH_INFO)?, [_, _, 1, flags, ..] if flags & 2 != 0) => {
                    set = true
                }
                _ => return None,
            },
            "counter" => {
                counted = (be64(data, uapi::COUNTER_PACKETS)?, be64(data, uapi::COUNTER_BYTES)?);
            }
            "immediate" => {
                let verdict = attribute(attribute(data, uapi::IMMEDIATE_DATA)?, uapi::DATA_VERDICT)?;
                drops = be32(verdict, uapi::VERDICT_CODE)? == uapi::NF_DROP;
                drops.then_some(())?;
            }
            _ => return None,
        }
    }
    if !marked || !drops || reads_source != source.is_some() {
        return None;
    }
    let what = match (source, set) {
        (Some(address), false) => What::Prefix(prefix(address, mask, family)?),
        (None, true) => What::Set(family),
        (None, false) => What::Prefix(family.everything()),
        (Some(_), true) => return None,
    };
    Some(Rule {
        chain: text(attribute(attributes, uapi::RULE_CHAIN)?),
        what,
        packets: counted.0,
        bytes: counted.1,
        handle: Some(be64(attributes, uapi::RULE_HANDLE)?),
    })
}

/// The prefix that is compared with: whole bytes of an address, or all of it under a mask.
fn prefix(address: &[u8], mask: Option<&[u8]>, family: Family) -> Option<IpNet> {
    let length = match mask {
        None => 8 * address.len(),
        Some(mask) => {
            let ones: usize = mask.iter().map(|byte| byte.count_ones() as usize).sum();
            let leading = |n: usize| mask.get(n / 8).is_some_and(|byte| byte << (n % 8) & 0x80 != 0);
            (0..ones).all(leading).then_some(ones)?
        }
    };
    let length = u8::try_from(length).ok()?;
    let mut bytes = [0; 16];
    bytes.get_mut(..address.len())?.copy_from_slice(address);
    let [a, b, c, d, ..] = bytes;
    let address = match family {
        Family::V4 => Ipv4Addr::new(a, b, c, d).into(),
        Family::V6 => Ipv6Addr::from(bytes).into(),
    };
    IpNet::new(address, length).ok().map(|prefix| prefix.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nest(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        message(0, 0, 0, 0, attributes)[20..].to_vec()
    }

    fn expression(name: &str, data: &[(u16, Vec<u8>)]) -> (u16, Vec<u8>) {
        (1, nest(&[(uapi::EXPR_NAME, cstr(name)), (uapi::EXPR_DATA, nest(data))]))
    }

    fn data(bytes: &[u8]) -> Vec<u8> {
        nest(&[(uapi::DATA_VALUE, bytes.to_vec())])
    }

    fn be(number: u32) -> Vec<u8> {
        number.to_be_bytes().to_vec()
    }

    fn source(at: u32) -> (u16, Vec<u8>) {
        expression("payload", &[(1, be(1)), (2, be(1)), (3, be(at)), (4, be(4))])
    }

    fn equals(address: &[u8], op: u32) -> (u16, Vec<u8>) {
        expression("cmp", &[(1, be(1)), (2, be(op)), (3, data(address))])
    }

    fn comment(text: &str) -> (u16, Vec<u8>) {
        let mut info = text.as_bytes().to_vec();
        info.resize(256, 0);
        expression("match", &[(1, cstr("comment")), (2, be(0)), (3, info)])
    }

    fn counter() -> (u16, Vec<u8>) {
        expression("counter", &[(1, 588u64.to_be_bytes().to_vec()), (2, 7u64.to_be_bytes().to_vec())])
    }

    fn verdict(code: u32) -> (u16, Vec<u8>) {
        expression("immediate", &[(1, be(0)), (2, nest(&[(2, nest(&[(1, be(code))]))]))])
    }

    fn read(family: Family, expressions: &[(u16, Vec<u8>)]) -> Option<Rule> {
        let attributes = [
            (uapi::RULE_TABLE, cstr("filter")),
            (uapi::RULE_CHAIN, cstr("INPUT")),
            (uapi::RULE_HANDLE, 9u64.to_be_bytes().to_vec()),
            (uapi::RULE_EXPRESSIONS, nest(expressions)),
        ];
        rule(&nest(&attributes), family)
    }

    #[test]
    fn knows_its_own_rules_and_only_those() {
        let ours = [source(12), equals(&[203, 0, 113, 9], 0), comment("anomaly"), counter(), verdict(0)];
        let what = What::Prefix("203.0.113.9/32".parse().expect("a prefix"));
        let wanted = Rule { chain: "INPUT".into(), what, packets: 7, bytes: 588, handle: Some(9) };
        assert_eq!(read(Family::V4, &ours), Some(wanted));
        let three = [source(12), equals(&[203, 0, 113], 0), comment("anomaly"), counter(), verdict(0)];
        let found = read(Family::V4, &three).map(|rule| rule.what);
        assert_eq!(found, Some(What::Prefix("203.0.113.0/24".parse().expect("a prefix"))));
        let v6 = [source(8), equals(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 7], 0), comment("anomaly"), counter(), verdict(0)];
        let found = read(Family::V6, &v6).map(|rule| rule.what);
        assert_eq!(found, Some(What::Prefix("2001:db8:0:7::/64".parse().expect("a prefix"))));
        let masked = expression("bitwise", &[(4, data(&[255, 255, 252, 0])), (5, data(&[0; 4]))]);
        let wide = [source(12), masked, equals(&[203, 0, 112, 0], 0), comment("anomaly"), counter(), verdict(0)];
        let found = read(Family::V4, &wide).map(|rule| rule.what);
        assert_eq!(found, Some(What::Prefix("203.0.112.0/22".parse().expect("a prefix"))));
        let set = [
            expression("match", &[(1, cstr("set")), (3, vec![7, 0, 1, 2, 0, 0])]),
            comment("anomaly"),
            counter(),
            verdict(0),
        ];
        assert_eq!(read(Family::V4, &set).map(|rule| rule.what), Some(What::Set(Family::V4)));

        let address = equals(&[203, 0, 113, 9], 0);
        let protocol = expression("meta", &[(1, be(1)), (2, be(16))]);
        let foreign: [&[(u16, Vec<u8>)]; 8] = [
            &[source(12), address.clone(), comment("not-anomaly"), counter(), verdict(0)],
            &[source(12), address.clone(), counter(), verdict(0)],
            &[source(12), address.clone(), comment("anomaly"), counter(), verdict(1)],
            &[source(12), equals(&[203, 0, 113, 9], 1), comment("anomaly"), counter(), verdict(0)],
            &[source(16), address.clone(), comment("anomaly"), counter(), verdict(0)],
            &[protocol, source(12), address.clone(), comment("anomaly"), counter(), verdict(0)],
            &[source(12), address, comment("anomaly"), counter()],
            &[source(12), comment("anomaly"), counter(), verdict(0)],
        ];
        for (n, expressions) in foreign.iter().enumerate() {
            assert_eq!(read(Family::V4, expressions), None, "{n}");
        }
    }

    #[test]
    fn a_mask_with_a_hole_is_no_prefix() {
        assert_eq!(prefix(&[10, 0, 0, 0], Some(&[255, 0, 255, 0]), Family::V4), None);
        assert_eq!(prefix(&[1; 17], None, Family::V6), None);
        assert_eq!(prefix(&[10], None, Family::V4), "10.0.0.0/8".parse().ok());
    }
}

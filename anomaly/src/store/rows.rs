//! The engine's types as rows, and back.
//!
//! Words rather than numbers for enums: a file outlives the order of variants. A row whose
//! evidence cannot be understood keeps its ban.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::{BanState, Recorded, finding};
use crate::engine::{Ban, Origin, Sample};
use crate::report::HistoryPoint;
use crate::time::Timestamp;

/// Samples kept per ban, and bytes kept of each text: evidence is bounded whatever a client sent.
const MAX_SAMPLES: usize = 16;
const MAX_SAMPLE_BYTES: usize = 2048;
/// Bytes kept of an operator's words.
const MAX_NOTE_BYTES: usize = 2048;

/// The name of the `nth` part of something learned; all but the first lie before [`after_parts`].
pub(super) fn part_name(name: &str, nth: usize) -> String {
    if nth == 0 { name.to_owned() } else { format!("{name}.{nth:05}") }
}

/// A name behind those of all parts.
pub(super) fn after_parts(name: &str) -> String {
    format!("{name}/")
}

/// A prefix as a key that sorts by family, first address, length; so that all prefixes inside
/// another one are one range of keys.
pub(super) fn key(prefix: &IpNet) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    match prefix.network() {
        IpAddr::V4(a) => {
            key.push(4);
            key.extend(a.octets());
        }
        IpAddr::V6(a) => {
            key.push(6);
            key.extend(a.octets());
        }
    }
    key.push(prefix.prefix_len());
    key
}

/// The least and the greatest key of the prefixes that begin inside `prefix`.
pub(super) fn keys_inside(prefix: &IpNet) -> (Vec<u8>, Vec<u8>) {
    let mut least = key(prefix);
    let mut greatest = match prefix.broadcast() {
        last @ IpAddr::V4(_) | last @ IpAddr::V6(_) => key(&IpNet::from(last)),
    };
    if let (Some(a), Some(b)) = (least.last_mut(), greatest.last_mut()) {
        *a = 0;
        *b = u8::MAX;
    }
    (least, greatest)
}

/// The keys of the prefixes that hold `prefix` and are wider.
pub(super) fn keys_around(prefix: &IpNet) -> Vec<Vec<u8>> {
    let mut keys = Vec::with_capacity(usize::from(prefix.prefix_len()));
    let mut wider = prefix.supernet();
    while let Some(p) = wider {
        keys.push(key(&p));
        wider = p.supernet();
    }
    keys
}

/// Reads a key; `None` for bytes that are none.
pub(super) fn prefix(key: &[u8]) -> Option<IpNet> {
    let (&len, rest) = key.split_last()?;
    let (&family, octets) = rest.split_first()?;
    let address = match family {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?)),
        6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)),
        _ => return None,
    };
    IpNet::new(address, len).ok()
}

impl BanState {
    /// The word that `explain` and the store use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Lifted => "lifted",
            Self::InPast => "in_past",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Active, Self::Expired, Self::Lifted, Self::InPast].into_iter().find(|s| s.as_str() == word)
    }
}

/// SQLite's integers are signed.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// How many bans there are, and how many of them are of IPv4: for the next start, which would have to count them.
pub(super) fn ban_counts(bans: &[Ban]) -> [u8; 8] {
    let v4 = bans.iter().filter(|ban| matches!(ban.prefix, IpNet::V4(_))).count();
    (bans.len() as u64 | (v4 as u64) << 32).to_le_bytes()
}

/// Bans, and those of IPv4, that [`ban_counts`] has written; `None` for other bytes.
pub(super) fn read_ban_counts(bytes: &[u8]) -> Option<(usize, usize)> {
    let counts = u64::from_le_bytes(bytes.try_into().ok()?);
    Some((counts as u32 as usize, (counts >> 32) as usize))
}

/// The columns of [`ban`], in its order.
pub(super) const BAN_COLUMNS: &str = "prefix, at, until, offence, origin, note, finding";
/// The columns of [`recorded`], in its order.
pub(super) const RECORDED_COLUMNS: &str =
    "prefix, at, until, offence, origin, note, finding, state, id, ended_at, packets, bytes";

/// The ban in a row of [`BAN_COLUMNS`], without samples; `None` where the prefix cannot be read.
pub(super) fn ban(row: &Row<'_>) -> Result<Option<Ban>, rusqlite::Error> {
    let Some(prefix) = bytes(row, 0)?.and_then(prefix) else { return Ok(None) };
    Ok(Some(Ban {
        prefix,
        at: Timestamp::from_ms(row.get(1)?),
        until: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_ms),
        offence: row.get::<_, i64>(3)?.try_into().unwrap_or(u32::MAX),
        origin: Origin::from_word(word(row, 4)?).unwrap_or(Origin::Detector),
        note: word(row, 5)?.to_owned(),
        finding: bytes(row, 6)?.and_then(finding::decode),
        in_past: false,
    }))
}

/// A row of [`RECORDED_COLUMNS`] with its id, without samples; `None` where it cannot be read.
pub(super) fn recorded(row: &Row<'_>) -> Result<Option<(i64, Recorded)>, rusqlite::Error> {
    let Some(mut ban) = ban(row)? else { return Ok(None) };
    let Some(state) = BanState::from_word(word(row, 7)?) else { return Ok(None) };
    ban.in_past = state == BanState::InPast;
    let recorded = Recorded {
        ban,
        state,
        ended: row.get::<_, Option<i64>>(9)?.map(Timestamp::from_ms),
        packets: uint(row.get(10)?),
        bytes: uint(row.get(11)?),
    };
    Ok(Some((row.get(8)?, recorded)))
}

fn word<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a str, rusqlite::Error> {
    Ok(row.get_ref(column)?.as_str_or_null().ok().flatten().unwrap_or(""))
}

fn bytes<'a>(row: &'a Row<'_>, column: usize) -> Result<Option<&'a [u8]>, rusqlite::Error> {
    Ok(match row.get_ref(column)? {
        ValueRef::Blob(bytes) => Some(bytes),
        _ => None,
    })
}

/// Puts a ban on record, or replaces the one of the same prefix and moment.
pub(super) fn insert_ban(conn: &Connection, ban: &Ban, state: BanState) -> Result<(), rusqlite::Error> {
    let f = ban.finding.as_ref();
    let ended = (state != BanState::Active).then(|| ban.until.unwrap_or(ban.at).as_ms());
    let id: i64 = conn
        .prepare_cached(
            "INSERT INTO bans (prefix, at, until, offence, origin, state, ended_at, note, finding) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
             ON CONFLICT (prefix, at) DO UPDATE SET until = excluded.until, offence = excluded.offence, \
             origin = excluded.origin, state = excluded.state, ended_at = excluded.ended_at, note = excluded.note, \
             finding = excluded.finding RETURNING id",
        )?
        .query_row(
            (
                key(&ban.prefix),
                ban.at.as_ms(),
                ban.until.map(Timestamp::as_ms),
                ban.offence,
                ban.origin.as_str(),
                state.as_str(),
                ended,
                cut(&ban.note, MAX_NOTE_BYTES),
                f.map(finding::encode),
            ),
            |r| r.get(0),
        )?;
    let samples = f.map_or(&[][..], |f| &f.samples);
    if !samples.is_empty() {
        let mut statement = conn.prepare_cached(
            "INSERT OR REPLACE INTO evidence (ban, n, at, method, path, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let newest = &samples[samples.len().saturating_sub(MAX_SAMPLES)..];
        for (n, sample) in newest.iter().enumerate() {
            let text = |b: &'_ [u8]| b[..b.len().min(MAX_SAMPLE_BYTES)].to_vec();
            statement.execute((
                id,
                int(n as u64),
                sample.at.as_ms(),
                text(&sample.method),
                text(&sample.path),
                sample.status,
            ))?;
        }
    }
    Ok(())
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The samples of a ban on record.
pub(super) fn samples(conn: &Connection, id: i64) -> Result<Vec<Sample>, rusqlite::Error> {
    conn.prepare_cached("SELECT at, method, path, status FROM evidence WHERE ban = ?1 ORDER BY n")?
        .query_map([id], |row| {
            Ok(Sample {
                at: Timestamp::from_ms(row.get(0)?),
                method: row.get::<_, Vec<u8>>(1)?.into(),
                path: row.get::<_, Vec<u8>>(2)?.into(),
                status: row.get::<_, i64>(3)?.try_into().unwrap_or(0),
            })
        })?
        .collect()
}

/// A row of the graph.
pub(super) fn history_point(row: &Row<'_>) -> Result<HistoryPoint, rusqlite::Error> {
    Ok(HistoryPoint {
        t: row.get(0)?,
        rate: row.get(1)?,
        error_ratio: row.get(2)?,
        mean: row.get(3)?,
        stddev: row.get(4)?,
        limit: row.get(5)?,
        bans: uint(row.get(6)?),
        dropped: uint(row.get(7)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a valid prefix")
    }

    #[test]
    fn keys_are_read_back_and_sort_by_family_and_address() {
        let nets = ["0.0.0.0/0", "203.0.113.0/24", "203.0.113.9/32", "::/0", "2001:db8::/64", "2001:db8::1/128"];
        let keys: Vec<Vec<u8>> = nets.iter().map(|n| key(&net(n))).collect();
        assert!(keys.is_sorted());
        for (text, key) in nets.iter().zip(&keys) {
            assert_eq!(prefix(key), Some(net(text)));
        }
        for bad in [&b""[..], b"\x04", b"\x04\x01\x02\x03\x04\x21", b"\x05\x01\x02\x03\x04\x20", b"\x06\x01\x02\x20"] {
            assert_eq!(prefix(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn inside_and_around_cover_exactly_what_overlaps() {
        let asked = net("10.1.2.0/24");
        let (least, greatest) = keys_inside(&asked);
        let around = keys_around(&asked);
        for (text, overlaps) in [
            ("10.1.2.0/24", true),
            ("10.1.2.255/32", true),
            ("10.1.2.128/25", true),
            ("10.1.0.0/16", true),
            ("0.0.0.0/0", true),
            ("10.1.3.0/24", false),
            ("10.1.1.255/32", false),
            ("11.0.0.0/8", false),
            ("::/0", false),
        ] {
            let key = key(&net(text));
            let found = (least <= key && key <= greatest) || around.contains(&key);
            assert_eq!(found, overlaps, "{text}");
        }
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        assert_eq!(cut("grüße", 3), "gr");
        assert_eq!(cut("grüße", 4), "grü");
        assert_eq!(cut("a", 9), "a");
    }
}

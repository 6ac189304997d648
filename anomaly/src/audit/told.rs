//! Which bans and unbans the audit log tells of: a crash may come between a decision and its line.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::iter;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::GENERATIONS;
use super::file::generation;
use crate::engine::Ban;
use crate::report::{DecisionRow, ip_text};
use crate::store::Recorded;
use crate::time::Timestamp;

/// As much of the log's end is read, also of files that were rotated: a few thousand lines, and only the last moments matter.
const NEWEST_BYTES: u64 = 1 << 20;
/// As much where those lines are of less than [`MOMENTS`]: a storm of bans.
const STORM_BYTES: u64 = 16 << 20;
/// Bans are compared with the lines by the log's time, which may lag behind the clock: a second by its stamps, and longer where
/// Nginx keeps lines back.
const MOMENTS: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Line {
    ts: String,
    event: String,
    time: Option<String>,
    ip: Option<String>,
    offence: Option<u32>,
    restored_bans: Option<u64>,
}

/// What the newest lines of the audit log tell of.
#[derive(Debug, Default)]
pub struct Newest {
    begins: Option<Timestamp>,
    /// They tell of a start with no ban in force: of every ban that is in force now, they would tell.
    from_none: bool,
    /// Time and address of each ban.
    bans: HashSet<(String, String)>,
    /// When the nth ban of an address last ended.
    unbans: HashMap<(String, u32), Timestamp>,
}

impl Newest {
    /// Reads the end of the log at `path`. Nothing where it cannot be read: what is not known is not told again.
    pub fn read(path: &Path) -> Self {
        let mut newest = Self::default();
        let mut text = end_of(path, NEWEST_BYTES);
        if span(&text) < MOMENTS {
            text = end_of(path, STORM_BYTES);
        }
        for line in text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok()) {
            newest.begins = newest.begins.or_else(|| Timestamp::parse(&line.ts));
            let (time, ip) = (line.time.unwrap_or_default(), line.ip.unwrap_or_default());
            match (line.event.as_str(), line.offence, Timestamp::parse(&time)) {
                ("ban", ..) => {
                    newest.bans.insert((time, ip));
                }
                ("unban", Some(offence), Some(time)) => {
                    newest.unbans.insert((ip, offence), time);
                }
                ("started", ..) => newest.from_none |= line.restored_bans == Some(0),
                _ => {}
            }
        }
        newest
    }

    /// When the first of these lines was written; `None` where there is none.
    pub fn begins(&self) -> Option<Timestamp> {
        self.begins
    }

    /// Those of `bans` that are not told of although the lines reach back to before they were decided.
    pub fn untold_bans(&self, bans: &[Ban]) -> Vec<Ban> {
        let Some(begins) = self.begins else { return Vec::new() };
        let is_told = |ban: &Ban| {
            let row = DecisionRow::ban(ban);
            self.bans.contains(&(row.time, row.ip.unwrap_or_default()))
        };
        let in_reach = |ban: &Ban| self.from_none || ban.at > begins;
        bans.iter().filter(|ban| !ban.in_past && in_reach(ban) && !is_told(ban)).cloned().collect()
    }

    /// Those of `ended` of whose end no line tells although the lines reach back to before it.
    pub fn untold_ends(&self, ended: Vec<Recorded>) -> Vec<Recorded> {
        let Some(begins) = self.begins else { return Vec::new() };
        let is_told = |ban: &Ban| {
            let told = self.unbans.get(&(ip_text(&ban.prefix), ban.offence));
            // An offence that was taken back or forgotten has the same number again.
            told.is_some_and(|told| *told >= ban.at)
        };
        ended.into_iter().filter(|r| r.ended.is_some_and(|at| at > begins) && !is_told(&r.ban)).collect()
    }
}

/// From the first of these lines to the last.
fn span(text: &[u8]) -> Duration {
    let stamp = |line| Timestamp::parse(&serde_json::from_slice::<Line>(line).ok()?.ts);
    let lines = || text.split(|b| *b == b'\n');
    let ends = lines().find_map(stamp).zip(lines().rev().find_map(stamp));
    ends.map_or(Duration::ZERO, |(first, last)| last.since(first))
}

/// So much of the log's end, from a line's beginning on; nothing where there is none.
fn end_of(path: &Path, bytes: u64) -> Vec<u8> {
    // The newest first.
    let mut files = Vec::new();
    let mut room = bytes;
    for path in iter::once(path.to_owned()).chain((1..=GENERATIONS).map(|n| generation(path, n))) {
        let Ok(text) = end_of_file(&path, room) else { break };
        room -= text.len() as u64;
        files.push(text);
        if room == 0 {
            break;
        }
    }
    files.reverse();
    let mut text = files.concat();
    if room == 0 {
        // Its first line is cut.
        let first = text.iter().position(|b| *b == b'\n').map_or(text.len(), |at| at + 1);
        text.drain(..first);
    }
    text
}

/// At most so many bytes.
fn end_of_file(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(text)
}

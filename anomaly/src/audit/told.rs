//! Which bans and unbans the audit log tells of: a crash may come between a decision and its line.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use crate::engine::Ban;
use crate::report::{DecisionRow, ip_text};
use crate::store::Recorded;
use crate::time::Timestamp;

/// As much of the log's end is read: a few thousand lines, and only the last moments matter.
const NEWEST_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct Line {
    ts: String,
    event: String,
    time: Option<String>,
    ip: Option<String>,
    offence: Option<u32>,
}

/// What the newest lines of the audit log tell of.
#[derive(Debug, Default)]
pub struct Newest {
    begins: Option<Timestamp>,
    /// Time and address of each ban.
    bans: HashSet<(String, String)>,
    /// When the nth ban of an address last ended.
    unbans: HashMap<(String, u32), Timestamp>,
}

impl Newest {
    /// Reads the end of the log at `path`. Nothing where it cannot be read: what is not known is not told again.
    pub fn read(path: &Path) -> Self {
        let mut newest = Self::default();
        let Ok(text) = end_of(path) else { return newest };
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
        bans.iter().filter(|ban| !ban.in_past && ban.at > begins && !is_told(ban)).cloned().collect()
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

/// The end of the file, from a line's beginning on.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let skipped = file.metadata()?.len().saturating_sub(NEWEST_BYTES);
    file.seek(SeekFrom::Start(skipped))?;
    let mut text = Vec::new();
    file.take(NEWEST_BYTES).read_to_end(&mut text)?;
    if skipped > 0 {
        let first = text.iter().position(|b| *b == b'\n').map_or(text.len(), |at| at + 1);
        text.drain(..first);
    }
    Ok(text)
}

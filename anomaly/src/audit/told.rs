//! Which bans the audit log tells of: a crash may come between a ban and its line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use crate::engine::Ban;
use crate::report::DecisionRow;
use crate::time::Timestamp;

/// As much of the log's end is read: a few thousand lines, and only the last moments matter.
const NEWEST_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct Line {
    ts: String,
    event: String,
    time: Option<String>,
    ip: Option<String>,
}

/// Those of `bans` that the log at `path` does not tell of although it reaches back to before they were decided. Empty where
/// the log cannot be read: what is not known is not told again.
pub fn untold(path: &Path, bans: &[Ban]) -> Vec<Ban> {
    let Ok(text) = newest(path) else { return Vec::new() };
    let lines = text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    let (mut begins, mut told) = (None, HashSet::new());
    for line in lines {
        begins = begins.or_else(|| Timestamp::parse(&line.ts));
        if line.event == "ban" {
            told.insert((line.time.unwrap_or_default(), line.ip.unwrap_or_default()));
        }
    }
    let Some(begins) = begins else { return Vec::new() };
    let is_told = |ban: &Ban| {
        let row = DecisionRow::ban(ban);
        told.contains(&(row.time, row.ip.unwrap_or_default()))
    };
    bans.iter().filter(|ban| !ban.in_past && ban.at > begins && !is_told(ban)).cloned().collect()
}

/// The end of the file, from a line's beginning on.
fn newest(path: &Path) -> io::Result<Vec<u8>> {
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

//! Finds the files of an earlier run again, and those that were rotated in between, in the order in which
//! they were written.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::checkpoint::{FileId, Position, modified_ns};
use super::rotated::{self, Generation, Rotated, rotated};

/// Where to go on.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Read already.
    pub(super) finished: Vec<Position>,
    /// To be read before the log, oldest first.
    pub(super) waiting: Vec<(Rotated, Position)>,
    /// Where the log itself was left, if it is one of the files of the earlier run.
    pub(super) current: Option<Position>,
    /// Files with lines yet to be read that are gone.
    pub(super) lost: u64,
}

/// Where a file of the earlier run is now.
enum Now {
    TheLog,
    Sibling(usize),
    Elsewhere(Rotated),
    Nowhere,
}

/// Compares the files of the earlier run with those that are there.
pub(super) fn plan(path: &Path, files: Vec<Position>) -> Plan {
    let mut plan = Plan::default();
    let siblings = rotated(path);
    let log = rotated::open(path).ok();
    let log_id = log.as_ref().and_then(|f| f.metadata().ok()).map(|m| FileId::of(&m));
    let mut taken = vec![None; siblings.len()];
    // The oldest file with lines yet to be read: what was rotated after it has not been read either.
    let mut oldest_unread: Option<(Option<Generation>, i64)> = None;
    for mut position in files {
        let now = find(&position, log.as_ref().zip(log_id), &siblings);
        if !position.finished && oldest_unread.is_none() && !matches!(now, Now::TheLog) {
            let generation = match now {
                Now::Sibling(nth) => Some(siblings[nth].generation.clone()),
                _ => None,
            };
            oldest_unread = Some((generation, position.modified_ns));
        }
        match now {
            Now::TheLog => {
                // The device number of a volume may have changed.
                position.id = log_id.unwrap_or(position.id);
                plan.current = Some(position);
            }
            Now::Sibling(nth) => {
                let known = Position { id: siblings[nth].id, ..position };
                if known.finished {
                    plan.finished.push(known.clone());
                }
                taken[nth] = Some(known);
            }
            Now::Elsewhere(rotated) if !position.finished => plan.waiting.push((rotated, position)),
            Now::Elsewhere(_) => plan.finished.push(position),
            Now::Nowhere => {
                plan.lost += u64::from(!position.finished && position.offset > 0);
                // It may come back: a volume that is mounted late, a file that was moved for a while.
                plan.finished.push(Position { finished: true, ..position });
            }
        }
    }
    for (sibling, taken) in siblings.into_iter().zip(taken) {
        match (taken, &oldest_unread) {
            (Some(position), _) if !position.finished => plan.waiting.push((sibling, position)),
            (Some(_), _) | (None, None) => {}
            (None, Some((generation, modified))) => {
                let newer = generation.as_ref().is_none_or(|g| sibling.generation > *g);
                if newer && sibling.modified_ns >= *modified {
                    let position = sibling.unread();
                    plan.waiting.push((sibling, position));
                }
            }
        }
    }
    plan
}

fn find(position: &Position, log: Option<(&File, FileId)>, siblings: &[Rotated]) -> Now {
    let fits = |file: &File| position.fits(file).unwrap_or(false);
    let by_number = siblings.iter().position(|s| s.id == position.id && s.fits(position));
    if log.is_some_and(|(file, id)| id == position.id && fits(file)) {
        return Now::TheLog;
    }
    if let Some(nth) = by_number {
        return Now::Sibling(nth);
    }
    if let Some(elsewhere) = position.file.as_ref().and_then(|file| elsewhere(Path::new(file), position)) {
        return Now::Elsewhere(elsewhere);
    }
    // A copy, compressed or not. An empty beginning is that of every file.
    if position.offset == 0 {
        return Now::Nowhere;
    }
    if log.is_some_and(|(file, _)| fits(file)) {
        return Now::TheLog;
    }
    siblings.iter().position(|s| s.fits(position)).map_or(Now::Nowhere, Now::Sibling)
}

/// The file under the name it had, when that is not the log's: the log was a symbolic link.
fn elsewhere(path: &Path, position: &Position) -> Option<Rotated> {
    let file = rotated::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let same = FileId::of(&metadata) == position.id && position.fits(&file).ok()?;
    same.then(|| Rotated {
        file,
        path: PathBuf::from(path),
        generation: Generation::Date(String::new()),
        gzip: false,
        id: position.id,
        modified_ns: modified_ns(&metadata),
    })
}

/// What was rotated after the file `old`, which was the log a moment ago: nothing, unless it was rotated
/// twice since. `known` are files that are read already.
pub(super) fn newer_than(path: &Path, old: FileId, known: &[FileId]) -> Vec<(Rotated, Position)> {
    let mut siblings = rotated(path).into_iter();
    let Some(old) = siblings.find(|s| s.id == old) else { return Vec::new() };
    siblings
        .filter(|s| !known.contains(&s.id) && s.modified_ns >= old.modified_ns)
        .map(|s| {
            let position = s.unread();
            (s, position)
        })
        .collect()
}

/// The copy that `copytruncate` made of a file that was read up to `position`, and what was rotated
/// since; nothing where there is no copy. `known` are files that are read already.
pub(super) fn copy_of(path: &Path, position: &Position, known: &[FileId]) -> Vec<(Rotated, Position)> {
    if position.offset == 0 {
        return Vec::new();
    }
    let mut siblings = rotated(path);
    let is_copy = |s: &Rotated| s.id != position.id && !known.contains(&s.id) && s.fits(position);
    let Some(nth) = siblings.iter().rposition(is_copy) else { return Vec::new() };
    let copy = siblings.swap_remove(nth);
    let position = Position { id: copy.id, file: copy.path.to_str().map(Into::into), ..position.clone() };
    let newer = newer_than(path, copy.id, known);
    std::iter::once((copy, position)).chain(newer).collect()
}

/// Whether the log may be looked for: false while nobody lets us see whether it is there.
pub(super) fn can_be_seen(path: &Path) -> std::io::Result<()> {
    match rotated::open(path) {
        Err(error) if !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            // A link to nowhere is as good as missing.
            fs::symlink_metadata(path).and(Err(error))
        }
        _ => Ok(()),
    }
}

//! Finds the files of an earlier run again, and those that were rotated in between, in the order in which
//! they were written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::checkpoint::{FINGERPRINT_BYTES, FileId, Position, ends, modified_ns};
use super::rotated::{self, Generation, Known, Rotated, goes_on, is_fragment, rotated};
use super::source::Source;

/// A file may have been written to for so long after it was rotated: one that is newer by its name may be older by
/// its last write. One minute.
const LATE_NS: i64 = 60_000_000_000;

const SECOND_NS: i64 = 1_000_000_000;

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
    /// It was cut, after it had been read further than the copy goes that `copytruncate` made of it.
    ShorterCopy(usize),
    Elsewhere(Rotated),
    Nowhere,
}

/// What has been rotated since.
enum After {
    /// Later than this generation, whose last write this was.
    Generation(Generation, i64),
    /// Not written to before this; the file itself is gone.
    Time(i64),
}

/// Compares the files of the earlier run with those that are there.
pub(super) fn plan(path: &Path, files: Vec<Position>) -> Plan {
    let mut plan = Plan::default();
    let siblings = rotated(path);
    let log = rotated::open(path).ok();
    let log_id = log.as_ref().and_then(|f| f.metadata().ok()).map(|m| FileId::of(&m));
    let mut taken = vec![None; siblings.len()];
    // What was rotated after the last file has not been read either; nor has what is not known and was written to since then.
    let (mut unread_after, mut unread_since) = (None, None::<i64>);
    for mut position in files {
        let now = match find(&position, log.as_ref().zip(log_id), &siblings, &taken) {
            // What is known by hardly more than its number, which a later one may have been given.
            Now::Sibling(nth)
                if is_vague(&position)
                    && (taken[nth].is_some() || log.as_ref().is_some_and(|log| is_copy(&siblings[nth], log))) =>
            {
                Now::Nowhere
            }
            now => now,
        };
        if !position.finished && is_vague(&position) {
            // (The copy that was made before the log was cut may have the same time.)
            let since = position.modified_ns + i64::from(position.head_len == 0 && matches!(now, Now::TheLog));
            unread_since = Some(unread_since.map_or(since, |earlier| earlier.min(since)));
        } else if !position.finished {
            unread_after = match &now {
                Now::TheLog => None,
                Now::Sibling(nth) | Now::ShorterCopy(nth) => {
                    Some(After::Generation(siblings[*nth].generation.clone(), position.modified_ns))
                }
                Now::Elsewhere(_) | Now::Nowhere => Some(After::Time(position.modified_ns)),
            };
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
            Now::ShorterCopy(nth) => {
                taken[nth] = siblings[nth].at_end().map(|p| Position { finished: true, ..p });
                plan.finished.extend(taken[nth].clone());
            }
            Now::Nowhere => {
                plan.lost += u64::from(!position.finished && position.offset > 0);
                // It may come back: a volume that is mounted late, a file that was moved for a while.
                if position.offset > 0 {
                    plan.finished.push(Position { finished: true, ..position });
                }
            }
        }
    }
    for (sibling, taken) in siblings.into_iter().zip(taken) {
        match taken {
            Some(position) if !position.finished => plan.waiting.push((sibling, position)),
            Some(_) => {}
            // The log may be a link to a file that is named like a rotated one.
            None if Some(sibling.id) == log_id => {}
            None => {
                let newer = unread_after.as_ref().is_some_and(|after| match after {
                    After::Generation(generation, modified) => {
                        sibling.generation > *generation && sibling.modified_ns >= modified - LATE_NS
                    }
                    After::Time(modified) => is_since(*modified, &sibling),
                });
                let newer = newer || unread_since.is_some_and(|since| is_since(since, &sibling));
                if newer && !log.as_ref().is_some_and(|log| is_copy(&sibling, log)) {
                    let position = sibling.unread();
                    plan.waiting.push((sibling, position));
                }
            }
        }
    }
    plan
}

/// Whether a file was written to at `moment` or later. A program that compresses or copies it may keep only whole seconds.
fn is_since(moment: i64, sibling: &Rotated) -> bool {
    let whole = sibling.modified_ns % SECOND_NS == 0;
    sibling.modified_ns >= if whole { moment - moment.rem_euclid(SECOND_NS) } else { moment }
}

/// Whether nothing of a file was handed over, and so little was seen of it that what begins alike may well be another one: also
/// what has its number, which a later file may have been given. It need not be found again: it is read from its beginning,
/// as all that was written to since.
fn is_vague(position: &Position) -> bool {
    position.offset == 0 && position.head_len < FINGERPRINT_BYTES as u64
}

/// `taken` says which siblings are files of the earlier run that have been found.
fn find(position: &Position, log: Option<(&File, FileId)>, siblings: &[Rotated], taken: &[Option<Position>]) -> Now {
    let ended = position.finished.then_some(position.offset);
    let is_log = log.is_some_and(|(file, _)| {
        position.fits(file).unwrap_or(false) && !ended.is_some_and(|len| goes_on(file, position, len))
    });
    let is_it = |s: &Rotated| s.fits(position) && !ended.is_some_and(|len| s.goes_on(position, len));
    // A file that is compressed becomes another one, which may well be given the number of one that has just gone.
    let same_form = |s: &Rotated| position.file.as_ref().is_none_or(|file| file.ends_with(".gz") == s.gzip);
    if is_log && log.is_some_and(|(_, id)| id == position.id) {
        return Now::TheLog;
    }
    if let Some(nth) = siblings.iter().position(|s| s.id == position.id && same_form(s) && is_it(s)) {
        return Now::Sibling(nth);
    }
    if let Some(elsewhere) = position.file.as_ref().and_then(|file| elsewhere(Path::new(file), position)) {
        return Now::Elsewhere(elsewhere);
    }
    // A copy, compressed or not.
    if is_vague(position) {
        return Now::Nowhere;
    }
    if is_log {
        return Now::TheLog;
    }
    let is_free = |taken: &Option<Position>| taken.as_ref().is_none_or(is_vague);
    if let Some(nth) = siblings.iter().zip(taken).position(|(s, taken)| is_free(taken) && is_it(s)) {
        return Now::Sibling(nth);
    }
    siblings.iter().rposition(|s| s.begins(position)).map_or(Now::Nowhere, Now::ShorterCopy)
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
/// twice since.
pub(super) fn newer_than(path: &Path, old: &Position, known: &Known) -> Vec<(Rotated, Position)> {
    let log = rotated::open(path).ok();
    let siblings = rotated(path);
    let place = siblings.iter().position(|s| s.id == old.id);
    // Compressed by now, or copied.
    let place = place.or_else(|| siblings.iter().rposition(|s| !is_vague(old) && s.fits(old)));
    let earliest = if place.is_some() { old.modified_ns - LATE_NS } else { old.modified_ns };
    siblings
        .into_iter()
        .skip(place.map_or(0, |nth| nth + 1))
        // Where it has no rotated name, it was removed: the time has to tell.
        .filter(|s| s.modified_ns >= earliest && !s.is_known(known))
        .filter(|s| !log.as_ref().is_some_and(|log| is_copy(s, log)))
        .map(|s| {
            let position = s.unread();
            (s, position)
        })
        .collect()
}

/// Whether a rotated file is the copy of the present log that `copytruncate` is just making. Many logs begin alike in the
/// first bytes of a line: a file with no more than that is not called a copy.
fn is_copy(sibling: &Rotated, log: &File) -> bool {
    let is_more = || sibling.head().is_ok_and(|head| !is_fragment(&head));
    !sibling.gzip && is_copy_of(&sibling.file, log).unwrap_or(false) && is_more()
}

/// Whether `copy` begins and goes on like `log`, and has no more than that.
pub(super) fn is_copy_of(copy: &File, log: &File) -> io::Result<bool> {
    let len = copy.metadata()?.len();
    Ok(len > 0 && log.metadata()?.len() >= len && ends(copy, len)? == ends(log, len)?)
}

/// The copy that `copytruncate` made of `old`, which has just been cut, and what was rotated since;
/// nothing where there is no copy.
pub(super) fn copy_of(path: &Path, old: &Source, known: &Known) -> Vec<(Rotated, Position)> {
    let position = old.position();
    if position.head_len == 0 {
        return Vec::new();
    }
    let mut siblings = rotated(path);
    let unknown = |s: &Rotated| s.id != old.id && !s.is_known(known);
    let (nth, position) = match siblings.iter().rposition(|s| unknown(s) && s.fits(&position)) {
        Some(nth) => (nth, position),
        // Read further than the copy goes: all of it is known, and need not be found again.
        None => {
            let shorter = siblings.iter().rposition(|s| unknown(s) && s.begins(&position));
            match shorter.and_then(|nth| Some((nth, siblings[nth].at_end()?))) {
                Some(shorter) => shorter,
                None => return Vec::new(),
            }
        }
    };
    let copy = siblings.swap_remove(nth);
    let newer = newer_than(path, &copy.unread(), known);
    std::iter::once((copy, position)).chain(newer).collect()
}

/// Whether the log may be looked for: false while nobody lets us see whether it is there.
pub(super) fn can_be_seen(path: &Path) -> io::Result<()> {
    match rotated::open(path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            // A link to nowhere is as good as missing.
            fs::symlink_metadata(path).and(Err(error))
        }
        _ => Ok(()),
    }
}

//! Finds the rotated files of a log by their names, in the order in which they were written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::checkpoint::{FINGERPRINT_BYTES, FileId, Position, bytes_at, digest, ends, modified_ns};

/// Which rotation a file is of. Later ones are greater.
///
/// Numbers count backwards (`.2` is older than `.1`), dates forwards. Where a directory has both,
/// somebody switched logrotate's `dateext` on: the dates are newer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Generation {
    Number(std::cmp::Reverse<u32>),
    Date(String),
}

/// A rotated file, open: names are shifted at the next rotation, and a compressed file's original goes away.
#[derive(Debug)]
pub(super) struct Rotated {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) generation: Generation,
    pub(super) gzip: bool,
    pub(super) id: FileId,
    pub(super) modified_ns: i64,
}

impl Rotated {
    /// Its position before anything of it was handed over.
    pub(super) fn unread(&self) -> Position {
        let head = self.head().unwrap_or_default();
        Position {
            id: self.id,
            file: self.path.to_str().map(Into::into),
            offset: 0,
            in_oversized: false,
            head_len: head.len() as u64,
            head: digest(&head),
            tail: digest(b""),
            modified_ns: self.modified_ns,
            finished: false,
        }
    }

    /// Its position when all of it is known.
    pub(super) fn at_end(&self) -> Option<Position> {
        let offset = self.file.metadata().ok()?.len();
        let (_, tail) = ends(&self.file, offset).ok()?;
        Some(Position { offset, tail: digest(&tail), ..self.unread() })
    }

    /// Whether this has the same beginning as the file of `position`, and ends before it.
    pub(super) fn begins(&self, position: &Position) -> bool {
        let shorter = self.file.metadata().is_ok_and(|m| m.len() < position.offset);
        !self.gzip && shorter && self.has_head_of(position)
    }

    /// Whether `position` is a place in this file. Of a compressed one only its beginning is
    /// compared.
    pub(super) fn fits(&self, position: &Position) -> bool {
        if self.gzip { self.has_head_of(position) } else { position.fits(&self.file).unwrap_or(false) }
    }

    /// Whether this is one of the files that are known, or a copy of one. The number alone would not do: that of a
    /// file that was removed may have been given to another.
    pub(super) fn is_known(&self, known: &Known) -> bool {
        known.open.contains(&self.id)
            || known.begun.iter().any(|(p, len)| p.head_len > 0 && self.fits(p) && !self.goes_on(p, *len))
    }

    /// As [`goes_on`].
    pub(super) fn goes_on(&self, position: &Position, len: u64) -> bool {
        if !self.gzip {
            return goes_on(&self.file, position, len);
        }
        let longer = self.first(len.saturating_add(1)).is_ok_and(|head| head.len() as u64 > len);
        longer && self.first(position.head_len).is_ok_and(|head| is_fragment(&head))
    }

    fn has_head_of(&self, position: &Position) -> bool {
        self.first(position.head_len)
            .is_ok_and(|head| head.len() as u64 == position.head_len && digest(&head) == position.head)
    }

    /// The first bytes of its (uncompressed) content, as many as a fingerprint is made of.
    pub(super) fn head(&self) -> io::Result<Vec<u8>> {
        self.first(FINGERPRINT_BYTES as u64)
    }

    /// The first bytes of its (uncompressed) content, at most `len` and a fingerprint.
    fn first(&self, len: u64) -> io::Result<Vec<u8>> {
        let len = len.min(FINGERPRINT_BYTES as u64);
        let mut file = &self.file;
        file.rewind()?;
        let mut head = Vec::new();
        if self.gzip {
            flate2::read::MultiGzDecoder::new(file).take(len).read_to_end(&mut head)?;
        } else {
            file.take(len).read_to_end(&mut head)?;
        }
        file.rewind()?;
        Ok(head)
    }
}

/// Files that need not be found any more.
#[derive(Debug)]
pub(super) struct Known {
    /// Those that are open, so that nobody else can have their numbers.
    pub(super) open: Vec<FileId>,
    /// Those that are being read or have been, and their lengths.
    pub(super) begun: Vec<(Position, u64)>,
}

/// Whether these first bytes of a file are less than a line: then many files may begin with them.
pub(super) fn is_fragment(head: &[u8]) -> bool {
    head.len() < FINGERPRINT_BYTES && !head.contains(&b'\n')
}

/// Whether `file` goes on where the one of `position`, which it fits, ends after less than a line: then it is another one that
/// begins alike. `len` is the length of the known one.
pub(super) fn goes_on(file: &File, position: &Position, len: u64) -> bool {
    let longer = file.metadata().is_ok_and(|m| m.len() > len);
    longer && bytes_at(file, 0, position.head_len).is_ok_and(|head| is_fragment(&head))
}

/// Opens a regular file without ever waiting for somebody at the other end of a pipe.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// The rotated files of `log`, oldest first; none where the directory cannot be read; without those
/// that cannot be opened.
pub(super) fn rotated(log: &Path) -> Vec<Rotated> {
    let Some(name) = log.file_name().and_then(|n| n.to_str()) else { return Vec::new() };
    let directory = match log.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<Rotated> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let (generation, gzip) = generation(name, entry.file_name().to_str()?)?;
            let path = entry.path();
            let file = open(&path).ok()?;
            let metadata = file.metadata().ok()?;
            let id = FileId::of(&metadata);
            Some(Rotated { file, path, generation, gzip, id, modified_ns: modified_ns(&metadata) })
        })
        .collect();
    // While gzip is at work both forms are there, and only the plain one is whole.
    found.sort_by(|a, b| (&a.generation, a.gzip).cmp(&(&b.generation, b.gzip)));
    found.dedup_by(|b, a| a.generation == b.generation);
    found
}

/// The generation that `name` says, of a log called `log`: `log.1`, `log-20260427`, `log.2.gz`, and with
/// logrotate's `extension` `stem.1.ext`.
fn generation(log: &str, name: &str) -> Option<(Generation, bool)> {
    let (plain, gzip) = match name.strip_suffix(".gz") {
        Some(plain) => (plain, true),
        None => (name, false),
    };
    let (stem, extension) = log.rfind('.').map_or((log, ""), |dot| log.split_at(dot));
    let middle = plain
        .strip_prefix(log)
        .or_else(|| plain.strip_prefix(stem)?.strip_suffix(extension).filter(|_| !extension.is_empty()))?;
    let token = middle.strip_prefix(['.', '-', '_'])?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits(token) && token.len() <= 4 {
        return Some((Generation::Number(std::cmp::Reverse(token.parse().ok()?)), gzip));
    }
    let date = token.split(['-', '_', '.', 'T']).all(digits) && token.len() >= 8;
    date.then(|| (Generation::Date(token.to_owned()), gzip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotated_files() {
        let of = |name| generation("access.json", name).map(|(g, gz)| (format!("{g:?}"), gz));
        assert_eq!(of("access.json.1"), Some(("Number(Reverse(1))".into(), false)));
        assert_eq!(of("access.json.12.gz"), Some(("Number(Reverse(12))".into(), true)));
        assert_eq!(of("access.2.json.gz"), Some(("Number(Reverse(2))".into(), true)));
        for name in ["access.json-20260427", "access-20260427.json", "access.json.2026-04-27", "access.json-2026042709"]
        {
            assert!(matches!(generation("access.json", name), Some((Generation::Date(_), false))), "{name}");
        }
        for name in [
            "access.json",
            "access.json.gz",
            "access.json.bak",
            "access.json.1.bak",
            "access.json.1.xz",
            "other.json.1",
            "access.json-",
            "access.json.1-",
            "access",
            "access.jsonx.1",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn later_generations_are_greater() {
        let g = |name| generation("log", name).expect("a rotated name").0;
        assert!(g("log.1") > g("log.2"));
        assert!(g("log.9") > g("log.10"));
        assert!(g("log-20260428") > g("log-20260427"));
        assert!(g("log-20260428-1777281951") > g("log-20260428-1777281950"));
        assert!(g("log-20260427") > g("log.1"));
    }
}

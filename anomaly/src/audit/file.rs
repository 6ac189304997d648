//! A file that only grows by whole lines, and rotates by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{AuditError, GENERATIONS};

/// How far back the beginning of a torn line is looked for.
const TORN_BYTES: u64 = 1 << 20;

/// Appends with one call per entry; opens, repairs and rotates as needed.
#[derive(Debug)]
pub(super) struct AppendFile {
    path: PathBuf,
    max_bytes: u64,
    file: Option<File>,
    lost: u64,
    failing: Option<String>,
}

impl AppendFile {
    pub(super) fn new(path: &Path, max_bytes: u64) -> Self {
        Self { path: path.to_owned(), max_bytes: max_bytes.max(1), file: None, lost: 0, failing: None }
    }

    pub(super) fn reopen(&mut self, path: &Path, max_bytes: u64) {
        (self.file, self.path, self.max_bytes) = (None, path.to_owned(), max_bytes.max(1));
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// Appends whole lines (`entry` ends in a newline): all of it or, where that fails, nothing.
    pub(super) fn append(&mut self, entry: &[u8]) -> Result<(), AuditError> {
        match self.try_append(entry) {
            Ok(()) => {
                self.failing = None;
                Ok(())
            }
            Err(source) => {
                // Opened afresh next time: the disk may have been remounted.
                self.file = None;
                self.lost += 1;
                self.failing = Some(source.to_string());
                Err(AuditError { path: self.path.clone(), source, lost: self.lost })
            }
        }
    }

    fn try_append(&mut self, entry: &[u8]) -> io::Result<()> {
        let mut len = self.open()?;
        if len > 0 && len.saturating_add(entry.len() as u64) > self.max_bytes {
            match self.rotate() {
                Ok(()) => len = self.open()?,
                // Lines matter more than a tidy size, up to a limit.
                Err(error) if len > self.max_bytes.saturating_mul(2) => return Err(error),
                Err(_) => {}
            }
        }
        let Some(file) = &mut self.file else { return Err(io::Error::other("not open")) };
        let written = loop {
            match file.write(entry) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if written < entry.len() {
            // Half a line is worse than none: take it back.
            file.set_len(len)?;
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"));
        }
        Ok(())
    }

    /// Makes sure that the file that the path names is open; its length.
    fn open(&mut self) -> io::Result<u64> {
        if let Some(file) = &self.file {
            let (ours, named) = (file.metadata()?, fs::metadata(&self.path));
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
                return Ok(ours.len());
            }
            // Renamed or deleted by someone: go on in a new one.
        }
        if let Some(dir) = self.path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(&self.path)?;
        let len = drop_torn_line(&mut file)?;
        self.file = Some(file);
        Ok(len)
    }

    /// `audit.jsonl` becomes `audit.jsonl.1`, that one `.2`, and so on; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..GENERATIONS).rev() {
            match fs::rename(generation(&self.path, n), generation(&self.path, n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, generation(&self.path, 1))?;
        self.file = None;
        Ok(())
    }
}

/// The name of the nth older file.
pub(super) fn generation(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// A crash or a power cut in the middle of a write leaves half a line at the end. It is taken away, so
/// that every line of the file is whole. Returns the length of the file.
fn drop_torn_line(file: &mut File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let tail = len.min(TORN_BYTES);
    if tail == 0 {
        return Ok(len);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(len - 1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(len);
    }
    file.seek(SeekFrom::Start(len - tail))?;
    let mut bytes = Vec::with_capacity(usize::try_from(tail).unwrap_or(0));
    file.take(tail).read_to_end(&mut bytes)?;
    match memchr::memrchr(b'\n', &bytes) {
        Some(newline) => {
            let whole = len - tail + newline as u64 + 1;
            file.set_len(whole)?;
            Ok(whole)
        }
        None if tail == len && bytes.first() == Some(&b'{') => {
            file.set_len(0)?;
            Ok(0)
        }
        // Not a line of ours: leave it, and begin a new one.
        None => {
            file.write_all(b"\n")?;
            Ok(len + 1)
        }
    }
}

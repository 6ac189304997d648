//! What must be remembered to go on reading after a restart. Plain data; `store` saves it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes at the beginning of a file, and before the place where reading stopped, by which it is
/// known again. One line of an access log has about 200, with a stamp and an address in each.
pub(super) const FINGERPRINT_BYTES: usize = 512;

/// Where reading stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The log.
    pub path: PathBuf,
    /// Files that are being read or wait for it, and those finished lately, oldest first.
    pub files: Vec<Position>,
}

/// Device and inode number: a file's name as long as it exists. A later file may get the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        Self { dev: metadata.dev(), inode: metadata.ino() }
    }
}

/// How far one file has been read, and how to know it again under another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which file it was.
    pub id: FileId,
    /// Where it was, symbolic links resolved.
    pub file: Option<String>,
    /// Bytes of the (uncompressed) content that have been dealt with: complete lines that were
    /// handed over, and skipped ones.
    pub offset: u64,
    /// Reading stopped inside a line that is skipped because it is too long.
    pub in_oversized: bool,
    /// How many bytes from the beginning have been seen, up to 512.
    pub head_len: u64,
    /// SHA-256 of those, in hex.
    pub head: String,
    /// SHA-256, in hex, of up to 512 bytes before `offset`.
    pub tail: String,
    /// When the file was last written to, in nanoseconds since the epoch.
    pub modified_ns: i64,
    /// It was read to its end, and then nobody wrote to it any more.
    pub finished: bool,
}

impl Position {
    /// Whether this is the content of `file`, perhaps with more behind it. True of any file where none of it was
    /// seen.
    pub(super) fn fits(&self, file: &File) -> io::Result<bool> {
        if file.metadata()?.len() < self.offset.max(self.head_len) {
            return Ok(false);
        }
        let tail_len = self.offset.min(FINGERPRINT_BYTES as u64);
        let same = |at, len, expected: &str| Ok::<_, io::Error>(digest(&bytes_at(file, at, len)?) == expected);
        Ok(same(0, self.head_len, &self.head)? && same(self.offset - tail_len, tail_len, &self.tail)?)
    }
}

/// When a file was last written to, in nanoseconds since the epoch.
pub(super) fn modified_ns(metadata: &std::fs::Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// The bytes that make the fingerprint of a file that was read up to `offset`.
pub(super) fn ends(file: &File, offset: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let len = offset.min(FINGERPRINT_BYTES as u64);
    Ok((bytes_at(file, 0, len)?, bytes_at(file, offset - len, len)?))
}

/// At most `FINGERPRINT_BYTES` bytes, or an error where there are fewer.
pub(super) fn bytes_at(file: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len.min(FINGERPRINT_BYTES as u64) as usize];
    file.read_exact_at(&mut bytes, at).map(|()| bytes)
}

/// SHA-256 in hex.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

//! What must be remembered to go on reading after a restart. Plain data; `store.rs` saves it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where reading stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The log.
    pub path: PathBuf,
    /// Files with lines yet to be read, and those read lately, oldest first; the last one is the log itself.
    pub files: Vec<Position>,
}

/// How far one file has been read, and how to know it again under another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes of complete lines that were handed over (of the uncompressed content).
    pub offset: u64,
    /// SHA-256 of the first bytes.
    pub head: String,
}

//! The tables, their versions, and how a connection is opened.
//!
//! A version is never edited once released: a change is one more entry in `MIGRATIONS`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::StoreError;

/// "anom": tells our databases from those of others.
pub(super) const APPLICATION_ID: i64 = 0x616e_6f6d;

/// Step n takes schema n to schema n + 1.
const MIGRATIONS: &[&str] = &[
    // 1: first release. `prefix` is the key of rows.rs, times are ms since the epoch, words are
    // those of the JSON rows, so that the file can be read with the sqlite3 shell. `finding` is the
    // bytes of finding.rs: sixteen columns more would double the time to load 100,000 bans.
    "CREATE TABLE bans (
        id INTEGER PRIMARY KEY,
        prefix BLOB NOT NULL,
        at INTEGER NOT NULL,
        until INTEGER,
        offence INTEGER NOT NULL,
        origin TEXT NOT NULL,
        state TEXT NOT NULL,
        ended_at INTEGER,
        packets INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        note TEXT NOT NULL,
        finding BLOB
    ) STRICT;
    CREATE UNIQUE INDEX bans_by_prefix ON bans (prefix, at);
    CREATE UNIQUE INDEX bans_active ON bans (prefix) WHERE state = 'active';
    CREATE INDEX bans_ended ON bans (ended_at) WHERE state <> 'active';
    CREATE TABLE evidence (
        ban INTEGER NOT NULL,
        n INTEGER NOT NULL,
        at INTEGER NOT NULL,
        method BLOB NOT NULL,
        path BLOB NOT NULL,
        status INTEGER NOT NULL,
        PRIMARY KEY (ban, n)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE offences (
        prefix BLOB PRIMARY KEY,
        count INTEGER NOT NULL,
        last INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE learned (
        name TEXT PRIMARY KEY,
        saved_at INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE TABLE checkpoints (
        path BLOB PRIMARY KEY,
        saved_at INTEGER NOT NULL,
        value BLOB NOT NULL
    ) STRICT;
    CREATE TABLE history (
        t INTEGER PRIMARY KEY,
        rate REAL NOT NULL,
        error_ratio REAL NOT NULL,
        mean REAL NOT NULL,
        stddev REAL NOT NULL,
        crossed REAL NOT NULL,
        bans INTEGER NOT NULL,
        dropped INTEGER NOT NULL
    ) STRICT;",
    // 2: what was learned is stored in sections (`engine/src/codec.rs`), which 0.1.0 would take for damage and
    // learn anew. No table changes: the new number keeps 0.1.0 from opening the file.
    "-- no change of tables",
];

/// Length that the file of the write-ahead log is cut to once it has been folded in and begins anew. Less than what it is
/// folded in from (`writer::WAL_BYTES`), so that its length says how much there is to fold.
pub(super) const WAL_BYTES_KEPT: u32 = 1 << 20;

/// The schema that this program writes.
pub(super) const NEWEST: i64 = MIGRATIONS.len() as i64;

/// Makes directory and file where missing, with the permissions they should have. SQLite gives its
/// `-wal` and `-shm` files those of the database.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let io = |source: std::io::Error, path: &Path| StoreError::Io {
        path: path.to_owned(),
        kind: source.kind(),
        message: source.to_string(),
    };
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(|e| io(e, dir))?;
    }
    // Not opened when it exists: closing it would drop the POSIX locks that a connection of this
    // process may hold on it.
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io(e, path)),
    }
}

/// A connection that writes, on the newest schema.
///
/// WAL with `synchronous = NORMAL`: a commit is one write without a sync, safe against `kill -9`;
/// a power cut may lose the newest commits, never their order, so that bans, offences and
/// checkpoint still belong together and the log is read again from there.
pub(super) fn open_writer(path: &Path, busy: Duration) -> Result<Connection, StoreError> {
    let mut conn =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(|e| StoreError::from_sqlite(path, e))?;
    let prepared = (|| {
        conn.busy_timeout(busy)?;
        // Checked before anything is written to the file.
        let found = version(&conn)?;
        Ok(found)
    })()
    .map_err(|e| StoreError::from_sqlite(path, e))?;
    let from = prepared.checked(path)?;
    (|| {
        if from == 0 {
            // Only before the first table is made, and it takes a write lock.
            conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        }
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        // Done by a thread of its own (`Store::save_progress`): it syncs.
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        conn.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
        conn.pragma_update(None, "cache_size", -512)?;
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        conn.set_prepared_statement_cache_capacity(32);
        if from < NEWEST {
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // Another process may have been faster.
            let from = tx.pragma_query_value(None, "user_version", |r| r.get::<_, i64>(0))?;
            for step in MIGRATIONS.iter().skip(usize::try_from(from).unwrap_or(0)) {
                tx.execute_batch(step)?;
            }
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", NEWEST)?;
            tx.commit()?;
        }
        Ok(())
    })()
    .map_err(|e| StoreError::from_sqlite(path, e))?;
    Ok(conn)
}

/// A connection that only reads.
///
/// A database in WAL mode wants to write even then (the index of the log beside it). Where nobody can, there is
/// no writer to coordinate with either: without a log the file is immutable, and with one
/// SQLite keeps the index in memory when it believes to be alone.
pub(super) fn open_reader(path: &Path, busy: Duration) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let ready = |conn: Connection, alone: bool| -> Result<(Connection, Version), rusqlite::Error> {
        conn.busy_timeout(busy)?;
        if alone {
            conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        }
        conn.pragma_update(None, "cache_size", -512)?;
        let found = version(&conn)?;
        Ok((conn, found))
    };
    let first = Connection::open_with_flags(path, flags).and_then(|conn| ready(conn, false));
    let (conn, found) = first.or_else(|error| {
        let error = StoreError::from_sqlite(path, error);
        if !matches!(error, StoreError::ReadOnly(_) | StoreError::Full | StoreError::Io { .. }) {
            return Err(error);
        }
        let log = fs::metadata(beside(path, "-wal")).map_or(0, |m| m.len());
        match immutable_uri(path) {
            Some(uri) if log == 0 => {
                Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).and_then(|conn| ready(conn, false))
            }
            _ => Connection::open_with_flags_and_vfs(path, flags, "unix-none").and_then(|conn| ready(conn, true)),
        }
        // The first answer says more.
        .map_err(|_| error)
    })?;
    if found.checked(path)? < NEWEST {
        return Err(StoreError::Other(format!(
            "{} has an older schema; start the daemon once to bring it up to date",
            path.display()
        )));
    }
    Ok(conn)
}

/// What a file says of itself.
struct Version {
    application: i64,
    schema: i64,
    tables: i64,
}

impl Version {
    /// The schema version of one of our files; 0 for an empty file.
    fn checked(&self, path: &Path) -> Result<i64, StoreError> {
        match (self.application, self.schema) {
            (0, 0) if self.tables == 0 => Ok(0),
            (APPLICATION_ID, schema) if schema > NEWEST => {
                Err(StoreError::TooNew { path: path.to_owned(), found: schema, known: NEWEST })
            }
            (APPLICATION_ID, schema) if schema > 0 => Ok(schema),
            _ => Err(StoreError::Foreign(path.to_owned())),
        }
    }
}

fn version(conn: &Connection) -> Result<Version, rusqlite::Error> {
    Ok(Version {
        application: conn.pragma_query_value(None, "application_id", |r| r.get(0))?,
        schema: conn.pragma_query_value(None, "user_version", |r| r.get(0))?,
        tables: conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?,
    })
}

/// `state.db-wal` for `state.db`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn immutable_uri(path: &Path) -> Option<String> {
    let mut uri = String::from("file:");
    for byte in path.to_str()?.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(byte)),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    Some(uri)
}

/// Tells a file from its successor: numbers are used again, so the moment it was made belongs to it.
pub(super) type Identity = (u64, u64, Option<std::time::SystemTime>);

/// Which file a path names now; `None` when there is none.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino(), m.created().ok()))
}

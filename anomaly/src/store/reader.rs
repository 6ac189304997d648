//! Asking without writing: the why-cards, the graph, a stored baseline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{Connection, OptionalExtension as _};

use super::{BUSY_TIMEOUT, Early, Loaded, Recorded, StoreError, rows, schema};
use crate::engine::Offence;
use crate::report::HistoryPoint;
use crate::time::Timestamp;

/// A read-only connection; any thread may have one. It follows the file when that is quarantined or replaced.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    open: Option<(Connection, Option<schema::Identity>)>,
}

impl Reader {
    /// Opens an existing database for reading only.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut reader = Self::later(path);
        reader.conn()?;
        Ok(reader)
    }

    /// A reader of a database that need not exist yet: it is opened when it is first asked.
    pub fn later(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None }
    }

    fn conn(&mut self) -> Result<&Connection, StoreError> {
        let identity = schema::identity(&self.path);
        if self.open.as_ref().is_some_and(|(_, opened)| *opened != identity) {
            self.open = None;
        }
        let (conn, _) = match self.open.take() {
            Some(open) => self.open.insert(open),
            None => {
                let conn = schema::open_reader(&self.path, BUSY_TIMEOUT)?;
                self.open.insert((conn, identity))
            }
        };
        Ok(conn)
    }

    fn ask<T>(&mut self, question: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>) -> Result<T, StoreError> {
        let answer = question(self.conn()?);
        answer.map_err(|e| {
            // A connection that failed is not asked again.
            self.open = None;
            StoreError::from_sqlite(&self.path, e)
        })
    }

    /// Bans on record whose prefix shares an address with this one, newest first, at most `limit`,
    /// with complete evidence. Costs what it finds: prefixes inside are one range of an index, the wider
    /// ones at most 128 look-ups.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn explain(&mut self, prefix: &IpNet, limit: usize) -> Result<Vec<Recorded>, StoreError> {
        self.ask(|conn| explain(conn, prefix, limit))
    }

    /// The newest bans that have ended after `since`, by running out or by hand, without samples; at most `limit`, in the
    /// order of their ends. Not those that a newer ban of the same prefix replaced: no unban ended them.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn ended(&mut self, since: Timestamp, limit: usize) -> Result<Vec<Recorded>, StoreError> {
        self.ask(|conn| {
            let sql = format!(
                "SELECT {} FROM bans WHERE state <> 'active' AND state <> 'in_past' AND ended_at > ?1 AND NOT EXISTS \
                 (SELECT 1 FROM bans AS newer WHERE newer.prefix = bans.prefix AND newer.at = bans.ended_at) \
                 ORDER BY ended_at DESC LIMIT ?2",
                rows::RECORDED_COLUMNS
            );
            let mut statement = conn.prepare(&sql)?;
            let mut found = statement.query((since.as_ms(), i64::try_from(limit).unwrap_or(i64::MAX)))?;
            let mut bans = Vec::new();
            while let Some(row) = found.next()? {
                bans.extend(rows::recorded(row)?.map(|(_, recorded)| recorded));
            }
            bans.reverse();
            Ok(bans)
        })
    }

    /// Points of the graph from `since` (seconds since the epoch) on, oldest first.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn history(&mut self, since: i64) -> Result<Vec<HistoryPoint>, StoreError> {
        self.ask(|conn| {
            conn.prepare_cached(
                "SELECT t, rate, error_ratio, mean, stddev, crossed, bans, dropped FROM history WHERE t >= ?1 ORDER BY t",
            )?
            .query_map([since], rows::history_point)?
            .collect()
        })
    }

    /// What the engine had learned (`State::baseline`); empty when nothing is stored.
    ///
    /// # Errors
    /// Why the database cannot be read.
    pub fn baseline(&mut self) -> Result<Vec<u8>, StoreError> {
        self.ask(|conn| learned(conn, "baseline"))
    }
}

/// `replay --baseline DB`: the baseline of a database, without changing the file.
///
/// # Errors
/// Why the database cannot be read.
pub fn read_baseline(path: &Path) -> Result<Vec<u8>, StoreError> {
    Reader::open(path)?.baseline()
}

fn explain(conn: &Connection, prefix: &IpNet, limit: usize) -> Result<Vec<Recorded>, rusqlite::Error> {
    let (least, greatest) = rows::keys_inside(prefix);
    let around = rows::keys_around(prefix);
    let marks = vec!["?"; around.len()].join(", ");
    let sql = format!(
        "SELECT {} FROM bans WHERE (prefix BETWEEN ? AND ?) OR prefix IN ({marks}) ORDER BY at DESC, id DESC LIMIT ?",
        rows::RECORDED_COLUMNS
    );
    let mut values: Vec<rusqlite::types::Value> = vec![least.into(), greatest.into()];
    values.extend(around.into_iter().map(Into::into));
    values.push(i64::try_from(limit).unwrap_or(i64::MAX).into());
    let mut statement = conn.prepare(&sql)?;
    let mut found = statement.query(rusqlite::params_from_iter(values))?;
    let mut bans = Vec::new();
    while let Some(row) = found.next()? {
        let Some((id, mut recorded)) = rows::recorded(row)? else { continue };
        if let Some(finding) = &mut recorded.ban.finding {
            finding.samples = rows::samples(conn, id)?;
        }
        bans.push(recorded);
    }
    Ok(bans)
}

/// Bytes of one thing that the engine has learned; empty when there is none.
pub(super) fn learned(conn: &Connection, name: &str) -> Result<Vec<u8>, rusqlite::Error> {
    let mut statement =
        conn.prepare_cached("SELECT bytes FROM learned WHERE name = ?1 OR (name >= ?2 AND name < ?3) ORDER BY name")?;
    let mut parts = statement.query((name, rows::part_name(name, 1), rows::after_parts(name)))?;
    let mut bytes = Vec::new();
    while let Some(part) = parts.next()? {
        bytes.extend_from_slice(part.get_ref(0)?.as_blob()?);
    }
    Ok(bytes)
}

/// How lately progress must have been saved for bans that are active on record to be still running, most of them.
const LATELY: Duration = Duration::from_secs(600);

/// Everything a restart needs, as of one moment; `tell` as in [`Store::open_telling`].
///
/// [`Store::open_telling`]: super::Store::open_telling
pub(super) fn load(
    conn: &Connection,
    now: Timestamp,
    tell: &mut dyn FnMut(Early<'_>),
) -> Result<Loaded, rusqlite::Error> {
    use std::os::unix::ffi::OsStringExt as _;
    let tx = conn.unchecked_transaction()?;
    let saved = tx
        .query_row("SELECT saved_at, bytes FROM learned WHERE name = 'saved'", [], |r| {
            Ok((Timestamp::from_ms(r.get(0)?), rows::read_ban_counts(r.get_ref(1)?.as_blob()?)))
        })
        .optional()?;
    let mut loaded = Loaded { saved_at: saved.map(|(at, _)| at), ..Loaded::default() };
    let count = |sql: &str| Ok::<usize, rusqlite::Error>(tx.query_row(sql, [], |r| r.get::<_, u32>(0))? as usize);
    if let Some((at, Some((bans, v4)))) = saved
        && now.since(at) < LATELY
    {
        // To count them takes longer than to look at one, and this many rows there were at most.
        let most = count("SELECT coalesce(max(id), 0) FROM bans")?;
        tell(Early::Count(v4.min(most)));
        loaded.state.bans.reserve_exact(bans.min(most));
    }
    // In the order of the file: an index would look for every row by itself.
    let mut statement =
        tx.prepare(&format!("SELECT {} FROM bans NOT INDEXED WHERE state = 'active'", rows::BAN_COLUMNS))?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        loaded.state.bans.extend(rows::ban(row)?);
    }
    tell(Early::Bans(&loaded.state.bans));
    loaded.state.bans.sort_by_cached_key(|b| b.at);
    loaded.state.offences.reserve_exact(count("SELECT count(*) FROM offences")?);
    let mut statement = tx.prepare("SELECT prefix, count, last FROM offences")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let Some(prefix) = row.get_ref(0)?.as_blob().ok().and_then(rows::prefix) else { continue };
        let count = row.get::<_, i64>(1)?.try_into().unwrap_or(u32::MAX);
        loaded.state.offences.push(Offence { prefix, count, last: Timestamp::from_ms(row.get(2)?) });
    }
    loaded.state.baseline = learned(&tx, "baseline")?;
    loaded.state.windows = learned(&tx, "windows")?;
    let mut statement = tx.prepare("SELECT path, value FROM checkpoints")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let path = std::ffi::OsString::from_vec(row.get(0)?);
        loaded.checkpoints.insert(path.into(), row.get(1)?);
    }
    Ok(loaded)
}

//! The one connection that writes, and what it keeps while it cannot.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::quarantine::quarantine;
use super::reader::{self, Reader};
use super::transaction::{Decision, Plan, Unwritten, hash, prune, sum_of, write_checkpoints, write_learned};
use super::{BUSY_TIMEOUT, Early, Loaded, MAX_UNWRITTEN, OPEN_TIMEOUT, Opened, StoreError, rows, schema};
use crate::engine::{Ban, Origin, State, Unban};
use crate::report::HistoryPoint;
use crate::time::Timestamp;

/// Size of the write-ahead log from which it is folded into the database.
const WAL_BYTES: u64 = 4 << 20;
const _: () = assert!((schema::WAL_BYTES_KEPT as u64) < WAL_BYTES);
/// Size from which that is done at once, whatever it costs: a storm of bans leaves no pause to do it in.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// Bans whose counts one call of [`Store::update_counts`] writes, so that the next ban does not wait long.
pub const COUNTS: usize = 5_000;
/// Pages that one call of [`Store::prune`] gives back to the file system.
const PRUNE_PAGES: u32 = 256;

/// Decisions that are written in one transaction: enough that its own cost is nothing beside theirs, and few enough that
/// nobody else who reads or writes the database waits for long.
pub const AT_ONCE: usize = 1_000;

/// Decisions on their way to the disk.
#[derive(Debug)]
struct Batch {
    /// Those to be written at once.
    pending: usize,
    /// The first failure.
    outcome: Result<(), StoreError>,
}

/// The writing connection.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// `None` while the file cannot be opened; every call that writes tries again.
    conn: Option<Connection>,
    /// Which file `conn` (or the load at start) has read.
    identity: Option<schema::Identity>,
    unwritten: VecDeque<Unwritten>,
    /// One of these may wait for the progress.
    deferred: bool,
    /// Prefixes banned since the last saved progress: see [`Store::record_unban`].
    fresh: HashSet<IpNet>,
    /// Decisions of which the evidence was given up.
    lost: u64,
    /// Why the newest write failed; nothing but `retry` and the progress tries again until then.
    failing: Option<StoreError>,
    /// Why the newest progress was not saved.
    stale: Option<StoreError>,
    /// Packets of active bans as of the last [`Store::update_counts`].
    counted: HashMap<IpNet, u64>,
    /// The bans on record may not be those in force.
    out_of_step: bool,
    /// Sum of the hashes of all offences on disk; `None` when unknown.
    offences: Option<u64>,
    /// Hashes of the baseline and the windows on disk; `None` when unknown.
    learned: [Option<u64>; 2],
    checkpoint: Option<JoinHandle<Result<(), StoreError>>>,
    /// What the newest checkpoint said.
    folded: Result<(), StoreError>,
    /// Newest time that a call brought, to name a quarantined file.
    now: Timestamp,
}

impl Store {
    /// Opens the database, making directory (0750) and file (0640) where missing, migrates it and
    /// loads what it holds. A damaged file is moved aside and a fresh one started; one that can be
    /// read but not written is loaded all the same ([`Opened::trouble`]).
    ///
    /// # Errors
    /// [`StoreError::TooNew`] and [`StoreError::Foreign`], and whatever keeps an existing database from being
    /// read: starting without it would lift every ban.
    pub fn open(path: &Path, now: Timestamp) -> Result<Opened, StoreError> {
        Self::open_telling(path, now, &mut |_| {})
    }

    /// The same; `tell` is told of the bans as soon as something is known of them. Where the database turns out to be damaged
    /// after that, it was told of bans that are lost.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_telling(path: &Path, now: Timestamp, tell: &mut dyn FnMut(Early<'_>)) -> Result<Opened, StoreError> {
        let mut store = Self {
            path: path.to_owned(),
            conn: None,
            identity: None,
            unwritten: VecDeque::new(),
            deferred: false,
            fresh: HashSet::new(),
            lost: 0,
            failing: None,
            stale: None,
            counted: HashMap::new(),
            out_of_step: false,
            offences: None,
            learned: [None; 2],
            checkpoint: None,
            folded: Ok(()),
            now,
        };
        let (loaded, quarantined, trouble) = match store.open_and_load(tell) {
            Ok(loaded) => (loaded, None, None),
            Err(StoreError::Corrupt(problem)) => {
                store.conn = None;
                let quarantined = quarantine(path, now, problem)?;
                match store.open_and_load(tell) {
                    Ok(loaded) => (loaded, Some(quarantined), None),
                    Err(error) => (Loaded::default(), Some(quarantined), Some(error)),
                }
            }
            Err(error) if error.is_fatal() || matches!(error, StoreError::Busy) => return Err(error),
            Err(error) => {
                store.conn = None;
                if schema::identity(path).is_some_and(|_| std::fs::metadata(path).is_ok_and(|m| m.len() > 0)) {
                    let conn = schema::open_reader(path, OPEN_TIMEOUT)?;
                    let loaded = reader::load(&conn, now, tell).map_err(|e| StoreError::from_sqlite(path, e))?;
                    store.identity = schema::identity(path);
                    (loaded, None, Some(error))
                } else {
                    (Loaded::default(), None, Some(error))
                }
            }
        };
        store.out_of_step = false;
        if store.conn.is_some() {
            store.offences = Some(sum_of(&loaded.state.offences));
            store.learned = [Some(hash(&loaded.state.baseline)), Some(hash(&loaded.state.windows))];
        }
        store.failing.clone_from(&trouble);
        Ok(Opened { store, loaded, quarantined, trouble })
    }

    fn open_and_load(&mut self, tell: &mut dyn FnMut(Early<'_>)) -> Result<Loaded, StoreError> {
        self.connect(OPEN_TIMEOUT)?;
        let Some(conn) = &self.conn else { return Err(StoreError::Busy) };
        let loaded = reader::load(conn, self.now, tell).map_err(|e| StoreError::from_sqlite(&self.path, e))?;
        conn.busy_timeout(BUSY_TIMEOUT).map_err(|e| StoreError::from_sqlite(&self.path, e))?;
        Ok(loaded)
    }

    fn connect(&mut self, busy: Duration) -> Result<(), StoreError> {
        if self.conn.is_some() {
            return Ok(());
        }
        // Before it is made: a new file may well get the number of the deleted one.
        let before = schema::identity(&self.path);
        schema::create(&self.path)?;
        self.conn = Some(schema::open_writer(&self.path, busy)?);
        if before.is_none() || before != self.identity {
            self.out_of_step = true;
        }
        self.identity = schema::identity(&self.path);
        self.offences = None;
        self.learned = [None; 2];
        Ok(())
    }

    /// Runs one transaction; connects first where need be, and keeps score of failures.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut Plan<'_>, &Transaction<'_>) -> Result<T, rusqlite::Error>,
    ) -> Result<T, StoreError> {
        let result = self.connect(BUSY_TIMEOUT).and_then(|()| {
            let Some(conn) = &mut self.conn else { return Err(StoreError::Busy) };
            let mut plan = Plan {
                unwritten: &self.unwritten,
                offences: self.offences,
                learned: self.learned,
                out_of_step: self.out_of_step,
            };
            let result = (|| {
                let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let done = work(&mut plan, &tx)?;
                tx.commit()?;
                Ok(done)
            })();
            match result {
                Ok(done) => {
                    (self.offences, self.learned, self.out_of_step) = (plan.offences, plan.learned, plan.out_of_step);
                    Ok(done)
                }
                Err(error) => Err(StoreError::from_sqlite(&self.path, error)),
            }
        });
        match result {
            Ok(done) => {
                self.failing = None;
                Ok(done)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&mut self, error: StoreError) -> StoreError {
        let error = match error {
            StoreError::Corrupt(problem) => {
                self.conn = None;
                match quarantine(&self.path, self.now, problem) {
                    Ok(quarantined) => {
                        // The fresh file is made by the next call; nothing of what was on record is in it.
                        self.out_of_step = true;
                        self.identity = None;
                        self.counted.clear();
                        self.failing = None;
                        self.stale = Some(StoreError::Damaged(quarantined.clone()));
                        return StoreError::Damaged(quarantined);
                    }
                    Err(error) => error,
                }
            }
            error => error,
        };
        if !matches!(error, StoreError::Busy | StoreError::Full) {
            // A connection in an unknown state is not used again.
            self.conn = None;
        }
        self.failing = Some(error.clone());
        error
    }

    /// Puts a ban on record. When this fails the ban is kept and written by a later call: go on
    /// and enforce it. Never syncs to disk, so it costs tens of microseconds.
    ///
    /// A ban that was over before it was decided (`in_past`) is written with the next progress: it
    /// is decided again when the log is read again.
    ///
    /// # Errors
    /// Why it is not on disk yet.
    pub fn record_ban(&mut self, ban: &Ban) -> Result<(), StoreError> {
        self.record_bans([ban])
    }

    /// As [`Store::record_ban`], for all of them together: one transaction for `AT_ONCE` of them.
    ///
    /// # Errors
    /// Why not all are on disk yet.
    pub fn record_bans<'a>(&mut self, bans: impl IntoIterator<Item = &'a Ban>) -> Result<(), StoreError> {
        let mut batch = Batch { pending: 0, outcome: Ok(()) };
        for ban in bans {
            if !ban.in_past {
                self.now = self.now.max(ban.at);
                self.fresh.insert(ban.prefix);
            }
            self.keep(&mut batch, Decision::Ban(Box::new(ban.clone())), ban.in_past);
        }
        self.finish(batch)
    }

    /// Ends the ban on record, with what it had dropped. As [`Store::record_ban`] otherwise.
    ///
    /// Where an operator lifts a ban that is younger than the last saved progress, that is only written together with
    /// the next progress: after a crash the log is read again from before that ban, and, its offence being
    /// taken back, would lead to it a second time. So call [`Store::save_progress`] right after an operator's unban.
    ///
    /// # Errors
    /// Why it is not on disk yet.
    pub fn record_unban(&mut self, unban: &Unban, packets: u64, bytes: u64) -> Result<(), StoreError> {
        self.record_unbans(&[(unban.clone(), packets, bytes)])
    }

    /// As [`Store::record_unban`], for all of them together: each with its packets and bytes.
    ///
    /// # Errors
    /// Why not all are on disk yet.
    pub fn record_unbans(&mut self, unbans: &[(Unban, u64, u64)]) -> Result<(), StoreError> {
        let mut batch = Batch { pending: 0, outcome: Ok(()) };
        for (unban, packets, bytes) in unbans {
            self.now = self.now.max(unban.at);
            let with_progress = unban.origin == Origin::Operator && self.fresh.contains(&unban.prefix);
            self.keep(&mut batch, Decision::Unban(unban.clone(), *packets, *bytes), with_progress);
        }
        self.finish(batch)
    }

    fn keep(&mut self, batch: &mut Batch, decision: Decision, with_progress: bool) {
        if self.deferred && !with_progress {
            // What was decided about one prefix is written in order.
            for earlier in self.unwritten.iter_mut().filter(|u| u.with_progress) {
                if earlier.decision.prefix() == decision.prefix() {
                    earlier.with_progress = false;
                }
            }
        }
        self.deferred |= with_progress;
        self.unwritten.push_back(Unwritten { decision, with_progress });
        if self.unwritten.len() > MAX_UNWRITTEN {
            self.unwritten.pop_front();
            self.lost += 1;
            self.out_of_step = true;
        }
        if self.fresh.len() > MAX_UNWRITTEN {
            self.fresh.clear();
        }
        batch.pending += usize::from(!with_progress);
        if batch.pending >= AT_ONCE {
            self.write_batch(batch);
        }
    }

    fn write_batch(&mut self, batch: &mut Batch) {
        let outcome = match &self.failing {
            // One attempt a second is enough: `retry`.
            Some(error) => Err(error.clone()),
            None if batch.pending == 0 => Ok(()),
            None => self.write_decisions(),
        };
        batch.pending = 0;
        if batch.outcome.is_ok() {
            batch.outcome = outcome;
        }
    }

    fn finish(&mut self, mut batch: Batch) -> Result<(), StoreError> {
        self.write_batch(&mut batch);
        batch.outcome
    }

    fn write_decisions(&mut self) -> Result<(), StoreError> {
        self.write(|plan, tx| plan.write_decisions(tx, false))?;
        self.unwritten.retain(|u| u.with_progress);
        self.deferred = !self.unwritten.is_empty();
        self.fold_log();
        Ok(())
    }

    /// Saves everything the engine knows (`state.bans` being **all** bans in force) and how far the
    /// logs were read, in one transaction together with decisions that were not written yet. After a
    /// crash the daemon continues here. Costs the bytes of windows and baseline where they changed.
    ///
    /// Where the bans on record may differ from those in force (the disk was full for long, the
    /// file was damaged or replaced) they are made the same.
    ///
    /// # Errors
    /// Why it was not saved; the newest earlier save stays in force. Also when the save went well, but
    /// folding the write-ahead log into the database failed meanwhile.
    pub fn save_progress(
        &mut self,
        now: Timestamp,
        state: &State,
        checkpoints: &BTreeMap<PathBuf, Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.now = self.now.max(now);
        if self.conn.is_some() && schema::identity(&self.path) != self.identity {
            // Moved or deleted under us: SQLite would go on writing to a file that nobody finds.
            self.conn = None;
            self.identity = None;
        }
        let written = self.write(|plan, tx| {
            plan.write_decisions(tx, true)?;
            plan.write_bans(tx, now, &state.bans)?;
            plan.write_offences(tx, &state.offences)?;
            plan.write_learned(tx, now, state)?;
            write_checkpoints(tx, now, checkpoints)
        });
        self.stale = written.as_ref().err().cloned();
        written?;
        self.unwritten.clear();
        self.fresh.clear();
        self.fold_log();
        self.folded.clone()
    }

    /// Copies a long write-ahead log into the database. On a thread of its own, because that syncs: the
    /// disk may be slow, and the next ban must not wait for it.
    fn fold_log(&mut self) {
        if let Some(thread) = self.checkpoint.take_if(|c| c.is_finished()) {
            self.folded = thread.join().unwrap_or_else(|_| Err(StoreError::Other("the checkpoint thread died".into())));
        }
        let log = std::fs::metadata(schema::beside(&self.path, "-wal")).map_or(0, |m| m.len());
        if log < WAL_BYTES || self.checkpoint.is_some() {
            return;
        }
        fn fold(conn: &Connection) -> Result<(), rusqlite::Error> {
            conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        }
        let path = self.path.clone();
        if let (Some(conn), true) = (&self.conn, log > WAL_BYTES_MAX) {
            self.folded = fold(conn).map_err(|e| StoreError::from_sqlite(&path, e));
            return;
        }
        let work = move || {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(&path, flags)
                .and_then(|conn| fold(&conn))
                .map_err(|e| StoreError::from_sqlite(&path, e))
        };
        // Without a thread the log stays long until the next time.
        self.checkpoint = std::thread::Builder::new().name("checkpoint".into()).spawn(work).ok();
    }

    /// Updates packets and bytes of active bans; writes those that changed since the last call, [`COUNTS`] at
    /// most (the others are written by the next calls). Bring all that are in force.
    ///
    /// # Errors
    /// Why they were not written; nothing is kept, the next call brings newer ones.
    pub fn update_counts(&mut self, counts: &[(IpNet, u64, u64)]) -> Result<(), StoreError> {
        if let Some(error) = &self.failing {
            return Err(error.clone());
        }
        let mut counted = HashMap::with_capacity(counts.len());
        let mut changed = Vec::new();
        for (prefix, packets, bytes) in counts {
            match self.counted.get(prefix) {
                Some(known) if known == packets => {
                    counted.insert(*prefix, *packets);
                }
                // A ban that has dropped nothing has nothing to write.
                None if *packets == 0 => {
                    counted.insert(*prefix, 0);
                }
                _ if changed.len() < COUNTS => {
                    changed.push((rows::key(prefix), rows::int(*packets), rows::int(*bytes)));
                    counted.insert(*prefix, *packets);
                }
                Some(known) => {
                    counted.insert(*prefix, *known);
                }
                None => {}
            }
        }
        self.write(|_, tx| {
            let mut update = tx.prepare_cached(
                "UPDATE bans SET packets = ?2, bytes = ?3 WHERE prefix = ?1 AND state = 'active' AND (packets, bytes) <> (?2, ?3)",
            )?;
            changed.into_iter().try_for_each(|row| update.execute(row).map(drop))
        })?;
        self.counted = counted;
        Ok(())
    }

    /// Adds a point to the graph (one a minute).
    ///
    /// # Errors
    /// Why it was not written; it is not kept.
    pub fn add_history(&mut self, point: &HistoryPoint) -> Result<(), StoreError> {
        self.unless_failing(|_, tx| {
            let real = |v: f64| if v.is_finite() { v } else { 0.0 };
            tx.prepare_cached(
                "INSERT OR REPLACE INTO history (t, rate, error_ratio, mean, stddev, crossed, bans, dropped) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute((
                point.t,
                real(point.rate),
                real(point.error_ratio),
                real(point.mean),
                real(point.stddev),
                real(point.limit),
                rows::int(point.bans),
                rows::int(point.dropped),
            ))?;
            Ok(())
        })
    }

    fn unless_failing(
        &mut self,
        work: impl FnOnce(&mut Plan<'_>, &Transaction<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), StoreError> {
        match &self.failing {
            Some(error) => Err(error.clone()),
            None => self.write(work),
        }
    }

    /// Tries again to write what is kept in memory. Call it about once a second while
    /// [`Store::failing`] is not `None`; between two calls nothing waits for a broken disk.
    ///
    /// # Errors
    /// Why it still cannot.
    pub fn retry(&mut self) -> Result<(), StoreError> {
        self.write_decisions()
    }

    /// Decisions that are in memory only. Some wait for [`Store::save_progress`] although all is well.
    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Decisions whose evidence was given up, because too many could not be written.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Why something is not on disk that should be: the newest write failed, or the newest
    /// progress (a small write may well fit where a big one does not). `None` while all is well.
    pub fn failing(&self) -> Option<&StoreError> {
        self.failing.as_ref().or(self.stale.as_ref())
    }

    /// Forgets what is too old or too much (the bounds are those of this module). Call it about once an hour;
    /// works in small pieces and returns `true` when there is more to do.
    ///
    /// # Errors
    /// Why it could not.
    pub fn prune(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        self.now = self.now.max(now);
        let mut more = false;
        self.unless_failing(|_, tx| {
            more = prune(tx, now)?;
            Ok(())
        })?;
        if let Some(conn) = &self.conn {
            let give_back = || {
                let mut pages = conn.prepare(&format!("PRAGMA incremental_vacuum({PRUNE_PAGES})"))?;
                let mut rows = pages.query([])?;
                while rows.next()?.is_some() {}
                conn.pragma_query_value(None, "freelist_count", |r| r.get::<_, i64>(0))
            };
            match give_back() {
                Ok(free) => more |= free > 0,
                Err(e) => {
                    let error = StoreError::from_sqlite(&self.path, e);
                    return Err(self.failed(error));
                }
            }
        }
        Ok(more)
    }

    /// Bytes of the database and its write-ahead log on disk.
    pub fn size_bytes(&self) -> u64 {
        [self.path.clone(), schema::beside(&self.path, "-wal")]
            .iter()
            .map(|p| std::fs::metadata(p).map_or(0, |m| m.len()))
            .sum()
    }

    /// A read-only connection of its own, for another thread; opened when it is first asked.
    pub fn reader(&self) -> Reader {
        Reader::later(&self.path)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It has a connection of its own to the file that is being closed; a panic there is not ours.
        let _ = self.checkpoint.take().map(JoinHandle::join);
    }
}

/// `replay --learn DB`: writes the baseline of a new or existing database and touches nothing else in it.
///
/// # Errors
/// Why it could not be written.
pub fn write_baseline(path: &Path, now: Timestamp, baseline: &[u8]) -> Result<(), StoreError> {
    schema::create(path)?;
    let mut conn = schema::open_writer(path, OPEN_TIMEOUT)?;
    (|| {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        write_learned(&tx, "baseline", now, baseline)?;
        tx.commit()
    })()
    .map_err(|e| StoreError::from_sqlite(path, e))
}

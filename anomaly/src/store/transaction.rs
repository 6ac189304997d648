//! What one transaction of the writer does: decisions, offences, what was learned, checkpoints; and what is
//! forgotten.
//!
//! Nothing here is kept when the transaction is not committed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use ipnet::IpNet;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{BanState, KEEP_CHECKPOINTS, KEEP_ENDED, KEEP_HISTORY, MAX_ENDED, MAX_OFFENCES, rows};
use crate::engine::{Ban, Offence, Origin, State, Unban};
use crate::time::Timestamp;

/// Bytes of what was learned that one row holds: SQLite copies each row twice on its way to the disk.
const LEARNED_PART: usize = 64 << 10;
/// Rows that one call of [`prune`] removes from a table.
const PRUNE_ROWS: u32 = 2_000;

/// A decision that is not on disk yet.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) decision: Decision,
    /// Only to be written together with the progress.
    pub(super) with_progress: bool,
}

#[derive(Debug)]
pub(super) enum Decision {
    Ban(Box<Ban>),
    Unban(Unban, u64, u64),
}

impl Decision {
    pub(super) fn prefix(&self) -> &IpNet {
        match self {
            Self::Ban(ban) => &ban.prefix,
            Self::Unban(unban, ..) => &unban.prefix,
        }
    }
}

/// What one transaction works on; taken over by the store only when it was committed.
pub(super) struct Plan<'a> {
    pub(super) unwritten: &'a VecDeque<Unwritten>,
    pub(super) offences: Option<u64>,
    pub(super) learned: [Option<u64>; 2],
    pub(super) out_of_step: bool,
}

impl Plan<'_> {
    pub(super) fn write_decisions(&mut self, tx: &Transaction<'_>, all: bool) -> Result<(), rusqlite::Error> {
        for entry in self.unwritten.iter().filter(|u| all || !u.with_progress) {
            match &entry.decision {
                Decision::Ban(ban) => self.write_ban(tx, ban)?,
                Decision::Unban(unban, packets, bytes) => self.write_unban(tx, unban, *packets, *bytes)?,
            }
        }
        Ok(())
    }

    fn write_ban(&mut self, tx: &Transaction<'_>, ban: &Ban) -> Result<(), rusqlite::Error> {
        if ban.in_past {
            rows::insert_ban(tx, ban, BanState::InPast)?;
        } else {
            end_active(tx, &ban.prefix, ban.at)?;
            rows::insert_ban(tx, ban, BanState::Active)?;
        }
        self.set_offence(tx, &ban.prefix, Some((ban.offence, ban.at)))
    }

    fn write_unban(
        &mut self,
        tx: &Transaction<'_>,
        unban: &Unban,
        packets: u64,
        bytes: u64,
    ) -> Result<(), rusqlite::Error> {
        let state = match unban.origin {
            Origin::Detector => BanState::Expired,
            Origin::Operator => BanState::Lifted,
        };
        tx.prepare_cached(
            "UPDATE bans SET state = ?3, ended_at = ?4, packets = max(packets, ?5), bytes = max(bytes, ?6) WHERE id = \
             (SELECT id FROM bans WHERE prefix = ?1 AND offence = ?2 AND state <> 'in_past' ORDER BY at DESC LIMIT 1)",
        )?
        .execute((
            rows::key(&unban.prefix),
            unban.offence,
            state.as_str(),
            unban.at.as_ms(),
            rows::int(packets),
            rows::int(bytes),
        ))?;
        if unban.origin == Origin::Operator
            && let Some((count, last)) = offence(tx, &unban.prefix)?
            && count == unban.offence
        {
            // Lifted by hand: that offence is taken back.
            return self.set_offence(tx, &unban.prefix, (count > 1).then(|| (count - 1, last)));
        }
        Ok(())
    }

    fn set_offence(
        &mut self,
        tx: &Transaction<'_>,
        prefix: &IpNet,
        to: Option<(u32, Timestamp)>,
    ) -> Result<(), rusqlite::Error> {
        let from = offence(tx, prefix)?;
        match to {
            Some((count, last)) => write_offence(tx, &Offence { prefix: *prefix, count, last })?,
            None => {
                tx.prepare_cached("DELETE FROM offences WHERE prefix = ?1")?.execute([rows::key(prefix)])?;
            }
        }
        if let Some(sum) = &mut self.offences {
            if let Some((count, last)) = from {
                *sum = sum.wrapping_sub(sum_of(&[Offence { prefix: *prefix, count, last }]));
            }
            if let Some((count, last)) = to {
                *sum = sum.wrapping_add(sum_of(&[Offence { prefix: *prefix, count, last }]));
            }
        }
        Ok(())
    }

    /// Makes the bans on record those in force, where they may differ.
    pub(super) fn write_bans(
        &mut self,
        tx: &Transaction<'_>,
        now: Timestamp,
        bans: &[Ban],
    ) -> Result<(), rusqlite::Error> {
        if !self.out_of_step {
            return Ok(());
        }
        let mut on_record: HashMap<Vec<u8>, i64> = tx
            .prepare_cached("SELECT prefix, at FROM bans WHERE state = 'active'")?
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<Result<_, _>>()?;
        for ban in bans.iter().filter(|b| !b.in_past) {
            if on_record.remove(&rows::key(&ban.prefix)) != Some(ban.at.as_ms()) {
                end_active(tx, &ban.prefix, ban.at)?;
                rows::insert_ban(tx, ban, BanState::Active)?;
            }
        }
        let mut end = tx.prepare_cached(
            "UPDATE bans SET state = 'lifted', ended_at = min(coalesce(until, ?2), ?2) WHERE prefix = ?1 AND state = 'active'",
        )?;
        for key in on_record.into_keys() {
            end.execute((key, now.as_ms()))?;
        }
        self.out_of_step = false;
        Ok(())
    }

    /// Writes offences that differ from those on disk; finds out that none does without reading any.
    pub(super) fn write_offences(&mut self, tx: &Transaction<'_>, offences: &[Offence]) -> Result<(), rusqlite::Error> {
        let mut newest: Vec<Offence>;
        let offences = if offences.len() > MAX_OFFENCES {
            newest = offences.to_vec();
            newest.select_nth_unstable_by_key(MAX_OFFENCES, |o| std::cmp::Reverse(o.last));
            newest.truncate(MAX_OFFENCES);
            &newest
        } else {
            offences
        };
        let wanted = sum_of(offences);
        if self.offences == Some(wanted) {
            return Ok(());
        }
        let mut on_disk: HashMap<Vec<u8>, (u32, i64)> = tx
            .prepare_cached("SELECT prefix, count, last FROM offences")?
            .query_map([], |r| Ok((r.get(0)?, (r.get::<_, i64>(1)?.try_into().unwrap_or(u32::MAX), r.get(2)?))))?
            .collect::<Result<_, _>>()?;
        for offence in offences {
            if on_disk.remove(&rows::key(&offence.prefix)) != Some((offence.count, offence.last.as_ms())) {
                write_offence(tx, offence)?;
            }
        }
        let mut delete = tx.prepare_cached("DELETE FROM offences WHERE prefix = ?1")?;
        for key in on_disk.into_keys() {
            delete.execute([key])?;
        }
        self.offences = Some(wanted);
        Ok(())
    }

    /// What was learned, where it changed, and that everything is saved.
    pub(super) fn write_learned(
        &mut self,
        tx: &Transaction<'_>,
        now: Timestamp,
        state: &State,
    ) -> Result<(), rusqlite::Error> {
        let bytes = [&state.baseline, &state.windows];
        for ((name, bytes), written) in ["baseline", "windows"].into_iter().zip(bytes).zip(&mut self.learned) {
            let new = hash(bytes);
            if *written != Some(new) {
                write_learned(tx, name, now, bytes)?;
                *written = Some(new);
            }
        }
        write_learned(tx, "saved", now, &rows::ban_counts(&state.bans))
    }
}

/// A ban that is replaced by a newer one of the same prefix has ended.
fn end_active(tx: &Transaction<'_>, prefix: &IpNet, replaced_at: Timestamp) -> Result<(), rusqlite::Error> {
    tx.prepare_cached(
        "UPDATE bans SET state = 'lifted', ended_at = ?2 WHERE prefix = ?1 AND state = 'active' AND at <> ?2",
    )?
    .execute((rows::key(prefix), replaced_at.as_ms()))?;
    Ok(())
}

fn offence(tx: &Transaction<'_>, prefix: &IpNet) -> Result<Option<(u32, Timestamp)>, rusqlite::Error> {
    tx.prepare_cached("SELECT count, last FROM offences WHERE prefix = ?1")?
        .query_row([rows::key(prefix)], |r| {
            Ok((r.get::<_, i64>(0)?.try_into().unwrap_or(u32::MAX), Timestamp::from_ms(r.get(1)?)))
        })
        .optional()
}

fn write_offence(tx: &Transaction<'_>, offence: &Offence) -> Result<(), rusqlite::Error> {
    tx.prepare_cached("INSERT OR REPLACE INTO offences (prefix, count, last) VALUES (?1, ?2, ?3)")?.execute((
        rows::key(&offence.prefix),
        offence.count,
        offence.last.as_ms(),
    ))?;
    Ok(())
}

/// Stores one thing that was learned under its name.
pub(super) fn write_learned(
    tx: &Transaction<'_>,
    name: &str,
    now: Timestamp,
    bytes: &[u8],
) -> Result<(), rusqlite::Error> {
    let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO learned (name, saved_at, bytes) VALUES (?1, ?2, ?3)")?;
    let mut parts = 0;
    // What is empty has a part as well: there, and empty, is not the same as not there.
    for part in bytes.chunks(LEARNED_PART).chain(bytes.is_empty().then_some(bytes)) {
        insert.execute((rows::part_name(name, parts), now.as_ms(), part))?;
        parts += 1;
    }
    tx.prepare_cached("DELETE FROM learned WHERE name >= ?1 AND name < ?2")?
        .execute((rows::part_name(name, parts), rows::after_parts(name)))?;
    Ok(())
}

/// Stores how far each log was read.
pub(super) fn write_checkpoints(
    tx: &Transaction<'_>,
    now: Timestamp,
    checkpoints: &BTreeMap<PathBuf, Vec<u8>>,
) -> Result<(), rusqlite::Error> {
    let mut insert =
        tx.prepare_cached("INSERT OR REPLACE INTO checkpoints (path, saved_at, value) VALUES (?1, ?2, ?3)")?;
    for (path, value) in checkpoints {
        insert.execute((path.as_os_str().as_bytes(), now.as_ms(), value))?;
    }
    Ok(())
}

/// Removes a piece of what is beyond the bounds; true when there is more.
pub(super) fn prune(tx: &Transaction<'_>, now: Timestamp) -> Result<bool, rusqlite::Error> {
    let mut removed_all_due = true;
    let ended: u32 = tx.query_row("SELECT count(*) FROM bans WHERE state <> 'active'", [], |r| r.get(0))?;
    let too_many = ended.saturating_sub(MAX_ENDED).min(PRUNE_ROWS);
    let old: Vec<i64> = tx
        .prepare_cached(
            "SELECT id FROM (SELECT id, ended_at, row_number() OVER (ORDER BY ended_at) AS n FROM bans \
             WHERE state <> 'active' ORDER BY ended_at LIMIT ?1) WHERE n <= ?2 OR ended_at < ?3",
        )?
        .query_map((PRUNE_ROWS, too_many, now.minus(KEEP_ENDED).as_ms()), |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    removed_all_due &= old.len() < PRUNE_ROWS as usize;
    for id in old {
        tx.prepare_cached("DELETE FROM evidence WHERE ban = ?1")?.execute([id])?;
        tx.prepare_cached("DELETE FROM bans WHERE id = ?1")?.execute([id])?;
    }
    let points = tx
        .prepare_cached("DELETE FROM history WHERE t IN (SELECT t FROM history WHERE t < ?1 ORDER BY t LIMIT ?2)")?
        .execute((now.minus(KEEP_HISTORY).as_secs(), PRUNE_ROWS))?;
    removed_all_due &= points < PRUNE_ROWS as usize;
    tx.prepare_cached("DELETE FROM checkpoints WHERE saved_at < ?1")?.execute([now.minus(KEEP_CHECKPOINTS).as_ms()])?;
    Ok(!removed_all_due)
}

/// Tells two byte strings apart within one run of the process.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    use std::hash::BuildHasher as _;
    foldhash::quality::FixedState::with_seed(0x616e_6f6d).hash_one(bytes)
}

/// Order does not matter, and one row can be taken out again.
pub(super) fn sum_of(offences: &[Offence]) -> u64 {
    use std::hash::BuildHasher as _;
    let state = foldhash::quality::FixedState::with_seed(0x616e_6f6d);
    offences.iter().fold(0u64, |sum, o| {
        sum.wrapping_add(state.hash_one((o.prefix.network(), o.prefix.prefix_len(), o.count, o.last)))
    })
}

//! A replay's jumps forward in log time, until the next records confirm them.
//!
//! Past logs have no wall clock to hold a stamp against, and one bad line must not blind the detector. So a record more
//! than [`JUMP`] ahead waits until most of the next [`WITNESSES`] records are no older than it is: then time goes
//! on there. Where most of them are older, the stamp was wrong.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::record::Record;
use crate::time::Timestamp;

/// A step forward that is believed at once.
pub const JUMP: Duration = Duration::from_secs(60);
/// Records that are asked.
const WITNESSES: usize = 10;

/// A record that owns its text.
#[derive(Clone, Debug)]
pub struct Waiting {
    client: IpAddr,
    /// Its own stamp.
    pub time: Timestamp,
    method: Box<[u8]>,
    path: Box<[u8]>,
    status: u16,
    response_size: u64,
    peer: Option<IpAddr>,
    damaged: bool,
}

impl Waiting {
    /// Copies a record.
    pub fn new(record: &Record<'_>) -> Self {
        Self {
            client: record.client,
            time: record.time,
            method: record.method.into(),
            path: record.path.into(),
            status: record.status,
            response_size: record.response_size,
            peer: record.peer,
            damaged: record.damaged,
        }
    }

    /// The record again.
    pub fn record(&self) -> Record<'_> {
        Record {
            method: &self.method,
            status: self.status,
            response_size: self.response_size,
            peer: self.peer,
            damaged: self.damaged,
            ..Record::new(self.client, self.time)
        }
        .with_path(&self.path)
    }
}

/// What is known of the first record in the queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its stamp can be believed.
    Believed,
    /// It cannot.
    Wrong,
    /// More records are needed.
    Open,
}

/// The records that wait, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    records: VecDeque<Waiting>,
}

impl Queue {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Puts a record at the end.
    pub fn push(&mut self, record: Waiting) {
        self.records.push_back(record);
    }

    /// Judges the first record; `ended` when no more will come.
    pub fn verdict(&self, now: Option<Timestamp>, ended: bool) -> Verdict {
        let Some(first) = self.records.front() else { return Verdict::Open };
        if now.is_some_and(|now| first.time <= now.plus(JUMP)) {
            return Verdict::Believed;
        }
        let older = first.time.minus(JUMP);
        let witnesses = self.records.iter().skip(1).take(WITNESSES);
        let (mut for_it, mut against) = (0, 0);
        for witness in witnesses {
            if witness.time >= older { for_it += 1 } else { against += 1 }
        }
        if against * 2 >= WITNESSES {
            Verdict::Wrong
        } else if for_it * 2 > WITNESSES {
            Verdict::Believed
        } else if ended {
            if against > for_it { Verdict::Wrong } else { Verdict::Believed }
        } else {
            Verdict::Open
        }
    }

    /// Takes the first record.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.records.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(times: &[i64]) -> Queue {
        let mut queue = Queue::default();
        for time in times {
            let record = Record::new(IpAddr::from([192, 0, 2, 1]), Timestamp::from_secs(*time));
            queue.push(Waiting::new(&record));
        }
        queue
    }

    #[test]
    fn a_jump_needs_witnesses() {
        let now = Some(Timestamp::from_secs(1000));
        assert_eq!(queue(&[1060]).verdict(now, false), Verdict::Believed);
        assert_eq!(queue(&[2000]).verdict(now, false), Verdict::Open);
        assert_eq!(queue(&[2000]).verdict(now, true), Verdict::Believed);
        assert_eq!(queue(&[2000, 2001, 2001, 1000, 2005, 3000, 3000, 3001]).verdict(now, false), Verdict::Believed);
        assert_eq!(queue(&[9000, 9000, 1001, 1001, 1001, 1001, 1001]).verdict(now, false), Verdict::Wrong);
        assert_eq!(queue(&[9000, 1001]).verdict(now, true), Verdict::Wrong);
        assert_eq!(queue(&[]).verdict(now, true), Verdict::Open);
    }
}

//! The busiest clients and the evidence against suspects: small, bounded, and never a walk over all clients.

use std::collections::{BTreeMap, VecDeque};

use super::contract::Sample;
use super::table::{Client, Table};
use crate::record::Record;
use crate::time::Timestamp;

/// Clients that are candidates for the list of the busiest.
const CANDIDATES: usize = 128;
/// Suspects whose requests are kept.
const SUSPECTS: usize = 1024;
/// Requests kept of each.
const SAMPLES: usize = 5;
/// Bytes of a path (and of a method) that are kept.
const TEXT: usize = 256;

/// The candidates: clients that had more requests in the window than the least busy candidate when they last sent one.
#[derive(Clone, Debug, Default)]
pub struct Top {
    places: Vec<u32>,
    least: u32,
}

impl Top {
    /// Considers a client after its request.
    pub fn offer(&mut self, index: u32, table: &mut Table) {
        let client = table.get(index);
        let requests = client.window.requests();
        if client.is(Client::TOP) || (self.places.len() >= CANDIDATES && requests <= self.least) {
            return;
        }
        if self.places.len() >= CANDIDATES {
            let (least, requests_of_least) = self.find_least(table);
            if requests <= requests_of_least {
                self.least = requests_of_least;
                return;
            }
            let gone = self.places.swap_remove(least);
            table.get_mut(gone).flags &= !Client::TOP;
        }
        self.places.push(index);
        table.get_mut(index).flags |= Client::TOP;
        if self.places.len() >= CANDIDATES {
            self.least = self.find_least(table).1;
        }
    }

    fn find_least(&self, table: &Table) -> (usize, u32) {
        let requests = self.places.iter().map(|i| table.get(*i).window.requests());
        requests.enumerate().min_by_key(|(_, r)| *r).unwrap_or((0, 0))
    }

    /// Once a second: those whose window has emptied make room. The answer is the requests of the busiest.
    pub fn refresh(&mut self, oldest: u32, table: &mut Table) -> u32 {
        let mut busiest = 0;
        self.places.retain(|index| {
            let client = table.get_mut(*index);
            client.window.expire(oldest);
            busiest = busiest.max(client.window.requests());
            if client.window.is_empty() {
                client.flags &= !Client::TOP;
            }
            !client.window.is_empty()
        });
        self.least = if self.places.len() < CANDIDATES { 0 } else { self.find_least(table).1 };
        busiest
    }

    /// A client is no longer followed.
    pub fn forget(&mut self, index: u32) {
        self.places.retain(|i| *i != index);
    }

    /// The candidates' places.
    pub fn places(&self) -> &[u32] {
        &self.places
    }
}

/// The newest requests of suspects.
#[derive(Clone, Debug, Default)]
pub struct Suspects {
    suspects: BTreeMap<u32, VecDeque<Sample>>,
}

impl Suspects {
    /// Keeps a request of a suspect; false when there are too many suspects already.
    pub fn keep(&mut self, index: u32, record: &Record<'_>, at: Timestamp) -> bool {
        if self.suspects.len() >= SUSPECTS && !self.suspects.contains_key(&index) {
            return false;
        }
        let samples = self.suspects.entry(index).or_default();
        if samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample(record, at));
        true
    }

    /// What was kept so far.
    pub fn peek(&self, index: u32) -> Vec<Sample> {
        self.suspects.get(&index).cloned().unwrap_or_default().into()
    }

    /// Takes what was kept, with `record` as the newest.
    pub fn take(&mut self, index: u32, record: &Record<'_>, at: Timestamp) -> Vec<Sample> {
        let newest = sample(record, at);
        let mut samples: Vec<Sample> = self.suspects.remove(&index).unwrap_or_default().into();
        if samples.last() != Some(&newest) {
            samples.push(newest);
        }
        let extra = samples.len().saturating_sub(SAMPLES);
        samples.drain(..extra);
        samples
    }

    /// A client is no longer followed.
    pub fn forget(&mut self, index: u32) {
        self.suspects.remove(&index);
    }
}

fn sample(record: &Record<'_>, at: Timestamp) -> Sample {
    let cut = |text: &[u8]| text[..text.len().min(TEXT)].into();
    Sample { at, method: cut(record.method), path: cut(record.path), status: record.status }
}

//! What waits between the hot thread and the apply thread, so that reading never does.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, TrySendError};

use super::messages::Work;

/// What may wait while the apply thread is busy; beyond it the oldest outputs are lost and counted. The rest is little, and
/// somebody waits for it.
const MAX_WAITING: usize = 100_000;

/// What goes to the apply thread: never waits, loses the oldest only when far too much is waiting.
pub struct Outbox {
    sender: SyncSender<Work>,
    waiting: VecDeque<Work>,
    lost: u64,
}

impl Outbox {
    pub const fn new(sender: SyncSender<Work>) -> Self {
        Self { sender, waiting: VecDeque::new(), lost: 0 }
    }

    /// Whether something has to wait for room.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many were lost.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Hands it over, or keeps it until there is room.
    pub fn send(&mut self, work: Work) {
        self.waiting.push_back(work);
        self.flush();
        while self.waiting.len() > MAX_WAITING
            && let Some(oldest) = self.waiting.iter().position(|work| matches!(work, Work::Outputs { .. }))
        {
            self.waiting.remove(oldest);
            self.lost += 1;
        }
    }

    /// Hands over what has room now.
    pub fn flush(&mut self) {
        while let Some(work) = self.waiting.pop_front() {
            match self.sender.try_send(work) {
                Ok(()) => {}
                Err(TrySendError::Full(work)) => {
                    self.waiting.push_front(work);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => self.lost += 1,
            }
        }
    }

    /// Waits until everything is handed over; for the end.
    pub fn drain(&mut self) {
        for work in self.waiting.drain(..) {
            if self.sender.send(work).is_err() {
                self.lost += 1;
            }
        }
    }
}

//! One sink's task: collect, post, wait, try again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::sink::{Outcome, Sink};
use super::{Inbox, Pace, Reporter, Score};

/// Attempts that are left once nobody holds the notifier any more.
const LAST_ATTEMPTS: u32 = 5;

/// Everything the task of a sink needs.
pub(super) struct Task {
    pub(super) sink: Box<dyn Sink>,
    pub(super) reporter: Reporter,
    pub(super) dashboard: Option<String>,
    pub(super) pace: Pace,
    pub(super) score: Arc<Score>,
    pub(super) inbox: Arc<Inbox>,
    /// True when the daemon ends; closed when the notifier was dropped.
    pub(super) closing: watch::Receiver<bool>,
}

impl Task {
    /// Ends when the notifier is gone or was told to end, and what waited has been posted.
    pub(super) async fn run(mut self) {
        let mut window = self.pace.collect;
        let mut last_sent: Option<Instant> = None;
        loop {
            while self.inbox.lock().is_empty() {
                if self.is_closing() {
                    return;
                }
                let inbox = Arc::clone(&self.inbox);
                tokio::select! {
                    () = inbox.bell.notified() => {}
                    () = self.closed() => {}
                }
            }
            window = match last_sent {
                Some(at) if at.elapsed() < window.saturating_mul(2) => {
                    window.saturating_mul(2).min(self.pace.collect_max)
                }
                _ => self.pace.collect,
            };
            self.pause(window).await;
            self.deliver().await;
            last_sent = Some(Instant::now());
        }
    }

    fn is_closing(&self) -> bool {
        *self.closing.borrow() || self.closing.has_changed().is_err()
    }

    /// Returns when the daemon ends or nobody holds the notifier any more.
    async fn closed(&mut self) {
        // Both answers mean the same here.
        let _ = self.closing.wait_for(|closing| *closing).await;
    }

    /// Waits, so that more can come together; not when the daemon ends.
    async fn pause(&mut self, wait: Duration) {
        tokio::select! {
            () = self.closed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Posts what waits until it is accepted or refused, with what came meanwhile.
    async fn deliver(&mut self) {
        let mut wait = self.pace.retry;
        let mut last_attempts = LAST_ATTEMPTS;
        loop {
            let batch = self.inbox.take();
            let message = self.sink.message(&batch, &self.reporter, self.dashboard.as_deref());
            let notices = batch.count();
            match self.sink.post(message, self.pace.timeout).await {
                Outcome::Accepted => {
                    self.score.sent.fetch_add(1, Ordering::Relaxed);
                    self.score.delivered.fetch_add(notices, Ordering::Relaxed);
                    self.score.set_well();
                    return;
                }
                Outcome::Refused(error) => {
                    self.score.lose(notices, &format!("they were refused ({error})"));
                    self.score.set_failing(error);
                    return;
                }
                Outcome::Later(error, asked) => {
                    tracing::debug!(sink = self.score.name, notices, %error, "post failed, trying again");
                    self.score.retried.fetch_add(1, Ordering::Relaxed);
                    self.score.set_failing(error);
                    let folded = self.inbox.put_back(batch);
                    self.score.folded.fetch_add(folded, Ordering::Relaxed);
                    let pause = asked.map_or(wait, |asked| asked.clamp(self.pace.retry, self.pace.asked_max));
                    wait = wait.saturating_mul(2).min(self.pace.retry_max);
                    if self.is_closing() {
                        // Whoever waits for us does not wait long, and ends us; nobody may wait at all.
                        last_attempts -= 1;
                        if last_attempts == 0 {
                            self.score.lose_at_the_end(self.inbox.take().count());
                            return;
                        }
                        tokio::time::sleep(self.pace.retry).await;
                    } else {
                        self.pause(pause).await;
                    }
                }
            }
        }
    }
}

//! What a sink must be able to do.
//!
//! A new notifier is one file beside `slack.rs` and one line in `configured` of the parent. Collecting, folding, retrying and counting are
//! the same for all (`deliver.rs`): a sink only writes messages and hands them over.

use std::pin::Pin;
use std::time::Duration;

use super::Reporter;
use super::batch::Batch;

/// What became of a post.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted,
    /// Try again, not before this wait where the sink said so.
    Later(String, Option<Duration>),
    /// It will never be accepted.
    Refused(String),
}

/// A message on its way.
pub(super) type Posting<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// One way to reach people or programs.
pub(super) trait Sink: Send {
    /// Its word in `status`, metrics and logs.
    fn name(&self) -> &'static str;

    /// Notices of one kind that a message names; of more, only the number is told.
    fn shown(&self) -> usize;

    /// What is sent of a batch. `dashboard` is where people reach the dashboard.
    fn message(&self, batch: &Batch, reporter: &Reporter, dashboard: Option<&str>) -> String;

    /// Hands a message over, in at most `timeout`.
    fn post(&mut self, message: String, timeout: Duration) -> Posting<'_>;
}

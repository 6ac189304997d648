//! What people are shown of the daemon and what they ask of it: the messages between the daemon and its dashboard, API and metrics.
//!
//! It decides nothing and starts nothing, so that the daemon, the dashboard and the metrics may all use it.

pub mod control;
pub mod history;
pub mod live;

//! The newest state of the daemon as rows for people.

use std::sync::Arc;

use crate::report::{BanRow, BaselineRow, Status, TopRow};

/// What the daemon shows: made anew about once a second, read by dashboard, API, metrics and CLI.
#[derive(Clone, Debug)]
pub struct Live {
    /// `GET /api/v1/status`.
    pub status: Status,
    /// `GET /api/v1/bans`.
    pub bans: Arc<Vec<BanRow>>,
    /// `GET /api/v1/top`.
    pub top: Vec<TopRow>,
    /// `GET /api/v1/baseline`.
    pub baseline: BaselineRow,
}

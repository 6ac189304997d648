//! The ends of the channels between the dashboard and the daemon that it shows.

use std::sync::{Arc, Mutex};

use tokio::sync::{broadcast, watch};

use crate::config::Secret;
use crate::metrics::Metrics;
use crate::view::control::{Event, Request};
use crate::view::history::History;
use crate::view::live::Live;

/// What the dashboard is given; tests can make one without a daemon.
#[derive(Clone)]
pub struct Handle {
    /// The newest state.
    pub live: watch::Receiver<Arc<Live>>,
    /// Decisions and anomalies as they happen.
    pub events: broadcast::Sender<Event>,
    /// Requests to the daemon's loop.
    pub requests: std::sync::mpsc::SyncSender<Request>,
    /// Points of the graph, for 5 minutes, 1 hour and 24 hours.
    pub history: Arc<Mutex<History>>,
    /// What Prometheus reads.
    pub metrics: Arc<Metrics>,
    /// Bearer token for writes.
    pub token: Option<Secret>,
    /// Where people reach the dashboard when a proxy stands in front (`notify.dashboard_url`): its host
    /// name is accepted beside those of the loopback.
    pub public_url: Option<String>,
}

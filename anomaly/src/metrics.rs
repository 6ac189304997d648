//! Every Prometheus metric, in one place.

/// All metrics of the daemon.
#[derive(Debug, Default)]
pub struct Metrics {}

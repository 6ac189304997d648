//! The points of the graph over time, in rings of fixed size.

/// Three rings: 5 minutes by the second, 1 hour by 5 seconds, 24 hours by the minute.
#[derive(Debug, Default)]
pub struct History {}

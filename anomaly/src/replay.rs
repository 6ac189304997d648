//! `anomaly replay`: the same engine over past logs, enforcing nothing.

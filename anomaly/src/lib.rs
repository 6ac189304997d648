//! anomaly reads an Nginx JSON access log, learns what normal traffic looks
//! like, and drops abusive clients in the kernel.
//!
//! The library is the daemon; `main.rs` is a thin command line over it. See ARCHITECTURE.md for the map.

pub mod audit;
pub mod config;
pub mod daemon;
pub mod dashboard;
pub mod doctor;
pub mod enforce;
#[cfg(test)]
#[path = "../../tests/golden/snapshot.rs"]
mod golden;
pub mod metrics;
pub mod notify;
pub mod record;
pub mod replay;
pub mod report;
pub mod store;
pub mod tail;
pub mod view;

pub use anomaly_engine as engine;
pub use anomaly_engine::time;

//! The daemon: starts everything, and holds the two threads that do the work together.
//!
//! The hot thread (`hot.rs`) reads and judges, the apply thread (`apply/`) carries out; a
//! small async runtime serves people and takes signals. Only this module (`clock.rs`) reads the clock.

mod apply;
mod begin;
mod clock;
mod config_file;
mod hot;
mod line_counts;
mod listeners;
mod live;
mod log_watch;
mod logins;
mod messages;
mod off;
mod outbox;
mod polling;
mod saves;
mod start;
mod trouble;

pub use clock::{now, stopwatch};
pub use off::{is_off, mark_off};
pub use start::run;

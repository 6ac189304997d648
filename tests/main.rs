//! Integration tests: one binary, so that they link once.

mod audit;
mod compose;
mod debian;
mod deny_map;
mod detection;
mod doctor;
mod dry_run;
mod end_to_end;
mod enforce_iptables;
#[path = "golden/snapshot.rs"]
mod golden;
#[expect(dead_code, reason = "`cargo xtask house` prints what no test limits")]
mod house;
mod interfaces;
mod kernel;
mod lab;
mod nginx;
mod package;
mod sinks;
mod store;
mod store_crash;
mod store_engine;
mod tail;
mod terminal;
mod tidy;
mod torture;
mod unread;
mod web;

//! Integration tests: one binary, so that they link once.

mod audit;
mod deny_map;
mod detection;
mod doctor;
mod end_to_end;
mod enforce_iptables;
mod kernel;
mod lab;
mod sinks;
mod store;
mod store_crash;
mod tail;
mod tidy;
mod web;

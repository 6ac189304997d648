//! Integration tests: one binary, so that they link once.

mod audit;
mod detection;
mod enforce_iptables;
mod kernel;
mod lab;
mod sinks;
mod store;
mod tail;
mod tidy;
mod web;

//! The dashboard's server over real TCP and Unix sockets, over a daemon made of data.

mod access;
mod client;
mod fake;
mod golden;
mod limits;
mod monitoring;
mod reads;
mod streams;

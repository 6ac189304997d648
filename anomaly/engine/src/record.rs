//! One request as the engine sees it: a [`Record`] that borrows its text from a line of the log.
//!
//! How a line becomes a record is not known here; the crate `anomaly` has the parser.

use std::net::{IpAddr, Ipv4Addr};

pub use crate::extension::Extension;
use crate::time::Timestamp;

/// So many lines are read before the first record of them is judged: see [`Engine::look_ahead`](crate::Engine::look_ahead).
pub const LINES_AT_ONCE: usize = 32;

/// What one log line says.
///
/// Text fields are the decoded JSON strings as bytes: Nginx writes bytes above
/// 0x7f raw, so they need not be UTF-8.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<'a> {
    /// The client, with IPv4-mapped IPv6 addresses turned into IPv4.
    pub client: IpAddr,
    /// When the request was logged; the time of the record before where the line's own stamp
    /// cannot be read.
    pub time: Timestamp,
    /// `GET`, `POST`, ...; empty when missing.
    pub method: &'a [u8],
    /// Path with query; empty when missing.
    pub path: &'a [u8],
    /// What the path ends in.
    pub extension: Extension,
    /// HTTP status; 0 when missing or not a number (then no error is counted).
    pub status: u16,
    /// Bytes sent; 0 when missing or not a number.
    pub response_size: u64,
    /// The TCP peer, when the log has it (`peer`): differs from `client` behind a proxy.
    pub peer: Option<IpAddr>,
    /// Some field was missing or could not be read; the record counts all the same.
    pub damaged: bool,
}

impl<'a> Record<'a> {
    /// A request of which nothing is known.
    pub const BLANK: Self = Self::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Timestamp::EPOCH);

    /// A request of which no more is known than its client and time.
    pub const fn new(client: IpAddr, time: Timestamp) -> Self {
        Self {
            client,
            time,
            method: &[],
            path: &[],
            extension: Extension::NONE,
            status: 0,
            response_size: 0,
            peer: None,
            damaged: false,
        }
    }

    /// The same for this path.
    pub fn with_path(self, path: &'a [u8]) -> Self {
        Self { path, extension: Extension::of(path), ..self }
    }
}

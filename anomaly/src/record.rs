//! One log line, as bytes, to a [`Record`] that borrows from it.
//!
//! The parser never fails a client for a broken neighbour field: as long as an
//! address can be read, there is a record. It does not decide anything and
//! knows no windows.

use std::net::IpAddr;

use crate::time::Timestamp;

/// What one log line says.
///
/// Text fields are the decoded JSON strings as bytes: Nginx writes bytes above
/// 0x7f raw, so they need not be UTF-8.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<'a> {
    /// The client, with IPv4-mapped IPv6 addresses turned into IPv4.
    pub client: IpAddr,
    /// When the request was logged; the newest time seen so far where the
    /// line's own stamp cannot be read.
    pub time: Timestamp,
    /// `GET`, `POST`, ...; empty when missing.
    pub method: &'a [u8],
    /// Path with query; empty when missing.
    pub path: &'a [u8],
    /// HTTP status; 0 when missing or not a number (then no error is counted).
    pub status: u16,
    /// Bytes sent; 0 when missing or not a number.
    pub response_size: u64,
    /// The TCP peer, when the log has it (`peer`): differs from `client` behind a proxy.
    pub peer: Option<IpAddr>,
    /// Some field was missing or could not be read; the record counts all the same.
    pub damaged: bool,
}

/// Why a line gave no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Blank line.
    Empty,
    /// Longer than the limit for a line.
    TooLong,
    /// Not a JSON object (`[]`, `null`, plain text, cut in two), and no address can be read.
    NotAnObject,
    /// No `source_ip`.
    NoAddress,
    /// `source_ip` is there but no address.
    BadAddress,
    /// No line before it had a time either, so there is no time to file it under.
    NoTime,
}

/// Parses lines; holds what makes it fast: the last stamp and a buffer for
/// strings with escapes.
#[derive(Debug, Default)]
pub struct Parser {}

impl Parser {
    /// A parser that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses one line without its newline.
    ///
    /// # Errors
    /// [`Reject`] when no client address (or no time at all) can be read.
    pub fn parse<'a>(&'a mut self, line: &'a [u8]) -> Result<Record<'a>, Reject> {
        let _ = line;
        Err(Reject::NotAnObject)
    }
}

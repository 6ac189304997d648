//! What has been found of a line so far.

use std::net::IpAddr;

use super::format::Field;
use super::{Extension, Record, Reject};
use crate::time::Timestamp;

/// What was found in a line, before it is decided whether it makes a record.
#[derive(Debug)]
pub(super) struct Found<'r, 'a> {
    /// What was not found says what a record says of it then.
    pub(super) record: &'r mut Record<'a>,
    msec: Timestamp,
    /// A bit of each field whose value could be read.
    has: u16,
    /// The client's key is there, whatever its value.
    pub(super) has_client: bool,
    /// Not a JSON object.
    pub(super) broken: bool,
}

impl<'r, 'a> Found<'r, 'a> {
    /// Nothing yet; `record` must be blank.
    pub(super) fn new(record: &'r mut Record<'a>) -> Self {
        Self { record, msec: Timestamp::EPOCH, has: 0, has_client: false, broken: false }
    }

    /// Nothing again.
    pub(super) fn clear(&mut self) {
        *self.record = Record::BLANK;
        (self.msec, self.has, self.has_client, self.broken) = (Timestamp::EPOCH, 0, false, false);
    }

    /// Puts a value that could be read where it belongs.
    #[inline(always)]
    pub(super) fn put<T>(&mut self, field: Field, place: impl FnOnce(&mut Self) -> &mut T, value: Option<T>) {
        if let Some(value) = value {
            *place(self) = value;
            self.has |= field.bit();
        }
    }

    pub(super) fn client(&mut self, client: Option<IpAddr>) {
        self.put(Field::Client, |found| &mut found.record.client, client);
    }

    pub(super) fn time(&mut self, time: Option<Timestamp>) {
        self.put(Field::Time, |found| &mut found.record.time, time);
    }

    pub(super) fn msec(&mut self, msec: Option<Timestamp>) {
        self.put(Field::Msec, |found| &mut found.msec, msec);
    }

    pub(super) fn method(&mut self, method: Option<&'a [u8]>) {
        self.put(Field::Method, |found| &mut found.record.method, method);
    }

    pub(super) fn path(&mut self, path: Option<&'a [u8]>) {
        self.record.extension = path.map_or(Extension::NONE, Extension::of);
        self.put(Field::Path, |found| &mut found.record.path, path);
    }

    pub(super) fn status(&mut self, status: Option<u16>) {
        self.put(Field::Status, |found| &mut found.record.status, status);
    }

    pub(super) fn size(&mut self, size: Option<u64>) {
        self.put(Field::Size, |found| &mut found.record.response_size, size);
    }

    /// Whether this makes a record, and the rest of it; `last` is the time of the one before, and becomes this one's.
    ///
    /// # Errors
    /// [`Reject`] when no client address (or no time at all) was found.
    pub(super) fn conclude(self, last: &mut Option<Timestamp>) -> Result<(), Reject> {
        const TIME: u16 = Field::Time.bit();
        const MSEC: u16 = Field::Msec.bit();
        let Self { record, msec, has, has_client, broken } = self;
        if has & Field::Client.bit() == 0 {
            return Err(match (has_client, broken) {
                (true, _) => Reject::BadAddress,
                (false, true) => Reject::NotAnObject,
                (false, false) => Reject::NoAddress,
            });
        }
        match has & (TIME | MSEC) {
            TIME => {}
            0 => record.time = last.ok_or(Reject::NoTime)?,
            MSEC => record.time = msec,
            _ if msec.as_secs() == record.time.as_secs() => record.time = msec,
            _ => {}
        }
        *last = Some(record.time);
        record.damaged |= has & Field::TEXTS_AND_NUMBERS != Field::TEXTS_AND_NUMBERS || has & (TIME | MSEC) == 0;
        Ok(())
    }
}

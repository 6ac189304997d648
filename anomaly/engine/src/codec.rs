//! The engine's own byte encoding: little-endian base-128 integers and raw floats inside sections with a tag and a length.
//!
//! A blob starts with a version. [`SECTIONS`] is the last one that was needed: from there on state grows by sections, and a
//! section by values at its end. A reader skips sections and values that it does not know, and takes defaults for those that
//! are missing, so that no version forgets what another one has learned. A tag is never used again for something else.

use super::contract::BadState;

/// The version of a blob that is a list of sections.
pub const SECTIONS: u8 = 0x80;
/// Bytes of a section's length, little-endian: fixed, because it is written when the section is complete.
const LENGTH_BYTES: usize = 8;
/// Stands where a section's tag would, behind the last one: a blob that was cut between two sections is damaged, not short.
const END: u8 = 0;

/// Appends values to a byte string.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty blob of a version.
    pub fn new(version: u8) -> Self {
        Self::with_capacity(version, 1)
    }

    /// The same, with room for so many bytes.
    pub fn with_capacity(version: u8, bytes: usize) -> Self {
        let mut writer = Self { bytes: Vec::with_capacity(bytes.max(1)) };
        writer.bytes.push(version);
        writer
    }

    /// An unsigned integer in one to ten bytes.
    pub fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// A signed integer.
    pub fn int(&mut self, value: i64) {
        self.uint((value << 1 ^ value >> 63) as u64);
    }

    /// A float, bit by bit.
    pub fn float(&mut self, value: f64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes of a length the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A section: its tag (not 0), its length, and what `write` writes.
    pub fn section(&mut self, tag: u8, write: impl FnOnce(&mut Self)) {
        self.bytes.push(tag);
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        write(self);
        let begins = length_at + LENGTH_BYTES;
        let length = (self.bytes.len() - begins) as u64;
        self.bytes[length_at..begins].copy_from_slice(&length.to_le_bytes());
    }

    /// A part of a list, with its length: later versions may append values to each. `scratch` is empty, before and after.
    pub fn part(&mut self, scratch: &mut Self, write: impl FnOnce(&mut Self)) {
        write(scratch);
        self.uint(scratch.bytes.len() as u64);
        self.bytes.append(&mut scratch.bytes);
    }

    /// The blob of the sections that were written.
    pub fn finish_sections(mut self) -> Vec<u8> {
        self.bytes.push(END);
        self.bytes
    }

    /// The blob.
    #[cfg(test)]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes values off a byte string in the order they were written.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Opens a blob.
    ///
    /// # Errors
    /// [`BadState`] when it is empty or of another version.
    pub fn new(bytes: &'a [u8], version: u8) -> Result<Self, BadState> {
        match bytes.split_first() {
            Some((found, rest)) if *found == version => Ok(Self { rest }),
            _ => Err(BadState),
        }
    }

    /// Whether nothing is left: a value that an earlier version did not write is missing.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next part of a list, as [`Writer::part`] wrote it.
    ///
    /// # Errors
    /// [`BadState`] where less is left than its length says.
    pub fn part(&mut self) -> Result<Reader<'a>, BadState> {
        let length = self.small()?;
        Ok(Reader { rest: self.raw(length)? })
    }

    /// The sections of the rest of the blob.
    ///
    /// # Errors
    /// [`BadState`] where one is cut short.
    pub fn sections(mut self) -> Result<Sections<'a>, BadState> {
        let mut found = Vec::new();
        loop {
            let tag = self.raw(1)?[0];
            if tag == END {
                return if self.is_empty() { Ok(Sections { found }) } else { Err(BadState) };
            }
            let length = u64::from_le_bytes(self.raw(LENGTH_BYTES)?.try_into().map_err(|_| BadState)?);
            found.push((tag, self.raw(usize::try_from(length).map_err(|_| BadState)?)?));
        }
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// [`BadState`] at the end of the blob or beyond 64 bits.
    pub fn uint(&mut self) -> Result<u64, BadState> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.raw(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BadState)
    }

    /// An unsigned integer that fits.
    ///
    /// # Errors
    /// [`BadState`] where it does not.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T, BadState> {
        T::try_from(self.uint()?).map_err(|_| BadState)
    }

    /// The number of things that follow, each of at least `least` bytes: never more than the blob can hold, so that
    /// a damaged one cannot ask for the world's memory.
    ///
    /// # Errors
    /// [`BadState`] where it is more.
    pub fn count(&mut self, least: usize) -> Result<usize, BadState> {
        let count: usize = self.small()?;
        if count.saturating_mul(least) <= self.rest.len() { Ok(count) } else { Err(BadState) }
    }

    /// A signed integer.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    pub fn int(&mut self) -> Result<i64, BadState> {
        let value = self.uint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A float that is a number.
    ///
    /// # Errors
    /// [`BadState`] where it is none.
    pub fn float(&mut self) -> Result<f64, BadState> {
        let bytes = self.raw(8)?.try_into().map_err(|_| BadState)?;
        let value = f64::from_le_bytes(bytes);
        if value.is_finite() { Ok(value) } else { Err(BadState) }
    }

    /// This many bytes.
    ///
    /// # Errors
    /// [`BadState`] where fewer are left.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], BadState> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(BadState)?;
        self.rest = rest;
        Ok(head)
    }
}

/// The sections of a blob, by tag.
#[derive(Debug)]
pub struct Sections<'a> {
    found: Vec<(u8, &'a [u8])>,
}

impl<'a> Sections<'a> {
    /// The content of a section; `None` where the blob has none of this tag.
    pub fn get(&self, tag: u8) -> Option<Reader<'a>> {
        self.found.iter().find(|(found, _)| *found == tag).map(|(_, rest)| Reader { rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_by_their_tags_whatever_stands_between() {
        let mut w = Writer::new(SECTIONS);
        w.section(9, |w| w.raw(b"from another version"));
        w.section(2, |w| {
            w.uint(300);
            w.raw(b"and a value more");
        });
        w.section(1, |_| {});
        let bytes = w.finish_sections();
        let sections = Reader::new(&bytes, SECTIONS).and_then(Reader::sections).expect("whole");
        assert_eq!(sections.get(2).map(|mut r| r.uint()), Some(Ok(300)));
        assert!(sections.get(1).is_some_and(|r| r.is_empty()));
        assert!(sections.get(3).is_none());
        for cut in 1..bytes.len() {
            assert!(Reader::new(&bytes[..cut], SECTIONS).and_then(Reader::sections).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn parts_may_be_longer_than_their_reader_knows() {
        let (mut w, mut scratch) = (Writer::default(), Writer::default());
        for n in 0..3u64 {
            w.part(&mut scratch, |w| {
                w.uint(n);
                w.raw(&[0xff; 200]);
            });
        }
        let bytes = w.finish();
        let mut r = Reader { rest: &bytes };
        for n in 0..3 {
            assert_eq!(r.part().and_then(|mut part| part.uint()), Ok(n));
        }
        assert!(r.is_empty() && r.part().is_err());
    }

    #[test]
    fn reads_what_was_written() {
        let mut w = Writer::new(7);
        for v in [0, 1, 127, 128, 300, u64::MAX] {
            w.uint(v);
        }
        for v in [0, -1, 1, i64::MIN, i64::MAX] {
            w.int(v);
        }
        w.float(0.1);
        w.raw(b"abc");
        let bytes = w.finish();
        let mut r = Reader::new(&bytes, 7).expect("its version");
        for v in [0, 1, 127, 128, 300, u64::MAX] {
            assert_eq!(r.uint(), Ok(v));
        }
        for v in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(r.int(), Ok(v));
        }
        assert_eq!(r.float(), Ok(0.1));
        assert_eq!(r.raw(3), Ok(&b"abc"[..]));
        assert!(r.is_empty());
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(Reader::new(&[], 1).is_err());
        assert!(Reader::new(&[2, 0], 1).is_err());
        let mut r = Reader::new(&[1, 0xff, 0xff, 0xff, 0x7f], 1).expect("its version");
        assert!(r.count(4).is_err());
        let mut r = Reader::new(&[1, 0x80], 1).expect("its version");
        assert!(r.uint().is_err());
    }
}

//! The engine's own byte encoding: little-endian base-128 integers and raw floats, no names, no tags.
//!
//! Each blob starts with a version; a reader of another version gives up rather than guess.

use super::contract::BadState;

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

    /// The blob.
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

    /// That nothing is left over.
    ///
    /// # Errors
    /// [`BadState`] where something is.
    pub fn end(self) -> Result<(), BadState> {
        if self.rest.is_empty() { Ok(()) } else { Err(BadState) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(r.end(), Ok(()));
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

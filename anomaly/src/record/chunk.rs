//! Sixteen bytes of a line, compared at once.

use wide::u8x16;

/// How many bytes a [`Chunk`] has.
pub(super) const LEN: usize = 16;

/// Sixteen bytes. Each answer is a bit of each byte, the first byte's the lowest; the upper half of the number is 0.
#[derive(Clone, Copy)]
pub(super) struct Chunk(u8x16);

impl Chunk {
    #[inline(always)]
    pub(super) fn new(bytes: &[u8; LEN]) -> Self {
        Self(u8x16::new(*bytes))
    }

    /// Which bytes are this one.
    #[inline(always)]
    pub(super) fn are(self, byte: u8) -> u32 {
        self.0.simd_eq(u8x16::splat(byte)).to_bitmask()
    }

    /// Which bytes are one of these.
    #[inline(always)]
    pub(super) fn are_any<const N: usize>(self, bytes: [u8; N]) -> u32 {
        let is = |byte: u8| self.0.simd_eq(u8x16::splat(byte));
        bytes.map(is).into_iter().fold(u8x16::splat(0), |any, one| any | one).to_bitmask()
    }

    /// Which bytes are digits.
    #[inline(always)]
    pub(super) fn are_digits(self) -> u32 {
        // What comes before '0' wraps around, and is more than nine too.
        let values = self.0 - u8x16::splat(b'0');
        values.min(u8x16::splat(9)).simd_eq(values).to_bitmask()
    }
}

/// The first two of a text.
#[inline(always)]
pub(super) fn two(text: &[u8]) -> Option<[Chunk; 2]> {
    let bytes: &[u8; 2 * LEN] = text.first_chunk()?;
    let (low, high) = bytes.split_first_chunk()?;
    Some([Chunk::new(low), Chunk::new(high.first_chunk()?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_each_byte_says() {
        let bits = |bytes: &[u8; LEN], is: &dyn Fn(u8) -> bool| {
            bytes.iter().enumerate().fold(0, |bits, (at, byte)| bits | u32::from(is(*byte)) << at)
        };
        for first in 0..=255u8 {
            let bytes: [u8; LEN] = std::array::from_fn(|at| first.wrapping_add((at * at) as u8));
            let chunk = Chunk::new(&bytes);
            assert_eq!(chunk.are_digits(), bits(&bytes, &|byte| byte.is_ascii_digit()));
            assert_eq!(chunk.are(b'.'), bits(&bytes, &|byte| byte == b'.'));
            assert_eq!(chunk.are_any([b'"', b'\n', 0xff]), bits(&bytes, &|b| matches!(b, b'"' | b'\n' | 0xff)));
        }
    }
}

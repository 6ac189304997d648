//! Short texts that many lines go on with, compared as a whole instead of byte by byte.

use wide::u8x16;

use super::chunk::LEN;

/// No text is longer.
pub(super) const LONGEST: usize = 2 * LEN;

/// A text of at most [`LONGEST`] bytes.
#[derive(Debug)]
pub(super) struct Prefix {
    text: [u8; LONGEST],
    len: usize,
    /// The text again, and which bits of it count.
    halves: [u8x16; 2],
    masks: [u8x16; 2],
}

impl Prefix {
    /// `None` where the text is too long.
    pub(super) fn new(start: &[u8]) -> Option<Self> {
        let mut text = [0; LONGEST];
        text.get_mut(..start.len())?.copy_from_slice(start);
        let mask = std::array::from_fn(|at| if at < start.len() { 0xff } else { 0 });
        Some(Self { text, len: start.len(), halves: halves(&text), masks: halves(&mask) })
    }

    /// What no text begins with: its first byte has bits that do not count.
    pub(super) fn nothing() -> Self {
        Self { text: [0; LONGEST], len: LONGEST + 1, halves: [u8x16::splat(1); 2], masks: [u8x16::splat(0); 2] }
    }

    /// Its bytes.
    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether a text begins with it.
    #[inline(always)]
    pub(super) fn begins(&self, text: &[u8]) -> bool {
        let Some(start) = text.first_chunk() else { return self.begins_short(text) };
        let [a, b] = halves(start);
        let differs = ((a & self.masks[0]) ^ self.halves[0]) | ((b & self.masks[1]) ^ self.halves[1]);
        differs.simd_eq(u8x16::splat(0)).all()
    }

    #[cold]
    fn begins_short(&self, text: &[u8]) -> bool {
        self.text.get(..self.len).is_some_and(|start| text.starts_with(start))
    }
}

#[inline(always)]
fn halves(bytes: &[u8; LONGEST]) -> [u8x16; 2] {
    let half = |at: usize| bytes[at..].first_chunk().map_or(u8x16::splat(0), |half| u8x16::new(*half));
    [half(0), half(LEN)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_what_the_standard_library_says_it_begins() {
        let line: Vec<u8> = (0..80).collect();
        for len in 0..=LONGEST {
            let prefix = Prefix::new(&line[..len]).expect("short enough");
            assert_eq!(prefix.len(), len);
            for end in 0..line.len() {
                assert_eq!(prefix.begins(&line[..end]), end >= len, "{len} of {end}");
                let mut other = line[..end].to_vec();
                for at in 0..end {
                    other[at] ^= 0x80;
                    assert_eq!(prefix.begins(&other), other.starts_with(&line[..len]), "{len} of {end}, {at}");
                    other[at] ^= 0x80;
                }
            }
        }
        assert!(Prefix::new(&line[..LONGEST + 1]).is_none());
        for text in [&b""[..], &[0; 15], &[0; 16], &[0; 40], &line] {
            assert!(!Prefix::nothing().begins(text), "{text:?}");
        }
    }
}

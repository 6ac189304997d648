//! Short texts that many lines go on with, compared as a few numbers instead of byte by byte.

/// No text is longer.
pub(super) const LONGEST: usize = 32;

/// A text of at most [`LONGEST`] bytes.
#[derive(Debug)]
pub(super) struct Prefix {
    text: [u8; LONGEST],
    len: usize,
    /// Its first 16 bytes, and which bits of them count.
    first: [u64; 2],
    mask: [u64; 2],
    /// Its last 16 bytes, where it has more.
    last: [u64; 2],
}

impl Prefix {
    /// What no text begins with: its first bytes would have to have a bit that does not count.
    pub(super) const NOTHING: Self =
        Self { text: [0; LONGEST], len: LONGEST, first: [1, 0], mask: [0; 2], last: [0; 2] };

    /// `None` where the text is too long.
    pub(super) fn new(start: &[u8]) -> Option<Self> {
        let mut text = [0; LONGEST];
        text.get_mut(..start.len())?.copy_from_slice(start);
        let bits = u128::MAX.checked_shr(8 * 16u32.saturating_sub(start.len() as u32)).unwrap_or(0);
        Some(Self {
            len: start.len(),
            first: text.first_chunk().map_or([0; 2], halves),
            mask: halves(&bits.to_le_bytes()),
            last: start.last_chunk().map_or([0; 2], halves),
            text,
        })
    }

    /// Its bytes.
    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether a text begins with it.
    #[inline]
    pub(super) fn begins(&self, text: &[u8]) -> bool {
        let Some(first) = text.first_chunk() else { return text.starts_with(&self.text[..self.len]) };
        let first = halves(first);
        let differs = (first[0] & self.mask[0]) ^ self.first[0] | (first[1] & self.mask[1]) ^ self.first[1];
        differs == 0 && (self.len <= 16 || self.ends(text))
    }

    #[inline]
    fn ends(&self, text: &[u8]) -> bool {
        let last = text.get(..self.len).and_then(|text| text.last_chunk());
        last.map(halves).is_some_and(|last| (last[0] ^ self.last[0]) | (last[1] ^ self.last[1]) == 0)
    }
}

#[inline]
fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(*bytes);
    [bits as u64, (bits >> 64) as u64]
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
            assert!(!Prefix::NOTHING.begins(text), "{text:?}");
        }
    }
}

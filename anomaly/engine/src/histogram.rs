//! Counts of values on a scale where a heavy tail is tame: exact up to 31, then eight bins an octave (9 % wide).
//!
//! What happens with nothing in it: quantiles, mean and spread are 0.

use super::codec::{Reader, Writer};
use super::contract::BadState;

/// Values up to here have a bin of their own.
const EXACT: u32 = 32;
const PER_OCTAVE: u32 = 8;
/// Bins; the last one holds everything from about a million on.
pub const BINS: usize = 160;

/// The bin of a value.
pub const fn bin(value: u32) -> u8 {
    if value < EXACT {
        return value as u8;
    }
    let octave = value.ilog2();
    let index = EXACT + (octave - EXACT.ilog2()) * PER_OCTAVE + ((value >> (octave - 3)) & 7);
    if index >= BINS as u32 { BINS as u8 - 1 } else { index as u8 }
}

/// The smallest value of a bin.
const fn low(bin: usize) -> f64 {
    if bin < EXACT as usize {
        return bin as f64;
    }
    let above = bin - EXACT as usize;
    let octave = above / PER_OCTAVE as usize;
    (EXACT as f64) * (1u64 << octave) as f64 * (1.0 + (above % PER_OCTAVE as usize) as f64 / PER_OCTAVE as f64)
}

/// A value that stands for a bin.
fn middle(bin: usize) -> f64 {
    if bin < EXACT as usize { bin as f64 } else { (low(bin) + low(bin + 1) - 1.0) / 2.0 }
}

/// The counts; fractions come from fading.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    total: f64,
    counts: [f32; BINS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { total: 0.0, counts: [0.0; BINS] }
    }
}

impl Histogram {
    /// Number of values.
    pub const fn total(&self) -> f64 {
        self.total
    }

    /// Adds what a minute has counted.
    pub fn add(&mut self, counts: &[u32; BINS]) {
        for (mine, theirs) in self.counts.iter_mut().zip(counts) {
            *mine += *theirs as f32;
        }
        self.total = self.counts.iter().map(|c| f64::from(*c)).sum();
    }

    /// Takes away what was added before.
    pub fn subtract(&mut self, counts: &[u32; BINS]) {
        for (mine, theirs) in self.counts.iter_mut().zip(counts) {
            *mine = (*mine - *theirs as f32).max(0.0);
        }
        self.total = self.counts.iter().map(|c| f64::from(*c)).sum();
    }

    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// Lets everything in it count for less.
    pub fn fade(&mut self, factor: f64) {
        for count in &mut self.counts {
            *count *= factor as f32;
            if *count < 1e-3 {
                *count = 0.0;
            }
        }
        self.total = self.counts.iter().map(|c| f64::from(*c)).sum();
    }

    /// Mean and standard deviation.
    pub fn mean_and_stddev(&self) -> (f64, f64) {
        if self.total <= 0.0 {
            return (0.0, 0.0);
        }
        let moment = |f: &dyn Fn(f64) -> f64| -> f64 {
            let sum: f64 = self.counts.iter().enumerate().map(|(bin, c)| f64::from(*c) * f(middle(bin))).sum();
            sum / self.total
        };
        let mean = moment(&|v| v);
        (mean, moment(&|v| (v - mean) * (v - mean)).sqrt())
    }

    /// Writes it down.
    pub fn save(&self, w: &mut Writer) {
        let used = self.counts.iter().filter(|c| **c > 0.0).count();
        w.uint(used as u64);
        for (bin, count) in self.counts.iter().enumerate().filter(|(_, c)| **c > 0.0) {
            w.raw(&[bin as u8]);
            w.raw(&count.to_le_bytes());
        }
    }

    /// Reads what [`Histogram::save`] wrote.
    ///
    /// # Errors
    /// [`BadState`] where it is something else.
    pub fn load(r: &mut Reader<'_>) -> Result<Self, BadState> {
        let mut histogram = Self::default();
        for _ in 0..r.count(5)? {
            let bin = usize::from(r.raw(1)?[0]);
            let count = f32::from_le_bytes(r.raw(4)?.try_into().map_err(|_| BadState)?);
            if !count.is_finite() || count < 0.0 {
                return Err(BadState);
            }
            *histogram.counts.get_mut(bin).ok_or(BadState)? = count;
        }
        histogram.total = histogram.counts.iter().map(|c| f64::from(*c)).sum();
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u32>) -> Histogram {
        let mut counts = [0; BINS];
        for value in values {
            counts[bin(value) as usize] += 1;
        }
        let mut histogram = Histogram::default();
        histogram.add(&counts);
        histogram
    }

    #[test]
    fn bins_rise_with_their_values_and_hold_them() {
        let mut last = 0;
        for value in (0..5000).chain((5000..2_000_000).step_by(997)) {
            let bin = bin(value);
            assert!(bin >= last);
            last = bin;
            assert!(low(bin as usize) <= f64::from(value), "{value}");
            assert!(bin as usize == BINS - 1 || f64::from(value) < low(bin as usize + 1), "{value}");
        }
        assert_eq!(bin(u32::MAX) as usize, BINS - 1);
    }

    #[test]
    fn nothing_gives_nothing() {
        let h = Histogram::default();
        assert_eq!(h.mean_and_stddev(), (0.0, 0.0));
    }

    #[test]
    fn mean_and_spread_come_close() {
        let h = of([600; 100]);
        let (mean, stddev) = h.mean_and_stddev();
        assert!((mean - 600.0).abs() < 30.0 && stddev < 1.0, "{mean} {stddev}");
        let (mean, stddev) = of([1, 2, 3, 4, 5]).mean_and_stddev();
        assert!((mean - 3.0).abs() < 1e-9 && (stddev - 2f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn survives_the_store() {
        let mut h = of([1, 1, 5, 900]);
        h.fade(0.3);
        let mut w = Writer::new(1);
        h.save(&mut w);
        let bytes = w.finish();
        let mut r = Reader::new(&bytes, 1).expect("its version");
        assert_eq!(Histogram::load(&mut r), Ok(h));
    }
}

//! The promises that only time, or sheer number, can break: a soak under load, kills at moments nobody chose, a flood of
//! addresses. Each runs for some seconds here; `cargo xtask torture` runs the same tests for as long as one likes, by
//! the environment variables that each names, and collects their figures.

mod flood;
mod kills;
mod soak;

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

use serde_json::json;

/// The daemon's binary: `ANOMALY_TORTURE_BINARY` (one that is built with optimisation), else as cargo built it for
/// these tests.
fn binary() -> PathBuf {
    std::env::var_os("ANOMALY_TORTURE_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_anomaly").into(), Into::into)
}

/// A number from the environment.
///
/// # Panics
/// Where it is no such number: whoever asks for a length must not get another one.
pub fn from_env<T: FromStr>(name: &str, default: T) -> T {
    std::env::var_os(name)
        .map_or(default, |text| number(&text).unwrap_or_else(|| panic!("{name}={text:?} is no number")))
}

fn number<T: FromStr>(text: &OsStr) -> Option<T> {
    text.to_str()?.parse().ok()
}

#[test]
fn a_length_that_is_no_number_is_no_length() {
    assert_eq!(number(OsStr::new("12")), Some(12_u32));
    assert_eq!([number::<u32>(OsStr::new("12m")), number(OsStr::new("-1")), number(OsStr::new(""))], [None; 3]);
}

/// The seed of everything random here.
fn seed() -> u64 {
    from_env("ANOMALY_SEED", 0x5eed)
}

/// Notes what was measured, for the table of `cargo xtask torture` (`ANOMALY_FIGURES` names the file).
pub fn figure(what: &str, measured: &str) {
    let _ = writeln!(std::io::stderr(), "{what} (seed {}): {measured}", seed());
    if let Some(list) = std::env::var_os("ANOMALY_FIGURES") {
        let line = json!({ "what": what, "seed": seed(), "figure": measured }).to_string() + "\n";
        let file = std::fs::File::options().create(true).append(true).open(list);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Numbers without a pattern, the same in every run with the same seed (xorshift64, Marsaglia 2003).
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        // Zero is the one seed it cannot leave.
        Self(seed().max(1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

//! Any bytes, as a log: no panic, and a record only of a line that has an address in it.
#![no_main]

use anomaly::record::{Format, Parser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    for format in Format::NAMES.into_iter().filter_map(Format::from_name) {
        let mut parser = Parser::with_format(&format);
        for line in log.split(|b| *b == b'\n') {
            if let Ok(record) = parser.parse(line) {
                assert!(record.method.len() + record.path.len() <= line.len());
            }
        }
    }
});

//! Any bytes, as a log: no panic, a record only of a line that has an address in it, and of lines that are read together
//! what each gives by itself.
#![no_main]

use anomaly::record::{Format, Parsed, Parser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    for format in Format::NAMES.into_iter().filter_map(Format::from_name) {
        let (mut alone, mut together) = (Parser::with_format(&format), Parser::with_format(&format));
        let mut expected = Vec::new();
        // A newline ends a line; what is behind the last one is a line only if it is something.
        for line in log.strip_suffix(b"\n").unwrap_or(log).split(|b| *b == b'\n').filter(|_| !log.is_empty()) {
            let parsed = alone.parse(line);
            if let Ok(record) = &parsed {
                assert!(record.method.len() + record.path.len() <= line.len());
            }
            expected.push(format!("{parsed:?}"));
        }
        let mut got = Vec::new();
        together.parse_all(log, &mut |parsed| match parsed {
            Parsed::Records(records) => got.extend(records.iter().map(|record| format!("{:?}", Ok::<_, ()>(record)))),
            Parsed::Rejected(why, _) => got.push(format!("{:?}", Err::<(), _>(why))),
        });
        assert_eq!(got, expected);
    }
});

//! A line in its own right and the same line in a form that the scanner leaves to serde_json give the same record.
#![no_main]

use anomaly::record::Parser;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    // A first key with an escape is none of ours, and nothing the scanner reads.
    let Some(rest) = line.strip_prefix(b"{") else { return };
    if rest.trim_ascii_start().first() != Some(&b'"') || serde_json::from_slice::<serde_json::Value>(line).is_err() {
        return;
    }
    let slow = [b"{\"\\n\":0,", rest].concat();
    let (mut first, mut second) = (Parser::new(), Parser::new());
    assert_eq!(first.parse(line), second.parse(&slow));
});

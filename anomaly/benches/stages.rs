//! The steps of the hot path by themselves, over a log that is read into memory first: `stages STAGE FILE`.
//!
//! `cargo xtask bench` runs it, for seconds and, under callgrind, for instructions. The engine's stage holds the parser's.
//! Prints one JSON object.

use std::hint::black_box;
use std::time::Instant;

use anomaly::engine::{Engine, Input, Settings};
use anomaly::record::{Parsed, Parser, Record};
use serde_json::json;

mod lines;

use lines::{each_line, parse_bare};

#[expect(clippy::disallowed_methods, reason = "a bench measures")]
fn now() -> Instant {
    Instant::now()
}

fn records_of<'a>(parsed: Parsed<'a>) -> &'a [Record<'a>] {
    match parsed {
        Parsed::Records(records) => records,
        Parsed::Rejected(why, line) => panic!("{why:?}: {}", String::from_utf8_lossy(line)),
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [stage, file] = words.as_slice() else {
        // `cargo bench` runs every bench, and has no log for this one.
        eprintln!("stages split|serde_json|parse|engine FILE: what `cargo xtask bench` measures with");
        return;
    };
    let log = std::fs::read(file).unwrap_or_else(|failure| panic!("{file}: {failure}"));
    let mut lines = 0u64;
    let began = now();
    let (mut tracked, mut heap_bytes) = (0, 0);
    match stage.as_str() {
        "split" => each_line(&log, |line| {
            lines += 1;
            black_box(line);
        }),
        "serde_json" => each_line(&log, |line| {
            lines += 1;
            parse_bare(line);
        }),
        "parse" => {
            let mut parser = Parser::new();
            let mut count = |parsed: Parsed<'_>| lines += records_of(black_box(parsed)).len() as u64;
            parser.parse_all(&log, &mut count);
        }
        "engine" => {
            let mut parser = Parser::new();
            let settings = Settings { self_proof: false, replay: true, ..Settings::default() };
            let (mut engine, mut out) = (Engine::new(settings, 0), Vec::new());
            let mut judge = |parsed: Parsed<'_>| {
                let records = records_of(parsed);
                engine.look_ahead(records);
                for record in records {
                    engine.handle(record.time, Input::Record(record), &mut out);
                    out.clear();
                }
                lines += records.len() as u64;
            };
            parser.parse_all(&log, &mut judge);
            tracked = engine.snapshot(0).tracked_ips;
            heap_bytes = engine.heap_bytes();
        }
        other => panic!("there is no stage {other}"),
    }
    let secs = began.elapsed().as_secs_f64();
    println!("{}", json!({"lines": lines, "secs": secs, "tracked": tracked, "heap_bytes": heap_bytes}));
}

//! What it costs to read log lines: splitting alone, our parser, and for comparison serde_json into a
//! borrowed struct of the six keys, all over the same bytes in the same run.

use std::hint::black_box;
use std::net::Ipv4Addr;

use anomaly::record::Parser;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

mod lines;

use lines::{each_line, parse_bare};

const LINES: u64 = 50_000;
const CLIENTS: u64 = 20_000;

/// What the log's lines have besides the six keys.
#[derive(Clone, Copy, PartialEq)]
enum Keys {
    Six,
    /// Everything that `nginx/log_format.conf` writes.
    All,
    /// The six, and each path has an escape: serde_json reads them.
    Escapes,
}

/// Lines with random clients, paths and sizes, 5,000 to a second.
fn log(keys: Keys) -> Vec<u8> {
    let mut log = String::new();
    let mut random = 88_172_645_463_325_252u64;
    for nth in 0..LINES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let client = Ipv4Addr::from((random % CLIENTS) as u32 * 2_654_435 + 0x0b00_0000);
        let second = nth / 5_000;
        let path = &"/0123456789abcdef.html?a=bcdefghijklmnopqrstuvwxyz"[..8 + (random >> 20) as usize % 40];
        let escape = if keys == Keys::Escapes { "\\\"" } else { "" };
        log.push_str(&format!(
            r#"{{"source_ip":"{client}","timestamp":"2026-04-27T09:25:{second:02}+01:00","method":"GET","path":"{path}{escape}","status":"{}","response_size":"{}""#,
            if random.is_multiple_of(10) { 404 } else { 200 },
            random >> 44,
        ));
        if keys == Keys::All {
            log.push_str(&format!(
                r#","peer":"{client}","host":"www.example.org","user_agent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0 Safari/537.36","request_time":"0.004","msec":"{}.{:03}""#,
                1_777_278_351 + second,
                random % 1000,
            ));
        }
        log.push_str("}\n");
    }
    log.into_bytes()
}

fn benches(c: &mut Criterion) {
    for (name, keys) in [("six_keys", Keys::Six), ("all_keys", Keys::All), ("escapes", Keys::Escapes)] {
        let log = log(keys);
        let mut group = c.benchmark_group(format!("record/{name}"));
        group.throughput(Throughput::Elements(LINES)).sample_size(20);
        group.bench_function("split", |b| {
            b.iter(|| {
                each_line(black_box(&log), |line| {
                    black_box(line);
                })
            });
        });
        group.bench_function("parser", |b| {
            b.iter_batched_ref(
                Parser::new,
                |parser| {
                    parser.parse_all(black_box(&log), &mut |parsed| {
                        black_box(parsed);
                    });
                },
                BatchSize::PerIteration,
            );
        });
        if keys != Keys::Escapes {
            group.bench_function("bare_serde_json", |b| {
                b.iter(|| {
                    each_line(black_box(&log), parse_bare);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(record, benches);
criterion_main!(record);

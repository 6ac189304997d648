//! The engine alone: time per record with 1, 1 k, 100 k and 1 M clients in the window, and with clients that are all
//! new. What is parsed and where it comes from is not measured here.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use anomaly::engine::{Engine, Input, Output, Settings};
use anomaly::record::Record;
use anomaly::time::Timestamp;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const START: i64 = 1_767_225_600;
/// What is asked for: pages and assets, some of them missing, a few POSTs.
const REQUESTS: [(&[u8], &[u8], u16); 8] = [
    (b"GET", b"/", 200),
    (b"GET", b"/assets/app.3f2a.js", 200),
    (b"GET", b"/assets/site.css?v=12", 304),
    (b"GET", b"/products/17", 200),
    (b"GET", b"/img/banner.webp", 200),
    (b"POST", b"/api/cart", 200),
    (b"GET", b"/favicon.ico", 404),
    (b"GET", b"/search?q=rust", 200),
];

/// Sends records of clients in turn at a rate that keeps all of them in the window.
struct Load {
    engine: Engine,
    out: Vec<Output>,
    clients: u32,
    sent: u64,
    per_second: u64,
}

impl Load {
    fn new(clients: u32) -> Self {
        // No bans: blocked records would cost less.
        let settings = Settings { hard_limit: u32::MAX, min_requests: 1_000_000, ..Settings::default() };
        let per_second = (u64::from(clients) / 50).max(1000);
        Self { engine: Engine::new(settings, 0), out: Vec::new(), clients, sent: 0, per_second }
    }

    fn send(&mut self, records: u64) {
        for _ in 0..records {
            let n = (self.sent % u64::from(self.clients)) as u32;
            // Neighbouring records come from far apart in the table, as in a real log.
            let client = IpAddr::V4(Ipv4Addr::from(n.wrapping_mul(0x9e37_79b1)));
            let time = Timestamp::from_ms(START * 1000 + (self.sent * 1000 / self.per_second) as i64);
            let (method, path, status) = REQUESTS[(self.sent % 7 + u64::from(n)) as usize % REQUESTS.len()];
            let record = Record { method, status, response_size: 512, ..Record::new(client, time) }.with_path(path);
            self.engine.handle(time, Input::Record(black_box(&record)), &mut self.out);
            self.sent += 1;
        }
        self.out.clear();
    }
}

fn records(c: &mut Criterion) {
    const BATCH: u64 = 10_000;
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Elements(BATCH)).sample_size(20);
    for clients in [1u32, 1_000, 20_000, 100_000, 1_000_000] {
        let mut load = Load::new(clients);
        load.send(u64::from(clients).max(100_000));
        group.bench_function(BenchmarkId::new("tracked", clients), |b| b.iter(|| load.send(BATCH)));
    }
    // Every client is seen once: the worst that a flood of addresses can do.
    let mut load = Load::new(u32::MAX);
    load.per_second = 30_000;
    load.send(2_000_000);
    group.bench_function("all_new", |b| b.iter(|| load.send(BATCH)));
    group.finish();
}

fn snapshot(c: &mut Criterion) {
    let mut load = Load::new(1_000_000);
    load.send(1_000_000);
    println!(
        "heap bytes per client at {} clients: {}",
        load.engine.snapshot(0).tracked_ips,
        load.engine.heap_bytes() / load.engine.snapshot(0).tracked_ips
    );
    c.bench_function("snapshot_of_1M_clients", |b| b.iter(|| load.engine.snapshot(black_box(20))));
}

criterion_group!(benches, records, snapshot);
criterion_main!(benches);

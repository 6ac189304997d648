//! The state database: what is stored comes back, after crashes, full disks and damage too.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anomaly::engine::{Ban, Finding, Level, Offence, Origin, Rule, Sample, Scope, Signal, Source, State, Unban};
use anomaly::store::{BanState, Opened, Reader, Store, StoreError};
use anomaly::time::Timestamp;
use ipnet::IpNet;

const NOON: i64 = 1_777_291_200;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(NOON + secs)
}

fn address(n: u32) -> IpNet {
    IpNet::from(std::net::IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)))
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a valid prefix")
}

fn ban(prefix: IpNet, secs: i64, offence: u32) -> Ban {
    Ban {
        prefix,
        at: at(secs),
        until: Some(at(secs + 600)),
        offence,
        origin: Origin::Detector,
        finding: Some(Finding {
            at: at(secs),
            rule: Rule::RateMultiplier,
            error_surge: true,
            rate: 14.2,
            baseline: Level {
                scope: Scope::Ip,
                mean: 0.4,
                stddev: 0.6,
                error_rate: 0.01,
                samples: 1234,
                source: Source::Rolling,
            },
            z_score: 23.0,
            signal: Some((Signal::ErrorPaths, 41.0)),
            limit: 30.0,
            requests: 852,
            errors: 851,
            samples: vec![
                Sample {
                    at: at(secs - 1),
                    method: b"GET"[..].into(),
                    path: b"/%ff\xff\n<script>"[..].into(),
                    status: 404,
                },
                Sample { at: at(secs), method: b"POST"[..].into(), path: b"/login"[..].into(), status: 401 },
            ],
        }),
        note: String::new(),
        in_past: false,
    }
}

fn without_samples(mut ban: Ban) -> Ban {
    if let Some(finding) = &mut ban.finding {
        finding.samples.clear();
    }
    ban
}

fn unban(ban: &Ban, secs: i64, origin: Origin) -> Unban {
    Unban { prefix: ban.prefix, at: at(secs), offence: ban.offence, origin }
}

fn open(path: &Path) -> Opened {
    Store::open(path, at(0)).expect("the store opens")
}

fn no_checkpoints() -> BTreeMap<PathBuf, Vec<u8>> {
    BTreeMap::new()
}

fn offences_of(opened: &Opened) -> Vec<(String, u32)> {
    let mut all: Vec<_> = opened.loaded.state.offences.iter().map(|o| (o.prefix.to_string(), o.count)).collect();
    all.sort();
    all
}

#[test]
fn what_is_stored_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lib/anomaly/state.db");
    let one = ban(address(1), 0, 1);
    let mut two = ban(net("2001:db8::/64"), 1, 4);
    two.until = None;
    two.finding = None;
    two.origin = Origin::Operator;
    two.note = "scraper, see ticket 12".into();
    let state = State {
        bans: vec![one.clone(), two.clone()],
        offences: vec![
            Offence { prefix: one.prefix, count: 1, last: one.at },
            Offence { prefix: two.prefix, count: 4, last: two.at },
            Offence { prefix: address(9), count: 2, last: at(-500) },
        ],
        baseline: vec![1, 2, 3],
        windows: vec![0; 100_000],
    };
    let checkpoints = BTreeMap::from([(PathBuf::from("/var/log/nginx/access.json"), b"{\"offset\":12}".to_vec())]);
    {
        let mut store = open(&path).store;
        store.record_ban(&one).expect("recorded");
        store.record_ban(&two).expect("recorded");
        store.save_progress(at(2), &state, &checkpoints).expect("saved");
    }
    let opened = open(&path);
    assert!(opened.quarantined.is_none() && opened.trouble.is_none());
    assert_eq!(opened.loaded.state.bans, [without_samples(one.clone()), two.clone()]);
    assert_eq!(
        offences_of(&opened),
        [("10.0.0.1/32".into(), 1), ("10.0.0.9/32".into(), 2), ("2001:db8::/64".into(), 4)]
    );
    assert_eq!(opened.loaded.state.baseline, state.baseline);
    assert_eq!(opened.loaded.state.windows, state.windows);
    assert_eq!(opened.loaded.checkpoints, checkpoints);
    assert_eq!(opened.loaded.saved_at, Some(at(2)));
    let card = opened.store.reader().explain(&address(1), 10).expect("a card");
    assert_eq!(card.len(), 1);
    assert_eq!(card[0].ban, one, "the evidence is complete, raw bytes included");
    assert_eq!(card[0].state, BanState::Active);
}

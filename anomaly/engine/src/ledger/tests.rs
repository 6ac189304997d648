//! The ladder, its decay, and what a backlog proves.

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn request(at: i64) -> BanRequest {
    BanRequest {
        at: Timestamp::from_secs(at),
        origin: Origin::Detector,
        length: None,
        finding: None,
        note: String::new(),
    }
}

fn ended(ledger: &mut Ledger, now: i64) -> Vec<Unban> {
    let mut unbans = Vec::new();
    let now = Timestamp::from_secs(now);
    ledger.expire(now, now, &Settings::default(), |u| unbans.push(u));
    unbans
}

#[test]
fn climbs_the_ladder_and_forgives() {
    let s = Settings::default();
    let mut ledger = Ledger::default();
    let x = net("192.0.2.1/32");
    let mut at = 1000;
    for (offence, secs) in [(1, Some(600)), (2, Some(1800)), (3, Some(7200)), (4, None)] {
        let ban = ledger.ban(x, request(at), Timestamp::from_secs(at), &s);
        assert_eq!((ban.offence, ban.duration_secs()), (offence, secs));
        if let Some(secs) = secs {
            at += secs as i64;
            assert_eq!(ended(&mut ledger, at - 1), []);
            assert_eq!(ended(&mut ledger, at).len(), 1);
            assert_eq!(ended(&mut ledger, at), []);
        }
    }
    let month = 30 * 86_400;
    let y = net("192.0.2.2/32");
    ledger.ban(y, request(at), Timestamp::from_secs(at), &s);
    ended(&mut ledger, at + 600);
    ledger.ban(y, request(at + 700), Timestamp::from_secs(at + 700), &s);
    ended(&mut ledger, at + 700 + 1800);
    // One of two is forgiven after a month, the other after two.
    let ban = ledger.clone().ban(y, request(at + 800 + month), Timestamp::from_secs(at + 800 + month), &s);
    assert_eq!(ban.offence, 2);
    ended(&mut ledger, at + 800 + month);
    assert_eq!(ledger.offences().iter().find(|o| o.prefix == y).map(|o| o.count), Some(1));
    ended(&mut ledger, at + 800 + 2 * month);
    assert!(ledger.offences().iter().all(|o| o.prefix != y));
}

#[test]
fn an_offence_that_is_only_likely_fades_within_a_day() {
    let s = Settings::default();
    let day = 86_400;
    for (grade, after_a_day) in [(Grade::Likely, 1), (Grade::Certain, 2)] {
        let mut ledger = Ledger::default();
        let x = net("192.0.2.1/32");
        let graded = |at: i64| BanRequest { finding: Some(finding(at, grade)), ..request(at) };
        assert_eq!(ledger.ban(x, graded(1000), Timestamp::from_secs(1000), &s).offence, 1);
        ended(&mut ledger, 1600);
        // What is known of the grade survives with the rest.
        let mut again = Ledger::default();
        ledger.offences().into_iter().for_each(|offence| again.remember(offence, &s));
        ledger.likely().into_iter().for_each(|prefix| again.set_likely(prefix, &s));
        for mut ledger in [ledger, again] {
            let soon = ledger.clone().ban(x, graded(900 + day), Timestamp::from_secs(900 + day), &s);
            assert_eq!(soon.offence, 2);
            ended(&mut ledger, 1001 + day);
            let later = ledger.ban(x, graded(1001 + day), Timestamp::from_secs(1001 + day), &s);
            assert_eq!(later.offence, after_a_day, "{grade:?}");
        }
    }
}

fn finding(at: i64, grade: Grade) -> Finding {
    use crate::contract::{Level, LimitSource, Rule, Scope, Source};
    let baseline =
        Level { scope: Scope::Ip, mean: 0.2, stddev: 0.1, error_rate: 0.0, samples: 0, source: Source::Floor };
    Finding {
        at: Timestamp::from_secs(at),
        rule: Rule::Floor,
        error_surge: false,
        rate: 1.0,
        baseline,
        z_score: 8.0,
        signal: None,
        limit: 9.0,
        limit_source: LimitSource::Floor,
        grade,
        requests: 60,
        errors: 60,
        samples: Vec::new(),
    }
}

#[test]
fn a_ban_in_the_past_is_an_offence_and_nothing_else() {
    let s = Settings::default();
    let mut ledger = Ledger::default();
    let x = net("192.0.2.1/32");
    let ban = ledger.ban(x, request(1000), Timestamp::from_secs(90_000), &s);
    assert!(ban.in_past);
    assert_eq!((ledger.bans().len(), ledger.next_end()), (0, None));
    assert!(ledger.in_past(&x, Timestamp::from_secs(1599)));
    assert!(!ledger.in_past(&x, Timestamp::from_secs(1600)));
    assert_eq!(ledger.ban(x, request(89_999), Timestamp::from_secs(90_000), &s).offence, 2);
}

#[test]
fn what_a_backlog_holds_does_not_prove_that_a_ban_has_no_effect() {
    let s = Settings::default();
    let x = net("192.0.2.1/32");
    let proof = |ledger: &mut Ledger, at: i64, now: i64| {
        let (at, now) = (Timestamp::from_secs(at), Timestamp::from_secs(now));
        (0..5).filter_map(|_| ledger.came_through(&x, at, now)).count()
    };
    // Decided at 1000 by the log, but only read there at 1300.
    let mut ledger = Ledger::default();
    ledger.ban(x, request(1000), Timestamp::from_secs(1300), &s);
    assert_eq!(proof(&mut ledger, 1315, 1315), 0);
    assert_eq!(proof(&mut ledger, 1316, 1316), 1);
    // Enforced at once; what a later start reads of the time in between is old.
    let mut ledger = Ledger::default();
    let first = ledger.ban(x, request(1000), Timestamp::from_secs(1000), &s);
    assert_eq!(proof(&mut ledger, 1100, 1111), 0);
    // Or it is from when nobody enforced it.
    ledger.enforced_from(Timestamp::from_secs(1105));
    assert_eq!(proof(&mut ledger, 1120, 1121), 0);
    assert_eq!(proof(&mut ledger, 1121, 1121), 1);
    // It is told once in the life of a daemon.
    assert_eq!(proof(&mut ledger, 1130, 1130), 0);
    let mut next = ledger.clone();
    next.enforced_from(Timestamp::from_secs(1200));
    assert_eq!((proof(&mut next, 1215, 1215), proof(&mut next, 1216, 1216)), (0, 1));
    // A newer ban of the same prefix is proved by itself.
    let proofs = ledger.proofs(Timestamp::from_secs(1121));
    let mut ledger = Ledger::default();
    ledger.hold(Ban { at: Timestamp::from_secs(1200), ..first }, Timestamp::from_secs(1200));
    proofs.iter().for_each(|proof| ledger.set_proof(proof));
    assert_eq!(proof(&mut ledger, 1215, 1215), 0);
    assert_eq!(proof(&mut ledger, 1216, 1216), 1);
}

#[test]
fn lifting_covers_takes_back_and_gives_grace() {
    let s = Settings::default();
    let mut ledger = Ledger::default();
    let now = Timestamp::from_secs(1000);
    ledger.ban(net("192.0.2.1/32"), request(1000), now, &s);
    ledger.ban(net("192.0.2.0/24"), request(1000), now, &s);
    ledger.ban(net("192.0.2.2/32"), request(1000), now, &s);
    let covers = |ledger: &Ledger, prefix| ledger.covers(&net(prefix));
    assert!(covers(&ledger, "192.0.2.7/32") && covers(&ledger, "192.0.2.0/24") && covers(&ledger, "192.0.2.128/25"));
    assert!(!covers(&ledger, "192.0.2.0/23") && !covers(&ledger, "192.0.3.1/32") && !covers(&ledger, "::/96"));
    let lifted = ledger.lift(&net("192.0.2.1/32"), now, &s);
    assert_eq!(lifted.iter().map(|u| u.prefix).collect::<Vec<_>>(), [net("192.0.2.0/24"), net("192.0.2.1/32")]);
    assert_eq!(ledger.covering("192.0.2.1".parse().expect("an address")), None);
    assert_eq!(ledger.covering("192.0.2.2".parse().expect("an address")), Some(net("192.0.2.2/32")));
    assert!(ledger.has_grace(&net("192.0.2.1/32"), now));
    assert!(!ledger.has_grace(&net("192.0.2.1/32"), Timestamp::from_secs(1300)));
    assert_eq!(ledger.offences().len(), 1);
    assert_eq!(ledger.lift(&net("198.51.100.1/32"), now, &s), []);
}

#[test]
fn offences_are_bounded() {
    let s = Settings { max_tracked_ips: 100, ..Settings::default() };
    let mut ledger = Ledger::default();
    for i in 0..1000u32 {
        let prefix = IpNet::from(IpAddr::from(i.to_be_bytes()));
        ledger.remember(Offence { prefix, count: 1, last: Timestamp::from_secs(i.into()) }, &s);
    }
    let left = ledger.offences();
    assert_eq!((left.len(), left[0].last), (100, Timestamp::from_secs(900)));
}

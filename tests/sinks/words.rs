//! Slack's message for each kind of notice, alone in a message: the facts, the time, and a link.

use std::time::Duration;

use anomaly::config::{Notify, Secret};
use anomaly::engine::{Ban, Braked, Finding, Level, LevelAccepted, Origin, Scope};
use anomaly::notify::{Notice, Notifier, Reporter};
use serde_json::Value;

use super::server::{OK, Sink};
use super::{at, ban, fast, finding, health, net, not_effective, of, reporter, run, slack, unban, until, words};

/// The message that tells of one notice.
fn told(notice: Notice) -> Value {
    let sink = Sink::start(|_| OK);
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        notifier.send(notice);
        until("it is sent", || health(&notifier).sent == 1).await;
    });
    sink.bodies().remove(0)
}

/// Holds that a message has this title and these parts, and that no label in it stands without a value.
fn holds(message: &Value, title: &str, parts: &[&str]) {
    assert_eq!(message["text"], format!("web1: {title}"));
    let words = words(message);
    for part in parts {
        assert!(words.contains(part), "{part:?} is missing in {words}");
    }
    let fields = message["blocks"].as_array().into_iter().flatten().filter_map(|block| block["fields"].as_array());
    let texts: Vec<&str> = fields.flatten().filter_map(|field| field["text"].as_str()).collect();
    assert!(texts.len() > 1, "{message}");
    for text in texts {
        let value = text.split_once("*\n").map(|(_, value)| value.trim());
        assert!(value.is_some_and(|value| !value.is_empty()), "{text:?}");
    }
}

const DASHBOARD: &str = "<https://status.example.net/anomaly|Dashboard>";

#[test]
fn an_unban_tells_of_the_ban_that_it_ends() {
    let facts = [
        "*Rate*\n14.20 requests/s",
        "*Baseline*\n0.40 ± 0.60 requests/s (ip, rolling)",
        "*Dropped*\n12 packets, 720 bytes",
        "<https://status.example.net/anomaly/ip/203.0.113.7|Why? 203.0.113.7>",
    ];
    let again = || Ban { offence: 2, ..of(net("203.0.113.7/32")) };
    let message = told(unban(again(), 600, Origin::Detector, None));
    holds(&message, "203.0.113.7 unbanned after 10 min", &facts);
    let reason = "reason of the ban: rate_multiplier: 14.20 req/s against 0.40 ± 0.60 of clients (rolling), z 23.0";
    let ran_out = format!("*Condition*\nthe ban ran out; {reason}");
    holds(
        &message,
        "203.0.113.7 unbanned after 10 min",
        &[&ran_out, "*Duration*\n10 min\n", "*Offence*\n2", "*Time*\n2026-04-27T09:35:51Z"],
    );
    let message = told(unban(again(), 200, Origin::Operator, None));
    holds(&message, "203.0.113.7 unbanned after 3 min 20 s", &facts);
    let lifted = format!("*Condition*\nlifted by hand; {reason}");
    holds(&message, "203.0.113.7 unbanned after 3 min 20 s", &[&lifted, "*Duration*\n3 min 20 s of 10 min"]);
    // By hand, of nobody the engine knew, for good.
    let by_hand = Ban { until: None, origin: Origin::Operator, finding: None, note: "rude".into(), ..again() };
    holds(
        &told(unban(by_hand, 7200, Origin::Operator, None)),
        "203.0.113.7 unbanned after 2 h",
        &["*Condition*\nlifted by hand; reason of the ban: rude", "*Duration*\n2 h of a permanent ban"],
    );
}

#[test]
fn unbans_in_a_line_each_still_say_what_they_were_for() {
    let sink = Sink::start(|_| OK);
    run(async {
        let notifier = Notifier::with_pace(&slack(&sink), &reporter(), fast()).expect("started");
        for n in 1..=2 {
            notifier.send(unban(of(net(&format!("203.0.113.{n}/32"))), 600, Origin::Detector, None));
        }
        until("they are sent", || health(&notifier).delivered == 2).await;
    });
    let message = &sink.bodies()[0];
    assert_eq!(message["text"], "web1: 2 unbans");
    let words = words(message);
    let line = "203.0.113.2 unbanned after 10 min — the ban ran out; reason of the ban: rate_multiplier: 14.20 req/s \
                against 0.40 ± 0.60 of clients (rolling), z 23.0, offence 1, 2026-04-27T09:35:51Z \
                <https://status.example.net/anomaly/ip/203.0.113.2|why>";
    assert!(words.contains(line), "{words}");
}

#[test]
fn a_global_anomaly_has_its_figures() {
    let level = Level { scope: Scope::Global, mean: 41.0, stddev: 9.5, ..finding().baseline };
    let finding = Finding { rate: 930.1, baseline: level, z_score: 93.6, samples: Vec::new(), ..finding() };
    holds(
        &told(Notice::GlobalAnomaly(Box::new(finding))),
        "Unusual traffic: 930.1 requests/s on the whole site",
        &[
            "*Condition*\nrate_multiplier: 930.10 req/s against 41.00 ± 9.50 of the site (rolling), z 93.6",
            "*Rate*\n930.10 requests/s",
            "*Baseline*\n41.00 ± 9.50 requests/s (global, rolling)",
            "*Time*\n2026-04-27T09:25:51Z",
            DASHBOARD,
        ],
    );
}

#[test]
fn a_fallback_says_from_what_to_what_and_why() {
    let notice = |interface: Option<&str>| Notice::Fallback {
        at: at(0),
        interface: interface.map(Into::into),
        from: "native XDP".into(),
        to: "generic XDP".into(),
        reason: "the driver has no XDP".into(),
    };
    let parts = ["*Reason*\nthe driver has no XDP", "*Time*\n2026-04-27T09:25:51Z", DASHBOARD];
    holds(&told(notice(Some("eth0"))), "Fallback on eth0: generic XDP instead of native XDP", &parts);
    holds(&told(notice(None)), "Fallback: generic XDP instead of native XDP", &parts);
}

#[test]
fn a_ban_without_effect_says_why_it_may_have_none() {
    holds(
        &told(not_effective(net("203.0.113.7/32"))),
        "The ban of 203.0.113.7 is not effective",
        &[
            "*Likely reason*\nit comes through a proxy",
            "*Requests since the ban*\n3",
            "*Banned at*\n2026-04-27T09:25:51Z",
            "*TCP peer*\n192.0.2.1",
            "*Time*\n2026-04-27T09:26:00Z",
            "<https://status.example.net/anomaly/ip/203.0.113.7|Why? 203.0.113.7>",
        ],
    );
}

#[test]
fn what_is_degraded_is_told_when_it_begins_and_when_it_ends() {
    let (what, reason) = ("log_silent".to_owned(), "no line for 5 min".to_owned());
    holds(
        &told(Notice::Degraded { at: at(0), what: what.clone(), reason: reason.clone() }),
        "Degraded: log_silent",
        &["*Reason*\nno line for 5 min", "*Time*\n2026-04-27T09:25:51Z", DASHBOARD],
    );
    holds(
        &told(Notice::Recovered { at: at(90), what, reason, after: Duration::from_secs(90) }),
        "Recovered: log_silent",
        &["*After*\n1 min 30 s", "*It was*\nno line for 5 min", "*Time*\n2026-04-27T09:27:21Z", DASHBOARD],
    );
}

#[test]
fn what_the_brake_holds_and_what_is_normal_from_now_on_have_their_figures() {
    let braked = Braked { prefix: net("203.0.113.7/32"), finding: finding(), bans_last_minute: 50 };
    holds(
        &told(Notice::Braked(Box::new(braked))),
        "203.0.113.7 NOT banned: too many bans at once",
        &["*Rate*\n14.20 requests/s", "*Bans in the last minute*\n50", "/ip/203.0.113.7|"],
    );
    let before = finding().baseline;
    let after = Level { mean: 2.0, ..before };
    holds(
        &told(Notice::LevelAccepted(LevelAccepted { at: at(0), scope: Scope::Ip, before, after })),
        "A new level of traffic is normal now (ip)",
        &["*Before*\n0.40 ± 0.60 requests/s (ip, rolling)", "*From now on*\n2.00 ± 0.60 requests/s (ip, rolling)"],
    );
}

/// Several daemons write to one channel.
#[test]
fn every_message_and_every_row_names_its_host_and_a_dry_run() {
    let (to_slack, to_webhook) = (Sink::start(|_| OK), Sink::start(|_| OK));
    let settings = Notify { webhook_url: Some(Secret::new(to_webhook.url.clone())), ..slack(&to_slack) };
    let dry = Reporter { host: "shop-2".into(), dry_run: true };
    for reporter in [reporter(), dry] {
        run(async {
            let notifier = Notifier::with_pace(&settings, &reporter, fast()).expect("started");
            notifier.send(ban(1));
            notifier.send(Notice::Other { at: at(0), event: "repaired".into(), text: "1 ban was missing".into() });
            notifier.send(Notice::Degraded { at: at(0), what: "store".into(), reason: "the disk is full".into() });
            until("it is sent", || notifier.health().iter().all(|sink| sink.delivered == 3)).await;
            notifier.finish(Duration::from_secs(10)).await;
        });
    }
    let heads = ["web1: ", "shop-2 (dry run, nothing is dropped): "];
    for (message, head) in to_slack.bodies().iter().zip(heads) {
        let title = message["blocks"][0]["text"]["text"].as_str().expect("a header");
        assert!(title.starts_with(head) && message["text"].as_str().is_some_and(|t| t.starts_with(head)), "{message}");
    }
    let bodies = to_webhook.bodies();
    assert_eq!((bodies.len(), to_slack.bodies().len()), (2, 2));
    for (body, (head, host, dry_run)) in bodies.iter().zip([(heads[0], "web1", false), (heads[1], "shop-2", true)]) {
        let rows = body["events"].as_array().expect("events");
        assert_eq!(rows.len(), 3);
        for row in rows.iter().chain([body]) {
            assert_eq!((&row["host"], &row["dry_run"]), (&host.into(), &dry_run.into()), "{row}");
        }
        for row in rows {
            assert!(row["text"].as_str().is_some_and(|text| text.starts_with(head)), "{row}");
        }
    }
}

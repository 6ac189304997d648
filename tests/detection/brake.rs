//! The mass-ban brake, as `bans.brake_per_minute` and `bans.brake_share` document it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anomaly::engine::{BanLength, Command, Decision, Engine, Input, Origin, Output, Rule, Settings};
use anomaly::record::Record;
use anomaly::time::Timestamp;
use ipnet::IpNet;

const START: i64 = 1_767_225_600;

/// Clients that behave ordinarily before anything happens.
const PEOPLE: u16 = 200;

struct Site {
    engine: Engine,
    now: i64,
}

impl Site {
    /// Warm, with nothing learned: the limit of a client is 100 points. The first clients have looked at some pages.
    fn new(settings: Settings) -> Self {
        let mut site = Self::of_newcomers(settings);
        for n in 0..PEOPLE {
            (0..6).for_each(|page| drop(site.ask_for(client(n), &format!("/page-{page}"), 1)));
        }
        site.now += 31;
        site
    }

    /// The same where nobody has shown anything yet.
    fn of_newcomers(settings: Settings) -> Self {
        let mut site = Self { engine: Engine::new(settings, 1), now: START };
        site.ask(client(60_000), 1);
        site.now += 600;
        site.engine.handle(Timestamp::from_secs(site.now), Input::Tick { caught_up: true }, &mut Vec::new());
        site
    }

    fn ask(&mut self, client: IpAddr, requests: u32) -> Vec<Output> {
        self.ask_for(client, "/", requests)
    }

    fn ask_for(&mut self, client: IpAddr, path: &str, requests: u32) -> Vec<Output> {
        let now = Timestamp::from_secs(self.now);
        let mut out = Vec::new();
        let record = Record { method: b"GET", status: 200, ..Record::new(client, now) }.with_path(path.as_bytes());
        for _ in 0..requests {
            self.engine.handle(now, Input::Record(&record), &mut out);
        }
        out
    }

    /// This many clients, numbered from `first`, each a little over its limit: (banned, braked).
    fn crowd(&mut self, first: u16, clients: u16) -> (usize, usize) {
        let out: Vec<Output> = (first..first + clients).flat_map(|n| self.ask(client(n), 100)).collect();
        (bans(&out), braked(&out).len())
    }
}

fn client(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
}

fn bans(out: &[Output]) -> usize {
    let is_ban = |o: &&Output| matches!(o, Output::Decision(Decision::Ban(ban)) if ban.origin == Origin::Detector);
    out.iter().filter(is_ban).count()
}

fn braked(out: &[Output]) -> Vec<IpNet> {
    out.iter().filter_map(|o| if let Output::Braked(braked) = o { Some(braked.prefix) } else { None }).collect()
}

#[test]
fn from_the_twentieth_ban_a_minute_on_the_rest_is_alerted_once_each() {
    let mut site = Site::new(Settings::default());
    assert_eq!(site.crowd(0, 50), (20, 30));
    site.now += 5;
    let out: Vec<Output> = (20..50).flat_map(|n| site.ask(client(n), 40)).collect();
    assert_eq!((bans(&out), braked(&out).len()), (0, 0), "each is told once");
    // A minute later the brake is off; who goes on is banned after all.
    site.now += 60;
    assert_eq!(site.crowd(20, 10), (10, 0));
}

/// Also while those who are held back are known: each is told once, but the brake goes on holding.
#[test]
fn how_long_the_brake_holds_is_known() {
    let mut site = Site::new(Settings::default());
    let began = site.now;
    site.crowd(0, 20);
    assert_eq!(site.engine.snapshot(0).braked, None, "everybody was banned");
    site.crowd(20, 10);
    site.now += 5;
    site.ask(client(25), 40);
    let held = |site: &Site| site.engine.snapshot(0).braked.map(|(since, last)| [since, last].map(|t| t.as_secs()));
    assert_eq!(held(&site), Some([began, began + 5]));
    // More than a minute later it begins anew.
    site.now += 61;
    site.crowd(100, 30);
    assert_eq!(held(&site), Some([began + 66; 2]));
}

#[test]
fn over_three_times_the_limit_and_over_the_hard_limit_bans_go_on() {
    let mut site = Site::new(Settings::default());
    assert_eq!(site.crowd(0, 30), (20, 10));
    let three_times = site.ask(client(100), 300);
    assert_eq!(bans(&three_times), 1);
    assert_eq!(braked(&three_times).len(), 1, "braked until then");
    // The hard limit counts answers that are like others, whatever they weigh.
    let mut site = Site::new(Settings { hard_limit: 150, ..Settings::default() });
    assert_eq!(site.crowd(0, 30), (20, 10));
    let out = site.ask(client(101), 170);
    let by_rule = |o: &Output| match o {
        Output::Decision(Decision::Ban(ban)) => ban.finding.as_ref().map(|f| (f.rule, f.limit)),
        _ => None,
    };
    assert_eq!(out.iter().filter_map(by_rule).collect::<Vec<_>>(), [(Rule::HardLimit, 150.0)]);
    assert_eq!(braked(&out).len(), 1, "braked until then");
}

#[test]
fn a_share_of_many_active_clients_counts_where_it_is_more() {
    let mut site = Site::new(Settings::default());
    // 1,200 and some active clients: 5 % of them are more than 20.
    for n in 1000..2000 {
        site.ask(client(n), 1);
    }
    let (banned, braked) = site.crowd(0, 100);
    // The banned are no longer followed.
    assert!((55..=63).contains(&banned), "{banned} banned, {braked} braked");
    assert_eq!(banned + braked, 100);
}

#[test]
fn bans_by_hand_and_restored_bans_do_not_count() {
    let mut site = Site::new(Settings::default());
    for n in 0..40 {
        let command = Command::Ban {
            prefix: client(5000 + n).into(),
            length: Some(BanLength::Timed(Duration::from_secs(3600))),
            reason: "by hand".into(),
            force: false,
            replace: false,
        };
        site.engine.handle(Timestamp::from_secs(site.now), Input::Command(command), &mut Vec::new());
    }
    let state = site.engine.save();
    assert_eq!(state.bans.len(), 40);
    let mut again = Site { engine: Engine::new(Settings::default(), 0), now: site.now };
    assert_eq!(again.engine.restore(state), Ok(()));
    for mut site in [site, again] {
        assert_eq!(site.crowd(0, 30), (20, 10));
    }
}

#[test]
fn zero_switches_it_off() {
    let mut site = Site::new(Settings { brake_per_minute: 0, ..Settings::default() });
    assert_eq!(site.crowd(0, 200), (200, 0));
}

/// The brake spares people, not bans.
#[test]
fn newcomers_that_show_nothing_ordinary_are_held_back_only_from_fifty_times_as_many_on() {
    let mut site = Site::of_newcomers(Settings { brake_share: 0.0, ..Settings::default() });
    assert_eq!(site.crowd(0, 600), (600, 0), "600 bots within a minute");
    assert_eq!(site.crowd(1000, 600), (400, 200));
}

/// Who owns a whole network can have its parts banned, but only a thousand of them a minute: for a full table (a million) that takes
/// most of a day, of bans that end after ten minutes; and nobody's ban ends early.
#[test]
fn one_with_many_networks_cannot_fill_the_table_of_bans() {
    let mut site = Site::of_newcomers(Settings::default());
    assert_eq!(bans(&site.ask(client(1), 200)), 1);
    let (mut banned, mut held_back, networks) = (0, HashSet::new(), 30_000);
    // Five minutes of 100 networks a second, each used until just before it would be dropped.
    for network in 0..networks {
        site.now += i64::from(network % 100 == 0);
        let from: IpAddr = format!("2001:db8:{:x}:{:x}::1", network >> 16, network & 0xffff).parse().expect("one");
        let out = site.ask(from, 100);
        banned += bans(&out);
        held_back.extend(braked(&out));
    }
    assert!(banned <= 6 * 1000, "{banned} bans, {} held back", held_back.len());
    assert!(held_back.len() > networks / 2);
    let held = site.engine.snapshot(0).bans;
    assert!(held.iter().any(|ban| ban.prefix == IpNet::from(client(1))), "the first ban lasts its ten minutes");
}

//! Tables that iptables cannot list, or that nobody can: what cannot be read is never taken for empty.

use std::time::Duration;

use anomaly::config::Enforcer as Settings;
use anomaly::enforce::iptables::{self, Removed};
use anomaly::enforce::{Drop as Ban, Enforcer, Fault, Incident, reconcile};
use ipnet::IpNet;

use super::town::{Town, net, settings};
use super::{CLIENT4, CLIENT6, crowd, wrap};
use crate::lab::{self, clock};

/// Whether there is an `nft` to be somebody else with.
fn ready(test: &str) -> bool {
    if !lab::ready(test) {
        return false;
    }
    let there = std::process::Command::new("nft").arg("--version").output().is_ok();
    if !there {
        lab::skip(test, "nft is not installed");
    }
    there
}

/// The chains that our rules are in.
const CHAINS: [&str; 3] = ["ip filter INPUT", "ip6 filter INPUT", "ip raw PREROUTING"];

const DOCKER: &str = "ip filter DOCKER-USER";

/// Rules that drop something, whoever made them, by the only tool that shows them.
fn drops(town: &Town, chain: &str) -> usize {
    town.sh(&format!("nft list chain {chain}")).lines().filter(|line| line.trim().ends_with("drop")).count()
}

/// What NetBird, mailcow and others do: a rule that iptables does not understand.
fn foreign(town: &Town, verb: &str, chain: &str) {
    town.sh(&format!("nft {verb} rule {chain} ct state established,related accept"));
}

fn listing(incidents: &[Incident]) -> bool {
    matches!(incidents, [Incident::Degraded { fault: Fault::Listing, reason }] if reason.contains("incompatible"))
}

#[test]
fn a_table_that_iptables_cannot_list_is_read_from_the_kernel() {
    if !ready("a_table_that_iptables_cannot_list_is_read_from_the_kernel") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &["ipset"]);
    let with_raw = Settings { iptables_raw_prerouting: true, ..settings() };
    let (mut enforcer, incidents) = town.open(&with_raw, &path).unwrap();
    assert_eq!(incidents, []);
    let listener = town.serve();
    let port = listener.local_addr().unwrap().port();
    let (some, wide) = (&crowd()[..49], ["198.51.100.0/24", "198.18.0.0/15", "2001:db8:7::/64"].map(net));
    town.ban(&mut enforcer, some);
    town.ban(&mut enforcer, &[net(CLIENT4), net(CLIENT6)]);
    for prefix in wide {
        town.ban(&mut enforcer, &[prefix]);
    }
    let counts = || CHAINS.map(|chain| drops(&town, chain));
    assert_eq!(counts(), [52, 2, 52]);
    // It comes while the daemon runs, behind our rules and before them.
    for chain in CHAINS {
        foreign(&town, "add", chain);
        foreign(&town, "insert", chain);
    }
    let incidents: Vec<Incident> = (0..20).flat_map(|_| town.maintain(&mut enforcer)).collect();
    assert!(listing(&incidents), "told once, and nothing is repaired: {incidents:?}");
    assert_eq!(town.reach(port), (false, false));
    let held = town.on_host(|| enforcer.banned()).unwrap();
    assert_eq!(held.len(), 54);
    let packets = |prefix: &str| held.iter().find(|held| held.prefix == net(prefix)).unwrap().packets;
    assert!(packets(CLIENT4) > 0 && packets(CLIENT6) > 0, "{held:?}");
    assert_eq!(counts(), [52, 2, 52], "no rule was set twice");

    // Docker starts, and its chain is noticed.
    town.sh("nft add chain ip filter DOCKER-USER");
    let incidents = town.maintain(&mut enforcer);
    assert!(matches!(&incidents[..], [Incident::Repaired { missing, .. }] if missing.len() == 52), "{incidents:?}");
    assert_eq!((drops(&town, DOCKER), counts()), (52, [52, 2, 52]));

    // The same bans again, and new ones, one by one and many at once.
    town.ban(&mut enforcer, &[net(CLIENT4)]);
    town.ban(&mut enforcer, some);
    town.ban(&mut enforcer, &[net("203.0.115.1/32")]);
    town.ban(&mut enforcer, &["203.0.115.2/32", "203.0.115.3/32", "203.0.115.4/32"].map(net));
    assert_eq!(counts(), [56, 2, 56]);
    let all: Vec<Ban> = town
        .on_host(|| enforcer.banned())
        .unwrap()
        .iter()
        .map(|held| Ban { prefix: held.prefix, left: None })
        .collect();
    assert_eq!(all.len(), 58);
    let done = town.on_host(|| reconcile(&mut enforcer, &all[1..])).unwrap();
    assert_eq!((done.missing, done.orphans), (vec![], vec![all[0].prefix]));

    // They end one by one and together, and are gone then; a stranger's stay.
    town.unban(&mut enforcer, &[net(CLIENT4)]);
    town.unban(&mut enforcer, &[net(CLIENT6)]);
    // Neighbours were dropped as well, and look for each other anew.
    clock::wait_until("both to be let in", Duration::from_secs(20), || town.reach(port) == (true, true)).unwrap();
    town.unban(&mut enforcer, some);
    assert_eq!(counts(), [6, 1, 6]);
    town.sh("nft add rule ip filter INPUT ip saddr 203.0.115.9 counter drop");
    town.unban(&mut enforcer, &all.iter().map(|ban| ban.prefix).collect::<Vec<_>>());
    assert_eq!((drops(&town, DOCKER), counts()), (0, [1, 0, 0]));
    for chain in CHAINS {
        assert_eq!(town.sh(&format!("nft list chain {chain}")).matches("ct state").count(), 2, "{chain}");
    }

    // The stranger goes.
    for chain in CHAINS {
        town.sh(&format!("nft flush chain {chain}"));
    }
    assert_eq!(town.maintain(&mut enforcer), [Incident::Recovered { fault: Fault::Listing }]);
}

#[test]
fn a_restart_and_a_removal_see_what_iptables_does_not_list() {
    if !ready("a_restart_and_a_removal_see_what_iptables_does_not_list") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &["ipset"]);
    let few = Settings { iptables_max_rules: 2, ..settings() };
    let (mut enforcer, _) = town.open(&few, &path).unwrap();
    let prefixes = ["203.0.113.1/32", "203.0.113.2/32", "203.0.113.3/32", CLIENT6].map(net);
    let bans: Vec<Ban> = prefixes.iter().map(|&prefix| Ban { prefix, left: Some(Duration::from_secs(600)) }).collect();
    assert!(town.on_host(|| enforcer.ban(&bans)).iter().all(Result::is_ok));
    town.on_host(|| Box::new(enforcer).close(true)).unwrap();
    let counts = || [CHAINS[0], CHAINS[1]].map(|chain| drops(&town, chain));
    let before = counts();
    for chain in &CHAINS[..2] {
        foreign(&town, "insert", chain);
    }
    // Of an earlier daemon everything is known, and nothing is set again.
    let (mut enforcer, incidents) = town.open(&few, &path).unwrap();
    assert!(listing(&incidents), "{incidents:?}");
    let done = town.on_host(|| reconcile(&mut enforcer, &bans)).unwrap();
    assert_eq!((done.missing, done.orphans, counts()), (vec![], vec![], before));
    drop(enforcer);
    let removed = town.on_host(iptables::remove_all).unwrap();
    assert_eq!((removed.sets, counts()), (2, [0, 0]), "{removed:?}");
    assert_eq!(removed.rules, before.iter().sum::<usize>());
    assert_eq!(town.on_host(iptables::remove_all).unwrap(), Removed::default());
    assert_eq!(town.sh("nft list chain ip filter INPUT").matches("ct state").count(), 1, "a stranger's rule is gone");
}

/// Legacy tables nobody else can read: `iptables-save` ends with 0 each time.
#[test]
fn what_nobody_can_read_is_a_fault_and_not_empty() {
    if !lab::ready("what_nobody_can_read_is_a_fault_and_not_empty") {
        return;
    }
    let said = [
        "echo '# Table `filter'\\'' is incompatible, use '\\''nft'\\'' tool.'; exit 0",
        "exit 0",
        "xtables-legacy-multi iptables-save \"$@\" | head -n -2; exit 0",
    ];
    for instead in said {
        let town = Town::new();
        let path = town.path("legacy", &[]);
        let broken = path.join("broken");
        wrap(&path, "iptables-save", "-c", &format!("if [ -e {} ]; then {instead}; fi", broken.display()));
        let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
        let some: Vec<IpNet> = crowd()[..20].to_vec();
        town.ban(&mut enforcer, &some);
        let set =
            || town.sh(&format!("{} -S INPUT", path.join("iptables").display())).matches("--comment anomaly").count();
        std::fs::write(&broken, "").unwrap();
        let incidents: Vec<Incident> = (0..30).flat_map(|_| town.maintain(&mut enforcer)).collect();
        assert!(
            matches!(&incidents[..], [Incident::Degraded { fault: Fault::Chains, .. }]),
            "{instead}: {incidents:?}"
        );
        assert!(town.on_host(|| enforcer.banned()).is_err(), "{instead}");
        assert_eq!(set(), 20, "{instead}");
        let lifted = town.on_host(|| enforcer.unban(&some[..1]));
        assert!(lifted[0].is_err() && set() == 20, "{instead}: {lifted:?}");
        std::fs::remove_file(&broken).unwrap();
        town.unban(&mut enforcer, &some);
        assert_eq!(set(), 0, "{instead}");
    }
}

#[test]
fn what_a_tool_claims_to_have_done_is_looked_at() {
    if !lab::ready("what_a_tool_claims_to_have_done_is_looked_at") {
        return;
    }
    for variant in super::VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &["ipset"]);
        let (mut enforcer, _) = town.open(&Settings { iptables_max_rules: 1, ..settings() }, &path).unwrap();
        town.ban(&mut enforcer, &[net(CLIENT4)]);
        let lies = path.join("lies");
        let lie = format!("[ -e {} ] && case \"$*\" in *-D*|*-I*) exit 0 ;; esac", lies.display());
        wrap(&path, "iptables", "INPUT", &lie);
        std::fs::write(&lies, "").unwrap();
        let lifted = town.on_host(|| enforcer.unban(&[net(CLIENT4)]));
        let [Err(error)] = &lifted[..] else { panic!("{variant}: {lifted:?}") };
        let error = error.to_string();
        assert!(error.contains("still there") && error.contains("-A INPUT -s 192.0.2.2/32"), "{variant}: {error}");

        // A repair that repairs nothing is none.
        std::fs::remove_file(&lies).unwrap();
        town.ban(&mut enforcer, &[net(CLIENT4)]);
        town.sh(&format!("{} -F INPUT", path.join("iptables").display()));
        std::fs::write(&lies, "").unwrap();
        let incidents: Vec<Incident> = (0..10).flat_map(|_| town.maintain(&mut enforcer)).collect();
        assert!(
            matches!(&incidents[..], [Incident::Degraded { fault: Fault::Chains, reason }] if reason.contains("not there")),
            "{variant}: {incidents:?}"
        );
        std::fs::remove_file(&lies).unwrap();

        // A set of which nothing is shown is not an empty set.
        let bans = [net(CLIENT4), net("203.0.113.1/32")];
        town.ban(&mut enforcer, &bans);
        assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), 2);
        wrap(&path, "ipset", "save", "exit 0");
        let listed = town.on_host(|| enforcer.banned());
        assert!(listed.as_ref().is_err_and(|e| e.to_string().contains("nothing of the set")), "{variant}: {listed:?}");
    }
}

/// Somebody has uninstalled ip6tables since the bans were set.
#[test]
fn rules_are_taken_away_also_without_the_programs() {
    if !ready("rules_are_taken_away_also_without_the_programs") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &[]);
    let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
    town.ban(&mut enforcer, &[net(CLIENT4), net(CLIENT6), net("2001:db8:9::/64")]);
    drop(enforcer);
    std::fs::remove_file(path.join("ip6tables")).unwrap();
    let (mut enforcer, incidents) = town.open(&settings(), &path).unwrap();
    assert!(matches!(&incidents[..], [Incident::Degraded { fault: Fault::Ipv6, .. }]), "{incidents:?}");
    assert_eq!(drops(&town, CHAINS[1]), 2);
    town.unban(&mut enforcer, &[net(CLIENT6)]);
    assert_eq!(drops(&town, CHAINS[1]), 1);
    town.on_host(|| Box::new(enforcer).close(false)).unwrap();
    assert_eq!((drops(&town, CHAINS[0]), drops(&town, CHAINS[1])), (0, 0));
}

//! The iptables enforcer on the real thing, in both variants: rules, sets and packets.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod town;
mod unlisted;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anomaly::enforce::iptables::{self, LONGEST_LIST, Removed};
use anomaly::enforce::{Drop as Ban, EnforceError, Enforcer, Fault, Incident, reconcile};
use ipnet::IpNet;

use crate::lab::{self, clock, run};
use town::{PUBLISHED, Town, net, settings};

const VARIANTS: [&str; 2] = ["nft", "legacy"];
const CLIENT4: &str = "192.0.2.2/32";
const CLIENT6: &str = "2001:db8:1::2/128";

/// Every rule and every chain of somebody's own making of the host, in order, without counters.
fn rules(town: &Town, path: &Path) -> String {
    let mut text = String::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = town.sh(path.join(program).to_str().unwrap());
        let mut table = "";
        for line in saved.lines() {
            if line.starts_with('*') {
                table = line;
            } else if line.starts_with("-A") || (line.starts_with(':') && line.contains(" - ")) {
                text.push_str(&format!("{program} {table} {line}\n"));
            }
        }
    }
    text
}

fn ours(town: &Town, path: &Path) -> usize {
    rules(town, path).lines().filter(|line| line.contains("--comment anomaly")).count()
}

#[test]
fn a_ban_is_exactly_the_users_rule_and_cuts_real_packets() {
    if !lab::ready("a_ban_is_exactly_the_users_rule_and_cuts_real_packets") {
        return;
    }
    for variant in VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &["ipset"]);
        let iptables = path.join("iptables").display().to_string();
        // Somebody else's rules, one of them with a comment that looks like ours.
        for rule in [
            "-A INPUT -s 198.51.100.1/32 -j DROP",
            "-A INPUT -p tcp -m tcp --dport 22 -m comment --comment anomaly -j ACCEPT",
            "-A INPUT -s 198.51.100.2/32 -p tcp -m comment --comment anomaly -j DROP",
            "-N mine",
            "-A mine -s 203.0.113.0/24 -m comment --comment not-anomaly -j DROP",
        ] {
            town.sh(&format!("{iptables} {rule}"));
        }
        let foreign = rules(&town, &path);
        let listener = town.serve();
        let port = listener.local_addr().unwrap().port();
        let (mut enforcer, incidents) = town.open(&settings(), &path).unwrap();
        assert_eq!(incidents, [], "{variant}");
        assert_eq!(town.reach(port), (true, true), "{variant}");

        let both = [net(CLIENT4), net(CLIENT6)];
        town.ban(&mut enforcer, &both);
        assert_eq!(town.reach(port), (false, false), "{variant}");
        let shown = town.sh(&format!("{iptables} -S INPUT"));
        assert!(shown.contains("-A INPUT -s 192.0.2.2/32 -m comment --comment anomaly -j DROP\n"), "{shown}");
        let first = shown.lines().find(|line| line.starts_with("-A")).unwrap();
        assert!(first.contains("192.0.2.2/32"), "it stands before everything that could accept the packet: {shown}");
        town.ban(&mut enforcer, &both);
        assert_eq!(ours(&town, &path), 2 + 2, "twice is the same as once (and two are somebody's own)");

        let held = town.on_host(|| enforcer.banned()).unwrap();
        assert_eq!(held.iter().map(|h| h.prefix).collect::<Vec<_>>(), both);
        assert!(held.iter().all(|h| h.packets > 0 && h.bytes >= 40 * h.packets), "{held:?}");
        let totals = enforcer.coverage().totals;
        assert_eq!(totals.dropped_host, held[0].packets + held[1].packets);
        let text = town.on_host(|| enforcer.snapshot_text()).unwrap();
        assert!(text.contains(&format!("# iptables ({variant})\n*filter\n:INPUT ")), "{text}");
        assert!(text.contains("-A INPUT -s 2001:db8:1::2/128 -m comment --comment anomaly -j DROP"), "{text}");

        town.unban(&mut enforcer, &both);
        assert_eq!(town.reach(port), (true, true), "{variant}");
        town.unban(&mut enforcer, &both);
        assert_eq!(rules(&town, &path), foreign, "{variant}: nobody else's rule was touched");
        assert_eq!(enforcer.coverage().totals.dropped_host, totals.dropped_host, "totals outlive the rules");
        town.on_host(|| Box::new(enforcer).close(false)).unwrap();
        assert_eq!(rules(&town, &path), foreign, "{variant}");
    }
}

/// The original's hole: traffic to a published container never passes INPUT.
#[test]
fn a_published_container_is_covered_by_docker_user_and_not_by_input() {
    if !lab::ready("a_published_container_is_covered_by_docker_user_and_not_by_input") {
        return;
    }
    for variant in VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &[]);
        let listener = town.publish(&path);
        let sh = |rule: &str| {
            for program in ["iptables", "ip6tables"] {
                town.sh(&format!("{} {rule}", path.join(program).display()));
            }
        };
        assert_eq!(town.reach(PUBLISHED), (true, true), "{variant}");
        let both = [net(CLIENT4), net(CLIENT6)];
        let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
        town.ban(&mut enforcer, &both);
        assert_eq!(town.reach(PUBLISHED), (true, true), "{variant}: INPUT alone does not cover it");

        // Docker starts.
        sh("-N DOCKER-USER");
        sh("-A DOCKER-USER -j RETURN");
        sh("-I FORWARD -j DOCKER-USER");
        let incidents = town.maintain(&mut enforcer);
        assert_eq!(incidents, [Incident::Repaired { missing: both.to_vec(), orphans: vec![] }], "{variant}");
        assert_eq!(town.reach(PUBLISHED), (false, false), "{variant}");
        let shown = town.sh(&format!("{} -S DOCKER-USER", path.join("iptables").display()));
        assert!(shown.contains("-A DOCKER-USER -s 192.0.2.2/32 -m comment --comment anomaly -j DROP\n"), "{shown}");
        assert!(town.on_host(|| enforcer.banned()).unwrap().iter().all(|held| held.packets > 0));
        town.unban(&mut enforcer, &both);
        assert_eq!(town.reach(PUBLISHED), (true, true), "{variant}");

        // It is there from the first ban on as well, and gone again when Docker is.
        town.ban(&mut enforcer, &both);
        assert_eq!(town.reach(PUBLISHED), (false, false), "{variant}");
        sh("-F FORWARD");
        sh("-F DOCKER-USER");
        sh("-X DOCKER-USER");
        assert_eq!(town.maintain(&mut enforcer), [], "{variant}");
        assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), 2);
        town.unban(&mut enforcer, &both);
        assert_eq!(ours(&town, &path), 0);
        drop(listener);
    }
}

#[test]
fn docker_user_in_the_variant_that_iptables_is_not_is_covered_too() {
    if !lab::ready("docker_user_in_the_variant_that_iptables_is_not_is_covered_too") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &["iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore"]);
    let legacy = town.path("legacy", &[]);
    let listener = town.publish(&legacy);
    for rule in ["-N DOCKER-USER", "-I FORWARD -j DOCKER-USER"] {
        town.sh(&format!("{} {rule}", legacy.join("iptables").display()));
    }
    let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
    town.ban(&mut enforcer, &[net(CLIENT4)]);
    assert_eq!(town.reach(PUBLISHED), (false, true));
    assert_eq!((ours(&town, &path), ours(&town, &legacy)), (1, 1), "INPUT in one, DOCKER-USER in the other");
    town.unban(&mut enforcer, &[net(CLIENT4)]);
    assert_eq!(town.reach(PUBLISHED), (true, true));
    drop(listener);
}

#[test]
fn a_firewall_that_reloads_underneath_is_repaired() {
    if !lab::ready("a_firewall_that_reloads_underneath_is_repaired") {
        return;
    }
    for variant in VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &["ipset"]);
        let listener = town.serve();
        let port = listener.local_addr().unwrap().port();
        let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
        town.ban(&mut enforcer, &[net(CLIENT4), net("203.0.113.9/32")]);
        assert_eq!(town.maintain(&mut enforcer), [], "{variant}: nothing to repair");
        town.sh(&format!("{} -F INPUT", path.join("iptables").display()));
        assert_eq!(town.reach(port), (true, true), "{variant}");
        assert_eq!(town.on_host(|| enforcer.banned()).unwrap(), [], "{variant}: it does not claim what is not so");
        let missing = vec![net(CLIENT4), net("203.0.113.9/32")];
        assert_eq!(town.maintain(&mut enforcer), [Incident::Repaired { missing, orphans: vec![] }], "{variant}");
        assert_eq!(town.reach(port), (false, true), "{variant}");
        drop(listener);
    }
}

#[test]
fn the_reconciler_sets_what_is_missing_and_removes_what_nobody_wants() {
    if !lab::ready("the_reconciler_sets_what_is_missing_and_removes_what_nobody_wants") {
        return;
    }
    for variant in VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &["ipset"]);
        let iptables = path.join("iptables").display().to_string();
        for rule in [
            "-N DOCKER-USER",
            // A crash left these: one in one chain only, one that is wanted, one that is not.
            "-A INPUT -s 203.0.113.1/32 -m comment --comment anomaly -j DROP",
            "-A INPUT -s 203.0.113.2/32 -m comment --comment anomaly -j DROP",
            "-A DOCKER-USER -s 203.0.113.2/32 -m comment --comment anomaly -j DROP",
            "-A INPUT -s 203.0.113.2/32 -m comment --comment anomaly -j DROP",
        ] {
            town.sh(&format!("{iptables} {rule}"));
        }
        let wanted = ["203.0.113.1/32", "203.0.113.3/32", "2001:db8:9::/64"].map(net);
        let wanted = wanted.map(|prefix| Ban { prefix, left: Some(Duration::from_secs(600)) });
        let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
        let done = town.on_host(|| reconcile(&mut enforcer, &wanted)).unwrap();
        assert_eq!((done.wanted, done.enforced), (3, 3), "{variant}");
        assert_eq!(done.orphans, [net("203.0.113.2/32")]);
        assert_eq!(done.missing, [net("203.0.113.3/32"), net("2001:db8:9::/64")]);
        let saved = rules(&town, &path);
        for (rule, times) in [("203.0.113.1/32", 2), ("203.0.113.2/32", 0), ("203.0.113.3/32", 2), ("db8:9::/64", 1)] {
            assert_eq!(saved.lines().filter(|line| line.contains(rule)).count(), times, "{variant} {rule}:\n{saved}");
        }
        // Somebody takes one away, and sets one by hand.
        town.sh(&format!("{iptables} -D DOCKER-USER -s 203.0.113.3/32 -m comment --comment anomaly -j DROP"));
        town.sh(&format!("{iptables} -A INPUT -s 203.0.113.4/32 -m comment --comment anomaly -j DROP"));
        let done = town.on_host(|| reconcile(&mut enforcer, &wanted)).unwrap();
        assert_eq!((done.missing, done.orphans), (vec![net("203.0.113.3/32")], vec![net("203.0.113.4/32")]));
        let done = town.on_host(|| reconcile(&mut enforcer, &wanted)).unwrap();
        assert_eq!((done.missing, done.orphans, done.enforced), (vec![], vec![], 3));
    }
}

/// 600 addresses of 203.0.112.0/22 and the client itself as the last.
fn crowd() -> Vec<IpNet> {
    let address = |i: u32| IpNet::from(std::net::IpAddr::from((0xcb00_7000 + i).to_be_bytes()));
    (0..599).map(address).chain([net(CLIENT4)]).collect()
}

#[test]
fn bans_beyond_the_longest_list_go_into_a_set() {
    if !lab::ready("bans_beyond_the_longest_list_go_into_a_set") {
        return;
    }
    for variant in VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &["ipset"]);
        let listener = town.serve();
        let port = listener.local_addr().unwrap().port();
        let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
        let start = clock::now();
        town.ban(&mut enforcer, &crowd()[..500]);
        let took = start.elapsed();
        println!("{variant}: 500 rules in {took:?}");
        assert!(took < Duration::from_secs(2), "{variant}: {took:?}");
        assert_eq!(ours(&town, &path), 500);
        assert_eq!(town.maintain(&mut enforcer), []);
        let drops: Vec<Ban> =
            crowd()[500..].iter().map(|&prefix| Ban { prefix, left: Some(Duration::from_secs(300)) }).collect();
        assert!(town.on_host(|| enforcer.ban(&drops)).iter().all(Result::is_ok));
        let announced = town.maintain(&mut enforcer);
        assert!(
            matches!(&announced[..], [Incident::Fallback { from, to, .. }] if from == "iptables" && to == "ipset"),
            "{announced:?}"
        );
        let shown = town.sh(&format!("{} -S INPUT", path.join("iptables").display()));
        let set_rule = "-A INPUT -m set --match-set anomaly4 src -m comment --comment anomaly -j DROP";
        assert_eq!(shown.lines().filter(|line| *line == set_rule).count(), 1, "{shown}");
        assert_eq!(ours(&town, &path), 501);
        let set = town.sh("ipset save anomaly4");
        assert_eq!(set.lines().filter(|line| line.starts_with("add ") && line.contains(" timeout ")).count(), 100);
        assert_eq!(town.reach(port), (false, true), "{variant}: the set drops real packets");
        let held = town.on_host(|| enforcer.banned()).unwrap();
        assert_eq!(held.len(), 600);
        let packets = |held: &[anomaly::enforce::Held]| held.iter().find(|h| h.prefix == net(CLIENT4)).unwrap().packets;
        assert!(packets(&held) > 0);

        // Setting the time left anew keeps what was counted, and the place.
        assert!(town.on_host(|| enforcer.ban(&drops[99..])).iter().all(Result::is_ok));
        assert_eq!(packets(&town.on_host(|| enforcer.banned()).unwrap()), packets(&held));

        // A firewall that reloads takes the rules, not the set.
        town.sh(&format!("{} -F INPUT", path.join("iptables").display()));
        let repaired = town.maintain(&mut enforcer);
        assert!(matches!(&repaired[..], [Incident::Repaired { missing, .. }] if missing.len() == 600), "{variant}");
        assert_eq!(town.reach(port), (false, true), "{variant}");

        // An unban moves nobody else.
        let before = rules(&town, &path);
        town.unban(&mut enforcer, &[net(CLIENT4)]);
        assert_eq!(town.reach(port), (true, true), "{variant}");
        assert_eq!(rules(&town, &path), before);

        // A restart takes the set over; the last one out takes it away.
        town.on_host(|| Box::new(enforcer).close(true)).unwrap();
        let (mut enforcer, incidents) = town.open(&settings(), &path).unwrap();
        assert_eq!(incidents, []);
        assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), 599);
        let start = clock::now();
        town.unban(&mut enforcer, &crowd());
        println!("{variant}: 599 unbans in {:?}", start.elapsed());
        assert_eq!(ours(&town, &path), 0);
        assert_eq!(town.sh("ipset list -n"), "", "{variant}");
    }
}

#[test]
fn entries_of_a_set_end_by_themselves() {
    if !lab::ready("entries_of_a_set_end_by_themselves") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &["ipset"]);
    let listener = town.serve();
    let port = listener.local_addr().unwrap().port();
    let (mut enforcer, _) =
        town.open(&anomaly::config::Enforcer { iptables_max_rules: 0, ..settings() }, &path).unwrap();
    let drops = [CLIENT4, CLIENT6].map(|p| Ban { prefix: net(p), left: Some(Duration::from_secs(6)) });
    assert!(town.on_host(|| enforcer.ban(&drops)).iter().all(Result::is_ok));
    assert_eq!(town.reach(port), (false, false));
    clock::wait_until("both entries to end", Duration::from_secs(30), || town.reach(port) == (true, true)).unwrap();
    assert_eq!(town.on_host(|| enforcer.banned()).unwrap(), []);
    town.unban(&mut enforcer, &[net(CLIENT4), net(CLIENT6)]);
    assert_eq!((ours(&town, &path), town.sh("ipset list -n").as_str()), (0, ""));
}

#[test]
fn without_ipset_the_list_grows_up_to_a_bound() {
    if !lab::ready("without_ipset_the_list_grows_up_to_a_bound") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &[]);
    let few = anomaly::config::Enforcer { iptables_max_rules: 5, ..settings() };
    let (mut enforcer, incidents) = town.open(&few, &path).unwrap();
    assert_eq!(incidents, [], "not needed until there are many bans");
    let drops: Vec<Ban> = crowd()[..30].iter().map(|&prefix| Ban { prefix, left: None }).collect();
    let results = town.on_host(|| enforcer.ban(&drops));
    let most = 5 * LONGEST_LIST as usize;
    assert!(results[..most].iter().all(Result::is_ok));
    assert!(results[most..].iter().all(|r| matches!(r, Err(EnforceError::Full { capacity: 20 }))), "{results:?}");
    let announced = town.maintain(&mut enforcer);
    let [Incident::Degraded { fault: Fault::Overflow, reason }] = &announced[..] else { panic!("{announced:?}") };
    assert!(
        reason.contains("ipset is ") && reason.contains("apt-get install ipset") | reason.contains("PATH"),
        "{reason}"
    );
    assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), most);
    town.unban(&mut enforcer, &crowd()[..30]);
    assert_eq!(town.maintain(&mut enforcer), [Incident::Recovered { fault: Fault::Overflow }]);
    assert_eq!(ours(&town, &path), 0);
}

/// Stands in for a program of `path`: answers as the real one, but for calls that contain `word`.
fn wrap(path: &Path, program: &str, word: &str, instead: &str) {
    let real = path.join(format!("{program}.real"));
    let link = path.join(program);
    let target = std::fs::read_link(&link).unwrap();
    std::fs::remove_file(&link).unwrap();
    // The program knows what it is by the name it is called by.
    let script = format!(
        "#!/bin/bash\ncase \"$*\" in *'{word}'*) {instead} ;; esac\nexec -a {program} {} \"$@\"\n",
        target.display()
    );
    std::fs::write(&real, &script).unwrap();
    std::fs::set_permissions(&real, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&real, &link).unwrap();
}

/// However many end at the same moment, the rules are read once, changed once, and looked at once more.
#[test]
fn rules_that_end_together_are_listed_once() {
    if !lab::ready("rules_that_end_together_are_listed_once") {
        return;
    }
    for variant in VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &[]);
        let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
        town.ban(&mut enforcer, &crowd()[..300]);
        assert_eq!(ours(&town, &path), 300);
        let calls = path.join("calls");
        for program in ["iptables", "iptables-save", "iptables-restore"] {
            wrap(&path, program, "", &format!("echo {program} >> {}", calls.display()));
        }
        town.unban(&mut enforcer, &crowd()[..300]);
        assert_eq!(
            std::fs::read_to_string(&calls).unwrap(),
            "iptables-save\niptables-restore\niptables-save\n",
            "{variant}"
        );
        assert_eq!(ours(&town, &path), 0);
    }
}

#[test]
fn a_hanging_iptables_is_killed_and_reported() {
    if !lab::ready("a_hanging_iptables_is_killed_and_reported") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &[]);
    let pid_file = path.join("pid");
    wrap(&path, "iptables", "-I INPUT", &format!("echo $$ > {}; exec sleep 600", pid_file.display()));
    let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
    let start = clock::now();
    let results = town.on_host(|| enforcer.ban(&[Ban { prefix: net(CLIENT4), left: None }]));
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let [Err(error @ EnforceError::Command { .. })] = &results[..] else { panic!("{results:?}") };
    let said = error.to_string();
    assert!(said.contains("-I INPUT -s 192.0.2.2/32") && said.contains("did not end within"), "{said}");
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", pid.trim())).unwrap_or_default();
    assert_ne!(comm.trim(), "sleep", "it still runs");
    // The other family works on.
    town.ban(&mut enforcer, &[net(CLIENT6)]);
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_and_then_reported() {
    if !lab::ready("a_lock_that_somebody_holds_is_waited_for_and_then_reported") {
        return;
    }
    let town = Town::new();
    let path = town.path("legacy", &[]);
    // A lock of our own: the real one is the machine's, and other tests need it.
    let file = path.join("xtables.lock");
    let lock = std::fs::File::create(&file).unwrap();
    for program in ["iptables", "iptables-save", "iptables-restore", "ip6tables"] {
        wrap(&path, program, "", &format!("export XTABLES_LOCKFILE={}", file.display()));
    }
    let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
    lock.lock().unwrap();
    let start = clock::now();
    let results = town.on_host(|| enforcer.ban(&[Ban { prefix: net(CLIENT4), left: None }]));
    let waited = start.elapsed();
    let [Err(error @ EnforceError::Command { .. })] = &results[..] else { panic!("{results:?}") };
    assert!(error.to_string().contains("lock"), "{error}");
    assert!((4..12).contains(&waited.as_secs()), "{waited:?}");
    // Held for less than that, it only takes longer.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(1500));
            lock.unlock().unwrap();
        });
        town.ban(&mut enforcer, &[net(CLIENT4)]);
    });
    assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), 1);
}

#[test]
fn a_missing_or_broken_iptables_is_named() {
    if !lab::ready("a_missing_or_broken_iptables_is_named") {
        return;
    }
    let town = Town::new();
    let error = town.open(&settings(), &town.empty_dir("none")).unwrap_err();
    assert!(matches!(error, EnforceError::Missing { package: "iptables", .. }), "{error}");
    assert!(error.to_string().starts_with("iptables is "), "{error}");

    let path = town.path("nft", &[]);
    std::fs::remove_file(path.join("ip6tables")).unwrap();
    let (mut enforcer, incidents) = town.open(&settings(), &path).unwrap();
    let [Incident::Degraded { fault: Fault::Ipv6, reason }] = &incidents[..] else { panic!("{incidents:?}") };
    assert!(reason.contains("IPv6 clients cannot be dropped: ip6tables is "), "{reason}");
    let results = town.on_host(|| enforcer.ban(&[net(CLIENT6), net(CLIENT4)].map(|prefix| Ban { prefix, left: None })));
    assert!(matches!(&results[..], [Err(EnforceError::Command { .. }), Ok(())]), "{results:?}");
    drop(enforcer);

    let path = town.path("nft", &[]);
    wrap(&path, "iptables-restore", "--test", "echo Could not fetch rule set generation id >&2; exit 4");
    let error = town.open(&settings(), &path).unwrap_err().to_string();
    assert!(error.contains("Could not fetch rule set generation id"), "{error}");

    // It breaks later: said once, and enforcement is taken up again when it works.
    let path = town.path("nft", &[]);
    let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
    town.ban(&mut enforcer, &[net(CLIENT4)]);
    let broken = path.join("broken");
    std::fs::write(&broken, "").unwrap();
    wrap(&path, "iptables-save", "-c", &format!("[ -e {} ] && echo no netlink >&2 && exit 1", broken.display()));
    let incidents: Vec<Incident> = (0..30).flat_map(|_| town.maintain(&mut enforcer)).collect();
    assert!(
        matches!(&incidents[..], [Incident::Degraded { fault: Fault::Chains, reason }] if reason.contains("no netlink")),
        "{incidents:?}"
    );
    assert!(town.on_host(|| enforcer.banned()).is_err());
    std::fs::remove_file(broken).unwrap();
    assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), 1);
    let incidents: Vec<Incident> = (0..70).flat_map(|_| town.maintain(&mut enforcer)).collect();
    assert_eq!(incidents, [Incident::Recovered { fault: Fault::Chains }]);
}

#[test]
fn one_anomaly_per_network_namespace() {
    if !lab::ready("one_anomaly_per_network_namespace") {
        return;
    }
    let (town, other) = (Town::new(), Town::new());
    let path = town.path("nft", &[]);
    let (enforcer, _) = town.open(&settings(), &path).unwrap();
    let error = town.open(&settings(), &path).unwrap_err().to_string();
    assert!(error.contains(&format!("another anomaly (pid {})", std::process::id())), "{error}");
    other.open(&settings(), &path).unwrap();
    town.on_host(|| Box::new(enforcer).close(true)).unwrap();
    town.open(&settings(), &path).unwrap();
}

#[test]
fn an_address_that_must_never_be_dropped_is_not() {
    if !lab::ready("an_address_that_must_never_be_dropped_is_not") {
        return;
    }
    let town = Town::new();
    let path = town.path("nft", &[]);
    let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
    town.ban(&mut enforcer, &[net("192.0.2.0/24"), net("203.0.113.0/24")]);
    town.on_host(|| enforcer.set_never_drop(&[net(CLIENT4)])).unwrap();
    assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), 1, "what was dropped already is let go");
    let listener = town.serve();
    assert_eq!(town.reach(listener.local_addr().unwrap().port()), (true, true));
    for prefix in [CLIENT4, "192.0.2.0/24", "0.0.0.0/0"] {
        let results = town.on_host(|| enforcer.ban(&[Ban { prefix: net(prefix), left: None }]));
        assert!(matches!(&results[..], [Err(EnforceError::NeverDrop { .. })]), "{prefix}: {results:?}");
    }
    town.ban(&mut enforcer, &[net("192.0.2.3/32")]);
}

#[test]
fn raw_prerouting_is_an_option_that_leaves_nothing_behind() {
    if !lab::ready("raw_prerouting_is_an_option_that_leaves_nothing_behind") {
        return;
    }
    for variant in VARIANTS {
        let town = Town::new();
        let path = town.path(variant, &[]);
        let raw = format!("{} -t raw -S PREROUTING", path.join("iptables").display());
        let with = anomaly::config::Enforcer { iptables_raw_prerouting: true, ..settings() };
        let listener = town.publish(&path);
        let (mut enforcer, _) = town.open(&with, &path).unwrap();
        town.ban(&mut enforcer, &[net(CLIENT4), net("203.0.113.1/32"), net("203.0.113.2/32")]);
        assert!(town.sh(&raw).contains("-A PREROUTING -s 192.0.2.2/32 -m comment --comment anomaly -j DROP\n"));
        assert_eq!(town.reach(PUBLISHED), (false, true), "{variant}: before DNAT, so containers are covered");
        town.on_host(|| Box::new(enforcer).close(true)).unwrap();
        let (mut enforcer, _) = town.open(&settings(), &path).unwrap();
        assert_eq!(town.sh(&raw).lines().count(), 1, "{variant}: the option is off now");
        assert_eq!(town.on_host(|| enforcer.banned()).unwrap().len(), 3);
        drop(listener);
    }
}

#[test]
fn everything_of_ours_can_be_removed_without_the_daemon() {
    if !lab::ready("everything_of_ours_can_be_removed_without_the_daemon") {
        return;
    }
    let town = Town::new();
    let limits = anomaly::config::Enforcer { iptables_max_rules: 2, iptables_raw_prerouting: true, ..settings() };
    let mut foreign = Vec::new();
    for variant in VARIANTS {
        let path = town.path(variant, &["ipset"]);
        town.sh(&format!(
            "{} -A INPUT -s 203.0.113.77/32 -m comment --comment mine -j DROP",
            path.join("iptables").display()
        ));
        foreign.push((rules(&town, &path), path));
    }
    for (_, path) in &foreign {
        let (mut enforcer, _) = town.open(&limits, path).unwrap();
        let prefixes = ["203.0.113.1/32", "203.0.113.2/32", "203.0.113.3/32", CLIENT6].map(net);
        town.ban(&mut enforcer, &prefixes);
        town.on_host(|| Box::new(enforcer).close(true)).unwrap();
    }
    let removed = town.on_host(iptables::remove_all).unwrap();
    // Per variant and table two rules and one per set.
    assert_eq!(removed, Removed { rules: 2 * 2 * (2 + 2), sets: 2 });
    for (before, path) in &foreign {
        assert_eq!(&rules(&town, path), before);
    }
    assert_eq!(town.on_host(iptables::remove_all).unwrap(), Removed::default());
    assert_eq!(run(town.host.command("ipset").args(["list", "-n"])).unwrap(), "");
}

//! What outlives the daemon: bans across restarts, upgrades, larger and full maps, two instances.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use anomaly::enforce::xdp::{Removed, XdpEnforcer, down};
use anomaly::enforce::{Drop, EnforceError, Enforcer, Incident, reconcile};
use aya::maps::{HashMap, MapData};
use ipnet::IpNet;

use super::rig::{Rig, ban, lift};

fn close(xdp: XdpEnforcer) {
    Box::new(xdp).close(false).unwrap();
}

/// 20.0.0.0, 20.0.0.1, ... each for an hour.
fn many(count: u32) -> Vec<Drop> {
    let left = Some(Duration::from_secs(3600));
    let prefix = |n: u32| IpNet::from(std::net::IpAddr::from((0x1400_0000 + n).to_be_bytes()));
    (0..count).map(|n| Drop { prefix: prefix(n), left }).collect()
}

fn ban_all(xdp: &mut XdpEnforcer, drops: &[Drop]) {
    xdp.ban(drops).into_iter().collect::<Result<Vec<()>, EnforceError>>().unwrap();
}

/// Entries that a pinned map can hold.
fn capacity(rig: &Rig, map: &str) -> u32 {
    MapData::from_pin(rig.pins().join(map)).unwrap().info().unwrap().max_entries()
}

fn held(xdp: &mut XdpEnforcer) -> Vec<String> {
    let mut held: Vec<String> = xdp.banned().unwrap().into_iter().map(|held| held.prefix.to_string()).collect();
    held.sort();
    held
}

#[test]
fn not_one_packet_passes_while_daemons_come_and_go() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "10.77.0.2/32", Some(3600));
    let ((), sent, arrived) = rig.flood("10.77.0.2", "10.77.0.1", || {
        let mut now = Some(xdp);
        for n in 0..5 {
            // What a `kill -9` leaves: every descriptor closed, nothing said.
            drop(now.take());
            std::thread::sleep(Duration::from_millis(50));
            let (mut next, incidents) = rig.open(&rig.settings()).unwrap();
            assert_eq!(incidents, []);
            assert_eq!(next.banned().unwrap().len(), 1 + n, "start {n}");
            ban_all(&mut next, &many(n as u32 + 1));
            now = Some(next);
        }
        // An older version's pins: the same link, other maps.
        drop(now.take());
        std::fs::rename(rig.pins(), rig.pin_dir().join("v0")).unwrap();
        let (mut next, incidents) = rig.open(&rig.settings()).unwrap();
        assert_eq!(incidents, []);
        assert_eq!(next.banned().unwrap().len(), 6);
        assert!(!rig.pin_dir().join("v0").exists());
        // A table that grows while it is used: first for bans that are announced, then for more that come.
        next.reserve(20_000);
        let announced = capacity(&rig, "BANS_V4");
        assert!((20_000..40_000).contains(&announced), "{announced}");
        next.reserve(10);
        assert_eq!((capacity(&rig, "BANS_V4"), next.banned().unwrap().len()), (announced, 6));
        ban_all(&mut next, &many(40_000));
        assert!(capacity(&rig, "BANS_V4") > announced);
        assert_eq!(next.banned().unwrap().len(), 40_001);
        let flooder = next.banned().unwrap().into_iter().find(|h| h.prefix == "10.77.0.2/32".parse().unwrap());
        assert!(flooder.is_some_and(|held| held.packets > 0));
        drop(next);
    });
    assert!(sent > 1000, "{sent} sent");
    assert_eq!(arrived, 0, "of {sent}");
    let removed = down(&rig.pin_dir()).unwrap();
    assert_eq!(removed, Removed { interfaces: vec!["va".into()], maps: 10 });
    assert!(!rig.pin_dir().exists());
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 3), 3);
    assert_eq!(down(&rig.pin_dir()).unwrap(), Removed::default(), "down twice is down");
}

#[test]
fn a_pin_directory_belongs_to_one_and_each_has_its_own() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    match rig.open(&rig.settings()) {
        Err(EnforceError::InUse(path, pid)) => {
            assert_eq!((path, pid), (rig.pin_dir().display().to_string(), std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(down(&rig.pin_dir()), Err(EnforceError::InUse(..))));
    // Another namespace, another directory: neither knows of the other.
    let Some(second) = Rig::new() else { return };
    let (mut other, _) = second.open(&second.settings()).unwrap();
    ban(&mut xdp, "10.77.0.2/32", None);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0);
    assert_eq!(second.arrive("10.77.0.2", "10.77.0.1", 2), 2);
    ban(&mut other, "fd77::2/128", None);
    close(other);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0);
    assert_eq!(held(&mut xdp), ["10.77.0.2/32"]);
    close(xdp);
}

#[test]
fn maps_of_another_layout_are_replaced_and_their_bans_kept() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "fd77::2/128", None);
    ban(&mut xdp, "10.99.0.0/16", None);
    drop(xdp);
    // Somebody's BANS_V4 with a wider value, as another version might have it. aya alone would use it
    // as it is, and write beyond its values.
    let pin = rig.pins().join("BANS_V4");
    std::fs::remove_file(&pin).unwrap();
    let mut strange = HashMap::<MapData, u32, [u64; 7]>::create(500, 0).unwrap();
    for (address, until) in [([10, 77, 0, 2], u64::MAX), ([10, 77, 0, 3], 1)] {
        strange.insert(u32::from_ne_bytes(address), [until, 9, 9, 9, 9, 9, 9], 0).unwrap();
    }
    strange.pin(&pin).unwrap();
    let (mut xdp, incidents) = rig.open(&rig.settings()).unwrap();
    assert_eq!(incidents, []);
    assert_eq!(held(&mut xdp), ["10.77.0.2/32", "10.99.0.0/16", "fd77::2/128"]);
    assert_eq!(xdp.banned().unwrap().iter().map(|held| held.packets).sum::<u64>(), 0);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0);
    assert_eq!(rig.arrive("fd77::2", "fd77::1", 2), 0);
    close(xdp);
}

#[test]
fn a_hundred_thousand_bans_are_set_found_and_lifted() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    let mut drops = many(100_000);
    drops.push(Drop { prefix: "10.77.0.2/32".parse().unwrap(), left: None });
    ban_all(&mut xdp, &drops);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0);
    assert_eq!(xdp.banned().unwrap().len(), drops.len());
    let found = anomaly::enforce::reconcile(&mut xdp, &drops[50_000..]).unwrap();
    assert_eq!((found.missing.len(), found.orphans.len(), found.enforced), (0, 50_000, 50_001));
    let found = anomaly::enforce::reconcile(&mut xdp, &drops[..100]).unwrap();
    assert_eq!((found.missing.len(), found.orphans.len(), found.enforced), (100, 50_001, 100));
    assert_eq!(xdp.banned().unwrap().len(), 100);
    // Lifting what is not there, among what is, is no error.
    let prefixes: Vec<IpNet> = drops[..200].iter().map(|drop| drop.prefix).collect();
    assert!(xdp.unban(&prefixes).iter().all(Result::is_ok));
    assert!(held(&mut xdp).is_empty());
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 2);
    close(xdp);
}

#[test]
fn when_it_is_full_the_soonest_to_end_give_way() {
    let Some(rig) = Rig::new() else { return };
    let mut settings = rig.settings();
    settings.max_bans = 4;
    let (mut xdp, _) = rig.open(&settings).unwrap();
    for (n, left) in [(1, Some(400)), (2, Some(100)), (3, None), (4, Some(300))] {
        ban(&mut xdp, &format!("10.0.0.{n}/32"), left);
    }
    assert_eq!(xdp.maintain(), []);
    ban(&mut xdp, "10.0.0.5/32", Some(50));
    assert_eq!(held(&mut xdp), ["10.0.0.1/32", "10.0.0.3/32", "10.0.0.4/32", "10.0.0.5/32"]);
    let gave_way = |prefix: &str| Incident::MapFull { gave_way: vec![prefix.parse().unwrap()], capacity: 4 };
    assert_eq!(xdp.maintain(), [gave_way("10.0.0.2/32")]);
    // What gave way does not push others out when it is set again as it was, ...
    let again = |secs| [Drop { prefix: "10.0.0.2/32".parse().unwrap(), left: Some(Duration::from_secs(secs)) }];
    assert!(matches!(xdp.ban(&again(99))[..], [Err(EnforceError::Full { capacity: 4 })]));
    // ... but does for a new offence, ...
    assert!(xdp.ban(&again(1000))[0].is_ok());
    assert_eq!(xdp.maintain(), [gave_way("10.0.0.5/32")]);
    // ... and where there is room. A prolonged ban needs none.
    ban(&mut xdp, "10.0.0.4/32", Some(500));
    lift(&mut xdp, "10.0.0.2/32");
    ban(&mut xdp, "10.0.0.5/32", Some(49));
    assert_eq!(held(&mut xdp), ["10.0.0.1/32", "10.0.0.3/32", "10.0.0.4/32", "10.0.0.5/32"]);
    assert_eq!(xdp.maintain(), []);
    // Tables are counted each for itself.
    ban(&mut xdp, "2001:db8::/64", None);
    ban(&mut xdp, "2001:db8::1/128", None);
    ban(&mut xdp, "10.9.0.0/16", None);
    assert_eq!(xdp.banned().unwrap().len(), 7);
    // More at once than fit: those that do are set, the others say so.
    let answers = xdp.ban(&many(6));
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4, "{answers:?}");
    close(xdp);
}

#[test]
fn a_smaller_limit_keeps_what_lasts_longest() {
    let Some(rig) = Rig::new() else { return };
    let mut settings = rig.settings();
    let (mut xdp, _) = rig.open(&settings).unwrap();
    for n in 1..=6 {
        ban(&mut xdp, &format!("10.0.0.{n}/32"), Some(100 * n));
    }
    drop(xdp);
    settings.max_bans = 4;
    let (mut xdp, _) = rig.open(&settings).unwrap();
    ban(&mut xdp, "10.0.0.7/32", Some(700));
    assert_eq!(held(&mut xdp), ["10.0.0.4/32", "10.0.0.5/32", "10.0.0.6/32", "10.0.0.7/32"]);
    assert!(matches!(&xdp.maintain()[..], [Incident::MapFull { gave_way, .. }] if gave_way.len() == 3));
    close(xdp);
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mode() & 0o7777
}

fn set_mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_is_pinned_is_for_nobody_else() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "10.77.0.2/32", None);
    let modes = || [mode(&rig.pin_dir()), mode(&rig.pins())];
    assert_eq!(modes(), [0o700, 0o700]);
    let pins: Vec<_> = std::fs::read_dir(rig.pins()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(pins.len(), 11, "ten maps and a link: {pins:?}");
    assert_eq!(pins.iter().find(|pin| mode(pin) & 0o077 != 0), None);
    drop(xdp);
    // Left open by somebody: closed again, and nothing is lost.
    set_mode(&rig.pin_dir(), 0o777);
    set_mode(&rig.pins(), 0o755);
    let (mut xdp, incidents) = rig.open(&rig.settings()).unwrap();
    assert_eq!((incidents, modes()), (vec![], [0o700, 0o700]));
    assert_eq!(held(&mut xdp), ["10.77.0.2/32"]);
    drop(xdp);
    // Somebody else's: who owns a directory may replace what is in it. Refused with the reason, and what drops goes on.
    let refused = || rig.open(&rig.settings()).unwrap_err().to_string();
    for dir in [rig.pins(), rig.pin_dir()] {
        std::os::unix::fs::chown(&dir, Some(65_534), None).unwrap();
        let said = refused();
        assert!(said.contains(&format!("using {}", dir.display())) && said.contains("belongs to user 65534"), "{said}");
        assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0);
        std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
    }
    // A link of that name could lead anywhere.
    let mut by_link = rig.settings();
    by_link.pin_dir = rig.pin_dir().with_file_name("link");
    std::os::unix::fs::symlink(rig.pin_dir(), &by_link.pin_dir).unwrap();
    let said = rig.open(&by_link).unwrap_err().to_string();
    assert!(said.contains("symbolic link"), "{said}");
    // The way out that the refusal names works whoever owns it.
    std::os::unix::fs::chown(rig.pin_dir(), Some(65_534), None).unwrap();
    assert_eq!(down(&rig.pin_dir()).unwrap().maps, 10);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 2);
}

/// In a bpffs where everybody may write, as `mount -t bpf` makes it, anybody may have been there first.
#[test]
fn a_pin_directory_that_somebody_else_made_first_is_refused() {
    let Some(rig) = Rig::new() else { return };
    std::fs::create_dir_all(rig.pin_dir()).unwrap();
    super::rig::mount_bpffs(&rig.pin_dir());
    assert_eq!(mode(&rig.pin_dir()) & 0o002, 0o002, "the kernel's default has changed");
    let mut settings = rig.settings();
    settings.pin_dir = rig.pin_dir().join("anomaly");
    std::fs::create_dir(&settings.pin_dir).unwrap();
    std::os::unix::fs::chown(&settings.pin_dir, Some(65_534), None).unwrap();
    let said = rig.open(&settings).unwrap_err().to_string();
    assert!(said.contains("belongs to user 65534"), "{said}");
    assert_eq!(std::fs::read_dir(&settings.pin_dir).unwrap().count(), 0, "nothing was put there");
    std::fs::remove_dir(&settings.pin_dir).unwrap();
    let (xdp, _) = rig.open(&settings).unwrap();
    assert_eq!(mode(&settings.pin_dir), 0o700);
    close(xdp);
}

/// Packets and bytes of one ban, as they are told at its end.
fn counted(xdp: &mut XdpEnforcer, prefix: &str) -> Option<(u64, u64)> {
    let held = xdp.count(&[prefix.parse().unwrap()]).unwrap();
    assert!(held.len() <= 1, "{held:?}");
    held.first().map(|held| (held.packets, held.bytes))
}

/// Sends datagrams, none of which arrives.
fn arrived_not(rig: &Rig, from: &str, to: &str, count: u8) {
    assert_eq!(rig.arrive(from, to, count), 0);
}

#[test]
fn what_a_ban_has_dropped_is_known_whichever_way_its_entry_goes() {
    let Some(rig) = Rig::new() else { return };
    let few = anomaly::config::Enforcer { max_bans: 2, ..rig.settings() };
    let (mut xdp, _) = rig.open(&few).unwrap();
    let second = Duration::from_secs(1);

    // It runs out: an address, which the listing takes away, and a prefix, which the round of upkeep does.
    ban(&mut xdp, "10.77.0.2/32", Some(2));
    arrived_not(&rig, "10.77.0.2", "10.77.0.1", 5);
    std::thread::sleep(2 * second + second / 10);
    assert_eq!(counted(&mut xdp, "10.77.0.2/32").map(|(packets, _)| packets), Some(5), "before it is taken away");
    assert!(xdp.banned().unwrap().is_empty());
    let (packets, bytes) = counted(&mut xdp, "10.77.0.2/32").unwrap();
    assert!(packets == 5 && bytes >= 5 * 29, "{packets} packets, {bytes} bytes");
    lift(&mut xdp, "10.77.0.2/32");
    assert_eq!(counted(&mut xdp, "10.77.0.2/32"), None, "it has been told");
    // What looks for a neighbour is dropped and counted too: they have found each other.
    assert_eq!(rig.arrive("fd77::2", "fd77::1", 1), 1);
    ban(&mut xdp, "fd77::/48", Some(2));
    arrived_not(&rig, "fd77::2", "fd77::1", 4);
    std::thread::sleep(2 * second + second / 10);
    assert_eq!(xdp.maintain(), []);
    assert_eq!(counted(&mut xdp, "fd77::/48").map(|(packets, _)| packets), Some(4));
    lift(&mut xdp, "fd77::/48");

    // It gives way to bans that last longer, is set again, and goes on counting.
    ban(&mut xdp, "10.77.0.2/32", Some(60));
    arrived_not(&rig, "10.77.0.2", "10.77.0.1", 3);
    ban(&mut xdp, "20.0.0.1/32", None);
    ban(&mut xdp, "20.0.0.2/32", None);
    let told = xdp.maintain();
    assert!(matches!(&told[..], [Incident::MapFull { gave_way, .. }] if gave_way.len() == 1), "{told:?}");
    assert_eq!(counted(&mut xdp, "10.77.0.2/32").map(|(packets, _)| packets), Some(3));
    lift(&mut xdp, "20.0.0.1/32");
    ban(&mut xdp, "10.77.0.2/32", Some(60));
    arrived_not(&rig, "10.77.0.2", "10.77.0.1", 2);
    assert_eq!(counted(&mut xdp, "10.77.0.2/32").map(|(packets, _)| packets), Some(5));
    lift(&mut xdp, "10.77.0.2/32");

    // Its table is moved into a larger one, and then the daemon is dead when it ends.
    drop(xdp);
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "10.77.0.2/32", Some(3));
    arrived_not(&rig, "10.77.0.2", "10.77.0.1", 6);
    let before = capacity(&rig, "BANS_V4");
    ban_all(&mut xdp, &many(before + 1000));
    assert!(capacity(&rig, "BANS_V4") > before);
    assert_eq!(counted(&mut xdp, "10.77.0.2/32").map(|(packets, _)| packets), Some(6));
    drop(xdp);
    std::thread::sleep(3 * second);
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    reconcile(&mut xdp, &many(before + 1000)).unwrap();
    assert_eq!(
        counted(&mut xdp, "10.77.0.2/32").map(|(packets, _)| packets),
        Some(6),
        "it ended while nobody was there"
    );

    close(xdp);
}

/// What nobody wants is removed; what it had dropped may still have to be told.
#[test]
fn a_reconciliation_says_what_its_orphans_had_dropped() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "10.77.0.2/32", Some(600));
    arrived_not(&rig, "10.77.0.2", "10.77.0.1", 4);
    let done = reconcile(&mut xdp, &[]).unwrap();
    assert_eq!((done.orphans.len(), done.last.iter().map(|held| held.packets).collect::<Vec<_>>()), (1, vec![4]));
    close(xdp);
}

//! Interfaces: taken, refused, lost, found again, handed over.

use std::time::Duration;

use anomaly::enforce::{Drop, EnforceError, Enforcer};

use super::rig::Rig;

fn drop_of(prefix: &str, secs: Option<u64>) -> Drop {
    Drop { prefix: prefix.parse().unwrap(), left: secs.map(Duration::from_secs) }
}

fn ban(enforcer: &mut dyn Enforcer, prefix: &str, secs: Option<u64>) {
    for answer in enforcer.ban(&[drop_of(prefix, secs)]) {
        answer.unwrap();
    }
}

#[test]
fn a_ban_drops_and_an_unban_lets_through() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, incidents) = rig.open(&rig.settings()).unwrap();
    assert_eq!(incidents, []);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 3), 3);
    assert_eq!(rig.arrive("fd77::2", "fd77::1", 3), 3);
    for (prefix, from, to) in [
        ("10.77.0.2/32", "10.77.0.2", "10.77.0.1"),
        ("10.77.0.0/30", "10.77.0.2", "10.77.0.1"),
        ("fd77::2/128", "fd77::2", "fd77::1"),
        ("fd77::/64", "fd77::2", "fd77::1"),
        ("fd77::/32", "fd77::2", "fd77::1"),
    ] {
        ban(&mut xdp, prefix, Some(600));
        assert_eq!(rig.arrive(from, to, 3), 0, "{prefix}");
        let held = xdp.banned().unwrap();
        assert_eq!((held.len(), held[0].prefix, held[0].packets), (1, prefix.parse().unwrap(), 3));
        assert!(held[0].bytes > 3 * 28 && held[0].last_hit.is_some_and(|ago| ago < Duration::from_secs(5)));
        xdp.unban(&[prefix.parse().unwrap()]).into_iter().collect::<Result<Vec<_>, EnforceError>>().unwrap();
        assert_eq!(xdp.banned().unwrap(), []);
        assert_eq!(rig.arrive(from, to, 3), 3, "{prefix} lifted");
    }
    Box::new(xdp).close(false).unwrap();
    assert!(!rig.pin_dir().exists());
}

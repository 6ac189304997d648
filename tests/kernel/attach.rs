//! Interfaces: taken, refused, lost and found again.

use std::time::Duration;

use anomaly::config::XdpMode;
use anomaly::enforce::{Attachment, EnforceError, Enforcer, Fault, Incident};

use super::rig::{Rig, ban, lift};

fn close(xdp: anomaly::enforce::xdp::XdpEnforcer) {
    Box::new(xdp).close(false).unwrap();
}

fn modes(xdp: &mut dyn Enforcer) -> Vec<(String, &'static str)> {
    xdp.coverage().attachments.into_iter().map(|Attachment { interface, mode, .. }| (interface, mode)).collect()
}

#[test]
fn a_ban_drops_and_an_unban_lets_through() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, incidents) = rig.open(&rig.settings()).unwrap();
    assert_eq!(incidents, []);
    assert_eq!(modes(&mut xdp), [("va".to_owned(), "native")]);
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
        assert_eq!((held.len(), held[0].prefix), (1, prefix.parse().unwrap()));
        assert!(held[0].packets >= 3 && held[0].bytes > 3 * 28, "{held:?}");
        assert!(held[0].last_hit.is_some_and(|ago| ago < Duration::from_secs(5)), "{held:?}");
        let text = xdp.snapshot_text().unwrap();
        assert!(text.contains(&format!("drop {prefix} packets ")), "{text}");
        lift(&mut xdp, prefix);
        assert_eq!(xdp.banned().unwrap(), []);
        assert_eq!(rig.arrive(from, to, 3), 3, "{prefix} lifted");
    }
    assert!(xdp.coverage().totals.dropped_host >= 9);
    close(xdp);
    assert!(!rig.pin_dir().exists());
}

#[test]
fn generic_mode_is_taken_and_said_where_native_is_not_to_be_had() {
    let Some(rig) = Rig::new() else { return };
    let mut settings = rig.settings();
    rig.ip("link add br0 type bridge");
    rig.ip("link set br0 up");
    rig.ip("link set va master br0");
    settings.interfaces = vec!["lo".into(), "br0".into()];
    let (mut xdp, incidents) = rig.open(&settings).unwrap();
    assert_eq!(modes(&mut xdp), [("lo".to_owned(), "generic"), ("br0".to_owned(), "generic")]);
    for (interface, word) in [("lo", "native XDP"), ("br0", "name its ports (va) in")] {
        let said = incidents.iter().any(|incident| {
            matches!(incident, Incident::Fallback { interface: Some(i), from, to, reason }
                if i == interface && from == "xdp native" && to == "xdp generic" && reason.contains(word))
        });
        assert!(said, "{interface}: {incidents:?}");
    }
    ban(&mut xdp, "127.0.0.2/32", None);
    let arrive = |from: &str| {
        rig.on_host(|| {
            let to = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            to.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
            let from = std::net::UdpSocket::bind((from, 0)).unwrap();
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            to.recv(&mut [0; 8]).is_ok()
        })
    };
    assert!(!arrive("127.0.0.2"));
    assert!(arrive("127.0.0.3"));
    close(xdp);
    // Native or nothing.
    settings.xdp_mode = XdpMode::Native;
    let refused = rig.open(&settings).unwrap_err();
    assert!(matches!(refused, EnforceError::Kernel { .. }), "{refused}");
    assert!(refused.to_string().contains("native XDP"), "{refused}");
    assert!(!rig.pin_dir().exists(), "a refusal leaves nothing behind");
}

/// A reload or stop may come while the kernel verifies the program, which then gives up with EAGAIN.
#[test]
fn signals_do_not_keep_the_program_from_being_loaded() {
    use rustix::process::{Signal, kill_process};
    use tokio::signal::unix::{SignalKind, signal};
    /// Fewer than the attempts that the enforcer makes.
    const SIGNALS: usize = 8;
    let Some(rig) = Rig::new() else { return };
    // A handler that does nothing; the default one would end the tests.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handled = runtime.block_on(async { signal(SignalKind::user_defined1()) }).unwrap();
    let settings = anomaly::config::Enforcer { probe_log: true, ..rig.settings() };
    let (mut xdp, incidents) = rig.open(&settings).unwrap();
    assert_eq!(incidents, []);
    // Only the other build of the program is loaded by now. By its number the thread itself gets the signals.
    let thread = rustix::thread::gettid();
    let loaded = std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            for _ in 0..SIGNALS {
                kill_process(thread, Signal::USR1).unwrap();
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let loaded = xdp.program(false).map(drop);
        sender.join().unwrap();
        loaded
    });
    loaded.expect("the kernel takes the program");
    close(xdp);
    drop(handled);
}

/// A real bond, where the kernel has them; the words are tested beside the code that says them.
#[test]
fn a_bond_is_covered_as_a_whole_or_by_all_its_members() {
    let Some(rig) = Rig::new() else { return };
    let test = "a_bond_is_covered_as_a_whole_or_by_all_its_members";
    if rig.host.ip("link add bond0 type bond mode active-backup miimon 100").is_err() {
        crate::lab::skip_anywhere(test, "this kernel has no bonding");
        return;
    }
    rig.pair("vc", "vd", 78);
    for member in ["va", "vc"] {
        rig.ip(&format!("link set {member} down"));
        rig.ip(&format!("link set {member} master bond0"));
    }
    rig.ip("addr add 10.79.0.1/24 dev bond0");
    rig.ip("link set bond0 up");
    let mut settings = rig.settings();
    let open = |settings: &anomaly::config::Enforcer| {
        rig.on_host(|| {
            anomaly::enforce::xdp::open_members(&anomaly::enforce::xdp::wanted_interfaces(settings).unwrap())
        })
    };
    settings.interfaces = vec!["va".into()];
    assert!(open(&settings)[0].starts_with("vc is not covered"), "{:?}", open(&settings));
    for interfaces in [vec!["va", "vc"], vec!["bond0"]] {
        settings.interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(open(&settings), [""; 0]);
        let (mut xdp, incidents) = rig.open(&settings).unwrap();
        assert_eq!(incidents, [], "{interfaces:?}");
        assert_eq!(modes(&mut xdp).len(), interfaces.len());
        close(xdp);
    }
    // Both at once: the kernel takes the bond, and refuses its member.
    settings.interfaces = vec!["bond0".into(), "va".into()];
    let (mut xdp, incidents) = rig.open(&settings).unwrap();
    assert_eq!(modes(&mut xdp)[0], ("bond0".to_owned(), "native"));
    let said = format!("{incidents:?}");
    assert!(said.contains("bond0, of which it is a member, carries a program"), "{said}");
    close(xdp);
}

#[test]
fn jumbo_frames_need_no_fallback() {
    let Some(rig) = Rig::new() else { return };
    rig.ip("link set va mtu 9000");
    rig.peer.ip("link set vb mtu 9000").unwrap();
    let (mut xdp, incidents) = rig.open(&rig.settings()).unwrap();
    assert_eq!((incidents, modes(&mut xdp)), (vec![], vec![("va".to_owned(), "native")]));
    let send = || {
        let to = rig.on_host(|| std::net::UdpSocket::bind("10.77.0.1:0").unwrap());
        to.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let target = to.local_addr().unwrap();
        rig.on_peer(|| std::net::UdpSocket::bind("10.77.0.2:0").unwrap().send_to(&[7; 8900], target).unwrap());
        to.recv(&mut [0; 9000]).is_ok()
    };
    assert!(send());
    ban(&mut xdp, "10.77.0.2/32", None);
    assert!(!send());
    assert!(xdp.banned().unwrap()[0].bytes > 8900);
    close(xdp);
}

#[test]
fn somebody_elses_program_is_named_and_left_alone() {
    let Some(rig) = Rig::new() else { return };
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let mut theirs = rig.settings();
        theirs.pin_dir = rig.pin_dir().with_file_name("theirs");
        theirs.xdp_mode = mode;
        let (mut other, _) = rig.open(&theirs).unwrap();
        ban(&mut other, "10.77.0.2/32", None);
        let us = format!("pid {}", std::process::id());
        let refused: Vec<String> = (0..100)
            .map(|_| rig.open(&rig.settings()).unwrap_err().to_string())
            .inspect(|refused| assert!(refused.contains("another XDP program (anomaly"), "{refused}"))
            // Whatever another test starts holds all our files, too, until it has become its program.
            .take_while(|refused| !refused.contains(&us))
            .collect();
        assert!(refused.len() < 100, "{us} is never named: {refused:?}");
        assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0, "theirs still drops");
        // With a second interface ours covers that one, and says what it leaves to the next rung.
        rig.pair("vc", "vd", 78);
        let mut both = rig.settings();
        both.interfaces.push("vc".into());
        let (mut ours, incidents) = rig.open(&both).unwrap();
        assert_eq!(modes(&mut ours), [("vc".to_owned(), "native"), ("va".to_owned(), "none")]);
        assert!(
            matches!(&incidents[..], [Incident::Fallback { interface: Some(i), from, to, .. }]
                if i == "va" && from == "xdp" && to == "iptables"),
            "{incidents:?}"
        );
        ban(&mut ours, "10.78.0.2/32", None);
        assert_eq!(rig.arrive("10.78.0.2", "10.78.0.1", 2), 0);
        assert_eq!(rig.on_host(|| ours.maintain()), [], "said once");
        // Theirs goes; ours comes without being asked.
        close(other);
        let said: Vec<Incident> = rig.on_host(|| (0..10).flat_map(|_| ours.maintain()).collect());
        assert_eq!(said, [Incident::Recovered { fault: Fault::Interface("va".into()) }]);
        let now = ours.coverage().attachments;
        assert!(now.iter().all(|a| a.mode == "native"), "{now:?}");
        close(ours);
        rig.ip("link del vc");
    }
}

#[test]
fn an_interface_that_goes_and_comes_back_is_covered_again() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    ban(&mut xdp, "10.77.0.2/32", None);
    rig.ip("link del va");
    let said = rig.on_host(|| xdp.maintain());
    assert!(
        matches!(&said[..], [Incident::Degraded { fault: Fault::Interface(_), reason }] if reason.contains("va")),
        "{said:?}"
    );
    assert_eq!(modes(&mut xdp), [("va".to_owned(), "none")]);
    assert_eq!(rig.on_host(|| xdp.maintain()), []);
    rig.pair("va", "vb", 77);
    let over = Incident::Recovered { fault: Fault::Interface("va".into()) };
    assert_eq!(rig.on_host(|| xdp.maintain()), [over]);
    assert_eq!(modes(&mut xdp), [("va".to_owned(), "native")]);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 3), 0);
    // Recreated while no daemon was there: the pinned link leads nowhere.
    drop(xdp);
    rig.ip("link del va");
    rig.pair("va", "vb", 77);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 3), 3);
    let (mut xdp, incidents) = rig.open(&rig.settings()).unwrap();
    assert_eq!((incidents, modes(&mut xdp)), (vec![], vec![("va".to_owned(), "native")]));
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 3), 0, "and the ban was kept");
    close(xdp);
}

#[test]
fn auto_is_what_carries_a_default_route() {
    let Some(rig) = Rig::new() else { return };
    rig.pair("vc", "vd", 78);
    let mut settings = rig.settings();
    settings.interfaces = vec!["auto".into()];
    let (mut xdp, _) = rig.open(&settings).unwrap();
    assert_eq!(modes(&mut xdp), [("va".to_owned(), "native")]);
    // A second one appears, for IPv6 only.
    rig.ip("-6 route add default via fd78::2");
    assert_eq!(rig.on_host(|| xdp.maintain()), []);
    assert_eq!(modes(&mut xdp), [("va".to_owned(), "native"), ("vc".to_owned(), "native")]);
    ban(&mut xdp, "fd78::2/128", None);
    assert_eq!(rig.arrive("fd78::2", "fd78::1", 2), 0);
    // It goes, and its route with it: it is told, and nobody waits for it.
    rig.ip("link del vc");
    let said = rig.on_host(|| xdp.maintain());
    assert!(
        matches!(&said[..], [Incident::Degraded { fault: gone, .. }, Incident::Recovered { fault: over }] if gone == over),
        "{said:?}"
    );
    assert_eq!(modes(&mut xdp), [("va".to_owned(), "native")]);
    close(xdp);
    rig.ip("route del default");
    let none = rig.open(&settings).unwrap_err().to_string();
    assert!(none.contains("default route"), "{none}");
}

#[test]
fn an_interface_that_does_not_exist_is_an_error_of_its_own() {
    let Some(rig) = Rig::new() else { return };
    let mut settings = rig.settings();
    settings.interfaces.push("eth7".into());
    let refused = rig.open(&settings).unwrap_err();
    assert!(matches!(&refused, EnforceError::NoInterface(name) if name == "eth7"), "{refused}");
    assert!(!rig.pin_dir().exists());
    rig.ip("tuntap add tun7 mode tun");
    settings.interfaces = vec!["tun7".into()];
    let refused = rig.open(&settings).unwrap_err().to_string();
    assert!(refused.contains("no Ethernet header"), "{refused}");
}

#[test]
fn each_missing_capability_is_named() {
    use caps::{CapSet, Capability};
    let Some(rig) = Rig::new() else { return };
    // Mounting needs more; somebody else did it, as in a container.
    std::fs::create_dir_all(rig.pin_dir()).unwrap();
    super::rig::mount_bpffs(&rig.pin_dir());
    let mut settings = rig.settings();
    settings.pin_dir = rig.pin_dir().join("anomaly");
    let all = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];
    let with = |some: &[Capability]| {
        rig.on_host(|| {
            // Capabilities belong to a thread, and this one ends with the closure.
            caps::set(None, CapSet::Effective, &some.iter().copied().collect()).unwrap();
            let (mut xdp, incidents) = super::rig::open(&settings)?;
            ban(&mut xdp, "10.77.0.2/32", None);
            ban(&mut xdp, "fd77::/64", None);
            xdp.set_never_drop(&["10.77.0.9/32".parse().unwrap()])?;
            assert_eq!(xdp.maintain(), []);
            Ok::<_, EnforceError>((xdp, incidents))
        })
    };
    let (xdp, incidents) = with(&all).unwrap();
    assert_eq!(incidents, []);
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0);
    drop(xdp);
    // Take-over, too.
    let (xdp, incidents) = with(&all).unwrap();
    assert_eq!(incidents, []);
    close(xdp);
    for missing in &all[..2] {
        let rest: Vec<_> = all.iter().copied().filter(|c| c != missing).collect();
        let refused = with(&rest).unwrap_err().to_string();
        assert!(refused.contains(&missing.to_string()), "{missing}: {refused}");
    }
    let (xdp, incidents) = with(&all[..2]).unwrap();
    assert!(
        matches!(&incidents[..], [Incident::Degraded { fault: Fault::Slow, reason }] if reason.contains("CAP_PERFMON")),
        "{incidents:?}"
    );
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 2), 0);
    close(xdp);
    let refused = with(&[]).unwrap_err().to_string();
    assert!(all.iter().all(|c| refused.contains(&c.to_string())), "{refused}");
}

//! The kernel program's own log: switched on by `enforcer.probe_log`, free where it is off.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anomaly::config::Enforcer as Settings;
use anomaly::enforce::Enforcer;
use anomaly::enforce::xdp::XdpEnforcer;
use aya::programs::{TestRun, TestRunOptions};

use super::packets::{from, verdict};
use super::rig::{Rig, ban, lift};

/// Text that a subscriber writes.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the daemon's log gets to see at its default level while the enforcer looks after itself.
fn told(rig: &Rig, xdp: &mut XdpEnforcer) -> Vec<String> {
    let text = Text::default();
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    rig.on_host(|| tracing::subscriber::with_default(subscriber, || xdp.maintain()));
    let bytes = text.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

/// Size of the program as the kernel runs it, in bytes of its own instructions.
fn size(xdp: &mut XdpEnforcer) -> u32 {
    let sizes = [true, false].map(|frags| xdp.program(frags).unwrap().info().unwrap().size_translated().unwrap());
    sizes.iter().sum()
}

#[test]
fn the_program_tells_the_daemons_log_what_it_did_and_why() {
    let Some(rig) = Rig::new() else { return };
    let settings = Settings { probe_log: true, grace: Duration::from_secs(3600), ..rig.settings() };
    let (mut xdp, incidents) = rig.open(&settings).unwrap();
    assert_eq!(incidents, []);
    assert_eq!(told(&rig, &mut xdp), [""; 0], "nothing has happened");
    // Real packets.
    ban(&mut xdp, "10.77.0.2/32", Some(600));
    assert_eq!(rig.arrive("10.77.0.2", "10.77.0.1", 3), 0);
    let lines = told(&rig, &mut xdp);
    assert_eq!(lines, [" INFO anomaly::probe: 10.77.0.2 dropped"; 3]);
    ban(&mut xdp, "fd77::/64", Some(600));
    assert_eq!(rig.arrive("fd77::2", "fd77::1", 1), 0);
    let lines = told(&rig, &mut xdp);
    assert!(lines.iter().any(|line| line == " INFO anomaly::probe: fd77::2 dropped"), "{lines:?}");
    // Whoever looks for neighbours there does so whenever it likes, and would be among the lines below.
    lift(&mut xdp, "fd77::/64");
    told(&rig, &mut xdp);
    // Why something banned passes all the same; each verdict is two runs.
    let says = |xdp: &mut XdpEnforcer, source: &str, what: &str| {
        verdict(xdp, &from(source));
        let line = format!(" INFO anomaly::probe: {source} is banned, and passed: {what}");
        let lines = told(&rig, xdp);
        assert_eq!(lines.iter().filter(|told| **told == line).count(), 2, "{line}: {lines:?}");
    };
    ban(&mut xdp, "203.0.113.0/24", None);
    xdp.set_never_drop(&["203.0.113.9/32".parse().unwrap()]).unwrap();
    says(&mut xdp, "203.0.113.9", "it is on the allow-list");
    xdp.set_monitor(true).unwrap();
    says(&mut xdp, "203.0.113.8", "only monitoring");
    xdp.set_monitor(false).unwrap();
    // A ban that passes nothing on, and a packet that ends too soon.
    verdict(&mut xdp, &from("198.51.100.1"));
    assert_eq!(told(&rig, &mut xdp), [""; 0], "who is not banned is not told of");
    verdict(&mut xdp, &from("203.0.113.8")[..20]);
    assert_eq!(told(&rig, &mut xdp), [" INFO anomaly::probe: passed: it ends inside a header"; 2]);
    // A table that grows loads the program anew, and its log goes on.
    let many: Vec<_> = (0..20_000u32)
        .map(|n| anomaly::enforce::Drop {
            prefix: std::net::IpAddr::from((0x1400_0000 + n).to_be_bytes()).into(),
            left: None,
        })
        .collect();
    assert!(xdp.ban(&many).iter().all(Result::is_ok));
    verdict(&mut xdp, &from("20.0.0.9"));
    assert_eq!(told(&rig, &mut xdp), [" INFO anomaly::probe: 20.0.0.9 dropped"; 2]);
    // More than the buffer holds: the rest is lost, and nothing waits for it.
    let flood = TestRunOptions { data_in: Some(&from("20.0.0.9")), repeat: 100_000, ..TestRunOptions::new() };
    assert_eq!(xdp.program(true).unwrap().test_run(flood).unwrap().return_value, 1);
    let lines = told(&rig, &mut xdp).len();
    assert!((100..100_000).contains(&lines), "{lines}");
    Box::new(xdp).close(false).unwrap();
}

#[test]
fn a_log_that_is_off_is_not_even_in_the_program() {
    let Some(rig) = Rig::new() else { return };
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    let without = size(&mut xdp);
    ban(&mut xdp, "198.51.100.7/32", None);
    verdict(&mut xdp, &from("198.51.100.7"));
    assert_eq!(told(&rig, &mut xdp), [""; 0]);
    drop(xdp);
    // The next start switches it on, over the same bans, and the one after that off again.
    let (mut xdp, incidents) = rig.open(&Settings { probe_log: true, ..rig.settings() }).unwrap();
    assert_eq!(incidents, []);
    let with = size(&mut xdp);
    assert!(without * 3 < with * 2, "{without} bytes without, {with} with the log");
    verdict(&mut xdp, &from("198.51.100.7"));
    assert_eq!(told(&rig, &mut xdp).len(), 2);
    drop(xdp);
    let (mut xdp, _) = rig.open(&rig.settings()).unwrap();
    assert_eq!(size(&mut xdp), without);
    verdict(&mut xdp, &from("198.51.100.7"));
    assert_eq!(told(&rig, &mut xdp), [""; 0]);
    Box::new(xdp).close(false).unwrap();
}

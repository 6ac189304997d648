//! What would drop packets on each interface, and for containers.

use std::path::Path;

use super::Check;
use crate::config::{Backend, Config, XdpMode};
use crate::enforce::{iptables, xdp};
use crate::report::Status;

/// Largest MTU that veth and most drivers take without support for several buffers.
const ONE_PAGE_MTU: u32 = 3506;

/// Drivers of cards with native XDP in the mainline kernel (6.1 and later).
const NATIVE_DRIVERS: [&str; 26] = [
    "atlantic",
    "bnxt_en",
    "dpaa2-eth",
    "ena",
    "enetc",
    "fec",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "virtio_net",
    "xen_netfront",
];

/// Kinds of virtual interfaces with native XDP.
const NATIVE_KINDS: [&str; 3] = ["veth", "tun", "bond"];

pub(super) fn run(config: &Config, live: Option<&Status>) -> Vec<Check> {
    let backend = config.enforcer.backend;
    let mut checks = Vec::new();
    let mut all_xdp = false;
    if matches!(backend, Backend::Auto | Backend::Xdp) {
        let found = interfaces(config, live);
        all_xdp = !found.is_empty() && found.iter().all(|(_, covered)| *covered);
        checks.extend(found.into_iter().map(|(check, _)| check));
    }
    if backend == Backend::DryRun {
        let next = "set enforcer.backend to auto when the bans look right";
        checks.push(Check::warn("enforcer", "dry run: nothing is dropped", next));
    }
    if matches!(backend, Backend::Auto | Backend::Iptables) {
        let found =
            iptables::examine(&std::env::var_os("PATH").unwrap_or_default(), config.enforcer.iptables_raw_prerouting);
        checks.extend(netfilter(found, all_xdp, docker_is_here()));
    }
    checks
}

/// One check per interface, and whether XDP covers it.
fn interfaces(config: &Config, live: Option<&Status>) -> Vec<(Check, bool)> {
    if let Some(status) = live.filter(|status| !status.interfaces.is_empty()) {
        let row = |row: &crate::report::InterfaceRow| {
            let detail = match &row.reason {
                Some(reason) => format!("{}: {} now: {reason}", row.name, row.mode),
                None => format!("{}: {} now", row.name, row.mode),
            };
            match row.mode.as_str() {
                "native" => (Check::ok("interface", detail), true),
                "generic" => {
                    (Check::warn("interface", detail, "see the reason; native XDP drops far more cheaply"), true)
                }
                _ => (Check::warn("interface", detail, "iptables covers it where it can; see the reason"), false),
            }
        };
        return status.interfaces.iter().map(row).collect();
    }
    match xdp::wanted_interfaces(&config.enforcer) {
        Ok(found) if found.is_empty() => {
            let next = "name them in enforcer.interfaces; until then iptables is used";
            vec![(Check::warn("interface", "none carries a default route", next), false)]
        }
        Ok(found) => {
            let present = xdp::interfaces().unwrap_or_default();
            let open = xdp::open_members(&found).into_iter().map(|line| {
                let next = "packets of banned clients that come in there are not dropped by XDP";
                (Check::warn("interface", line, next), false)
            });
            let mode = config.enforcer.xdp_mode;
            found.iter().map(|interface| forecast(interface, &present, mode)).chain(open).collect()
        }
        Err(error) => vec![(Check::fail("interface", error.to_string(), "correct enforcer.interfaces"), false)],
    }
}

/// What an interface would get; nothing is attached to find out.
fn forecast(interface: &xdp::Interface, present: &[xdp::Interface], mode: XdpMode) -> (Check, bool) {
    let name = &interface.name;
    if let Some(program) = interface.xdp {
        let detail = format!("{name} carries an XDP program already ({})", xdp::owner(program.prog_id));
        let next = "ours is taken over; somebody else's is left alone and iptables used, unless you remove it";
        return (Check::warn("interface", detail, next), false);
    }
    let driver = driver(name);
    if interface.is_bond() && mode != XdpMode::Generic {
        let members = present.iter().filter(|i| i.master == Some(interface.index));
        let members: Vec<_> = members.map(|member| (member.name.clone(), self::driver(&member.name))).collect();
        if let Some(check) = judge_bond(name, interface.mtu, &members, mode) {
            return check;
        }
    }
    judge(name, interface.mtu, interface.kind.as_deref(), driver.as_deref(), mode)
}

fn driver(interface: &str) -> Option<String> {
    let link = std::fs::read_link(Path::new("/sys/class/net").join(interface).join("device/driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// What a bond would get where a member's driver stands in the way; `None` where none is known to.
fn judge_bond(name: &str, mtu: u32, members: &[(String, Option<String>)], mode: XdpMode) -> Option<(Check, bool)> {
    let without = |driver: &Option<String>| !driver.as_deref().is_some_and(|driver| NATIVE_DRIVERS.contains(&driver));
    let bad: Vec<String> = (members.iter().filter(|(_, driver)| without(driver)))
        .map(|(name, driver)| format!("{name} ({})", driver.as_deref().unwrap_or("unknown driver")))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let refused = mode == XdpMode::Native;
    let then = if refused { "no XDP (enforcer.xdp_mode)" } else { "generic XDP at best" };
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    let detail = format!(
        "{name} (bond, MTU {mtu}): native XDP needs it in every member, and {} is not known for it; {then}",
        bad.join(", ")
    );
    let next = format!("name all its members ({}) in enforcer.interfaces: each gets what it can", names.join(", "));
    Some((Check::warn("interface", detail, next), !refused))
}

fn judge(name: &str, mtu: u32, kind: Option<&str>, driver: Option<&str>, mode: XdpMode) -> (Check, bool) {
    let what = kind.or(driver).unwrap_or("unknown driver");
    let known = kind.map_or_else(
        || driver.is_some_and(|driver| NATIVE_DRIVERS.contains(&driver)),
        |kind| NATIVE_KINDS.contains(&kind),
    );
    let (generic, found) = (mode == XdpMode::Generic, format!("{name} ({what}, MTU {mtu})"));
    let below = "name the interface below it (the ports of a bridge, the parent of a VLAN) in enforcer.interfaces";
    if generic {
        let next = "set enforcer.xdp_mode to auto where the driver has native XDP";
        return (Check::warn("interface", format!("{found}: generic XDP, as configured"), next), true);
    }
    if !known {
        let next = match kind {
            Some(_) => below,
            None => "nothing need be done: generic XDP, or iptables, works too",
        };
        let refused = mode == XdpMode::Native;
        let then = if refused { "no XDP (enforcer.xdp_mode)" } else { "generic XDP at best" };
        return (Check::warn("interface", format!("{found}: not known for native XDP; {then}"), next), !refused);
    }
    if mtu > ONE_PAGE_MTU {
        let next = format!("if it is refused: `ip link set {name} mtu 1500`");
        return (
            Check::warn("interface", format!("{found}: native XDP only where the driver takes jumbo frames"), next),
            true,
        );
    }
    (Check::ok("interface", format!("{found}: native XDP expected")), true)
}

/// Whether containers may be published from this host.
fn docker_is_here() -> bool {
    Path::new("/run/docker.sock").exists() || Path::new("/sys/class/net/docker0").exists()
}

fn netfilter(found: iptables::Examination, all_xdp: bool, docker: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    let step = |error: &dyn std::fmt::Display, all_xdp: bool| {
        let next = "repair it: it is what is left when XDP cannot be used";
        if all_xdp {
            Check::warn("iptables", error.to_string(), next)
        } else {
            Check::fail("iptables", error.to_string(), next)
        }
    };
    match (&found.v4, &found.v6) {
        (Ok(v4), Ok(v6)) => checks.push(Check::ok("iptables", format!("iptables ({v4}) and ip6tables ({v6}) work"))),
        (Err(error), _) => checks.push(step(error, all_xdp)),
        (_, Err(error)) => {
            let next = "repair it, or IPv6 clients cannot be dropped without XDP";
            checks.push(Check::warn("iptables", format!("ip6tables: {error}"), next));
        }
    }
    for why in &found.unlisted {
        let next = "see `nft list ruleset` for the other tool's rule: our rules are read from the kernel and lifted all the \
                    same, but one that accepts packets, and stands first, lets banned clients through";
        checks.push(Check::warn("iptables", format!("iptables cannot show its rules: {why}"), next));
    }
    if let (Ok(_), Err(error)) = (&found.v4, &found.ipset) {
        let next = "install it: beyond enforcer.iptables_max_rules bans go into a set";
        checks.push(Check::warn("ipset", error.to_string(), next));
    }
    if !found.docker_user.is_empty() {
        checks.push(Check::ok(
            "docker",
            format!("published containers are covered: DOCKER-USER in {}", found.docker_user.join(", ")),
        ));
    } else if docker && !all_xdp {
        let next = "start Docker with iptables enabled, or set enforcer.iptables_raw_prerouting";
        checks.push(Check::warn(
            "docker",
            "Docker is here without a DOCKER-USER chain: INPUT does not see its containers",
            next,
        ));
    } else if docker {
        checks.push(Check::ok("docker", "published containers are covered by XDP on the host's interfaces"));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::enforce::EnforceError;

    #[test]
    fn forecasts_say_why_not_native() {
        let cases = [
            (1500, None, Some("ixgbe"), XdpMode::Auto, Level::Ok, "native XDP expected", true),
            (1500, Some("veth"), None, XdpMode::Auto, Level::Ok, "veth", true),
            (9000, Some("veth"), None, XdpMode::Auto, Level::Warn, "jumbo", true),
            (1500, Some("bridge"), None, XdpMode::Auto, Level::Warn, "generic XDP at best", true),
            (1500, None, Some("r8169"), XdpMode::Native, Level::Warn, "no XDP", false),
            (1500, None, Some("ixgbe"), XdpMode::Generic, Level::Warn, "as configured", true),
        ];
        for (mtu, kind, driver, mode, level, words, covered) in cases {
            let (check, is_covered) = judge("eth0", mtu, kind, driver, mode);
            assert!(check.status == level && check.detail.contains(words) && is_covered == covered, "{check:?}");
        }
    }

    #[test]
    fn a_bond_is_as_good_as_its_worst_member() {
        let members = |drivers: &[(&str, Option<&str>)]| -> Vec<(String, Option<String>)> {
            drivers.iter().map(|(name, driver)| ((*name).to_owned(), driver.map(str::to_owned))).collect()
        };
        let good = members(&[("eth0", Some("ixgbe")), ("eth1", Some("ice"))]);
        assert!(judge_bond("bond0", 1500, &good, XdpMode::Auto).is_none());
        assert!(judge_bond("bond0", 1500, &[], XdpMode::Auto).is_none(), "without members nothing is known");
        let mixed = members(&[("eth0", Some("ixgbe")), ("eth1", Some("r8169")), ("eth2", None)]);
        let (check, covered) = judge_bond("bond0", 1500, &mixed, XdpMode::Auto).expect("a warning");
        assert!(covered && check.status == Level::Warn, "{check:?}");
        assert!(check.detail.contains("eth1 (r8169), eth2 (unknown driver) is not known for it"), "{check:?}");
        assert!(check.next.as_deref().is_some_and(|next| next.contains("(eth0, eth1, eth2)")), "{check:?}");
        let (check, covered) = judge_bond("bond0", 1500, &mixed, XdpMode::Native).expect("a warning");
        assert!(!covered && check.detail.contains("no XDP"), "{check:?}");
    }

    fn missing() -> EnforceError {
        EnforceError::Missing { program: "iptables".into(), package: "iptables", elsewhere: None }
    }

    #[test]
    fn a_missing_firewall_is_bad_in_proportion() {
        let none = || iptables::Examination {
            v4: Err(missing()),
            v6: Err(missing()),
            ipset: Err(missing()),
            docker_user: vec![],
            unlisted: vec![],
        };
        let [check] = &netfilter(none(), false, false)[..] else { panic!("one check") };
        assert!(check.status == Level::Fail && check.detail.contains("apt-get install iptables"), "{check:?}");
        assert_eq!(netfilter(none(), true, false)[0].status, Level::Warn, "XDP covers everything");
    }

    #[test]
    fn docker_without_its_chain_is_noticed() {
        let works = |docker_user| iptables::Examination {
            v4: Ok("nft"),
            v6: Ok("nft"),
            ipset: Ok(()),
            docker_user,
            unlisted: vec![],
        };
        let level = |all_xdp, chains: &[&str]| {
            let checks = netfilter(works(chains.iter().map(|c| (*c).to_owned()).collect()), all_xdp, true);
            checks.into_iter().find(|check| check.check == "docker").map(|check| check.status)
        };
        assert_eq!(level(false, &[]), Some(Level::Warn));
        assert_eq!(level(true, &[]), Some(Level::Ok));
        assert_eq!(level(false, &["iptables (nft)"]), Some(Level::Ok));
    }
}

//! What must be there before anything is attached: capabilities and interfaces.

use rustix::thread::CapabilitySet;

use super::netlink::{self, Interface};
use crate::config;
use crate::enforce::{EnforceError, Fault, Incident};

/// The interfaces that the configuration means, as they are now.
pub fn choose(settings: &config::Enforcer, present: &[Interface]) -> Vec<Interface> {
    let mut chosen: Vec<Interface> = Vec::new();
    let mut add = |interface: &Interface| {
        if chosen.iter().all(|i| i.index != interface.index) {
            chosen.push(interface.clone());
        }
    };
    for name in &settings.interfaces {
        if name != "auto" {
            present.iter().filter(|i| i.name == *name).for_each(|i| add(&below(i, present)));
            continue;
        }
        for index in netlink::default_route_interfaces().unwrap_or_default() {
            present.iter().filter(|i| i.index == index).for_each(|i| add(&below(i, present)));
        }
    }
    chosen
}

/// The interface itself; of a VLAN the one it lies on, whose frames the program reads with their tags.
fn below(interface: &Interface, present: &[Interface]) -> Interface {
    let mut at = interface;
    while at.kind.as_deref() == Some("vlan") {
        match present.iter().find(|i| Some(i.index) == at.below) {
            Some(parent) if parent.index != at.index => at = parent,
            _ => break,
        }
    }
    at.clone()
}

/// The interfaces that `enforcer.interfaces` means now; attaches nothing.
///
/// # Errors
/// [`EnforceError::NoInterface`] for a name that nothing has; the kernel's when it cannot be asked.
pub fn wanted_interfaces(settings: &config::Enforcer) -> Result<Vec<Interface>, EnforceError> {
    let present = netlink::interfaces().map_err(|e| EnforceError::Kernel {
        doing: "listing the interfaces".into(),
        source: e,
        hint: None,
    })?;
    for name in settings.interfaces.iter().filter(|name| *name != "auto") {
        if present.iter().all(|i| i.name != *name) {
            return Err(EnforceError::NoInterface(name.clone()));
        }
    }
    Ok(choose(settings, &present))
}

/// What comes in by members of a bond that are not among `chosen`, while others of the same bond are: a line for each such
/// bond, with what to do. Empty where the interfaces cannot be listed.
pub fn open_members(chosen: &[Interface]) -> Vec<String> {
    open_members_among(chosen, &netlink::interfaces().unwrap_or_default())
}

fn open_members_among(chosen: &[Interface], present: &[Interface]) -> Vec<String> {
    let is_chosen = |interface: &Interface| chosen.iter().any(|c| c.index == interface.index);
    let mut lines = Vec::new();
    for bond in present.iter().filter(|i| i.is_bond() && !is_chosen(i)) {
        let members: Vec<&Interface> = present.iter().filter(|i| i.master == Some(bond.index)).collect();
        let (covered, open): (Vec<&Interface>, Vec<&Interface>) = members.iter().partition(|member| is_chosen(member));
        if covered.is_empty() || open.is_empty() {
            continue;
        }
        lines.push(format!(
            "{} not covered, and {} as {} to {}: name {} alone in enforcer.interfaces, or all its members ({})",
            are(&open),
            if open.len() == 1 { "belongs as much" } else { "belong as much" },
            names(&covered),
            bond.name,
            bond.name,
            names(&members)
        ));
    }
    lines
}

fn names(of: &[&Interface]) -> String {
    of.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn are(these: &[&Interface]) -> String {
    format!("{} {}", names(these), if these.len() == 1 { "is" } else { "are" })
}

/// Names every capability that is missing. Without `CAP_PERFMON` it works, at half the speed.
pub fn check_capabilities() -> Result<Option<Incident>, EnforceError> {
    let have = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let admin = have.contains(CapabilitySet::SYS_ADMIN);
    let mut missing = Vec::new();
    if !admin && !have.contains(CapabilitySet::BPF) {
        missing.push("CAP_BPF");
    }
    if !have.contains(CapabilitySet::NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    let slow = !admin && !have.contains(CapabilitySet::PERFMON);
    if missing.is_empty() {
        return Ok(slow.then(|| Incident::Degraded {
            fault: Fault::Slow,
            reason: "CAP_PERFMON is missing: the kernel program runs with speculation barriers, 2 to 3 times slower"
                .into(),
        }));
    }
    if slow {
        missing.push("CAP_PERFMON");
    }
    Err(EnforceError::Kernel {
        doing: "using XDP".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
        hint: Some(format!("missing {}; run as root, or give the service or container these", missing.join(", "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, vlan_on: Option<u32>) -> Interface {
        let kind = vlan_on.map(|_| "vlan".to_owned());
        Interface { index, name: name.into(), kind, below: vlan_on, ..Interface::default() }
    }

    #[test]
    fn a_bond_of_which_only_some_members_are_covered_is_named() {
        let plain = |index, name: &str, master| Interface { index, name: name.into(), master, ..Interface::default() };
        let virt = |index, name: &str, kind: &str| Interface {
            index,
            name: name.into(),
            kind: Some(kind.into()),
            ..Interface::default()
        };
        let present = [
            virt(2, "bond0", "bond"),
            plain(3, "eth0", Some(2)),
            plain(4, "eth1", Some(2)),
            plain(5, "eth2", Some(2)),
            virt(6, "br0", "bridge"),
            plain(7, "eth3", Some(6)),
            plain(8, "eth4", Some(6)),
        ];
        let said = |indexes: &[u32]| {
            let chosen: Vec<_> = present.iter().filter(|i| indexes.contains(&i.index)).cloned().collect();
            open_members_among(&chosen, &present)
        };
        assert_eq!(
            said(&[3]),
            [
                "eth1, eth2 are not covered, and belong as much as eth0 to bond0: name bond0 alone in enforcer.interfaces, or \
              all its members (eth0, eth1, eth2)"
            ]
        );
        assert!(said(&[3, 4])[0].starts_with("eth2 is not covered, and belongs as much as eth0, eth1 to bond0"));
        // The bond itself, all members, none of it; and the ports of a bridge are networks of their own.
        for covered in [&[2][..], &[3, 4, 5], &[], &[7]] {
            assert_eq!(said(covered), [""; 0], "{covered:?}");
        }
    }

    #[test]
    fn a_vlan_stands_for_the_interface_it_lies_on() {
        let present = [interface(2, "eth0", None), interface(3, "eth0.5", Some(2)), interface(4, "eth0.5.6", Some(3))];
        assert_eq!(below(&present[2], &present).name, "eth0");
        assert_eq!(below(&present[0], &present).name, "eth0");
        // Its parent lives in another namespace: then it is taken itself.
        assert_eq!(below(&interface(9, "v", Some(77)), &present).name, "v");
        // No loop leads astray.
        let ring = [interface(1, "a", Some(1))];
        assert_eq!(below(&ring[0], &ring).name, "a");
    }
}

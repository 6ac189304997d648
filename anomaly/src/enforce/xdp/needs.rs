//! What must be there before anything is attached: capabilities and interfaces.

use rustix::thread::CapabilitySet;

use super::netlink::{self, Interface};
use crate::config;
use crate::enforce::{EnforceError, Incident};

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

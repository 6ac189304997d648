//! One interface: taken over, attached by the ladder, or refused with the reason and what to do about it.
//!
//! The ladder is native with frags, native plain, generic with frags, generic plain. Somebody else's program is never
//! replaced. What the daemon does where XDP is refused is decided elsewhere.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::config::XdpMode;
use crate::enforce::EnforceError;

use super::netlink::Interface;
use super::pins;
use super::program::Kernel;
use super::raw::{self, Flags};

/// The program on an interface.
#[derive(Debug)]
pub struct Attached {
    /// Name of the interface.
    pub interface: String,
    /// Its number; a recreated interface has another.
    pub index: u32,
    /// In the driver.
    pub native: bool,
    /// Takes packets in several buffers.
    pub frags: bool,
    /// Why it is not native; `None` when it is.
    pub reason: Option<String>,
    /// It was there already, and has dropped all the time.
    pub taken_over: bool,
    link: OwnedFd,
    pin: PathBuf,
}

/// Why an interface has no XDP.
#[derive(Debug)]
pub struct Refusal {
    /// In words, with what to do about it.
    pub reason: String,
    /// The kernel's last word.
    pub source: io::Error,
}

impl Refusal {
    fn new(reason: impl Into<String>, errno: i32) -> Self {
        Self { reason: reason.into(), source: io::Error::from_raw_os_error(errno) }
    }
}

/// Frames with an Ethernet header; the program reads no others.
const ETHERNET_LIKE: [u16; 2] = [libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK];

/// Covers an interface. `pins` holds every version's links, the present one's first.
pub fn cover(
    kernel: &mut Kernel,
    interface: &Interface,
    mode: XdpMode,
    current: &Path,
    older: &[PathBuf],
) -> Result<Attached, Refusal> {
    let pin = current.join(pins::link_name(&interface.name));
    for version in std::iter::once(current).chain(older.iter().map(PathBuf::as_path)) {
        let old = version.join(pins::link_name(&interface.name));
        if let Some(attached) = take_over(kernel, interface, mode, &old, &pin) {
            return Ok(attached);
        }
    }
    attach(kernel, interface, mode, pin)
}

/// Lets the link that an earlier daemon left run this program. `None` when there is none that can.
fn take_over(kernel: &mut Kernel, interface: &Interface, mode: XdpMode, old: &Path, pin: &Path) -> Option<Attached> {
    let link = raw::get(old).ok()?;
    let there = raw::link_info(link.as_fd()).is_ok_and(|info| {
        // The number alone would also be right in another network namespace.
        info.ifindex == interface.index && interface.xdp.is_some_and(|xdp| xdp.prog_id == info.prog_id)
    });
    let native = interface.xdp.is_some_and(|xdp| xdp.native);
    let wanted = match mode {
        XdpMode::Auto => true,
        XdpMode::Native => native,
        XdpMode::Generic => !native,
    };
    if there && wanted {
        for frags in [true, false] {
            let Ok(program) = kernel.program(frags) else { continue };
            if raw::link_update(link.as_fd(), program).is_err() || (old != pin && fs::rename(old, pin).is_err()) {
                continue;
            }
            let reason = (!native).then(|| {
                "taken over in generic mode; after `anomaly down` the next start tries native again".to_owned()
            });
            return Some(Attached {
                interface: interface.name.clone(),
                index: interface.index,
                native,
                frags,
                reason,
                taken_over: true,
                link,
                pin: pin.to_owned(),
            });
        }
    }
    // A link to an interface that is gone, elsewhere, or in the wrong mode only stands in the way.
    tracing::info!("{}: the link that was pinned for it cannot be taken over", interface.name);
    remove_link(link.as_fd(), old).ok()?;
    None
}

fn attach(kernel: &mut Kernel, interface: &Interface, mode: XdpMode, pin: PathBuf) -> Result<Attached, Refusal> {
    if !ETHERNET_LIKE.contains(&interface.link_type) {
        let kind = interface.kind.as_deref().unwrap_or("this interface");
        return Err(Refusal::new(
            format!("frames of {kind} have no Ethernet header; XDP belongs on the interface below"),
            libc::EOPNOTSUPP,
        ));
    }
    let present = super::netlink::interfaces().unwrap_or_default();
    if let Some(foreign) = present.iter().find(|i| i.index == interface.index).and_then(|i| i.xdp) {
        return Err(Refusal::new(
            format!("it already carries another XDP program ({}), which is left alone", owner(foreign.prog_id)),
            libc::EBUSY,
        ));
    }
    let rungs: &[Flags] = match mode {
        XdpMode::Auto => &[Flags::Native, Flags::Generic],
        XdpMode::Native => &[Flags::Native],
        XdpMode::Generic => &[Flags::Generic],
    };
    let surroundings = Surroundings::of(interface, &present);
    let mut why_not_native = None;
    let mut last = Refusal::new("no mode was tried", libc::EINVAL);
    for flags in rungs {
        for frags in [true, false] {
            match attach_once(kernel, interface, *flags, frags, &pin) {
                Ok(link) => {
                    let native = *flags == Flags::Native;
                    let reason = match mode {
                        XdpMode::Generic => Some("generic mode is configured (enforcer.xdp_mode)".to_owned()),
                        _ => why_not_native,
                    };
                    return Ok(Attached {
                        interface: interface.name.clone(),
                        index: interface.index,
                        native,
                        frags,
                        reason: reason.filter(|_| !native),
                        taken_over: false,
                        link,
                        pin,
                    });
                }
                Err((step, error)) => {
                    let reason = match step {
                        Step::Attach => explain(&error, interface, &surroundings, *flags, frags),
                        Step::Load => format!("the kernel does not take the program: {error}"),
                        Step::Pin => format!("attached, but {} could not be pinned: {error}", pin.display()),
                    };
                    last = Refusal { reason, source: error };
                }
            }
        }
        if *flags == Flags::Native {
            why_not_native = Some(last.reason.clone());
        }
    }
    Err(match why_not_native {
        Some(native) if native != last.reason => {
            Refusal { reason: format!("native: {native}; generic: {}", last.reason), source: last.source }
        }
        _ => last,
    })
}

/// What was being done when the kernel refused: only what is refused at [`Step::Attach`] is the driver's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Load,
    Attach,
    Pin,
}

fn attach_once(
    kernel: &mut Kernel,
    interface: &Interface,
    flags: Flags,
    frags: bool,
    pin: &Path,
) -> Result<OwnedFd, (Step, io::Error)> {
    let program = kernel.program(frags).map_err(|e| (Step::Load, e))?;
    let link = raw::link_create(program, interface.index, flags).map_err(|e| (Step::Attach, e))?;
    let pinned = match raw::pin(link.as_fd(), pin) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(pin).and_then(|()| raw::pin(link.as_fd(), pin))
        }
        other => other,
    };
    pinned.map(|()| link).map_err(|e| (Step::Pin, e))
}

/// The interfaces above and below one, in words for a hint.
#[derive(Debug, Default)]
struct Surroundings {
    /// The ports of a bridge or bond in brackets: the real ones, where it has any.
    ports: String,
    /// The bond or team that it is a member of.
    bond: Option<String>,
}

impl Surroundings {
    fn of(interface: &Interface, present: &[Interface]) -> Self {
        let ports = || present.iter().filter(|i| i.master == Some(interface.index));
        let names = |real: bool| {
            let names: Vec<&str> = ports().filter(|i| !real || i.kind.is_none()).map(|i| i.name.as_str()).collect();
            (!names.is_empty()).then(|| format!(" ({})", names.join(", ")))
        };
        let above = present.iter().find(|i| Some(i.index) == interface.master);
        Self {
            ports: names(true).or_else(|| names(false)).unwrap_or_default(),
            bond: above.filter(|above| above.is_bond()).map(|above| above.name.clone()),
        }
    }
}

/// What an operator can do about a refusal. The kernel gives a number; the rest is known of drivers.
fn explain(error: &io::Error, interface: &Interface, around: &Surroundings, flags: Flags, frags: bool) -> String {
    let mode = if flags == Flags::Native { "native XDP" } else { "generic XDP" };
    let (name, ports) = (&interface.name, &around.ports);
    let hint = match error.raw_os_error() {
        Some(libc::ERANGE | libc::EINVAL | libc::EMSGSIZE) if interface.mtu > 1500 => format!(
            "MTU {} is more than this driver takes{}; `ip link set {name} mtu 1500` helps",
            interface.mtu,
            if frags { "" } else { " without multi-buffer support" },
        ),
        Some(libc::EOPNOTSUPP) if flags == Flags::Native => match interface.kind.as_deref() {
            Some("bridge") => format!("a bridge has no native XDP: name its ports{ports} in enforcer.interfaces"),
            Some(_) if interface.is_bond() => format!(
                "its mode or a member's driver has no native XDP: name all its members{ports} in enforcer.interfaces"
            ),
            Some(kind) => format!("{kind} interfaces have no native XDP"),
            None => format!(
                "its driver has none, or receive offloads are in the way: `ethtool -K {name} lro off gro-hw off`"
            ),
        },
        Some(libc::ENOMEM | libc::ENOSPC | libc::EINVAL) if flags == Flags::Native => {
            format!(
                "the driver wants a queue more per processor: `ethtool -L {name} combined N` with half of what it has"
            )
        }
        // The kernel refuses a member whose bond has a program of its own, and there is none on the member itself.
        Some(libc::EBUSY | libc::EEXIST) => match &around.bond {
            Some(bond) => {
                format!("{bond}, of which it is a member, carries a program: name {bond} alone, or members only")
            }
            None => "another XDP program came first".into(),
        },
        Some(libc::EPERM | libc::EACCES) => "needs CAP_NET_ADMIN and CAP_BPF".into(),
        Some(libc::ENODEV) => "the interface is gone".into(),
        _ => String::new(),
    };
    if hint.is_empty() { format!("{mode}: {error}") } else { format!("{mode}: {error}: {hint}") }
}

/// Name and process of a program, as far as we may know: names need CAP_SYS_ADMIN.
pub fn owner(prog_id: u32) -> String {
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == prog_id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    let mut words = match name.filter(|name| !name.is_empty()) {
        Some(name) => format!("{name}, id {prog_id}"),
        None => format!("id {prog_id}"),
    };
    if let Some((pid, command)) = holder(prog_id) {
        words.push_str(&format!(", held by {command} (pid {pid})"));
    }
    words
}

/// The first process that has a descriptor of the program, or of a link that runs it.
fn holder(prog_id: u32) -> Option<(u32, String)> {
    let needle = format!("prog_id:\t{prog_id}\n");
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let Ok(infos) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { continue };
        for info in infos.flatten() {
            if fs::read_to_string(info.path()).is_ok_and(|text| format!("{text}\n").contains(&needle)) {
                let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                return Some((pid, command.trim().to_owned()));
            }
        }
    }
    None
}

impl Attached {
    /// Whether the link still is on its interface.
    pub fn is_alive(&self) -> bool {
        raw::link_info(self.link.as_fd()).is_ok_and(|info| info.ifindex == self.index)
    }

    /// Lets the link run another instance of the program from the next packet on.
    pub fn swap(&mut self, kernel: &mut Kernel) -> io::Result<()> {
        raw::link_update(self.link.as_fd(), kernel.program(self.frags)?)
    }

    /// Takes the program off its interface.
    pub fn detach(self) -> Result<(), EnforceError> {
        remove_link(self.link.as_fd(), &self.pin)
    }
}

/// Detaches what is pinned at `pin`, and removes the pin.
pub fn remove_pinned(pin: &Path) -> Result<(), EnforceError> {
    let link = raw::get(pin).map_err(|e| pins::pin_error("opening", pin, e))?;
    remove_link(link.as_fd(), pin)
}

/// Detached by order, because removing the pin alone takes effect a moment later only.
fn remove_link(link: BorrowedFd<'_>, pin: &Path) -> Result<(), EnforceError> {
    match raw::link_detach(link) {
        // Its interface is gone already.
        Err(e) if e.raw_os_error() != Some(libc::ENOLINK) => return Err(pins::pin_error("detaching", pin, e)),
        _ => {}
    }
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pins::pin_error("removing", pin, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, kind: Option<&str>, master: Option<u32>) -> Interface {
        Interface { index, name: name.into(), kind: kind.map(Into::into), master, mtu: 1500, ..Interface::default() }
    }

    /// The words for a refusal of `present[at]`.
    fn said(present: &[Interface], at: usize, errno: i32, flags: Flags) -> String {
        let around = Surroundings::of(&present[at], present);
        explain(&io::Error::from_raw_os_error(errno), &present[at], &around, flags, true)
    }

    #[test]
    fn a_bond_and_its_members_are_told_from_one_another() {
        for kind in ["bond", "team"] {
            let present = [
                interface(2, "bond0", Some(kind), None),
                interface(3, "eth0", None, Some(2)),
                interface(4, "eth1", None, Some(2)),
            ];
            let bond = said(&present, 0, libc::EOPNOTSUPP, Flags::Native);
            assert!(bond.contains("name all its members (eth0, eth1) in enforcer.interfaces"), "{bond}");
            let member = said(&present, 1, libc::EEXIST, Flags::Native);
            assert!(member.contains("bond0, of which it is a member, carries a program"), "{member}");
            // A driver without native XDP is that, also below a bond.
            assert!(said(&present, 1, libc::EOPNOTSUPP, Flags::Native).contains("its driver has none"));
        }
    }

    #[test]
    fn the_ports_of_a_bridge_are_those_that_packets_come_in_by() {
        let mut present = vec![
            interface(2, "br0", Some("bridge"), None),
            interface(3, "veth1", Some("veth"), Some(2)),
            interface(4, "eth0", None, Some(2)),
            interface(5, "eth1", None, None),
        ];
        assert!(said(&present, 0, libc::EOPNOTSUPP, Flags::Native).contains("name its ports (eth0) in"));
        present.remove(2);
        assert!(said(&present, 0, libc::EOPNOTSUPP, Flags::Native).contains("name its ports (veth1) in"));
        // No port of a bridge is refused for the bridge's program.
        assert!(said(&present, 1, libc::EBUSY, Flags::Generic).ends_with("another XDP program came first"));
    }
}

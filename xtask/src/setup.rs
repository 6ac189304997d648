//! Debian packages that a task needs: found, asked for, installed, or named.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A Debian package and a file or program that shows that it is there.
pub struct Package {
    /// Name for `apt-get install`.
    pub name: &'static str,
    /// Program on the PATH, or absolute path.
    pub shows: &'static str,
}

/// Shorthand for [`Package`].
pub const fn package(name: &'static str, shows: &'static str) -> Package {
    Package { name, shows }
}

/// What a lab of namespaces (`tests/lab`) runs.
pub const LAB: &[Package] = &[
    package("iproute2", "ip"),
    package("iptables", "iptables"),
    package("nginx", "nginx"),
    package("curl", "curl"),
    package("util-linux", "nsenter"),
    package("mount", "mount"),
];

/// Whether a program is on the PATH or in the sbin directories, or an absolute path exists.
pub fn is_there(shows: &str) -> bool {
    if shows.starts_with('/') {
        return Path::new(shows).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(Into::into))
        .any(|dir| dir.join(shows).is_file())
}

/// Makes sure that `packages` are installed, for `what`. Asks before it installs, or does not with `yes`.
///
/// # Errors
/// Says exactly which command would install what is missing when it may not be run, or failed.
pub fn packages(what: &str, packages: &[Package], yes: bool) -> Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|p| !is_there(p.shows)).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(what, &missing, yes)
}

/// Installs these Debian packages, for `what`. Asks first, or does not with `yes`.
///
/// # Errors
/// Says exactly which command would install them when it may not be run, or failed.
pub fn install<S: AsRef<str>>(what: &str, packages: &[S], yes: bool) -> Result<()> {
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    let list = packages.join(" ");
    let by_hand = format!("apt-get install --no-install-recommends {list}");
    if !rustix::process::geteuid().is_root() {
        bail!("{what} needs Debian packages that are not installed; as root: {by_hand}");
    }
    if !is_there("apt-get") {
        bail!("{what} needs these Debian packages, and there is no apt-get here: {list}");
    }
    if !yes && !std::io::stdin().is_terminal() {
        bail!("{what} needs: {by_hand}   (run it, or say --yes)");
    }
    if !confirm(&format!("{what} needs: {by_hand}"), yes)? {
        bail!("not installed: {list}");
    }
    eprintln!("installing {list}");
    let _quiet = NoServices::begin();
    apt(&["update", "-qq"]).context("apt-get update")?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(&packages);
    apt(&args).with_context(|| by_hand.clone())?;
    for service in ["nginx", "prometheus"].iter().filter(|service| packages.contains(service)) {
        stop_service(service);
    }
    Ok(())
}

/// Fetches a Debian package and unpacks it in `dir`, without installing it: no service, no user, no script of its own
/// runs. Gives where it is and its version. Fetches nothing where it is there already; asks first, or does not with `yes`.
///
/// # Errors
/// When it may not or cannot be fetched.
pub fn unpack(what: &str, name: &str, dir: &Path, yes: bool) -> Result<(PathBuf, String)> {
    let (root, version) = (dir.join(name), dir.join(format!("{name}.version")));
    if root.is_dir() && version.is_file() {
        return Ok((root, std::fs::read_to_string(&version)?));
    }
    if !is_there("apt-get") {
        bail!("{what} needs Debian's {name}, and there is no apt-get here");
    }
    if !confirm(&format!("{what} fetches Debian's {name} and unpacks it in {}", dir.display()), yes)? {
        bail!("not fetched: {name}   (say --yes)");
    }
    let fetched = dir.join(format!("{name}.fetched"));
    std::fs::create_dir_all(&fetched)?;
    let run = |command: &mut Command| -> Result<String> {
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    run(Command::new("apt-get").args(["download", "-qq", name]).current_dir(&fetched))?;
    let deb = std::fs::read_dir(&fetched)?.flatten().next().context("apt-get fetched nothing")?.path();
    run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&root))?;
    let told = run(Command::new("dpkg-deb").arg("--field").arg(&deb).arg("Version"))?;
    std::fs::write(&version, &told)?;
    std::fs::remove_dir_all(&fetched)?;
    Ok((root, told))
}

/// Keeps Debian from starting services while packages are installed (an engine would set firewall rules), by the file
/// that invoke-rc.d asks. One that is there already is left alone.
struct NoServices(Option<&'static Path>);

impl NoServices {
    fn begin() -> Self {
        let policy = Path::new("/usr/sbin/policy-rc.d");
        let made = !policy.exists()
            && std::fs::write(policy, "#!/bin/sh\nexit 101\n").is_ok()
            && std::fs::set_permissions(policy, std::fs::Permissions::from_mode(0o755)).is_ok();
        Self(made.then_some(policy))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = self.0 {
            let _ = std::fs::remove_file(policy);
        }
    }
}

/// Debian starts a service as soon as it is installed; a developer who runs the tests did not ask for
/// a web server on port 80, or a Prometheus.
fn stop_service(name: &str) {
    if is_there("systemctl") {
        let stopped = Command::new("systemctl").args(["disable", "--now", name]).stderr(Stdio::null()).status();
        if stopped.is_ok_and(|status| status.success()) {
            eprintln!("stopped and disabled the service {name}, which Debian starts on installation");
        }
    }
}

/// Whether apt knows all of these. Updates its lists once when it does not.
pub fn can_be_installed<S: AsRef<str>>(packages: &[S]) -> bool {
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    let known = || {
        let output = Command::new("apt-cache").args(["show", "--no-all-versions", "-q"]).args(&packages).output();
        output.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            packages.iter().all(|name| text.lines().any(|line| line.strip_prefix("Package: ") == Some(name)))
        })
    };
    known() || (rustix::process::geteuid().is_root() && apt(&["update", "-qq"]).is_ok() && known())
}

/// Asks whether to do something; true at once with `yes`, false where nobody can answer.
pub fn confirm(what: &str, yes: bool) -> Result<bool> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("{what}\nDo it now? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn apt(args: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("apt-get could not be started")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

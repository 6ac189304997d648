//! The configuration for commands that ask the daemon, or take away what it has set.
//!
//! They need a socket or a pin directory, and nothing else to be right. Where the configuration is refused they go on with what
//! can be read of it, with the defaults, and with what they find on the host, and say on standard error what that is.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anomaly::config::{self, Config, ConfigError};
use anomaly::enforce::{deny_map, xdp};

use super::find;

/// What a command goes by.
pub struct Settings {
    /// As configured, or as much of it as could be read.
    pub config: Config,
    /// Why the configuration is refused, in a line.
    pub refused: Option<String>,
    /// Every daemon's socket that may be meant; the first is [`Config`]'s.
    sockets: Vec<PathBuf>,
    /// The pin directory of [`Config`] is the one that is meant.
    knows_pin_dir: bool,
    /// The same of the deny list.
    knows_deny_map: bool,
}

impl Settings {
    /// Reads the configuration without the allow-list's file. Where it is refused, warns.
    pub fn read(file: Option<&Path>) -> Self {
        match config::load_without_list(file, super::variables()) {
            Ok(loaded) => Self::of(loaded.config),
            Err(error) => Self::salvaged(file, &error),
        }
    }

    /// A configuration that is good.
    pub fn of(config: Config) -> Self {
        let sockets = vec![config.dashboard.socket.clone()];
        Self { config, refused: None, sockets, knows_pin_dir: true, knows_deny_map: true }
    }

    /// What can be read of one that is refused for this reason; warns.
    pub fn salvaged(file: Option<&Path>, error: &ConfigError) -> Self {
        let salvaged = config::salvage(file, super::variables());
        let refused = config::in_one_line(error);
        warn(&refused);
        if !salvaged.unread.is_empty() {
            let first = salvaged.unread.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
            let more = salvaged.unread.len().saturating_sub(10);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            warn(&format!("ignored, everything else counts: {first}{more}"));
        }
        let mut settings = Self {
            knows_pin_dir: salvaged.is_sure("enforcer", "pin_dir"),
            knows_deny_map: salvaged.is_sure("nginx", "deny_map"),
            refused: Some(refused),
            ..Self::of(salvaged.config.clone())
        };
        if !salvaged.is_sure("dashboard", "socket") {
            settings.look_for_sockets();
        }
        settings
    }

    fn look_for_sockets(&mut self) {
        let socket = &mut self.config.dashboard.socket;
        let found = find::sockets();
        match &found[..] {
            [] => warn(&format!("dashboard.socket is not known: {}, the default, is used", socket.display())),
            [only] => {
                warn(&format!("dashboard.socket is not known: {} is used, on which a daemon listens", only.display()));
                socket.clone_from(only);
            }
            several => warn(&format!(
                "dashboard.socket is not known, and daemons listen on {}: {} is used; ANOMALY_DASHBOARD__SOCKET says \
                 which is meant",
                shown(several),
                socket.display()
            )),
        }
        self.sockets = vec![socket.clone()];
        self.sockets.extend(found.into_iter().filter(|found| *found != self.config.dashboard.socket));
    }

    /// For `off`: where no daemon listens on the configured socket, those that do are meant too. The configuration may be good
    /// and not the daemon's: an empty file, or a forgotten `--config`.
    pub fn look_for_others(&mut self) {
        if self.refused.is_some() || UnixStream::connect(self.socket()).is_ok() {
            return;
        }
        let others: Vec<PathBuf> = find::sockets().into_iter().filter(|found| !self.sockets.contains(found)).collect();
        if !others.is_empty() {
            warn(&format!(
                "no daemon listens on {}; one does on {}, and is meant too",
                self.socket().display(),
                shown(&others)
            ));
            self.sockets.extend(others);
        }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.config.dashboard.socket
    }

    /// The sockets of all daemons that may be meant.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// The pin directory. Where it is not known: those whose program runs in this network namespace, and the default unless
    /// that is seen to be another namespace's. Warns of that.
    pub fn pin_dirs(&self) -> Vec<PathBuf> {
        let default = &self.config.enforcer.pin_dir;
        let (found, hidden) = xdp::find();
        let is_there = found.iter().any(|found| found.pin_dir == *default);
        let (here, elsewhere): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| found.attached);
        if self.knows_pin_dir && (is_there || here.is_empty()) {
            // It is what was asked for. Another one beside it goes on, and must not be forgotten.
            for other in here.iter().filter(|other| other.pin_dir != *default) {
                warn(&format!(
                    "{0} belongs to another anomaly in this network namespace and is left alone; to include it, set \
                     ANOMALY_ENFORCER__PIN_DIR={0}",
                    other.pin_dir.display()
                ));
            }
            return vec![default.clone()];
        }
        let unknown = if self.knows_pin_dir { "has no program of anomaly" } else { "is not known" };
        // Whoever goes through these fails at what may not be looked into, instead of calling it empty.
        let mut all: Vec<PathBuf> = here.into_iter().map(|found| found.pin_dir).chain(hidden).collect();
        if !all.contains(default) && !elsewhere.iter().any(|found| found.pin_dir == *default) {
            all.push(default.clone());
        }
        warn(&format!(
            "enforcer.pin_dir {unknown}: every program of anomaly that is attached in this network namespace is meant \
             ({})",
            shown(&all)
        ));
        for found in elsewhere {
            warn(&format!(
                "{0} is left alone, because its program is attached to no interface here; to include it, set \
                 ANOMALY_ENFORCER__PIN_DIR={0}",
                found.pin_dir.display()
            ));
        }
        all
    }

    /// Nginx's deny list and who reads it; where it is not known, the usual one. Warns of that.
    pub fn nginx(&self) -> config::Nginx {
        let mut nginx = self.config.nginx.clone();
        if self.knows_deny_map {
            return nginx;
        }
        nginx.deny_map = nginx.deny_map.or_else(deny_map::find);
        match &nginx.deny_map {
            Some(list) => warn(&format!("nginx.deny_map is not known: {} is taken for it", list.display())),
            None => warn("nginx.deny_map is not known: if Nginx reads a deny list, it stays as it is"),
        }
        nginx
    }
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn warn(text: &str) {
    eprintln!("anomaly: warning: {text}");
}

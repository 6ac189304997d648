//! The configuration: raw TOML and environment in, checked values out.
//!
//! A bad configuration is an error before anything is attached. The commented
//! sample ([`SAMPLE`]) is the manual; a test holds it equal to the defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::engine;
use crate::record::Format;

mod allowlist;
mod check;
mod load;
pub mod presets;
mod raw;
mod salvage;

pub use allowlist::DEFAULT_FILE as ALLOWLIST_FILE;
pub use check::duration;
pub use load::{ConfigError, Loaded, load, load_without_list, parse};
pub use salvage::{Salvaged, in_one_line, salvage};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/anomaly/anomaly.toml";

/// The commented sample: every key with its default, unit and range.
pub const SAMPLE: &str = include_str!("sample.toml");

/// A checked configuration. The sample is its documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What messages call this host. Default none, which is its host name: see [`Config::name`].
    pub name: Option<String>,
    /// Where requests are read.
    pub log: Log,
    /// How clients are dropped.
    pub enforcer: Enforcer,
    /// Never banned, never dropped. Default empty; [`load`] adds what `allowlist_file` lists.
    pub allowlist: Vec<IpNet>,
    /// Further entries of the allow-list, one a line. Default [`ALLOWLIST_FILE`], which need not exist.
    pub allowlist_file: Option<PathBuf>,
    /// Proxies in front of Nginx: never banned, whatever the log says; those of `trusted_proxies` and of the
    /// [`presets`] that `trusted_proxies_presets` names. Default empty.
    pub trusted_proxies: Vec<IpNet>,
    /// Everything the engine does; `allowlist` is copied into it, `never_ban` is found at start.
    pub engine: engine::Settings,
    /// Slack and the generic webhook.
    pub notify: Notify,
    /// What Nginx is told of bans.
    pub nginx: Nginx,
    /// Dashboard, API and metrics.
    pub dashboard: Dashboard,
    /// SQLite file. Default `/var/lib/anomaly/state.db`.
    pub store_path: PathBuf,
    /// Audit log and firewall snapshots.
    pub audit: Audit,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Access logs. Default `/var/log/nginx/access.json`.
    pub paths: Vec<PathBuf>,
    /// How much log time to read back where there is no checkpoint. Default 86400 s.
    pub backfill: Duration,
    /// How a line is written. Default Nginx's, as in `nginx/log_format.conf`.
    pub format: Format,
    /// Log every request (at info level). Default false.
    pub log_requests: bool,
}

/// Which enforcer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// XDP native, else generic, else iptables.
    Auto,
    /// XDP or nothing.
    Xdp,
    /// iptables and ip6tables.
    Iptables,
    /// Only say what would be done.
    DryRun,
}

/// Which XDP modes may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// Native, else generic.
    Auto,
    /// Native or no XDP.
    Native,
    /// Generic only.
    Generic,
}

/// What happens to bans when the daemon stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// They stay enforced until they run out (default).
    Keep,
    /// Everything is removed from the kernel.
    Detach,
}

/// `[enforcer]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Enforcer {
    /// Default auto.
    pub backend: Backend,
    /// Interface names; `auto` means those that carry a default route (default).
    pub interfaces: Vec<String>,
    /// Default auto.
    pub xdp_mode: XdpMode,
    /// Default keep.
    pub on_stop: OnStop,
    /// Drops stop when the daemon has been gone for this long; zero is never. Default 86400 s.
    pub grace: Duration,
    /// Directory in bpffs that one instance locks and owns. Default `/sys/fs/bpf/anomaly`.
    pub pin_dir: PathBuf,
    /// Entries of the map of banned addresses. Default 1,048,576.
    pub max_bans: u32,
    /// Rules beyond which bans go into an ipset. Default 500.
    pub iptables_max_rules: u32,
    /// Also drop in raw PREROUTING, before connection tracking. Default false.
    pub iptables_raw_prerouting: bool,
    /// Let the kernel program log every drop (aya-log); for debugging. Default false.
    pub probe_log: bool,
}

/// A secret that does not show itself: `Debug` prints dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; not for logs, errors or audits.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("•••")
    }
}

/// `[notify]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notify {
    /// Slack's incoming webhook. Default none.
    pub slack_webhook_url: Option<Secret>,
    /// Any URL that takes a POST of our JSON. Default none.
    pub webhook_url: Option<Secret>,
    /// Base URL of the dashboard for links in messages, without a slash at the end. Default none.
    pub dashboard_url: Option<String>,
}

/// `[nginx]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Nginx {
    /// List of banned clients that a `geo` block includes. Default none.
    pub deny_map: Option<PathBuf>,
    /// Process that is told to read the list. Default `/run/nginx.pid`; `None` when somebody else does.
    pub pid_file: Option<PathBuf>,
}

/// `[dashboard]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dashboard {
    /// TCP address. Default `127.0.0.1:8081`; `None` when switched off.
    pub listen: Option<SocketAddr>,
    /// Unix socket that the CLI uses. Default `/run/anomaly/anomaly.sock`.
    pub socket: PathBuf,
    /// Bearer token for writes (and for reads beyond loopback). Default none.
    pub token: Option<Secret>,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    /// JSON Lines. Default `/var/log/anomaly/audit.jsonl`.
    pub path: PathBuf,
    /// Firewall snapshots. Default `/var/log/anomaly/snapshots.log`.
    pub snapshot_path: PathBuf,
    /// Size at which both rotate. Default 50 MiB.
    pub max_bytes: u64,
}

impl Config {
    /// What messages call this host: as configured, or its host name.
    pub fn name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.name.clone().unwrap_or_else(host)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            log: Log {
                paths: vec!["/var/log/nginx/access.json".into()],
                backfill: Duration::from_secs(86_400),
                format: Format::default(),
                log_requests: false,
            },
            enforcer: Enforcer {
                backend: Backend::Auto,
                interfaces: vec!["auto".into()],
                xdp_mode: XdpMode::Auto,
                on_stop: OnStop::Keep,
                grace: Duration::from_secs(86_400),
                pin_dir: "/sys/fs/bpf/anomaly".into(),
                max_bans: 1_048_576,
                iptables_max_rules: 500,
                iptables_raw_prerouting: false,
                probe_log: false,
            },
            allowlist: Vec::new(),
            allowlist_file: Some(ALLOWLIST_FILE.into()),
            trusted_proxies: Vec::new(),
            engine: engine::Settings::default(),
            notify: Notify::default(),
            nginx: Nginx { deny_map: None, pid_file: Some("/run/nginx.pid".into()) },
            dashboard: Dashboard {
                listen: Some(SocketAddr::from(([127, 0, 0, 1], 8081))),
                socket: "/run/anomaly/anomaly.sock".into(),
                token: None,
            },
            store_path: "/var/lib/anomaly/state.db".into(),
            audit: Audit {
                path: "/var/log/anomaly/audit.jsonl".into(),
                snapshot_path: "/var/log/anomaly/snapshots.log".into(),
                max_bytes: 50 << 20,
            },
        }
    }
}

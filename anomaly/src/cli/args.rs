//! Subcommands and their arguments.

use std::path::PathBuf;
use std::time::Duration;

use anomaly::config::presets::PRESETS;
use anomaly::config::{Backend, duration};
use anomaly::engine::BanLength;
use anomaly::record::Format;
use anomaly::report::parse_ip;
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// Below the list of commands.
const AFTER_HELP: &str = "\
Examples:
  anomaly doctor                      what will work on this host
  anomaly replay access.json*         who would have been banned, from the logs you have
  anomaly run --backend dry-run       decide and record, drop nothing
  anomaly status                      how the daemon is doing
  anomaly explain 203.0.113.7         why is this client banned?
  anomaly unban 203.0.113.7           let it in again
  anomaly off                         stop dropping at once; works without the daemon

Exit status: 0 done, 1 failed, 2 wrong usage or bad configuration.";

/// Learns what normal traffic of your web host looks like and drops abusive clients in the kernel.
#[derive(Debug, Parser)]
#[command(name = "anomaly", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// Configuration file [default: /etc/anomaly/anomaly.toml where it exists, else built-in defaults]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch the log and drop abusive clients (the daemon)
    Run(Run),
    /// Run the detector over past logs, enforcing nothing: who would have been banned, and why
    Replay(Replay),
    /// How the running daemon is doing
    Status(Status),
    /// Who is banned now
    Bans(Show),
    /// The busiest clients in the window
    Top(Top),
    /// Ban an address or prefix by hand
    Ban(Ban),
    /// Lift every ban that covers an address or prefix
    Unban(Unban),
    /// Why an address was banned: the evidence of each of its bans
    Explain(Explain),
    /// The configuration: print the sample, check a file, or print Nginx's side of a CDN
    #[command(subcommand)]
    Config(Config),
    /// What will work on this host, what will not, why, and what to do about it; changes nothing
    Doctor(Show),
    /// Stop dropping at once; works without the daemon
    Off(Show),
    /// Remove every trace of anomaly from the kernel: links, maps, rules; works without the daemon
    Down(Show),
    /// Print the completions of a shell: source them, or put them where it looks for them
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page: anomaly man > anomaly.8
    Man,
}

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    /// Log to follow instead of log.paths; may be given more than once
    #[arg(long, value_name = "FILE")]
    pub log: Vec<PathBuf>,
    /// Interface to protect instead of enforcer.interfaces; may be given more than once
    #[arg(long, value_name = "IF")]
    pub interface: Vec<String>,
    /// Enforcer to use instead of enforcer.backend
    #[arg(long, value_enum)]
    pub backend: Option<BackendArg>,
}

/// `--backend`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum BackendArg {
    /// XDP native, else XDP generic, else iptables
    Auto,
    /// XDP, or refuse to start
    Xdp,
    /// iptables and ip6tables rules
    Iptables,
    /// Decide, record and notify, but drop nothing
    DryRun,
}

impl From<BackendArg> for Backend {
    fn from(arg: BackendArg) -> Self {
        match arg {
            BackendArg::Auto => Self::Auto,
            BackendArg::Xdp => Self::Xdp,
            BackendArg::Iptables => Self::Iptables,
            BackendArg::DryRun => Self::DryRun,
        }
    }
}

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// JSON Lines on standard output: one per decision or anomaly, then a summary
    #[arg(long)]
    pub json: bool,
    /// Start from the baseline in this database instead of learning from nothing
    #[arg(long, value_name = "DB")]
    pub baseline: Option<PathBuf>,
    /// Write the baseline that was learned to this database, for a daemon to start with
    #[arg(long, value_name = "DB")]
    pub learn: Option<PathBuf>,
    /// How the logs are written instead of log.format
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Format::NAMES))]
    pub format: Option<String>,
    /// Logs, plain or gzipped, in any order; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Arguments of commands that only show something.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `config check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The configuration to check; the same as -c FILE
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Fail where the log or the enforcer is lost, as /healthz does
    #[arg(long)]
    pub check: bool,
}

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Refresh every second until q or Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
}

/// Arguments of `ban`.
#[derive(Debug, clap::Args)]
pub struct Ban {
    /// Address or CIDR prefix; exactly this is banned
    #[arg(value_parser = prefix, value_name = "IP|CIDR")]
    pub ip: IpNet,
    /// How long: 90s, 10m, 2h, 7d, permanent [default: the next step of bans.durations]
    #[arg(long = "for", value_parser = length, value_name = "TIME")]
    pub length: Option<BanLength>,
    /// Why, for the audit log and for `explain`
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub reason: String,
    /// Also a prefix wider than /16 (IPv6: /32)
    #[arg(long)]
    pub force: bool,
    /// Also where it is banned for longer already, which stays otherwise
    #[arg(long)]
    pub replace: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `unban`.
#[derive(Debug, clap::Args)]
pub struct Unban {
    /// Address or CIDR prefix; every ban that covers it is lifted
    #[arg(value_parser = prefix, value_name = "IP|CIDR")]
    pub ip: IpNet,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// Address or CIDR prefix
    #[arg(value_parser = prefix, value_name = "IP")]
    pub ip: IpNet,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print the commented sample with every default
    Default,
    /// Say whether the configuration is good, and what is in it that will not work
    Check(Check),
    /// Print what makes Nginx log the clients behind a CDN: its addresses and header, as of when, from where
    Realip {
        /// Which CDN, as in trusted_proxies_presets
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(PRESETS.iter().map(|preset| preset.name)))]
        cdn: String,
    },
}

fn prefix(text: &str) -> Result<IpNet, String> {
    parse_ip(text).ok_or_else(|| "is no IP address and no CIDR prefix (192.0.2.7, 192.0.2.0/24, 2001:db8::/64)".into())
}

fn length(text: &str) -> Result<BanLength, String> {
    if text == "permanent" {
        return Ok(BanLength::Permanent);
    }
    duration(text)
        .filter(|d| !d.is_zero() && *d <= Duration::from_secs(10 * 366 * 86_400))
        .map(BanLength::Timed)
        .ok_or_else(|| "is no time like 90s, 10m, 2h or 7d (at most ten years), and not \"permanent\"".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_stand_before_and_after_the_subcommand() {
        for line in ["anomaly -c /a.toml status", "anomaly status --config /a.toml"] {
            assert_eq!(parse(line).unwrap().config, Some("/a.toml".into()));
        }
    }

    #[test]
    fn no_arguments_are_answered_by_the_help_with_its_examples() {
        let error = parse("anomaly").unwrap_err();
        let said = error.to_string();
        assert!(said.contains("anomaly unban 203.0.113.7") && said.contains("Usage:"), "{said}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn an_address_is_one_address_and_host_bits_are_cut_off() {
        let ip = |line| match parse(line).unwrap().command {
            Command::Ban(ban) => ban.ip.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(ip("anomaly ban 192.0.2.7"), "192.0.2.7/32");
        assert_eq!(ip("anomaly ban 2001:db8::1"), "2001:db8::1/128");
        assert_eq!(ip("anomaly ban 192.0.2.7/24"), "192.0.2.0/24");
    }

    #[test]
    fn wrong_arguments_end_with_status_2() {
        for line in
            ["anomaly ban 300.1.1.1", "anomaly ban 1.1.1.1 --for soon", "anomaly replay", "anomaly run --backend nft"]
        {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}

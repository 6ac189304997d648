//! The engine's settings.
//!
//! Plain values with their defaults; `config` reads and checks them.

use std::time::Duration;

use ipnet::IpNet;

/// How long a ban lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanLength {
    /// For this long.
    Timed(Duration),
    /// Until an operator lifts it.
    Permanent,
}

impl BanLength {
    /// Seconds; `None` when permanent.
    pub fn secs(self) -> Option<u64> {
        match self {
            Self::Timed(d) => Some(d.as_secs()),
            Self::Permanent => None,
        }
    }
}

/// Everything the engine can be told to do differently. Plain values: `config` checks them.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Length of the sliding window in whole seconds. Default 60.
    pub window_secs: u32,
    /// Rolling history in seconds. Default 1800.
    pub history_secs: u32,
    /// Seconds of log time between recalculations. Default 60.
    pub recalc_secs: u32,
    /// Samples an hour slot needs before it is preferred. Default 300.
    pub min_hour_samples: u64,
    /// Seconds of log time, from the first record ever, during which only the hard limit bans, or twice another limit. Default 120.
    pub warmup_secs: u32,
    /// z-score from which a rate is anomalous; a client's is one on log scale (see `ordinary`). Default 3.0.
    pub z_score: f64,
    /// Multiple of the mean above which a rate is anomalous: the site's, or for each signal that of the ordinary clients'
    /// highest levels of a minute. Default 5.0.
    pub rate_multiplier: f64,
    /// Multiple of the baseline's error rate that makes an error surge. Signals of errors (unknown and exploit paths, denied
    /// requests) are judged by the tightened thresholds. Default 3.0.
    pub error_surge_multiplier: f64,
    /// Default 2.0.
    pub tightened_z_score: f64,
    /// Default 3.0.
    pub tightened_rate_multiplier: f64,
    /// Floor of the mean in requests/s. Default 0.2.
    pub min_mean_rps: f64,
    /// Floor of the standard deviation in requests/s. Default 0.05.
    pub min_stddev_rps: f64,
    /// Floor of the error rate, 0 to 1. Default 0.01.
    pub min_error_rate: f64,
    /// Scales the floor of `same_answers`, whatever has been learned: 5/3 of this many points at once and 3/40 of it each second
    /// on top (with the default 100, and 4.5 a second). Twice as many requests are the floor of a global anomaly. Default 60.
    pub min_requests: u32,
    /// More requests than this in the window always are, also during the warm-up; of a client, only those whose answer was like
    /// another one. Default 1200.
    pub hard_limit: u32,
    /// A global z anomaly needs at least this multiple of the mean. Default 1.6.
    pub global_min_ratio: f64,
    /// Seconds of log time between two global anomalies. Default 120.
    pub global_cooldown_secs: u32,
    /// First, second, ... ban; the last one repeats. Default 10 min, 30 min, 2 h, permanent.
    pub durations: Vec<BanLength>,
    /// Addresses that are followed at once. Default 1,000,000.
    pub max_tracked_ips: usize,
    /// Prefix length of automatic IPv6 bans, 48 to 128. Default 64.
    pub ipv6_prefix: u8,
    /// An offence is forgiven after this quiet time. Default 30 days.
    pub offence_decay: Duration,
    /// For this long after an unban by hand only the hard limit bans again. Default 300 s.
    pub unban_grace: Duration,
    /// Automatic bans a minute from which the brake holds. Default 20; 0 switches the brake off.
    pub brake_per_minute: u32,
    /// Share of the followed clients (0 to 1) that must be banned in a minute before the brake holds, where that is
    /// more than `brake_per_minute`. Default 0.05.
    pub brake_share: f64,
    /// Never banned by anyone.
    pub allowlist: Vec<IpNet>,
    /// Never banned because the host lives on them; found at start, empty in replay.
    pub never_ban: Vec<IpNet>,
    /// Not followed, so that the detector never bans them; operators may, and a wider prefix that is banned holds them too.
    /// A few addresses; empty in replay.
    pub spared: Vec<IpNet>,
    /// Report records of banned addresses ([`super::Output::NotEffective`]); off in replay.
    pub self_proof: bool,
    /// Past records are judged live (`replay`): a jump forward in log time must be
    /// confirmed by the next records. Otherwise (`run`) a record more than 60 s ahead of `now` is not
    /// believed.
    pub replay: bool,
}

impl Settings {
    /// The shortest ban that ends by itself.
    pub fn shortest_ban(&self) -> Option<Duration> {
        let lengths = self.durations.iter().filter_map(|length| match length {
            BanLength::Timed(length) => Some(*length),
            BanLength::Permanent => None,
        });
        lengths.min()
    }
}

impl Default for Settings {
    fn default() -> Self {
        let minutes = |m: u64| BanLength::Timed(Duration::from_secs(60 * m));
        Self {
            window_secs: 60,
            history_secs: 1800,
            recalc_secs: 60,
            min_hour_samples: 300,
            warmup_secs: 120,
            z_score: 3.0,
            rate_multiplier: 5.0,
            error_surge_multiplier: 3.0,
            tightened_z_score: 2.0,
            tightened_rate_multiplier: 3.0,
            min_mean_rps: 0.2,
            min_stddev_rps: 0.05,
            min_error_rate: 0.01,
            min_requests: 60,
            hard_limit: 1200,
            global_min_ratio: 1.6,
            global_cooldown_secs: 120,
            durations: vec![minutes(10), minutes(30), minutes(120), BanLength::Permanent],
            max_tracked_ips: 1_000_000,
            ipv6_prefix: 64,
            offence_decay: Duration::from_secs(30 * 86_400),
            unban_grace: Duration::from_secs(300),
            brake_per_minute: 20,
            brake_share: 0.05,
            allowlist: Vec::new(),
            never_ban: Vec::new(),
            spared: Vec::new(),
            self_proof: true,
            replay: false,
        }
    }
}

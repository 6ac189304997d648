//! Raw values in, checked values out; collects every problem instead of stopping at the first.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::presets::{PRESETS, Preset};
use super::raw::{Raw, RawFields, RawLength};
use super::{Backend, Config, OnStop, Secret, XdpMode};
use crate::engine::BanLength;
use crate::record::Format;
use crate::report::parse_ip;

/// Reads `90s`, `10m`, `2h`, `7d`, `1w`, sums of them (`1h30m`) and bare seconds.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(secs) = text.parse::<u64>() {
        return Some(Duration::from_secs(secs));
    }
    let (mut total, mut number) = (0u64, String::new());
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(std::mem::take(&mut number).parse::<u64>().ok()?.checked_mul(unit)?)?;
    }
    (number.is_empty() && !text.is_empty()).then(|| Duration::from_secs(total))
}

/// Collects problems while values are taken over.
struct Checks<'a> {
    problems: &'a mut Vec<String>,
}

impl Checks<'_> {
    fn problem(&mut self, key: &str, value: impl std::fmt::Display, wanted: &str) {
        self.problems.push(format!("{key} = {value}: {wanted}"));
    }

    fn integer<T: TryFrom<i64>>(&mut self, key: &str, value: Option<i64>, low: i64, high: i64, into: &mut T) {
        let Some(value) = value else { return };
        match T::try_from(value) {
            Ok(checked) if (low..=high).contains(&value) => *into = checked,
            _ => self.problem(key, value, &format!("must be from {low} to {high}")),
        }
    }

    fn secs(&mut self, key: &str, value: Option<i64>, low: i64, high: i64, into: &mut Duration) {
        let mut secs = into.as_secs();
        self.integer(key, value, low, high, &mut secs);
        *into = Duration::from_secs(secs);
    }

    fn number(&mut self, key: &str, value: Option<f64>, low: f64, high: f64, into: &mut f64) {
        let Some(value) = value else { return };
        if value.is_finite() && (low..=high).contains(&value) {
            *into = value;
        } else {
            self.problem(key, value, &format!("must be from {low} to {high}"));
        }
    }

    fn word<T: Copy>(&mut self, key: &str, value: Option<String>, words: &[(&str, T)], into: &mut T) {
        let Some(value) = value else { return };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, meaning)) => *into = *meaning,
            None => {
                let known: Vec<_> = words.iter().map(|(w, _)| *w).collect();
                self.problem(key, format!("{value:?}"), &format!("must be one of {}", known.join(", ")));
            }
        }
    }

    fn prefixes(&mut self, key: &str, value: Option<Vec<String>>, into: &mut Vec<IpNet>) {
        let Some(value) = value else { return };
        into.clear();
        for text in value {
            match parse_ip(&text) {
                Some(prefix) if prefix.prefix_len() == 0 => {
                    self.problem(key, format!("{text:?}"), "covers every address: nobody could be banned");
                }
                Some(prefix) => into.push(prefix),
                None => self.problem(
                    key,
                    format!("{text:?}"),
                    "is no IP address and no CIDR prefix (192.0.2.7, 192.0.2.0/24, 2001:db8::/32)",
                ),
            }
        }
    }

    /// A preset, and keys that differ from it.
    fn format(&mut self, preset: Option<String>, fields: RawFields, into: &mut Format) {
        if let Some(name) = preset {
            match Format::from_name(&name) {
                Some(format) => *into = format,
                None => {
                    let wanted = format!("must be one of {}", Format::NAMES.join(", "));
                    self.problem("log.format", format!("{name:?}"), &wanted);
                }
            }
        }
        let RawFields { source_ip, timestamp, method, path, status, response_size, peer } = fields;
        let given = [
            ("source_ip", source_ip),
            ("timestamp", timestamp),
            ("method", method),
            ("path", path),
            ("status", status),
            ("response_size", response_size),
            ("peer", peer),
        ];
        for (key, name) in given {
            let Some(name) = name else { continue };
            let Format::Json(map) = into else {
                self.problem(&format!("log.fields.{key}"), format!("{name:?}"), "the combined format has no keys");
                continue;
            };
            match key {
                "source_ip" => map.client = name,
                "timestamp" => map.time = name,
                "method" => map.method = name,
                "path" => map.path = name,
                "status" => map.status = name,
                "response_size" => map.response_size = name,
                _ => map.peer = Some(name).filter(|n| !n.is_empty()),
            }
        }
    }

    fn path(&mut self, key: &str, value: Option<PathBuf>, into: &mut PathBuf) {
        let Some(value) = value else { return };
        if value.as_os_str().is_empty() {
            self.problem(key, "\"\"", "must be a path");
        } else {
            *into = value;
        }
    }

    /// A secret given as itself or by a file, not both. Errors never show it.
    fn secret(&mut self, key: &str, value: Option<String>, file: Option<PathBuf>) -> Option<Secret> {
        let text = match (value, file) {
            (Some(_), Some(_)) => {
                self.problems.push(format!("{key} and {key}_file are both set: which one is meant?"));
                return None;
            }
            (Some(value), None) => value,
            (None, Some(file)) => match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) => {
                    self.problem(&format!("{key}_file"), file.display(), &error.to_string());
                    return None;
                }
            },
            (None, None) => return None,
        };
        let text = text.trim();
        (!text.is_empty()).then(|| Secret::new(text))
    }

    fn url(&mut self, key: &str, secret: Option<Secret>) -> Option<Secret> {
        let secret = secret?;
        let valid = reqwest::Url::parse(secret.expose())
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !valid {
            self.problems.push(format!("{key}: is no http or https URL (its value is a secret and not shown)"));
            return None;
        }
        Some(secret)
    }
}

/// Longest span that a configured number of seconds may have: ten years.
const TEN_YEARS: i64 = 10 * 366 * 86_400;

/// Longest `name`, in characters: it stands at the head of every message.
const LONGEST_NAME: usize = 64;

/// Takes `raw` over; what cannot be meant is told in `problems`.
pub(super) fn check(raw: Raw, problems: &mut Vec<String>) -> Config {
    let mut config = Config::default();
    let mut c = Checks { problems };

    if let Some(name) = raw.name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()) {
        if name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
            c.problem("name", format!("{name:?}"), "must be one line of at most 64 characters");
        } else {
            config.name = Some(name);
        }
    }
    c.prefixes("allowlist", raw.allowlist, &mut config.allowlist);
    let optional = |path: PathBuf| (!path.as_os_str().is_empty()).then_some(path);
    if let Some(path) = raw.allowlist_file {
        config.allowlist_file = optional(path);
    }
    c.prefixes("trusted_proxies", raw.trusted_proxies, &mut config.trusted_proxies);
    for name in raw.trusted_proxies_presets.into_iter().flatten() {
        match Preset::named(&name) {
            Some(preset) => config.trusted_proxies.extend(preset.prefixes()),
            None => {
                let known: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
                c.problem("trusted_proxies_presets", format!("{name:?}"), &format!("must be of {}", known.join(", ")));
            }
        }
    }

    if let Some(paths) = raw.log.paths {
        if paths.is_empty() || paths.iter().any(|p| p.as_os_str().is_empty()) {
            c.problem("log.paths", format!("{paths:?}"), "must name at least one log file");
        }
        config.log.paths = paths;
    }
    c.secs("log.backfill_secs", raw.log.backfill_secs, 0, TEN_YEARS, &mut config.log.backfill);
    c.format(raw.log.format, raw.log.fields, &mut config.log.format);
    config.log.log_requests = raw.log.log_requests.unwrap_or(config.log.log_requests);

    let e = &mut config.enforcer;
    let backends =
        [("auto", Backend::Auto), ("xdp", Backend::Xdp), ("iptables", Backend::Iptables), ("dry-run", Backend::DryRun)];
    c.word("enforcer.backend", raw.enforcer.backend, &backends, &mut e.backend);
    if let Some(interfaces) = raw.enforcer.interfaces {
        for name in &interfaces {
            // The kernel's own rule (dev_valid_name): up to 15 bytes, no slash, no colon, no white space.
            let bad = |b: u8| b == b'/' || b == b':' || b.is_ascii_whitespace();
            if name.is_empty() || name.len() > 15 || name.bytes().any(bad) {
                c.problem("enforcer.interfaces", format!("{name:?}"), "is no interface name");
            }
        }
        if interfaces.is_empty() {
            c.problem("enforcer.interfaces", "[]", "must name an interface, or \"auto\"");
        }
        e.interfaces = interfaces;
    }
    let modes = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    c.word("enforcer.xdp_mode", raw.enforcer.xdp_mode, &modes, &mut e.xdp_mode);
    let stops = [("keep", OnStop::Keep), ("detach", OnStop::Detach)];
    c.word("enforcer.on_stop", raw.enforcer.on_stop, &stops, &mut e.on_stop);
    c.secs("enforcer.grace_secs", raw.enforcer.grace_secs, 0, TEN_YEARS, &mut e.grace);
    c.path("enforcer.pin_dir", raw.enforcer.pin_dir, &mut e.pin_dir);
    c.integer("enforcer.max_bans", raw.enforcer.max_bans, 1, 16_777_216, &mut e.max_bans);
    c.integer("enforcer.iptables_max_rules", raw.enforcer.iptables_max_rules, 0, 100_000, &mut e.iptables_max_rules);
    e.iptables_raw_prerouting = raw.enforcer.iptables_raw_prerouting.unwrap_or(e.iptables_raw_prerouting);
    e.probe_log = raw.enforcer.probe_log.unwrap_or(e.probe_log);

    let s = &mut config.engine;
    s.allowlist.clone_from(&config.allowlist);
    s.never_ban.clone_from(&config.trusted_proxies);
    c.integer("window.seconds", raw.window.seconds, 10, 600, &mut s.window_secs);
    c.integer("baseline.history_secs", raw.baseline.history_secs, 60, 86_400, &mut s.history_secs);
    c.integer("baseline.recalc_secs", raw.baseline.recalc_secs, 1, 3600, &mut s.recalc_secs);
    c.integer("baseline.min_hour_samples", raw.baseline.min_hour_samples, 1, 1_000_000, &mut s.min_hour_samples);
    c.integer("baseline.warmup_secs", raw.baseline.warmup_secs, 0, 86_400, &mut s.warmup_secs);

    let t = raw.thresholds;
    c.number("thresholds.z_score", t.z_score, 0.1, 1000.0, &mut s.z_score);
    c.number("thresholds.rate_multiplier", t.rate_multiplier, 1.0, 10_000.0, &mut s.rate_multiplier);
    c.number(
        "thresholds.error_surge_multiplier",
        t.error_surge_multiplier,
        1.0,
        10_000.0,
        &mut s.error_surge_multiplier,
    );
    c.number("thresholds.tightened_z_score", t.tightened_z_score, 0.1, 1000.0, &mut s.tightened_z_score);
    let multiplier = &mut s.tightened_rate_multiplier;
    c.number("thresholds.tightened_rate_multiplier", t.tightened_rate_multiplier, 1.0, 10_000.0, multiplier);
    c.number("thresholds.min_mean_rps", t.min_mean_rps, 0.001, 100_000.0, &mut s.min_mean_rps);
    c.number("thresholds.min_stddev_rps", t.min_stddev_rps, 0.001, 100_000.0, &mut s.min_stddev_rps);
    c.number("thresholds.min_error_rate", t.min_error_rate, 0.0, 1.0, &mut s.min_error_rate);
    c.integer("thresholds.min_requests", t.min_requests, 1, 1_000_000, &mut s.min_requests);
    c.integer("thresholds.hard_limit", t.hard_limit, 1, 100_000_000, &mut s.hard_limit);
    c.number("thresholds.global_min_ratio", t.global_min_ratio, 1.0, 1000.0, &mut s.global_min_ratio);
    c.integer("thresholds.global_cooldown_secs", t.global_cooldown_secs, 0, 86_400, &mut s.global_cooldown_secs);
    if s.tightened_z_score > s.z_score {
        c.problem(
            "thresholds.tightened_z_score",
            s.tightened_z_score,
            &format!("must not be above thresholds.z_score = {}", s.z_score),
        );
    }
    if s.tightened_rate_multiplier > s.rate_multiplier {
        let wanted = format!("must not be above thresholds.rate_multiplier = {}", s.rate_multiplier);
        c.problem("thresholds.tightened_rate_multiplier", s.tightened_rate_multiplier, &wanted);
    }

    if let Some(durations) = raw.bans.durations {
        s.durations = ban_lengths(&mut c, durations);
    }
    c.integer("bans.max_tracked_ips", raw.bans.max_tracked_ips, 1000, 100_000_000, &mut s.max_tracked_ips);
    c.integer("bans.ipv6_prefix", raw.bans.ipv6_prefix, 48, 128, &mut s.ipv6_prefix);
    c.secs("bans.offence_decay_secs", raw.bans.offence_decay_secs, 60, TEN_YEARS, &mut s.offence_decay);
    c.secs("bans.unban_grace_secs", raw.bans.unban_grace_secs, 0, 30 * 86_400, &mut s.unban_grace);
    c.integer("bans.brake_per_minute", raw.bans.brake_per_minute, 0, 1_000_000, &mut s.brake_per_minute);
    c.number("bans.brake_share", raw.bans.brake_share, 0.0, 1.0, &mut s.brake_share);

    let slack = c.secret("notify.slack.webhook_url", raw.notify.slack.webhook_url, raw.notify.slack.webhook_url_file);
    config.notify.slack_webhook_url = c.url("notify.slack.webhook_url", slack);
    let webhook = c.secret("notify.webhook.url", raw.notify.webhook.url, raw.notify.webhook.url_file);
    config.notify.webhook_url = c.url("notify.webhook.url", webhook);
    if let Some(url) = raw.notify.dashboard_url.filter(|u| !u.is_empty()) {
        if reqwest::Url::parse(&url).is_ok_and(|u| matches!(u.scheme(), "http" | "https")) {
            config.notify.dashboard_url = Some(url.trim_end_matches('/').to_owned());
        } else {
            c.problem("notify.dashboard_url", format!("{url:?}"), "is no http or https URL");
        }
    }

    if let Some(listen) = raw.dashboard.listen {
        config.dashboard.listen = match listen.as_str() {
            "" | "off" => None,
            text => match text.parse::<SocketAddr>() {
                Ok(address) => Some(address),
                Err(_) => {
                    c.problem(
                        "dashboard.listen",
                        format!("{text:?}"),
                        "must be an address and a port (127.0.0.1:8081, [::1]:8081), or \"off\"",
                    );
                    None
                }
            },
        };
    }
    if let Some(path) = raw.nginx.deny_map {
        config.nginx.deny_map = optional(path);
    }
    if let Some(path) = raw.nginx.pid_file {
        config.nginx.pid_file = optional(path);
    }
    c.path("dashboard.socket", raw.dashboard.socket, &mut config.dashboard.socket);
    config.dashboard.token = c.secret("dashboard.token", raw.dashboard.token, raw.dashboard.token_file);
    if let Some(token) = &config.dashboard.token
        && token.expose().len() < 16
    {
        c.problems.push(
            "dashboard.token: is shorter than 16 characters, which can be guessed (try: openssl rand -hex 24)".into(),
        );
    }
    if let (Some(listen), None) = (config.dashboard.listen, &config.dashboard.token)
        && !listen.ip().is_loopback()
    {
        c.problem("dashboard.listen", listen, "is reachable from other hosts and there is no dashboard.token: set one (or token_file), or listen on 127.0.0.1");
    }

    c.path("store.path", raw.store.path, &mut config.store_path);
    c.path("audit.path", raw.audit.path, &mut config.audit.path);
    c.path("audit.snapshot_path", raw.audit.snapshot_path, &mut config.audit.snapshot_path);
    c.integer("audit.max_bytes", raw.audit.max_bytes, 4096, i64::MAX, &mut config.audit.max_bytes);
    config
}

fn ban_lengths(c: &mut Checks<'_>, durations: Vec<RawLength>) -> Vec<BanLength> {
    const KEY: &str = "bans.durations";
    let wanted = "must be seconds, a time like \"10m\", \"2h\" or \"7d\", or \"permanent\"";
    let mut lengths = Vec::new();
    for item in durations {
        let (shown, length) = match item {
            RawLength::Text(text) if text.trim() == "permanent" => (text, Some(BanLength::Permanent)),
            RawLength::Text(text) => {
                let length = duration(&text).filter(|d| !d.is_zero()).map(BanLength::Timed);
                (format!("{text:?}"), length)
            }
            RawLength::Secs(secs) => {
                let length = u64::try_from(secs).ok().filter(|s| *s > 0);
                (secs.to_string(), length.map(|s| BanLength::Timed(Duration::from_secs(s))))
            }
        };
        match length {
            Some(BanLength::Timed(d)) if d > Duration::from_secs(TEN_YEARS as u64) => {
                c.problem(KEY, shown, "is longer than ten years; say \"permanent\"");
            }
            Some(length) => lengths.push(length),
            None => c.problem(KEY, shown, wanted),
        }
    }
    if lengths.is_empty() {
        c.problem(KEY, "[]", "must have at least one step");
    }
    if lengths.iter().rev().skip(1).any(|l| *l == BanLength::Permanent) {
        c.problem(KEY, "[…]", "\"permanent\" can only be the last step");
    }
    lengths
}

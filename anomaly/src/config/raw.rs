//! The raw configuration, as TOML and environment variables spell it: every key, none checked.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) name: Option<String>,
    pub(super) allowlist: Option<Vec<String>>,
    pub(super) allowlist_file: Option<PathBuf>,
    pub(super) trusted_proxies: Option<Vec<String>>,
    pub(super) trusted_proxies_presets: Option<Vec<String>>,
    pub(super) log: RawLog,
    pub(super) enforcer: RawEnforcer,
    pub(super) window: RawWindow,
    pub(super) baseline: RawBaseline,
    pub(super) thresholds: RawThresholds,
    pub(super) bans: RawBans,
    pub(super) notify: RawNotify,
    pub(super) nginx: RawNginx,
    pub(super) dashboard: RawDashboard,
    pub(super) store: RawStore,
    pub(super) audit: RawAudit,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) format: Option<String>,
    pub(super) fields: RawFields,
    pub(super) paths: Option<Vec<PathBuf>>,
    pub(super) backfill_secs: Option<i64>,
    pub(super) log_requests: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFields {
    pub(super) source_ip: Option<String>,
    pub(super) timestamp: Option<String>,
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
    pub(super) status: Option<String>,
    pub(super) response_size: Option<String>,
    pub(super) peer: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEnforcer {
    pub(super) backend: Option<String>,
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) xdp_mode: Option<String>,
    pub(super) on_stop: Option<String>,
    pub(super) grace_secs: Option<i64>,
    pub(super) pin_dir: Option<PathBuf>,
    pub(super) max_bans: Option<i64>,
    pub(super) iptables_max_rules: Option<i64>,
    pub(super) iptables_raw_prerouting: Option<bool>,
    pub(super) probe_log: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNginx {
    pub(super) deny_map: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWindow {
    pub(super) seconds: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBaseline {
    pub(super) history_secs: Option<i64>,
    pub(super) recalc_secs: Option<i64>,
    pub(super) min_hour_samples: Option<i64>,
    pub(super) warmup_secs: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawThresholds {
    pub(super) z_score: Option<f64>,
    pub(super) rate_multiplier: Option<f64>,
    pub(super) error_surge_multiplier: Option<f64>,
    pub(super) tightened_z_score: Option<f64>,
    pub(super) tightened_rate_multiplier: Option<f64>,
    pub(super) min_mean_rps: Option<f64>,
    pub(super) min_stddev_rps: Option<f64>,
    pub(super) min_error_rate: Option<f64>,
    pub(super) min_requests: Option<i64>,
    pub(super) hard_limit: Option<i64>,
    pub(super) global_min_ratio: Option<f64>,
    pub(super) global_cooldown_secs: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBans {
    pub(super) durations: Option<Vec<RawLength>>,
    pub(super) max_tracked_ips: Option<i64>,
    pub(super) ipv6_prefix: Option<i64>,
    pub(super) offence_decay_secs: Option<i64>,
    pub(super) unban_grace_secs: Option<i64>,
    pub(super) brake_per_minute: Option<i64>,
    pub(super) brake_share: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum RawLength {
    Secs(i64),
    Text(String),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNotify {
    pub(super) slack: RawWebhook,
    pub(super) webhook: RawWebhookTarget,
    pub(super) dashboard_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWebhook {
    #[serde(deserialize_with = "secret")]
    pub(super) webhook_url: Option<String>,
    pub(super) webhook_url_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWebhookTarget {
    #[serde(deserialize_with = "secret")]
    pub(super) url: Option<String>,
    pub(super) url_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDashboard {
    pub(super) listen: Option<String>,
    pub(super) socket: Option<PathBuf>,
    #[serde(deserialize_with = "secret")]
    pub(super) token: Option<String>,
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStore {
    pub(super) path: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAudit {
    pub(super) path: Option<PathBuf>,
    pub(super) snapshot_path: Option<PathBuf>,
    pub(super) max_bytes: Option<i64>,
}

/// A secret of another type must not be repeated by the error.
fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    match toml::Value::deserialize(from)? {
        toml::Value::String(text) => Ok(Some(text)),
        _ => Err(serde::de::Error::custom("is not a string in quotes (its value is a secret and not shown)")),
    }
}

//! Any text as configuration, any variables beside it: no panic, a configuration that keeps the ranges of the manual, or an
//! error in which no secret shows. What was read, written out as TOML and read again is the same configuration.
#![no_main]

use anomaly::config::{ConfigError, parse};
use anomaly::engine::BanLength;
use libfuzzer_sys::fuzz_target;

/// As a webhook's URL and as the token; must be seen nowhere.
const SECRET: &str = "https://hooks.example/Z9q7";

// Variables (`NAME=value`, one a line), a line with nothing but a dash, the file. Without that line all is the file.
fuzz_target!(|input: &str| {
    let (variables, text) = input.split_once("\n-\n").unwrap_or(("", input));
    // These name files, and what another program's files hold is no input of ours.
    if input.to_ascii_lowercase().contains("_file") {
        return;
    }
    let mut environment: Vec<(String, String)> =
        variables.lines().filter_map(|l| l.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    for name in ["ANOMALY_NOTIFY__SLACK__WEBHOOK_URL", "ANOMALY_NOTIFY__WEBHOOK__URL", "ANOMALY_DASHBOARD__TOKEN"] {
        environment.push((name.to_owned(), SECRET.to_owned()));
    }
    let read = parse("a.toml", text, environment.clone());
    let shown = match &read {
        Ok((config, _)) => format!("{config:?}"),
        Err(error) => error.to_string(),
    };
    assert!(!shown.contains("Z9q7"), "{shown}");
    // An error names values and places; it does not repeat the file for each of them.
    let values = match &read {
        Err(ConfigError::Values { problems, .. }) => problems.len(),
        _ => 1,
    };
    assert!(shown.len() < 20_000 + values * 2_000 + 20 * input.len(), "{} bytes of {}", shown.len(), input.len());
    let Ok((config, overridden)) = read else { return };
    assert!(overridden.len() <= environment.len());
    let engine = &config.engine;
    assert!((10..=600).contains(&engine.window_secs) && engine.hard_limit > 0 && engine.min_requests > 0);
    assert!(engine.tightened_z_score <= engine.z_score && engine.tightened_rate_multiplier <= engine.rate_multiplier);
    assert!((48..=128).contains(&engine.ipv6_prefix) && engine.max_tracked_ips >= 1000);
    let (last, before) = engine.durations.split_last().expect("at least one step");
    assert!(before.iter().all(|length| matches!(length, BanLength::Timed(d) if !d.is_zero())));
    assert!(*last != BanLength::Timed(std::time::Duration::ZERO));
    // An address that nobody may lock out by a typing error: all of them.
    assert!(config.allowlist.iter().chain(&config.trusted_proxies).all(|prefix| prefix.prefix_len() > 0));
    assert!(!config.log.paths.is_empty() && !config.enforcer.interfaces.is_empty());
    if let Some(listen) = config.dashboard.listen {
        assert!(listen.ip().is_loopback() || config.dashboard.token.is_some());
    }
    let table: toml::Table = toml::from_str(text).expect("it was read a moment ago");
    let printed = toml::to_string(&table).expect("what was TOML can be written as TOML");
    let (again, _) = parse("b.toml", &printed, environment).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(config, again, "{printed}");
});

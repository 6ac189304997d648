//! What Grafana and Prometheus are told to read, against what the daemon exposes.

use std::collections::HashSet;

use anomaly::metrics::Metrics;

const FILES: [(&str, &str); 2] = [
    ("compose/grafana/dashboard.json", include_str!("../../compose/grafana/dashboard.json")),
    ("compose/prometheus/rules.yml", include_str!("../../compose/prometheus/rules.yml")),
];

/// The names that are exposed, each with the labels that its series have.
fn exposed() -> Vec<(String, HashSet<String>)> {
    let metrics = Metrics::default();
    metrics.live(&super::fake::picture());
    let text = metrics.prometheus_text();
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let histograms: Vec<&str> = families.clone().filter_map(|f| f.strip_suffix(" histogram")).collect();
    let mut names: Vec<(String, HashSet<String>)> =
        families.filter_map(|f| f.split(' ').next()).map(|name| (name.to_owned(), HashSet::new())).collect();
    for name in histograms {
        for end in ["_bucket", "_sum", "_count"] {
            names.push((format!("{name}{end}"), HashSet::from(["le".to_owned()])));
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels =
            labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('=')).map(|(l, _)| l.to_owned());
        if let Some((_, known)) = names.iter_mut().find(|(known, _)| known == name) {
            known.extend(labels);
        }
    }
    names
}

/// The words of a text that could be names of ours.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("anomaly_"))
}

#[test]
fn every_metric_that_is_read_is_exposed() {
    let exposed = exposed();
    for (file, text) in FILES {
        let mut seen = 0;
        for name in named(text) {
            assert!(
                exposed.iter().any(|(known, _)| known == name),
                "{file} reads {name}, which the daemon does not expose"
            );
            seen += 1;
        }
        assert!(seen > 10, "{file}");
    }
}

#[test]
fn every_word_that_is_selected_is_a_word_of_ours() {
    let words = anomaly::metrics::DEGRADED_WORDS;
    let (_, rules) = FILES[1];
    let mut selected = 0;
    for rest in rules.split("{what").skip(1) {
        for word in rest.split('"').nth(1).unwrap_or_default().split('|') {
            assert!(words.contains(&word), "{word}");
            selected += 1;
        }
    }
    assert!(selected >= 4, "{selected}");
}

#[test]
fn the_page_has_a_heading_for_every_word() {
    let script = include_str!("../../anomaly/src/dashboard/assets/cards.js");
    let (_, rest) = script.split_once("const DEGRADED = {").expect("the table of headings");
    let (table, _) = rest.split_once('}').expect("its end");
    let known: Vec<&str> = table.lines().filter_map(|line| line.trim().split_once(':')).map(|(word, _)| word).collect();
    for word in anomaly::metrics::DEGRADED_WORDS {
        assert!(known.contains(word), "{word}");
    }
}

#[test]
fn the_grafana_dashboard_is_well_formed() {
    let (_, text) = FILES[0];
    let dashboard: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: HashSet<i64> = panels.iter().filter_map(|p| p["id"].as_i64()).collect();
    assert_eq!(ids.len(), panels.len(), "panel ids are unique");
    for panel in panels {
        let place = &panel["gridPos"];
        let (x, w) = (place["x"].as_i64(), place["w"].as_i64());
        assert!(x.zip(w).is_some_and(|(x, w)| x + w <= 24), "{}", panel["title"]);
        assert!(panel["targets"].as_array().is_some_and(|t| !t.is_empty()), "{}", panel["title"]);
    }
}

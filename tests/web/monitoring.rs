//! The series that Grafana and Prometheus are configured to read, against those that the daemon exposes.

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

/// What Prometheus adds to every series.
const ADDED: [&str; 2] = ["instance", "job"];

/// An expression, and the labels that the words beside it show of its result.
struct Asked {
    expression: String,
    shown: Vec<String>,
}

/// The parts of a text between two marks.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split_once(close)).map(|(part, _)| part)
}

/// Each alert's expression and the labels in its annotations.
fn asked_by_the_rules() -> Vec<Asked> {
    let alerts = FILES[1].1.split("- alert: ").skip(1);
    let asked = alerts.map(|alert| {
        let (_, rest) = alert.split_once("expr: ").expect("an expression");
        let (expression, _) = rest.split_once("labels: {").expect("labels");
        let shown = between(alert, "$labels.", " }}").map(str::to_owned).collect();
        Asked { expression: expression.into(), shown }
    });
    asked.collect()
}

/// Each panel's and variable's expression and the labels in its legend.
fn asked_by_grafana() -> Vec<Asked> {
    fn walk(value: &serde_json::Value, asked: &mut Vec<Asked>) {
        for key in ["expr", "query", "definition"] {
            if let Some(text) = value[key].as_str().filter(|text| text.contains("anomaly_")) {
                let legend = value["legendFormat"].as_str().unwrap_or_default();
                let mut shown: Vec<String> = between(legend, "{{", "}}").map(|label| label.trim().to_owned()).collect();
                // `label_values(metric, label)` gives the label.
                shown.extend(
                    between(text, "label_values(", ")").filter_map(|t| Some(t.rsplit_once(',')?.1.trim().into())),
                );
                asked.push(Asked { expression: text.into(), shown });
            }
        }
        match value {
            serde_json::Value::Array(all) => all.iter().for_each(|value| walk(value, asked)),
            serde_json::Value::Object(all) => all.values().for_each(|value| walk(value, asked)),
            _ => {}
        }
    }
    let mut asked = Vec::new();
    walk(&serde_json::from_str(FILES[0].1).expect("JSON"), &mut asked);
    asked
}

#[test]
fn every_label_that_is_selected_grouped_by_or_shown_is_a_label_of_that_metric() {
    let exposed = exposed();
    for (file, asked) in [("rules", asked_by_the_rules()), ("Grafana", asked_by_grafana())] {
        let mut compared = 0;
        for Asked { expression, shown } in &asked {
            // The labels of all the metrics that the expression reads.
            let mut known: HashSet<&str> = HashSet::from(ADDED);
            for (at, name) in
                named(expression).map(|name| (name.as_ptr() as usize - expression.as_ptr() as usize, name))
            {
                let Some((_, labels)) = exposed.iter().find(|(known, _)| known == name) else { continue };
                known.extend(labels.iter().map(String::as_str));
                let matchers = expression[at + name.len()..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
                for matcher in matchers.map_or("", |(matchers, _)| matchers).split("\",").filter(|m| !m.is_empty()) {
                    let label = matcher.split(['=', '!']).next().unwrap_or_default().trim();
                    assert!(
                        ADDED.contains(&label) || labels.contains(label),
                        "{file}: {name} has no {label}: {expression}"
                    );
                    compared += 1;
                }
            }
            let grouped = ["by (", "without ("].into_iter().flat_map(|word| between(expression, word, ")"));
            for label in grouped.flat_map(|list| list.split(',')).map(str::trim).chain(shown.iter().map(String::as_str))
            {
                assert!(known.contains(label), "{file}: nothing in {expression} has {label}");
                compared += 1;
            }
        }
        assert!(asked.len() >= 12 && compared >= 12, "{file}: {compared} labels in {} expressions", asked.len());
    }
}

/// `promtool test rules` (tests/browser/metrics.test.mjs) runs what this looks for.
#[test]
fn every_alert_is_seen_to_fire() {
    let tests = include_str!("../../compose/prometheus/rules.tests.yml");
    let expected: HashSet<&str> = (tests.split("- alertname: ").skip(1))
        .filter(|expectation| expectation.contains("exp_labels:"))
        .filter_map(|expectation| expectation.lines().next())
        .collect();
    let alerts: Vec<&str> = FILES[1].1.split("- alert: ").skip(1).filter_map(|alert| alert.lines().next()).collect();
    assert!(alerts.len() >= 12, "{alerts:?}");
    for alert in alerts {
        assert!(expected.contains(alert), "{alert} is in no test of rules.tests.yml");
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

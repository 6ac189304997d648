//! A batch as a Slack message in Block Kit.
//!
//! Slack's limits: 50 blocks, 150 characters in a header, 3000 in a section, 2000 in a field, 10 fields.

use serde_json::{Value, json};

use super::Reporter;
use super::batch::{Batch, Group, Kind};
use super::text::Words;
use crate::report::ip_text;

/// Notices of one kind that a message names.
pub(super) const SHOWN: usize = 10;

const HEADER: usize = 150;
const FIELD: usize = 1900;
const SECTION: usize = 2900;

/// The body of the POST.
pub(super) fn message(batch: &Batch, reporter: &Reporter, dashboard: Option<&str>) -> String {
    let summary = reporter.heads(&summary(batch));
    let mut blocks = vec![json!({
        "type": "header",
        "text": { "type": "plain_text", "text": cut(&summary, HEADER), "emoji": false },
    })];
    // One notice is told in full, many in a line each.
    let alone = batch.count() == 1;
    for (kind, group) in batch.groups() {
        match group.newest.front() {
            Some(notice) if alone => blocks.extend(in_full(kind, &Words::of(notice), dashboard)),
            _ => blocks.push(in_lines(kind, group, dashboard)),
        }
    }
    if let Some(url) = dashboard.filter(|_| !alone) {
        blocks.push(json!({ "type": "context", "elements": [mrkdwn(&link(url, "Dashboard"))] }));
    }
    // `text` is what notifications and screen readers show.
    json!({ "text": escape(&summary), "blocks": blocks }).to_string()
}

/// The whole batch in one line.
fn summary(batch: &Batch) -> String {
    if batch.count() == 1
        && let Some(notice) = batch.groups().next().and_then(|(_, g)| g.newest.front())
    {
        return Words::of(notice).title;
    }
    batch.groups().map(|(kind, group)| counted(kind, group.count)).collect::<Vec<_>>().join(", ")
}

fn counted(kind: Kind, count: u64) -> String {
    let (one, many) = match kind {
        Kind::NotEnforced => ("ban NOT enforced", "bans NOT enforced"),
        Kind::NotLifted => ("unban that did NOT work", "unbans that did NOT work"),
        Kind::NotEffective => ("ban not effective", "bans not effective"),
        Kind::Fallback => ("fallback", "fallbacks"),
        Kind::Degraded => ("degradation", "degradations"),
        Kind::GlobalAnomaly => ("global anomaly", "global anomalies"),
        Kind::Braked => ("ban held back by the brake", "bans held back by the brake"),
        Kind::Ban => ("ban", "bans"),
        Kind::Unban => ("unban", "unbans"),
        Kind::LevelAccepted => ("new level accepted", "new levels accepted"),
        Kind::Recovered => ("recovery", "recoveries"),
        Kind::Other => ("other event", "other events"),
    };
    format!("{count} {}", if count == 1 { one } else { many })
}

fn icon(kind: Kind) -> &'static str {
    match kind {
        Kind::NotEnforced | Kind::NotLifted | Kind::NotEffective | Kind::Degraded => ":rotating_light:",
        Kind::Fallback | Kind::GlobalAnomaly | Kind::Braked => ":warning:",
        Kind::Ban => ":no_entry:",
        Kind::Unban | Kind::Recovered => ":white_check_mark:",
        Kind::LevelAccepted | Kind::Other => ":information_source:",
    }
}

fn in_full(kind: Kind, words: &Words, dashboard: Option<&str>) -> Vec<Value> {
    let fields: Vec<Value> = words
        .facts
        .iter()
        .map(|(label, value)| (*label, value.clone()))
        .chain([("Time", words.at.to_string())])
        .take(10)
        .map(|(label, value)| mrkdwn(&format!("*{label}*\n{}", cut(&escape(&value), FIELD))))
        .collect();
    let mut blocks = vec![json!({ "type": "section", "fields": fields })];
    if !words.samples.is_empty() {
        // A backtick would end the block.
        let lines = escape(&words.samples.join("\n")).replace('`', "'");
        blocks.push(json!({ "type": "section", "text": mrkdwn(&format!("```\n{}\n```", cut(&lines, SECTION))) }));
    }
    let mut foot = format!("{} anomaly", icon(kind));
    if let (Some(url), Some(ip)) = (dashboard, &words.ip) {
        foot = format!("{} {}", icon(kind), link(&page(url, ip), &format!("Why? {}", ip_text(ip))));
    } else if let Some(url) = dashboard {
        foot = format!("{} {}", icon(kind), link(url, "Dashboard"));
    }
    blocks.push(json!({ "type": "context", "elements": [mrkdwn(&foot)] }));
    blocks
}

fn in_lines(kind: Kind, group: &Group, dashboard: Option<&str>) -> Value {
    let mut text = format!("{} *{}*", icon(kind), counted(kind, group.count));
    let mut named = 0;
    for notice in group.newest.iter().rev() {
        let words = Words::of(notice);
        let mut line = cut(&escape(&words.brief()), 260).to_owned();
        if let (Some(url), Some(ip)) = (dashboard, &words.ip) {
            line = format!("{line} {}", link(&page(url, ip), "why"));
        }
        if text.len() + line.len() > SECTION - 60 {
            break;
        }
        text.push_str("\n• ");
        text.push_str(&line);
        named += 1;
    }
    if group.count > named {
        text.push_str(&format!("\n… and {} more", group.count - named));
    }
    json!({ "type": "section", "text": mrkdwn(&text) })
}

/// The page of an address or prefix on the dashboard.
pub(super) fn page(dashboard: &str, ip: &ipnet::IpNet) -> String {
    format!("{}/ip/{}", dashboard.trim_end_matches('/'), ip_text(ip).replace('/', "%2F"))
}

/// `verbatim` keeps Slack from making links and mentions out of words.
fn mrkdwn(text: &str) -> Value {
    json!({ "type": "mrkdwn", "text": text, "verbatim": true })
}

fn link(url: &str, label: &str) -> String {
    let url = url.replace('<', "%3C").replace('>', "%3E").replace('|', "%7C").replace('&', "&amp;");
    format!("<{url}|{}>", escape(label))
}

/// The three characters that Slack wants escaped.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// At most so many bytes (Slack counts characters, which are not more); never half an escape.
fn cut(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let kept = &text[..text.floor_char_boundary(bytes)];
    match kept.rfind('&') {
        Some(start) if !kept[start..].contains(';') => &kept[..start],
        _ => kept,
    }
}

//! What a ban is for, in words that people read, and the limit it was measured against.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{inert, ip_text, round};
use crate::engine::{Ban, Category, Finding, Origin, Rule, Signal};

/// Why a client was or would have been banned, in words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verdict {
    /// `flood`, `scanner`, `guessing`, `scraping`, `bandwidth` or `manual` (by hand).
    pub category: String,
    /// `certain` or `likely`; absent for bans by hand.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grade: Option<String>,
    /// The limit that was reached, in the unit of `signal_value` (without a signal, requests in the window).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<f64>,
    /// `floor` (any client may do that much), `learned` (from the site's ordinary clients) or `configured`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_source: Option<String>,
    /// The path of the newest request, without its query.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub route: Option<String>,
    /// What happened, as one sentence.
    pub sentence: String,
}

impl Verdict {
    /// Longest path that is shown, in bytes.
    const ROUTE: usize = 120;

    pub(super) fn of_finding(prefix: &IpNet, finding: &Finding) -> Self {
        let newest = finding.samples.last();
        let route = newest.map(|sample| {
            let path = sample.path.split(|byte| *byte == b'?').next().unwrap_or_default();
            inert(&path[..path.len().min(Self::ROUTE)])
        });
        Self {
            category: finding.category().as_str().into(),
            grade: Some(finding.grade.as_str().into()),
            limit: Some(round(finding.limit)),
            limit_source: Some(finding.limit_source.as_str().into()),
            route: route.filter(|route| !route.is_empty()),
            sentence: format!("{} {}", ip_text(prefix), finding.sentence()),
        }
    }

    pub(super) fn of_ban(ban: &Ban) -> Option<Self> {
        if ban.origin == Origin::Operator {
            return Some(Self {
                category: Category::Manual.as_str().into(),
                grade: None,
                limit: None,
                limit_source: None,
                route: None,
                sentence: format!("{} was {}", ip_text(&ban.prefix), by_hand(&ban.note)),
            });
        }
        ban.finding.as_ref().map(|finding| Self::of_finding(&ban.prefix, finding))
    }
}

fn by_hand(note: &str) -> String {
    if note.is_empty() { "banned by hand".into() } else { format!("banned by hand: {}", inert(note.as_bytes())) }
}

/// What a finding says of its client, as the rest of a sentence.
pub(super) trait Sentence {
    /// In the order: what, how much, and what would have been allowed.
    fn sentence(&self) -> String;
}

impl Sentence for Finding {
    fn sentence(&self) -> String {
        let Some((signal, value)) = self.signal else {
            if self.rule != Rule::HardLimit {
                return format!("made {:.2} requests a second", self.rate);
            }
            let (requests, limit) = (self.requests, self.limit);
            return format!(
                "made {requests} requests in the window, of which more than {limit:.0} got an answer like another"
            );
        };
        let unit = match signal {
            Signal::Pages | Signal::ErrorPaths | Signal::PostsToOnePath | Signal::Errors => "in the window",
            Signal::RepeatedMegabytes => "MB",
            Signal::FullMinutes => "minutes",
            _ => "points",
        };
        let source = self.limit_source.as_str();
        format!("{}: {value:.1} {unit}, limit {:.1} ({source})", phrase(signal), self.limit)
    }
}

/// What a client did whose signal fired.
const fn phrase(signal: Signal) -> &'static str {
    match signal {
        Signal::Pages => "requested too many pages",
        Signal::ErrorPaths => "asked for paths answered 4xx",
        Signal::PostsToOnePath => "sent POSTs to one path",
        Signal::Errors => "got error answers",
        Signal::SameAnswers => "got the same answers again and again",
        Signal::UnknownPaths => "asked for paths that this site does not have",
        Signal::ExploitPaths => "asked for well-known exploit paths",
        Signal::RepeatedLogins => "repeated a log-in or form",
        Signal::DeniedRequests => "was denied again and again",
        Signal::RepeatedMegabytes => "downloaded the same large files again and again",
        Signal::FullMinutes => "fetched pages without a pause",
    }
}

//! A plot of the clients' activity, as SVG: one panel per trace, one dot per client, the detector's floors drawn in.
//!
//! Across: the most page requests in any 60 s (an asset is a tenth); up: the most distinct paths answered 4xx (an asset
//! is a tenth). Both on log scale, because that is where the tail is tame.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::log;

const ASSETS: &[&str] = &[
    "avif", "bmp", "css", "eot", "gif", "ico", "jpeg", "jpg", "js", "map", "mjs", "mp3", "mp4", "ogg", "otf", "png",
    "svg", "swf", "ttf", "webm", "webp", "woff", "woff2",
];
/// Defaults of the detector: page requests in a moment and in a whole window, and distinct paths answered 4xx.
const BURST: f64 = 80.0;
const WINDOW: f64 = 350.0;
const ERROR_PATHS: f64 = 9.1;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Other,
    Hot,
    Honest,
    Labelled,
    Injected,
}

impl Class {
    const ALL: [Self; 5] = [Self::Other, Self::Hot, Self::Honest, Self::Labelled, Self::Injected];

    const fn look(self) -> (&'static str, &'static str, f64, f64) {
        match self {
            Self::Other => ("clients", "#9aa5b1", 1.6, 0.35),
            Self::Hot => ("benign_hot", "#2f7fd1", 2.2, 0.8),
            Self::Honest => ("injected honest", "#1f9d55", 3.2, 1.0),
            Self::Labelled => ("labelled abusive", "#d9822b", 2.4, 0.9),
            Self::Injected => ("injected attackers", "#c81e1e", 3.2, 1.0),
        }
    }
}

/// One trace's clients.
pub struct Panel {
    title: String,
    dots: Vec<(Class, f64, f64)>,
}

#[derive(Default)]
struct Client {
    window: VecDeque<(i64, f64)>,
    pages: f64,
    errors: VecDeque<(i64, String, f64)>,
    most: (f64, f64),
}

impl Panel {
    /// Reads an injected trace, its truth and the trace's labels.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(title: &str, trace: &Path, truth: &Path, labels: &Path) -> Result<Self> {
        let json = |path: &Path| -> Result<Value> {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Ok(serde_json::from_str(&text)?)
        };
        let (truth, labels) = (json(truth)?, json(labels)?);
        let mut classes: HashMap<String, Class> = HashMap::new();
        for (group, class) in [("attackers", Class::Injected), ("honest", Class::Honest)] {
            for row in truth[group].as_array().into_iter().flatten() {
                classes.insert(network(row["ip"].as_str().unwrap_or_default()), class);
            }
        }
        for (ip, _) in labels["abusive"].as_object().into_iter().flatten() {
            classes.insert(ip.clone(), Class::Labelled);
        }
        for ip in labels["benign_hot"].as_array().into_iter().flatten() {
            classes.insert(ip.as_str().unwrap_or_default().into(), Class::Hot);
        }
        let grey: HashSet<&str> = labels["grey"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut clients: HashMap<String, Client> = HashMap::new();
        log::read(trace, |line| {
            if !grey.contains(line.ip.as_str()) {
                clients.entry(network(&line.ip)).or_default().add(&line);
            }
            Ok(())
        })?;
        let mut dots: Vec<(Class, f64, f64)> = clients
            .iter()
            .map(|(ip, c)| (classes.get(ip).copied().unwrap_or(Class::Other), c.most.0, c.most.1))
            .collect();
        dots.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2)));
        dots.dedup();
        Ok(Self { title: title.into(), dots })
    }
}

/// An IPv4 address, or the /64 of an injected IPv6 one.
fn network(ip: &str) -> String {
    ip.rsplit_once("::").map_or_else(|| ip.to_owned(), |(net, _)| net.to_owned())
}

impl Client {
    fn add(&mut self, line: &log::Line) {
        let path = line.path.split('?').next().unwrap_or_default();
        let asset = path.rsplit_once('.').is_some_and(|(_, e)| ASSETS.iter().any(|a| e.eq_ignore_ascii_case(a)));
        let weight = if asset { 0.1 } else { 1.0 };
        while self.window.front().is_some_and(|(t, _)| *t <= line.time - 60) {
            self.pages -= self.window.pop_front().map_or(0.0, |(_, w)| w);
        }
        self.window.push_back((line.time, weight));
        self.pages += weight;
        self.most.0 = self.most.0.max(self.pages);
        if (400..500).contains(&line.status) {
            self.errors.retain(|(t, path, _)| *t > line.time - 60 && *path != line.path);
            self.errors.push_back((line.time, line.path.clone(), weight));
            self.most.1 = self.most.1.max(self.errors.iter().map(|(_, _, w)| w).sum());
        }
    }
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 34.0;
const INNER: (f64, f64) = (WIDTH - LEFT - 16.0, HEIGHT - TOP - 44.0);

fn x(pages: f64) -> f64 {
    LEFT + INNER.0 * (pages.max(0.1).log10() + 1.0) / 5.0
}

fn y(paths: f64) -> f64 {
    TOP + INNER.1 * (1.0 - (paths.max(0.05).log10() + 1.3) / 4.5)
}

/// The whole plot.
pub fn svg(panels: &[Panel]) -> String {
    let columns = 2;
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (WIDTH * columns as f64, HEIGHT * rows as f64 + 40.0);
    let mut s = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        s,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#ffffff"/>"##
    );
    for (i, class) in Class::ALL.iter().enumerate() {
        let (name, colour, _, _) = class.look();
        let at = 60.0 + 160.0 * i as f64;
        let _ = writeln!(
            s,
            r##"<circle cx="{at}" cy="20" r="4" fill="{colour}"/><text x="{}" y="24" fill="#222">{name}</text>"##,
            at + 9.0
        );
    }
    for (i, panel) in panels.iter().enumerate() {
        let (dx, dy) = ((i % columns) as f64 * WIDTH, (i / columns) as f64 * HEIGHT + 40.0);
        let _ = writeln!(s, r#"<g transform="translate({dx},{dy})">"#);
        panel.draw(&mut s);
        s.push_str("</g>\n");
    }
    s.push_str("</svg>\n");
    s
}

impl Panel {
    fn draw(&self, s: &mut String) {
        let (right, bottom) = (LEFT + INNER.0, TOP + INNER.1);
        let _ = writeln!(
            s,
            r##"<text x="{LEFT}" y="{}" font-size="14" font-weight="bold" fill="#222">{}</text><rect x="{LEFT}" y="{TOP}" width="{}" height="{}" fill="none" stroke="#ccc"/>"##,
            TOP - 10.0,
            self.title,
            INNER.0,
            INNER.1
        );
        for tick in [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0] {
            let at = x(tick);
            let _ = writeln!(
                s,
                r##"<line x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}" stroke="#eee"/><text x="{at}" y="{}" text-anchor="middle" fill="#555">{tick}</text>"##,
                bottom + 14.0
            );
        }
        for tick in [0.1, 1.0, 10.0, 100.0, 1000.0] {
            let at = y(tick);
            let _ = writeln!(
                s,
                r##"<line x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}" stroke="#eee"/><text x="{}" y="{}" text-anchor="end" fill="#555">{tick}</text>"##,
                LEFT - 5.0,
                at + 4.0
            );
        }
        let _ = writeln!(
            s,
            r##"<text x="{}" y="{}" text-anchor="middle" fill="#555">most page requests in 60 s</text><text transform="translate(12,{}) rotate(-90)" text-anchor="middle" fill="#555">most distinct paths answered 4xx</text>"##,
            LEFT + INNER.0 / 2.0,
            bottom + 30.0,
            TOP + INNER.1 / 2.0
        );
        for (class, pages, paths) in &self.dots {
            let (_, colour, radius, opacity) = class.look();
            let _ = writeln!(
                s,
                r#"<circle cx="{:.1}" cy="{:.1}" r="{radius}" fill="{colour}" fill-opacity="{opacity}"/>"#,
                x(*pages),
                y(*paths)
            );
        }
        for (at, name) in [(BURST, "80 at once"), (WINDOW, "350 in 60 s")] {
            let at = x(at);
            let _ = writeln!(
                s,
                r##"<line x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}" stroke="#111" stroke-dasharray="4 3"/><text transform="translate({},{}) rotate(-90)" fill="#111">{name}</text>"##,
                at - 3.0,
                TOP + 64.0
            );
        }
        let at = y(ERROR_PATHS);
        let _ = writeln!(
            s,
            r##"<line x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}" stroke="#111" stroke-dasharray="4 3"/><text x="{}" y="{}" fill="#111">more than 9 paths</text>"##,
            LEFT + 4.0,
            at - 4.0
        );
    }
}

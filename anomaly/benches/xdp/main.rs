//! What a packet costs, by `cargo xtask bench xdp`: our program, Debian's xdp-filter, iptables, ipset and nft.
//!
//! Runs in a network namespace of its own; prints one Markdown table, and writes the same as JSON where
//! ANOMALY_BENCH_JSON says. ANOMALY_EBPF_OBJECT names another build of the kernel program to measure.

mod live;
mod maps;
mod program;

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

/// One line of the table.
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Bans, rules or set members; `None` where there are none.
    pub entries: Option<usize>,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// How it was measured, where the line before says something else.
    pub how: &'static str,
}

/// The table as it grows.
#[derive(Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// Adds a line, and shows it at once: the whole takes minutes.
    pub fn add(&mut self, row: Row) {
        eprintln!("{:58} {:>9} {:>10.1} {}", row.what, row.entries.map_or(String::new(), group), row.value, row.unit);
        self.0.push(row);
    }

    /// The value of a line that was added.
    pub fn value(&self, what: &str, entries: usize) -> Option<f64> {
        self.0.iter().find(|row| row.what == what && row.entries == Some(entries)).map(|row| row.value)
    }

    fn markdown(&self) -> String {
        let mut text = String::from("| what | entries | | how |\n|---|--:|--:|---|\n");
        for row in &self.0 {
            let entries = row.entries.map_or(String::new(), group);
            let precision = if row.value < 100.0 { 1 } else { 0 };
            let _ =
                writeln!(text, "| {} | {entries} | {:.precision$} {} | {} |", row.what, row.value, row.unit, row.how);
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        self.0
            .iter()
            .map(|row| json!({"what": row.what, "entries": row.entries, "value": row.value, "unit": row.unit, "how": row.how}))
            .collect()
    }
}

fn group(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|chunk| std::str::from_utf8(chunk).ok()).collect();
    groups.join(",")
}

/// A namespace of this process, with a veth pair in it; the process lives in it from now on.
pub struct Space(String);

impl Space {
    fn enter() -> Result<Self> {
        let space = Self(format!("anomaly-b{}", std::process::id()));
        run("ip", &["netns", "add", &space.0])?;
        let file = std::fs::File::open(format!("/run/netns/{}", space.0))?;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))?;
        run("ip", &["link", "add", "va", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "vb"])?;
        for words in [["addr", "add", "10.77.0.1/24", "dev", "va"], ["addr", "add", "fd77::1/64", "dev", "va"]] {
            run("ip", &words)?;
        }
        for name in ["lo", "va", "vb"] {
            run("ip", &["link", "set", name, "up"])?;
        }
        // Sources are random: answers to them go nowhere, and nobody checks where they came from.
        run("ip", &["route", "add", "blackhole", "default"])?;
        for key in ["all", "va"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{key}/rp_filter"), "0")?;
        }
        Ok(space)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.0]);
    }
}

/// Runs a command; its words are ours alone.
pub fn run(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A part of the bench.
type Part = fn(&mut Table) -> Result<()>;

/// What can be asked for by name; all of it takes minutes.
const PARTS: [(&str, Part); 4] =
    [("compare", program::compare), ("program", program::measure), ("maps", maps::measure), ("live", live::measure)];

fn main() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the XDP bench needs root: it makes a network namespace");
    let _space = Space::enter()?;
    let mut table = Table::default();
    // `cargo bench` adds a flag of its own.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, measure) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            measure(&mut table)?;
        }
    }
    println!("{}", table.markdown());
    if let Some(path) = std::env::var_os("ANOMALY_BENCH_JSON") {
        std::fs::write(path, serde_json::to_string_pretty(&table.json())?)?;
    }
    Ok(())
}

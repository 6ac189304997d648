//! The table that a bench prints: in Markdown for people, in JSON for programs that compare runs.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
    /// Reported only.
    None,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// The part it belongs to, in one word.
    pub part: &'static str,
    /// What was measured.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it should be.
    pub target: Target,
    /// How it was measured.
    pub how: String,
}

impl Row {
    fn meets(&self) -> Option<bool> {
        match self.target {
            Target::AtMost(limit) => Some(self.value <= limit),
            Target::AtLeast(limit) => Some(self.value >= limit),
            Target::None => None,
        }
    }

    fn wanted(&self) -> String {
        match self.target {
            Target::AtMost(limit) => format!("<= {} {}", print(limit), self.unit),
            Target::AtLeast(limit) => format!(">= {} {}", print(limit), self.unit),
            Target::None => String::new(),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.meets() {
            Some(true) => "pass",
            Some(false) => "**missed**",
            None => "",
        }
    }
}

/// All figures, and the machine they are of.
pub struct Table {
    rows: Vec<Row>,
    machine: Machine,
}

impl Default for Table {
    fn default() -> Self {
        Self { rows: Vec::new(), machine: Machine::here() }
    }
}

impl Table {
    /// Adds a row, and shows it at once: the whole takes minutes.
    pub fn add(&mut self, row: Row) {
        let value = format!("{} {}", print(row.value), row.unit);
        eprintln!("{:62} {value:>22}  {:24} {}", row.what, row.wanted(), row.verdict().trim_matches('*'));
        self.rows.push(row);
    }

    /// The table and the machine, for people.
    pub fn markdown(&self) -> String {
        let mut text =
            format!("{}\n\n| what | measured | target | | how |\n|---|--:|--:|---|---|\n", self.machine.words());
        for row in &self.rows {
            let Row { what, value, unit, how, .. } = row;
            let (value, wanted, verdict) = (print(*value), row.wanted(), row.verdict());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {what} | {value} {unit} | {wanted} | {verdict} | {how} |");
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = (self.rows.iter())
            .map(|row| {
                let (at_most, at_least) = match row.target {
                    Target::AtMost(limit) => (Some(limit), None),
                    Target::AtLeast(limit) => (None, Some(limit)),
                    Target::None => (None, None),
                };
                json!({
                    "part": row.part, "what": row.what, "value": row.value, "unit": row.unit,
                    "at_most": at_most, "at_least": at_least, "meets": row.meets(), "how": row.how,
                })
            })
            .collect();
        let Machine { cpu, cores, kernel, load } = &self.machine;
        json!({"machine": {"cpu": cpu, "cores": cores, "kernel": kernel, "load_at_start": load}, "rows": rows})
    }
}

/// Where it was measured, and how busy that was.
struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    load: String,
}

impl Machine {
    fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
        Self {
            cpu: cpu.unwrap_or("unknown processor").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }

    fn words(&self) -> String {
        let Self { cpu, cores, kernel, load } = self;
        format!("{cores} cores of {cpu}, Linux {kernel}, load {load} when the bench began.")
    }
}

/// A figure with three significant digits or more, and its thousands apart.
fn print(value: f64) -> String {
    let precision = match value.abs() {
        v if v >= 100.0 || v == v.round() => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.precision$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, target: Target) -> Row {
        Row { part: "part", what: "what".into(), value, unit: "ms", target, how: "how".into() }
    }

    #[test]
    fn figures_are_printed_for_people() {
        let pairs = [
            (4_123_456.7, "4,123,457"),
            (0.0, "0"),
            (0.0123, "0.012"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (1000.0, "1,000"),
            (-1500.4, "-1,500"),
        ];
        for (value, text) in pairs {
            assert_eq!(print(value), text);
        }
    }

    #[test]
    fn a_figure_meets_its_target_or_misses_it() {
        assert_eq!(row(1.5, Target::AtMost(1.5)).verdict(), "pass");
        assert_eq!(row(1.6, Target::AtMost(1.5)).verdict(), "**missed**");
        assert_eq!(row(1.6, Target::AtLeast(1.5)).verdict(), "pass");
        assert_eq!(row(f64::NAN, Target::AtLeast(1.5)).verdict(), "**missed**");
        assert_eq!(row(1.6, Target::None).meets(), None);
    }

    #[test]
    fn markdown_and_json_agree() {
        let mut table = Table::default();
        table.add(row(0.5, Target::AtMost(1.0)));
        table.add(row(1.5, Target::AtMost(1.0)));
        let rows = "| what | 0.50 ms | <= 1 ms | pass | how |\n| what | 1.50 ms | <= 1 ms | **missed** | how |\n";
        assert!(table.markdown().ends_with(rows), "{}", table.markdown());
        let json = table.json();
        assert_eq!((&json["rows"][0]["value"], &json["rows"][0]["meets"]), (&json!(0.5), &json!(true)));
    }
}

//! Why lines cannot be read, and what to do about it, for operators: `doctor` and the daemon say the same.

use super::{Format, Reject};

/// What makes a log readable without any setting.
pub(crate) const FORMAT: &str =
    "use the log_format of nginx/ (escape=json; source_ip, timestamp, method, path, status)";

/// Whether a line looks like a JSON object.
pub(crate) fn is_object(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"{")
}

/// What is wrong with such lines, this one among them.
pub(crate) fn why(reject: Reject, line: &[u8]) -> &'static str {
    if reject == Reject::NotAnObject && !is_object(line) { "it is not JSON" } else { reject.words() }
}

/// What to do about lines like this one, which cannot be read.
pub(crate) fn cure(line: &[u8]) -> String {
    match Format::guess(line) {
        Some(name) => format!("they look like the format {name}: set log.format = \"{name}\", or {FORMAT}"),
        None => FORMAT.to_owned(),
    }
}

//! Finds the place in a large log where a stretch of log time begins, without reading it all.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::time::Duration;

use super::MAX_LINE_BYTES;
use crate::time::Timestamp;

/// Stretches shorter than this are read from end to end.
const STRETCH_BYTES: u64 = 64 << 10;

/// Where the newest stamps are looked for.
const NEWEST_BYTES: u64 = 256 << 10;

/// The stamp of the log's end is the median of so many: one line from the future must not
/// make all others look old.
const NEWEST_LINES: usize = 101;

/// Place of the first line that is at most `back` older than the newest ones; 0 where no stamp can be read.
pub(super) fn first_line_within(
    file: &File,
    back: Duration,
    time_of: &mut dyn FnMut(&[u8]) -> Option<Timestamp>,
) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let mut newest = Vec::new();
    lines_from(file, len.saturating_sub(NEWEST_BYTES), |_, line| {
        newest.extend(time_of(line));
        ControlFlow::<()>::Continue(())
    })?;
    newest.drain(..newest.len().saturating_sub(NEWEST_LINES));
    newest.sort_unstable();
    let Some(newest) = newest.get(newest.len() / 2) else { return Ok(0) };
    let since = newest.minus(back);

    // All lines before `low` are older, and the line behind `high` is not. Lines are almost in
    // order; where they are not, the place found is still one between older and newer ones.
    let (mut low, mut high) = (0, len);
    while high - low > STRETCH_BYTES {
        let middle = low + (high - low) / 2;
        match lines_from(file, middle, |at, line| match time_of(line) {
            Some(time) => ControlFlow::Break((at, time)),
            None => ControlFlow::Continue(()),
        })? {
            Some((at, time)) if time < since && at < high => low = at,
            _ => high = middle,
        }
    }
    let first = lines_from(file, low, |at, line| match time_of(line) {
        Some(time) if time >= since => ControlFlow::Break(at),
        _ => ControlFlow::Continue(()),
    })?;
    Ok(first.unwrap_or(low))
}

/// Goes through the complete lines from the first one that begins at `from` or behind it.
fn lines_from<B>(file: &File, from: u64, mut each: impl FnMut(u64, &[u8]) -> ControlFlow<B>) -> io::Result<Option<B>> {
    // The byte before tells whether a line begins here.
    let mut at = from.saturating_sub(1);
    let mut file = file;
    file.seek(SeekFrom::Start(at))?;
    let mut reader = BufReader::with_capacity(STRETCH_BYTES as usize, file);
    let mut line = Vec::new();
    let mut whole = from == 0;
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        let ended = line.pop_if(|b| *b == b'\n').is_some();
        if whole
            && ended
            && let ControlFlow::Break(found) = each(at, &line)
        {
            return Ok(Some(found));
        }
        at += read as u64;
        whole = ended;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn time_of(line: &[u8]) -> Option<Timestamp> {
        std::str::from_utf8(line).ok()?.split(' ').next()?.parse().ok().map(Timestamp::from_secs)
    }

    fn found(text: &str, back_secs: u64) -> String {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let at = first_line_within(&file, Duration::from_secs(back_secs), &mut time_of).expect("read");
        text[at as usize..].lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn finds_the_line_in_logs_of_any_size() {
        for lines in [1, 2, 10, 1_000, 60_000] {
            let text: String = (0..lines).map(|n| format!("{n} {}\n", "x".repeat(n % 97))).collect();
            for back in [0, 1, 7, 500, 30_000, 1_000_000] {
                let newest = if lines > 101 { lines - 1 - 50 } else { lines - 1 - (lines - 1) / 2 };
                let newest = if lines > 3_000 { lines - 1 - 50 } else { newest };
                let expected = newest.saturating_sub(back as usize);
                let first = found(&text, back);
                let got: usize = first.split(' ').next().and_then(|n| n.parse().ok()).expect("a line");
                assert!(got.abs_diff(expected) <= 1, "{lines} lines, {back} s back: {got}, not {expected}");
            }
        }
    }

    #[test]
    fn lines_without_a_stamp_do_not_matter() {
        assert_eq!(found("", 5), "");
        assert_eq!(found("no\nstamps\n", 5), "no");
        assert_eq!(found("no newline", 5), "no newline");
        let broken = "?\n".repeat(100_000);
        let text = format!("1 old\n{broken}100 new\n{broken}101 new\n");
        assert_eq!(found(&text, 5), "100 new");
        assert_eq!(found(&text, 500), "1 old");
    }

    #[test]
    fn one_line_from_the_future_moves_nothing() {
        let text: String = (0..10_000).map(|n| format!("{n} {}\n", "x".repeat(50))).collect();
        let first = found(&format!("{text}99999999 far ahead\n"), 100);
        assert!(first.starts_with("98"), "{first}");
    }
}

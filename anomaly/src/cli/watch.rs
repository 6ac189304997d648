//! `anomaly top --watch`: status and busiest clients, once a second, until Ctrl-C.
//!
//! On a terminal it has a screen of its own, so that what was there before comes back; elsewhere one picture
//! follows the other.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use rustix::termios::tcgetwinsize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::ask::ask;
use super::print::Printer;

/// Shows it. A daemon that goes away in between is waited for.
///
/// # Errors
/// When no daemon answers at the beginning, or nothing can be written.
pub fn top(socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(watch(socket));
    // A question that hangs must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn watch(socket: &Path) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let printer = Arc::new(Printer::new());
    let mut screen = None;
    loop {
        let (asked, printer) = (socket.to_owned(), Arc::clone(&printer));
        // Elsewhere, because connecting and asking block: a daemon that hangs must not take Ctrl-C from us.
        let look = tokio::task::spawn_blocking(move || look(&asked, &printer));
        let seen = tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            seen = look => seen?,
        };
        let shown = match seen {
            Err(error) if screen.is_none() => return Err(error),
            Err(error) => format!("{error:#}\nTrying again until Ctrl-C.\n"),
            Ok(shown) => shown,
        };
        let screen = match &mut screen {
            Some(screen) => screen,
            none => none.insert(Screen::open()?),
        };
        match screen.show(&shown) {
            // Whoever reads has seen enough (`| head`).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn look(socket: &Path, printer: &Printer) -> Result<String> {
    let get = |path| -> Result<Value> { ask(socket, Method::GET, path, None)?.ok() };
    Ok(format!("{}\n{}", printer.status(&get("/api/v1/status")?), printer.top(&get("/api/v1/top")?)))
}

/// The terminal's other screen for as long as this lives, or standard output as it is.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn open() -> io::Result<Self> {
        let terminal = io::stdout().is_terminal();
        if terminal {
            // The other screen, without a cursor.
            io::stdout().lock().write_all(b"\x1b[?1049h\x1b[?25l")?;
        }
        Ok(Self { terminal })
    }

    fn show(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.terminal {
            let (rows, columns) = size();
            out.write_all(frame(text, rows, columns).as_bytes())?;
        } else {
            writeln!(out, "{text}")?;
        }
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            // A terminal that is gone needs nothing back.
            let _ = io::stdout().lock().write_all(b"\x1b[?25h\x1b[?1049l");
        }
    }
}

fn size() -> (usize, usize) {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
}

/// The text as one picture from the upper left corner: cut to the screen, and over what was there before. Nothing is
/// erased before it is written anew, so nothing flickers.
fn frame(text: &str, rows: usize, columns: usize) -> String {
    let lines: Vec<String> = text.lines().take(rows).map(|line| cut(line, columns)).collect();
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\n"))
}

/// A line without what is beyond so many columns. Colours take no columns, and are kept so that they end.
fn cut(line: &str, columns: usize) -> String {
    let mut kept = String::with_capacity(line.len());
    let (mut left, mut escape) = (columns, false);
    for c in line.chars() {
        escape |= c == '\x1b';
        if escape {
            kept.push(c);
            escape = c != 'm';
        } else if left > 0 {
            kept.push(c);
            left -= 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_fits_the_screen() {
        assert_eq!(frame("one\ntwo\nthree\n", 2, 2), "\x1b[Hon\x1b[K\ntw\x1b[K\x1b[J");
    }

    #[test]
    fn a_colour_that_is_cut_still_ends() {
        assert_eq!(cut("\x1b[31mabcdef\x1b[0mgh", 3), "\x1b[31mabc\x1b[0m");
    }
}

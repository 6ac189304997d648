//! `anomaly top --watch`: status and busiest clients, once a second, until `q` or Ctrl-C.
//!
//! On a terminal it has a screen of its own, so that what was there before comes back; elsewhere one picture
//! follows the other.

use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ask::ask;
use super::print::Printer;
use super::screen::Screen;

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
    // The keys that send these, and `kill`, must leave the terminal as it was.
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::quit())?,
        signal(SignalKind::hangup())?,
    ];
    let printer = Arc::new(Printer::new());
    let mut screen = None;
    loop {
        let (asked, printer) = (socket.to_owned(), Arc::clone(&printer));
        // Elsewhere, because connecting and asking block: a daemon that hangs must not take Ctrl-C from us.
        let look = tokio::task::spawn_blocking(move || look(&asked, &printer));
        let seen = tokio::select! {
            over = over(&mut signals, screen.as_mut()) => return Ok(over?),
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
        match screen.show(shown) {
            // Whoever reads has seen enough (`| head`).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        tokio::select! {
            over = over(&mut signals, Some(screen)) => return Ok(over?),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Returns when somebody has seen enough.
async fn over([interrupt, terminate, quit, hangup]: &mut [Signal; 4], screen: Option<&mut Screen>) -> io::Result<()> {
    let key = async {
        match screen {
            Some(screen) => screen.quit().await,
            None => pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = quit.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
        pressed = key => pressed,
    }
}

fn look(socket: &Path, printer: &Printer) -> Result<String> {
    let get = |path| -> Result<Value> { ask(socket, Method::GET, path, None)?.ok() };
    Ok(format!("{}\n{}", printer.status(&get("/api/v1/status")?), printer.top(&get("/api/v1/top")?)))
}

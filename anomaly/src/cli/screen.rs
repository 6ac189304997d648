//! The terminal while `anomaly top --watch` has it: a screen of its own, and keys that are read as they are pressed.

use std::future::pending;
use std::io::{self, IsTerminal, Write};

use rustix::io::{read, retry_on_intr};
use rustix::process::{Signal, getpgrp, kill_process_group};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The terminal's other screen for as long as this lives, or standard output as it is. The terminal is left as it was found.
pub struct Screen {
    terminal: bool,
    /// None where nobody can press one.
    keys: Option<Keys>,
    /// What was shown last.
    text: String,
}

impl Screen {
    /// Takes the terminal, where there is one.
    ///
    /// # Errors
    /// A terminal that does not do what terminals do.
    pub fn open() -> io::Result<Self> {
        let terminal = io::stdout().is_terminal();
        let keys = if terminal && io::stdin().is_terminal() { Some(Keys::open()?) } else { None };
        let screen = Self { terminal, keys, text: String::new() };
        screen.enter()?;
        Ok(screen)
    }

    /// Shows this text in place of the one before; elsewhere than on a terminal, after it.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn show(&mut self, text: String) -> io::Result<()> {
        self.text = text;
        self.draw()
    }

    /// Returns when `q` is pressed, or no key ever will be again; Ctrl-Z meanwhile gives the terminal back until the shell
    /// says `fg`.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub async fn quit(&mut self) -> io::Result<()> {
        loop {
            let Some(keys) = &mut self.keys else { return pending().await };
            let key = keys.pressed.recv().await;
            if key.is_none_or(|key| key == b'q') {
                return Ok(());
            }
            if key == keys.suspend() {
                self.suspend()?;
            }
        }
    }

    /// What the terminal does for a program that leaves Ctrl-Z to it: stops the whole group, so `sudo` too. Nothing stops
    /// where no shell could ever continue it.
    fn suspend(&self) -> io::Result<()> {
        self.leave()?;
        // This is the main thread, so the signal has been taken when the call returns: after `fg`.
        kill_process_group(getpgrp(), Signal::TSTP)?;
        self.enter()?;
        self.draw()
    }

    fn enter(&self) -> io::Result<()> {
        if let Some(keys) = &self.keys {
            keys.take()?;
        }
        // The other screen, without a cursor.
        self.write(if self.terminal { "\x1b[?1049h\x1b[?25l" } else { "" })
    }

    fn leave(&self) -> io::Result<()> {
        let given_back = self.keys.as_ref().map_or(Ok(()), Keys::give_back);
        let written = self.write(if self.terminal { "\x1b[?25h\x1b[?1049l" } else { "" });
        given_back.and(written)
    }

    fn draw(&self) -> io::Result<()> {
        if self.terminal {
            let (rows, columns) = size();
            self.write(&frame(&self.text, rows, columns))
        } else {
            self.write(&format!("{}\n", self.text))
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = self.leave();
    }
}

/// The keyboard.
struct Keys {
    pressed: UnboundedReceiver<u8>,
    /// How the terminal was found.
    before: Termios,
}

impl Keys {
    fn open() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let (sender, pressed) = unbounded_channel();
        // It waits for a key until the process ends: nothing could call it back.
        std::thread::Builder::new().name("keys".into()).spawn(move || {
            let mut key = [0];
            while let Ok(1..) = retry_on_intr(|| read(io::stdin(), &mut key))
                && sender.send(key[0]).is_ok()
            {}
        })?;
        Ok(Self { pressed, before })
    }

    /// From now on a key is not shown and needs no Enter, and Ctrl-Z is one. Ctrl-C stays what it is.
    fn take(&self) -> io::Result<()> {
        let mut modes = self.before.clone();
        modes.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
        modes.special_codes[SpecialCodeIndex::VMIN] = 1;
        modes.special_codes[SpecialCodeIndex::VTIME] = 0;
        modes.special_codes[SpecialCodeIndex::VSUSP] = 0;
        Ok(tcsetattr(io::stdin(), OptionalActions::Now, &modes)?)
    }

    fn give_back(&self) -> io::Result<()> {
        Ok(tcsetattr(io::stdin(), OptionalActions::Now, &self.before)?)
    }

    /// What Ctrl-Z was before it became a key; none where it was nothing.
    fn suspend(&self) -> Option<u8> {
        Some(self.before.special_codes[SpecialCodeIndex::VSUSP]).filter(|code| *code != 0)
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

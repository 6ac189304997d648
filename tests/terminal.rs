//! What the command line does on a terminal, and does not do elsewhere: colour, the bar of a replay, `top --watch`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::dry_run::DryRun;
use crate::lab::{clock, history};

const PATIENCE: Duration = Duration::from_secs(30);
/// The other screen, and back.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const CTRL_C: &[u8] = b"\x03";
const CTRL_BACKSLASH: &[u8] = b"\x1c";
const CTRL_Z: &[u8] = b"\x1a";

/// A terminal with a program on it, in a session of its own as after a login.
struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    /// Ends when the last program has.
    reader: JoinHandle<()>,
    program: Child,
    /// How the terminal was before the program began.
    before: Termios,
}

impl Terminal {
    /// Starts `words`; what goes to standard output goes to `output` where that is given.
    fn start(words: &[&str], environment: &[(&str, &str)], output: Option<File>) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("a size");
        let before = tcgetattr(&master).expect("modes");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("its other end");
        let copy = || -> OwnedFd { slave.try_clone().expect("a copy") };
        let program = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .args(words)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(environment.iter().copied())
            .stdin(copy())
            .stdout(output.map_or_else(|| Stdio::from(copy()), Stdio::from))
            .stderr(copy())
            .spawn()
            .expect("started");
        let keyboard = File::from(master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut shows, seen) = (keyboard.try_clone().expect("a copy"), Arc::clone(&screen));
        let reader = std::thread::spawn(move || {
            let mut some = [0; 4096];
            // It fails once nobody has the other end any more.
            while let Ok(length) = shows.read(&mut some) {
                seen.lock().expect("not poisoned").extend(&some[..length]);
            }
        });
        Self { keyboard, screen, reader, program, before }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("pressed");
    }

    /// All that was ever written to it.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("not poisoned")).into_owned()
    }

    fn wait_until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        clock::wait_until(what, PATIENCE, || holds(&self.shown()))
            .unwrap_or_else(|error| panic!("{error}: {}", self.last_shown()));
    }

    fn last_shown(&self) -> String {
        let shown = self.shown();
        format!("{:?}", &shown[shown.ceil_char_boundary(shown.len().saturating_sub(3000))..])
    }

    /// Waits until a picture of the daemon stands on the screen that was opened for the nth time.
    fn wait_for_picture(&self, nth: usize) {
        self.wait_until("a picture", |shown| shown.split(ENTER).nth(nth).is_some_and(|new| new.contains("REQ/S")));
    }

    /// Whether keys are shown and wait for Enter, as everywhere else.
    fn is_usual(&self) -> bool {
        let now = tcgetattr(&self.keyboard).expect("modes");
        let code = |modes: &Termios| modes.special_codes[SpecialCodeIndex::VSUSP];
        now.local_modes == self.before.local_modes && code(&now) == code(&self.before)
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.keyboard).expect("modes").local_modes.contains(LocalModes::ECHO)
    }

    /// Waits for the end, and for all that was written before it.
    fn end(&mut self) -> ExitStatus {
        let ended = clock::wait_for("the end", PATIENCE, || {
            let status = self.program.try_wait().expect("waited");
            status.filter(|_| self.reader.is_finished())
        });
        ended.unwrap_or_else(|error| panic!("{error}: {}", self.last_shown()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn daemon() -> DryRun {
    DryRun::start(&history::quiet(clock::epoch_secs(), 30, 2), "")
}

const ANOMALY: &str = env!("CARGO_BIN_EXE_anomaly");

#[test]
fn a_watch_ends_at_q_and_leaves_the_terminal_as_it_was() {
    let daemon = daemon();
    let configuration = daemon.configuration();
    for key in [b"q", CTRL_C, CTRL_BACKSLASH] {
        let mut terminal = Terminal::start(&[ANOMALY, "--config", &configuration, "top", "--watch"], &[], None);
        terminal.wait_for_picture(1);
        assert!(!terminal.echoes(), "keys would be written into the picture");
        // Another key, and an arrow, are nothing.
        terminal.press(b"x\x1b[A");
        terminal.press(key);
        assert!(terminal.end().success());
        let shown = terminal.shown();
        assert!(shown.ends_with(LEAVE) && shown.matches(ENTER).count() == 1, "{}", terminal.last_shown());
        assert!(terminal.is_usual());
    }
}

#[test]
fn a_watch_that_is_suspended_gives_the_terminal_back_and_comes_back() {
    let daemon = daemon();
    // A shell with job control, whose next line is reached when the watch stops.
    let script = "\"$0\" --config \"$1\" top --watch; echo it stopped; read -r line; fg; echo it ended";
    let mut terminal =
        Terminal::start(&["bash", "--norc", "-m", "-c", script, ANOMALY, &daemon.configuration()], &[], None);
    terminal.wait_for_picture(1);
    terminal.press(CTRL_Z);
    terminal.wait_until("the shell", |shown| shown.contains("it stopped"));
    let shown = terminal.shown();
    let (watch, shell) =
        shown.rsplit_once(LEAVE).unwrap_or_else(|| panic!("the shell is on the other screen: {shown:?}"));
    assert!(!watch.contains("it stopped") && shell.contains("it stopped"), "{shown:?}");
    assert!(terminal.is_usual());
    terminal.press(b"\n");
    terminal.wait_for_picture(2);
    assert!(!terminal.echoes());
    terminal.press(b"q");
    assert!(terminal.end().success());
    assert!(
        terminal.shown().rsplit(LEAVE).next().is_some_and(|end| end.contains("it ended")),
        "{}",
        terminal.last_shown()
    );
    assert!(terminal.is_usual());
}

/// `ssh -t host anomaly top --watch`, or `docker exec -it`: nobody could ever continue it.
#[test]
fn a_watch_without_a_shell_is_not_stopped() {
    let daemon = daemon();
    let mut terminal = Terminal::start(&[ANOMALY, "--config", &daemon.configuration(), "top", "--watch"], &[], None);
    terminal.wait_for_picture(1);
    terminal.press(CTRL_Z);
    terminal.wait_for_picture(2);
    terminal.press(b"q");
    assert!(terminal.end().success());
}

#[test]
fn answers_are_coloured_on_a_terminal_and_nowhere_else() {
    let daemon = daemon();
    assert!(daemon.command(&["ban", "203.0.113.9", "--for", "1h"]).status.success());
    let coloured = |words: &[&str], environment: &[(&str, &str)]| {
        let configuration = daemon.configuration();
        let words = [&[ANOMALY, "--config", &configuration], words].concat();
        let mut terminal = Terminal::start(&words, environment, None);
        terminal.end();
        let shown = terminal.shown();
        assert!(!shown.trim().is_empty(), "{words:?}");
        shown.contains('\x1b')
    };
    for words in [&["status"][..], &["bans"], &["top"], &["explain", "203.0.113.9"], &["doctor"], &["--help"]] {
        assert!(coloured(words, &[]), "{words:?}");
        assert!(!coloured(words, &[("NO_COLOR", "1")]), "{words:?}");
        let output = daemon.command(words);
        assert!(!output.stdout.is_empty(), "{words:?}: {output:?}");
        assert!(!output.stdout.contains(&b'\x1b'), "{words:?}");
    }
}

#[test]
fn a_replay_shows_how_far_it_is_on_a_terminal_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, out) = (dir.path().join("access.json"), dir.path().join("out"));
    std::fs::write(&log, history::quiet(clock::epoch_secs(), 60, 2)).expect("written");
    let words = [ANOMALY, "replay", "--json", log.to_str().expect("a path")];
    // The rows elsewhere, the bar on the terminal.
    let mut terminal = Terminal::start(&words, &[], Some(File::create(&out).expect("a file")));
    assert!(terminal.end().success());
    let shown = terminal.shown();
    assert!(shown.contains(" %, ") && shown.contains(" to go"), "{shown:?}");
    let rows = std::fs::read_to_string(&out).expect("rows");
    assert!(rows.ends_with("}\n") && !rows.contains('\x1b') && !rows.contains("to go"), "{rows}");
    // Both on the terminal: the summary stands there, whole, when the bar is gone.
    let mut terminal = Terminal::start(&words, &[], None);
    assert!(terminal.end().success());
    let shown = terminal.shown();
    let last = shown.rsplit(['\r', '\n', 'K']).find(|line| !line.trim().is_empty()).expect("a line");
    assert!(last.starts_with("{\"summary\"") && shown.contains(" to go"), "{shown:?}");

    let output = Command::new(words[0]).args(&words[1..]).output().expect("started");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

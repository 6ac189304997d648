//! The file that Nginx includes, and what Nginx has read of it: when it is written, and when Nginx is told to read it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::monotonic;
use super::nginx::{self, Reload, Told};
use super::pace::Pace;
use crate::enforce::{EnforceError, Fault, Incident};

/// Between two attempts to write or to reload that failed, and between two writes.
const AGAIN: Duration = Duration::from_secs(2);
/// Between two looks whether the old workers have ended.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// After this long, bans that have run out cause a reload by themselves.
const EXPIRED_FOR: Duration = Duration::from_secs(600);
/// A reload that waits longer than this for old workers is a fault. With `worker_shutdown_timeout 10s` none does.
const WAITS_TOO_LONG: Duration = Duration::from_secs(30);
/// Nginx has started new workers a tenth of a second after it was told. Where it has not after this long, it is a fault.
const TOLD_TOO_LONG: Duration = Duration::from_secs(10);
/// An operator who has lifted a ban waits so long for that.
const ACTS_WITHIN: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(20);
/// At the end: how long to wait for old workers, a little longer than `worker_shutdown_timeout`.
const PATIENCE: Duration = Duration::from_secs(12);

/// Its first line.
pub const HEADER: &str = "# Written by anomaly; read by the geo block of deny.conf. Do not edit.\n";

/// How the file differs from what Nginx has read.
#[derive(Debug, Default)]
struct Unread {
    /// Entries that Nginx has not read.
    added: BTreeSet<IpNet>,
    /// What is an entry no longer, and is refused until Nginx reads the list.
    removed: BTreeSet<IpNet>,
    /// The first of them.
    removed_at: Option<Duration>,
    /// An operator waits for one of them.
    asked: bool,
    /// Nobody knows what Nginx has read: this daemon has not told it to.
    unknown: bool,
}

impl Unread {
    fn add(&mut self, prefix: IpNet) {
        // Where Nginx has not read that it had gone, it has nothing to learn.
        if !self.removed.remove(&prefix) {
            self.added.insert(prefix);
        } else if self.removed.is_empty() {
            (self.removed_at, self.asked) = (None, false);
        }
    }

    fn remove(&mut self, now: Duration, prefix: IpNet) {
        if !self.added.remove(&prefix) {
            self.removed.insert(prefix);
            self.removed_at.get_or_insert(now);
        }
    }

    /// Whether there is something that Nginx should read soon.
    fn is_urgent(&self, now: Duration) -> bool {
        let lifted = !self.removed.is_empty();
        let long_ago = self.removed_at.is_some_and(|at| now.saturating_sub(at) >= EXPIRED_FOR);
        self.unknown || !self.added.is_empty() || (lifted && (self.asked || long_ago))
    }
}

/// The file, and what Nginx has read of it.
#[derive(Debug)]
pub struct List {
    path: PathBuf,
    pid_file: Option<PathBuf>,
    /// Who is to be refused.
    pub entries: BTreeSet<IpNet>,
    /// The file is not what it should be.
    dirty: bool,
    unread: Unread,
    pace: Pace,
    /// Neither written nor reloaded before.
    write_at: Duration,
    reload_at: Duration,
    /// A reload has waited for old workers since then; for so many generations of them.
    waits: Option<(Duration, usize)>,
    /// The newest reload, while nobody knows that Nginx has done it: since when, and what it lets in again.
    told: Option<(Duration, Told, BTreeSet<IpNet>)>,
    /// What was taken off the newest file, where others reload Nginx: nobody here sees whether they have.
    unseen: BTreeSet<IpNet>,
    /// Writing or reloading failed, and this has been told.
    failed: bool,
}

impl List {
    /// As it is on the disk.
    pub fn open(path: PathBuf, pid_file: Option<PathBuf>) -> Self {
        let text = fs::read_to_string(&path);
        // Nginx does not start without the file that it includes.
        let dirty = text.is_err();
        let entries: BTreeSet<IpNet> = text.map(|text| read(&text)).unwrap_or_default();
        let unknown = dirty || (pid_file.is_some() && !entries.is_empty());
        Self {
            path,
            pid_file,
            entries,
            dirty,
            unread: Unread { unknown, ..Unread::default() },
            pace: Pace::new(),
            write_at: Duration::ZERO,
            reload_at: Duration::ZERO,
            waits: None,
            told: None,
            unseen: BTreeSet::new(),
            failed: false,
        }
    }

    /// The file is there and cannot be read, so it may refuse clients that are not known here. True of a list that was just
    /// opened.
    pub fn is_unreadable(&self) -> bool {
        self.dirty && self.path.exists()
    }

    /// Refuses a client, or no longer.
    pub fn change(&mut self, now: Duration, prefix: IpNet, on: bool) {
        if on && self.entries.insert(prefix) {
            self.dirty = true;
            self.unread.add(prefix);
        } else if !on && self.entries.remove(&prefix) {
            self.dirty = true;
            self.unread.remove(now, prefix);
        }
    }

    /// An operator waits for this client to be let in.
    pub fn ask_for(&mut self, lifted: &IpNet) {
        self.unread.asked |= self.unread.removed.contains(lifted);
    }

    /// Writes the file and reloads Nginx, each when there is something new and the last time is long ago.
    pub fn flush(&mut self, now: Duration) -> Option<Incident> {
        if let Some((_, told, _)) = &self.told
            && told.is_done()
        {
            self.told = None;
        }
        let reload = self.unread.is_urgent(now) && now >= self.reload_at && self.pace.wait(now).is_zero();
        // Whoever reloads Nginx in our stead does so when the file changes.
        let write = self.dirty && now >= self.write_at && (self.pid_file.is_some() || reload);
        let mut done = Ok(());
        if write {
            self.write_at = now + AGAIN;
            done = self.write();
        }
        if reload && !self.dirty {
            done = self.reload(now);
        }
        if let Err(error) = done {
            (self.write_at, self.reload_at) = (now + AGAIN, now + AGAIN);
            tracing::warn!(%error, "the deny list for Nginx is not up to date");
            return self.fail(format!("banned clients behind a proxy are not refused: {error}"));
        }
        let late = |since: Duration, limit| now.saturating_sub(since) >= limit;
        match (&self.waits, &self.told) {
            (Some((since, old)), _) if late(*since, WAITS_TOO_LONG) => self.fail(format!(
                "{old} old generations of Nginx's workers have not ended for {} s, so it is not reloaded: {} banned clients behind \
                 a proxy are not refused yet; `worker_shutdown_timeout 10s;` in nginx.conf ends them sooner",
                now.saturating_sub(*since).as_secs(),
                self.unread.added.len()
            )),
            (_, Some((since, ..))) if late(*since, TOLD_TOO_LONG) => self.fail(
                "Nginx was told to reload and goes on with its old workers: what it refuses is not what it should; `nginx -t` and \
                 its error log say why"
                    .to_owned(),
            ),
            (None, None) if !self.dirty && !self.unread.is_urgent(now) => {
                std::mem::take(&mut self.failed).then_some(Incident::Recovered { fault: Fault::DenyMap })
            }
            _ => None,
        }
    }

    /// Told once.
    fn fail(&mut self, reason: String) -> Option<Incident> {
        let new = !std::mem::replace(&mut self.failed, true);
        new.then_some(Incident::Degraded { fault: Fault::DenyMap, reason })
    }

    fn write(&mut self) -> Result<(), EnforceError> {
        let hint = "nginx.deny_map; the daemon must be able to write its directory";
        replace(&self.path, &text(&self.entries)).map_err(failed("writing", &self.path, hint))?;
        self.dirty = false;
        Ok(())
    }

    /// Has Nginx read the file, where it need not wait for old workers.
    fn reload(&mut self, now: Duration) -> Result<(), EnforceError> {
        let mut told = None;
        if let Some(pid_file) = &self.pid_file {
            match nginx::reload(pid_file).map_err(failed("reloading Nginx by", pid_file, "nginx.pid_file"))? {
                Reload::Waits(old) => {
                    self.reload_at = now + LOOK_AGAIN;
                    self.waits = Some((self.waits.map_or(now, |(since, _)| since), old));
                    return Ok(());
                }
                Reload::Told(newest) => told = Some(newest),
                Reload::NotRunning => {}
            }
        }
        self.pace.reloaded(now);
        let Unread { removed, .. } = std::mem::take(&mut self.unread);
        match told {
            Some(told) => self.told = Some((now, told, removed)),
            None if self.pid_file.is_none() => self.unseen = removed,
            None => {}
        }
        self.waits = None;
        Ok(())
    }

    /// The end: writes what is not written, and has Nginx read it. To `keep` is to leave the entries.
    ///
    /// # Errors
    /// When that cannot be, or old workers do not end in time; then Nginx refuses whom it has refused before.
    pub fn close(&mut self, now: Duration, keep: bool) -> Result<(), EnforceError> {
        if !keep {
            let all = std::mem::take(&mut self.entries);
            self.dirty |= !all.is_empty();
            self.unread.removed.extend(all);
            self.unread.asked = true;
        }
        let unread = self.unread.is_urgent(now);
        if self.dirty {
            self.write()?;
        }
        if !unread {
            return Ok(());
        }
        self.reload(now)?;
        let end = monotonic() + PATIENCE;
        while self.waits.is_some() && !keep && monotonic() < end {
            std::thread::sleep(STEP);
            self.reload(now)?;
        }
        if keep {
            return Ok(());
        }
        if let Some((_, old)) = self.waits {
            let source = io::Error::other(format!("{old} old generations of workers have not ended"));
            let hint = format!(
                "{} is written; `nginx -s reload` lets it take effect, `worker_shutdown_timeout 10s;` in nginx.conf ends them sooner",
                self.path.display()
            );
            return Err(EnforceError::Kernel { doing: "Nginx is not reloaded".into(), source, hint: Some(hint) });
        }
        if self.is_done_soon() {
            return Ok(());
        }
        Err(EnforceError::Kernel {
            doing: "Nginx was told to reload".into(),
            source: io::Error::other("it goes on with its old workers"),
            hint: Some("`nginx -t` and its error log say why".into()),
        })
    }

    /// Waits a moment for Nginx to have done what it was told.
    fn is_done_soon(&mut self) -> bool {
        for _ in 0..ACTS_WITHIN.as_millis() / STEP.as_millis() {
            match &self.told {
                Some((_, told, _)) if !told.is_done() => std::thread::sleep(STEP),
                _ => break,
            }
        }
        self.told.take_if(|(_, told, _)| told.is_done());
        self.told.is_none()
    }

    /// Why a client that is no entry any more is refused all the same; none where it is not, as far as Nginx shows.
    pub fn still_refused(&mut self, now: Duration, prefix: &IpNet) -> Option<String> {
        const IT: &str = "Nginx goes on refusing it where it comes through a proxy";
        if self.unseen.contains(prefix) && !self.unread.removed.contains(prefix) {
            return Some(format!(
                "{IT} until whatever reloads it has done so (nginx.pid_file is empty); the list for it is written"
            ));
        }
        if !self.unread.removed.contains(prefix) {
            let is_told = self.told.as_ref().is_some_and(|(_, _, removed)| removed.contains(prefix));
            return (is_told && !self.is_done_soon()).then(|| {
                format!("{IT}: it was told to reload and has not done so yet (`nginx -t` says whether it can)")
            });
        }
        let wait = self.pace.wait(now).max(self.write_at.max(self.reload_at).saturating_sub(now)).as_secs() + 1;
        Some(match (&self.waits, &self.pid_file) {
            (Some((_, old)), _) => {
                format!("{IT} until it is reloaded, which waits for {old} old generations of its workers to end")
            }
            (None, _) if self.failed => format!("{IT}: it cannot be reloaded (`anomaly status` says why)"),
            (None, Some(_)) => format!("{IT} until its next reload, in about {wait} s"),
            (None, None) => format!(
                "{IT} until it is reloaded, which is not anomaly's part (nginx.pid_file is empty); its list is written in about \
                 {wait} s"
            ),
        })
    }

    /// For people.
    pub fn snapshot(&self) -> String {
        format!("# {}\n{}", self.path.display(), text(&self.entries))
    }
}

fn failed(doing: &str, path: &Path, hint: &str) -> impl FnOnce(io::Error) -> EnforceError {
    let (doing, hint) = (format!("{doing} {}", path.display()), Some(hint.to_owned()));
    move |source| EnforceError::Kernel { doing, source, hint }
}

fn text(entries: &BTreeSet<IpNet>) -> String {
    entries.iter().fold(String::from(HEADER), |mut text, prefix| {
        let _ = writeln!(text, "{prefix} 1;");
        text
    })
}

fn read(text: &str) -> BTreeSet<IpNet> {
    text.lines().filter_map(|line| line.trim().strip_suffix(" 1;")?.parse().ok()).collect()
}

/// Temporary file, fsync, rename. The temporary file is always one that we have made: whoever else may write to the
/// directory could otherwise have us write through a link of theirs.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = match create(&new) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a daemon that died in between, or planted: the name goes, whatever a link points to stays.
            tracing::warn!("{} was there already and is removed", new.display());
            let about =
                |error: io::Error| io::Error::new(error.kind(), format!("{} is in the way: {error}", new.display()));
            fs::remove_file(&new).map_err(about)?;
            create(&new).map_err(about)?
        }
        other => other?,
    };
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

/// A new file: never one that is there, and never through a link.
fn create(path: &Path) -> io::Result<fs::File> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).custom_flags(no_follow).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    struct Fixture {
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("a directory") }
        }

        fn list(&self) -> Vec<String> {
            let text = fs::read_to_string(self.dir.path().join("deny.list")).expect("the list");
            text.lines().filter(|line| !line.starts_with('#')).map(String::from).collect()
        }
    }

    fn list(fixture: &Fixture) -> List {
        List::open(fixture.dir.path().join("deny.list"), Some(fixture.dir.path().join("nginx.pid")))
    }

    /// The seconds at which Nginx was reloaded, of `range`, while `each` changes the list.
    fn reloads(list: &mut List, range: std::ops::Range<u64>, mut each: impl FnMut(&mut List, u64)) -> Vec<u64> {
        let mut seconds = Vec::new();
        for second in range {
            let now = Duration::from_secs(second);
            each(list, second);
            let before = list.pace.wait(now);
            assert_eq!(list.flush(now), None);
            seconds.extend((list.pace.wait(now) > before).then_some(second));
        }
        seconds
    }

    #[test]
    fn reloads_back_off_while_bans_keep_coming_and_wait_for_nobody_after_quiet() {
        let fixture = Fixture::new();
        let mut list = list(&fixture);
        let ban = |list: &mut List, second: u64| {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(second).expect("small"));
            list.change(Duration::from_secs(second), IpNet::from(std::net::IpAddr::from(address)), true);
        };
        assert_eq!(reloads(&mut list, 0..200, ban), [0, 2, 6, 14, 30, 62, 122, 182]);
        // What came after the last one waits for its turn, and nothing else causes one.
        assert_eq!(reloads(&mut list, 200..1000, |_, _| {}), [242]);
        assert_eq!(reloads(&mut list, 1000..1004, ban), [1000, 1002], "it was quiet for long");
    }

    #[test]
    fn bans_that_ran_out_cause_no_reload_but_one_for_all_after_ten_minutes() {
        let fixture = Fixture::new();
        let mut list = list(&fixture);
        let prefixes: Vec<IpNet> = (1..100).map(|n| net(&format!("203.0.113.{n}/32"))).collect();
        prefixes.iter().for_each(|prefix| list.change(Duration::ZERO, *prefix, true));
        assert_eq!(reloads(&mut list, 0..10, |_, _| {}), [0]);
        let end = |list: &mut List, second: u64| {
            list.change(Duration::from_secs(second), prefixes[usize::try_from(second - 10).expect("small")], false);
        };
        assert_eq!(reloads(&mut list, 10..100, end), [] as [u64; 0]);
        assert!(fixture.list().len() < 12, "the file follows all the same");
        assert_eq!(reloads(&mut list, 100..2000, |_, _| {}), [610]);
        // A ban takes them along.
        list.change(Duration::from_secs(2000), prefixes[95], false);
        list.change(Duration::from_secs(2001), prefixes[0], true);
        assert_eq!(reloads(&mut list, 2001..4000, |_, _| {}), [2001]);
        // One that is banned again before Nginx has read anything is nothing new to it.
        list.change(Duration::from_secs(4000), prefixes[0], false);
        list.change(Duration::from_secs(4001), prefixes[0], true);
        assert_eq!(reloads(&mut list, 4001..6000, |_, _| {}), [] as [u64; 0]);
    }

    #[test]
    fn a_planted_link_is_never_followed() {
        let fixture = Fixture::new();
        let (new, victim) = (fixture.dir.path().join("deny.list.new"), fixture.dir.path().join("victim"));
        fs::write(&victim, "keep me").expect("written");
        for plant in [
            |victim: &Path, new: &Path| std::os::unix::fs::symlink(victim, new),
            |victim: &Path, new: &Path| fs::hard_link(victim, new),
            |_: &Path, new: &Path| fs::write(new, "left by a daemon that died"),
        ] {
            plant(&victim, &new).expect("planted");
            replace(&fixture.dir.path().join("deny.list"), "203.0.113.1/32 1;\n").expect("written all the same");
            assert_eq!(fs::read_to_string(&victim).expect("read"), "keep me");
            assert_eq!(fixture.list(), ["203.0.113.1/32 1;"]);
            assert!(!new.exists() && fs::symlink_metadata(&new).is_err());
        }
        fs::create_dir(&new).expect("made");
        let error = replace(&fixture.dir.path().join("deny.list"), "").expect_err("a directory stays").to_string();
        assert!(error.contains("deny.list.new is in the way"), "{error}");
    }
}

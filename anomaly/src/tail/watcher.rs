//! Reports that something was written, created or renamed beside the logs; [`super::Tail`] finds out what.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::SystemTime;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Wakes the thread that polls the tails. It watches directories, so that it sees files come and go; a poll once
/// a second finds all that it may miss (network file systems, a queue that ran over).
///
/// It wakes the thread once, and then rests until it is armed: the thread polls by itself as long as lines keep coming,
/// which costs less than a wake-up for each. To be woken again, the thread lets the watcher
/// [pass over](Watcher::pass_over) the events that the kernel has kept meanwhile, [arms](Watcher::arm) it, and then polls once
/// more, so that nothing is missed.
#[derive(Debug)]
pub struct Watcher {
    inotify: RecommendedWatcher,
    bell: Arc<Bell>,
    logs: Vec<PathBuf>,
    /// Those that are watched, and which they are.
    directories: BTreeMap<PathBuf, Identity>,
    /// Beginnings of the paths whose events count: the logs, their rotated files, the targets of links.
    wanted: Arc<Mutex<Vec<PathBuf>>>,
}

/// Which directory a path names: another one may come to have its name, and even its number. `None` where the file
/// system cannot tell: then it may be another one each time.
type Identity = Option<(u64, u64, SystemTime)>;

/// inotify could not be had at all; polling every so often still works.
#[derive(Debug, thiserror::Error)]
#[error("the logs cannot be watched: {0}")]
pub struct WatchError(#[from] notify::Error);

impl Watcher {
    /// Watches logs and their directories, armed. `wake` is called on a thread of its own; several logs share it.
    ///
    /// # Errors
    /// [`WatchError`] when inotify refuses (too many instances).
    pub fn new(logs: &[PathBuf], wake: impl Fn() + Send + 'static) -> Result<Self, WatchError> {
        let wanted = Arc::new(Mutex::new(Vec::new()));
        let bell = Arc::new(Bell::default());
        let (filter, rings) = (Arc::clone(&wanted), Arc::clone(&bell));
        let handler = move |event: notify::Result<notify::Event>| {
            let counts = match event {
                Ok(event) => {
                    event.need_rescan() || matters(&event, &filter.lock().unwrap_or_else(PoisonError::into_inner))
                }
                Err(_) => true,
            };
            rings.ring(counts.then_some(&wake));
        };
        let inotify = notify::recommended_watcher(handler)?;
        let mut watcher = Self { inotify, bell, logs: logs.to_vec(), directories: BTreeMap::new(), wanted };
        watcher.refresh();
        Ok(watcher)
    }

    /// Wakes for the next event. Look once more after it.
    pub fn arm(&self) {
        self.bell.set(Rest::Armed);
    }

    /// Passes over what has happened and what happens, until it is armed.
    pub fn pass_over(&self) {
        self.bell.set(Rest::Never);
    }

    /// Rests without a wake-up: a poll of the thread itself has found something.
    pub fn rest(&self) {
        self.bell.set(Rest::Now);
    }

    /// Whether it has woken somebody, and rests.
    pub fn rests(&self) -> bool {
        self.bell.get() == Rest::Now
    }

    /// Watches directories that have come into being since, and follows symbolic links anew. To be
    /// called about once a second and after a rotation; look once more after it. Returns what cannot be watched (its
    /// directory is missing, out of watches): poll those every so often.
    pub fn refresh(&mut self) -> Vec<(PathBuf, String)> {
        let mut failed = Vec::new();
        let mut wanted = Vec::new();
        let mut directories = BTreeMap::new();
        let mut rest = None;
        for log in &self.logs {
            for path in [Some(log.clone()), fs::canonicalize(log).ok()].into_iter().flatten() {
                let (Some(directory), Some(name)) = (directory(&path), path.file_name()) else { continue };
                wanted.push(directory.join(name));
                if directories.contains_key(&directory) {
                    continue;
                }
                let identity = identity(&directory);
                if identity.is_none() || self.directories.get(&directory) != Some(&identity) {
                    // The thread that rests is the one that adds watches.
                    rest.get_or_insert_with(|| self.bell.set(Rest::Never));
                    if let Err(error) = self.inotify.watch(&directory, RecursiveMode::NonRecursive) {
                        failed.push((log.clone(), error.to_string()));
                        directories.insert(directory, None);
                        continue;
                    }
                }
                directories.insert(directory, identity);
            }
        }
        for gone in self.directories.keys().filter(|old| !directories.contains_key(*old)) {
            rest.get_or_insert_with(|| self.bell.set(Rest::Never));
            // That it may be gone already is all the same.
            let _ = self.inotify.unwatch(gone);
        }
        if let Some(rest) = rest {
            self.bell.set(rest);
        }
        self.directories = directories;
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        failed
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.bell.set(Rest::Never);
    }
}

/// When the watching thread rests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rest {
    /// From the next event on, for which it still wakes.
    #[default]
    Armed,
    /// Now.
    Now,
    /// Not at all, and it wakes nobody.
    Never,
}

#[derive(Debug, Default)]
struct Bell {
    rest: Mutex<Rest>,
    changed: Condvar,
}

impl Bell {
    /// Called by the watching thread for each event, with the wake-up for one that matters: runs it if armed, then
    /// waits as long as the watcher rests. Also for what is written to other files beside a busy log.
    fn ring(&self, wake: Option<&impl Fn()>) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wake) = wake.filter(|_| *rest == Rest::Armed) {
            *rest = Rest::Now;
            wake();
        }
        while *rest == Rest::Now {
            rest = self.changed.wait(rest).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn get(&self) -> Rest {
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the watching thread does, and says what it did before.
    fn set(&self, to: Rest) -> Rest {
        let before = std::mem::replace(&mut *self.rest.lock().unwrap_or_else(PoisonError::into_inner), to);
        if before != to {
            self.changed.notify_all();
        }
        before
    }
}

fn directory(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}

fn identity(directory: &Path) -> Identity {
    let metadata = fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.created().ok()?))
}

/// Somebody wrote, renamed, created or removed a wanted file. Opening and reading do not matter: we do that.
fn matters(event: &notify::Event, wanted: &[PathBuf]) -> bool {
    if matches!(event.kind, EventKind::Access(_)) {
        return false;
    }
    event.paths.iter().any(|path| {
        let path = path.as_os_str().as_encoded_bytes();
        wanted.iter().any(|wanted| path.starts_with(wanted.as_os_str().as_encoded_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;

    /// A wake that does not come is an error, one that comes late is not.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn watch(logs: &[PathBuf]) -> (Watcher, Receiver<()>) {
        let (sender, receiver) = channel();
        let watcher = Watcher::new(logs, move || {
            // The test may have ended.
            let _ = sender.send(());
        });
        (watcher.expect("inotify"), receiver)
    }

    /// Armed, with nothing left to wake for.
    fn settle(watcher: &Watcher, woken: &Receiver<()>) {
        watcher.arm();
        while woken.recv_timeout(Duration::from_millis(50)).is_ok() {
            watcher.arm();
        }
    }

    #[test]
    fn wakes_for_writes_creation_and_rename_of_several_logs() {
        let dir = tempfile::tempdir().expect("a directory");
        let logs = [dir.path().join("a.json"), dir.path().join("b.json")];
        let (watcher, woken) = watch(&logs);
        for log in &logs {
            let mut file = fs::File::create(log).expect("created");
            woken.recv_timeout(PATIENCE).expect("woken by creation");
            settle(&watcher, &woken);
            file.write_all(b"line\n").expect("written");
            woken.recv_timeout(PATIENCE).expect("woken by a write");
            settle(&watcher, &woken);
            fs::rename(log, log.with_extension("json.1")).expect("renamed");
            woken.recv_timeout(PATIENCE).expect("woken by a rename");
            settle(&watcher, &woken);
        }
        fs::write(dir.path().join("error.log"), "nothing of ours").expect("written");
        drop(fs::File::open(dir.path().join("a.json.1")).expect("opened"));
        assert!(woken.recv_timeout(Duration::from_millis(100)).is_err(), "woken by what does not matter");
    }

    #[test]
    fn rests_once_it_has_woken_and_passes_over_what_it_is_told_to() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("a.json");
        let (mut watcher, woken) = watch(std::slice::from_ref(&log));
        fs::write(&log, "line\n").expect("written");
        woken.recv_timeout(PATIENCE).expect("woken by creation");
        fs::write(&log, "line\nline\n").expect("written");
        assert!(woken.recv_timeout(Duration::from_millis(100)).is_err(), "woken while it rests");
        assert!(watcher.rests());
        // Adding watches is its thread's work all the same.
        watcher.directories.clear();
        assert_eq!(watcher.refresh(), []);
        assert!(watcher.rests());
        watcher.pass_over();
        fs::write(&log, "line\n").expect("written");
        assert!(woken.recv_timeout(Duration::from_millis(100)).is_err(), "woken for what it passes over");
        watcher.arm();
        fs::write(&log, "line\nline\n").expect("written");
        woken.recv_timeout(PATIENCE).expect("woken by a write");
        assert!(watcher.rests());
        // It can be sent to rest before it has woken anybody, too.
        watcher.pass_over();
        watcher.rest();
        fs::write(&log, "line\n").expect("written");
        assert!(woken.recv_timeout(Duration::from_millis(100)).is_err(), "woken while it rests");
        assert!(watcher.rests());
    }

    #[test]
    fn finds_directories_that_come_later_and_the_targets_of_links() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("later/access.json");
        let (mut watcher, woken) = watch(std::slice::from_ref(&log));
        assert_eq!(watcher.refresh().len(), 1, "its directory is missing");
        fs::create_dir_all(dir.path().join("elsewhere")).expect("created");
        fs::create_dir(dir.path().join("later")).expect("created");
        let target = dir.path().join("elsewhere/real.json");
        fs::write(&target, "").expect("written");
        symlink(&target, &log).expect("linked");
        assert_eq!(watcher.refresh(), []);
        settle(&watcher, &woken);
        fs::write(&target, "line\n").expect("written");
        woken.recv_timeout(PATIENCE).expect("woken by a write to the target");
    }
}

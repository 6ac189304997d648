//! Nginx's master process: told to reload, and its workers counted. What it makes of the list is Nginx's own.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// The old generations of workers that may be alive when the next one is started. Each has as many processes as there are
/// `worker_processes`, and lives until its slowest client has gone or `worker_shutdown_timeout` is over.
const MOST_OLD: usize = 1;

/// Workers whose starts lie less far apart (in the kernel's 1/100 s) were started by one reload.
const ONE_START: u64 = 50;

/// What became of a reload.
#[derive(Debug)]
pub enum Reload {
    /// Nginx reads the list when it starts.
    NotRunning,
    /// Nginx has been told.
    Told(Told),
    /// So many old generations of workers are alive that a new one must wait.
    Waits(usize),
}

/// A reload that Nginx has been told of.
#[derive(Debug)]
pub struct Told {
    master: i32,
    /// The workers that took connections before.
    workers: Vec<i32>,
}

impl Told {
    /// Whether Nginx has done it: none of its workers from before takes connections any more. False while nobody can see.
    pub fn is_done(&self) -> bool {
        let is_old = |worker: &Worker| !worker.is_old && self.workers.contains(&worker.pid);
        workers(Path::new("/proc"), self.master).is_ok_and(|workers| !workers.iter().any(is_old))
    }
}

/// SIGHUP to Nginx's master, and to nobody else: a number in a file may be stale, or of another
/// process namespace. An Nginx that does not run will read the list when it starts.
///
/// # Errors
/// When the file names no Nginx, or Nginx cannot be told.
pub fn reload(pid_file: &Path) -> io::Result<Reload> {
    let text = match fs::read_to_string(pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Reload::NotRunning),
        Err(error) => return Err(error),
    };
    let pid = text.trim().parse::<u32>().ok().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let Some(pid) = pid else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "holds no process id"));
    };
    let master = pid.as_raw_nonzero().get();
    match fs::read_to_string(format!("/proc/{master}/comm")) {
        Ok(comm) if comm.trim() == "nginx" => {
            let (old, active): (Vec<Worker>, Vec<Worker>) =
                workers(Path::new("/proc"), master)?.into_iter().partition(|worker| worker.is_old);
            let old = generations(old.iter().map(|worker| worker.started).collect());
            if old > MOST_OLD {
                return Ok(Reload::Waits(old));
            }
            kill_process(pid, Signal::HUP)?;
            Ok(Reload::Told(Told { master, workers: active.iter().map(|worker| worker.pid).collect() }))
        }
        Ok(comm) => {
            let what = format!("names process {master}, which is {} and not nginx", comm.trim());
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
        Err(_) => Ok(Reload::NotRunning),
    }
}

/// A worker process of Nginx.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worker {
    pid: i32,
    /// In 1/100 s since the boot.
    started: u64,
    /// It takes no more connections and waits for the clients it has.
    is_old: bool,
}

fn workers(proc: &Path, master: i32) -> io::Result<Vec<Worker>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc)?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // It may have ended meanwhile: then it is none.
        let text = fs::read_to_string(entry.path().join("stat")).ok();
        let Some((parent, started)) = text.and_then(|text| stat(&text)) else { continue };
        if parent != master {
            continue;
        }
        let title = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if title.starts_with(b"nginx: worker process") {
            found.push(Worker { pid, started, is_old: is_old(&title) });
        }
    }
    Ok(found)
}

/// The title that Nginx gives such a worker.
fn is_old(title: &[u8]) -> bool {
    title.starts_with(b"nginx: worker process is shutting down")
}

/// Parent and start of a process: `4711 (nginx) S 4700 ...`, the start in 1/100 s since the boot.
fn stat(text: &str) -> Option<(i32, u64)> {
    // The name in the brackets may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    Some((words.nth(1)?.parse().ok()?, words.nth(17)?.parse().ok()?))
}

/// Workers that were started together are one generation.
fn generations(mut started: Vec<u64>) -> usize {
    started.sort_unstable();
    started.chunk_by(|one, next| next - one < ONE_START).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_were_started_together_are_one_generation() {
        for (started, count) in [
            (&[][..], 0),
            (&[700], 1),
            (&[701, 700, 702, 700], 1),
            (&[700, 905, 701, 906, 700], 2),
            (&[0, 49, 98, 148, 250], 3),
        ] {
            assert_eq!(generations(started.to_vec()), count, "{started:?}");
        }
    }

    #[test]
    fn only_the_masters_own_workers_count() {
        let proc = tempfile::tempdir().expect("a directory");
        let old = "nginx: worker process is shutting down";
        for (pid, parent, start, title) in [
            ("10", 7, 700, old),
            ("11", 7, 701, "nginx: worker process"),
            ("12", 7, 702, "nginx: master process is shutting down"),
            ("13", 8, 703, old),
            ("14", 7, 704, old),
        ] {
            let dir = proc.path().join(pid);
            fs::create_dir(&dir).expect("made");
            let stat = format!("{pid} (a) b ({pid})) S {parent} 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 {start} 1 1\n");
            fs::write(dir.join("stat"), stat).expect("written");
            fs::write(dir.join("cmdline"), format!("{title}\0\0")).expect("written");
        }
        fs::create_dir(proc.path().join("15")).expect("one that has just ended");
        fs::write(proc.path().join("stat"), "cpu 1 2 3").expect("written");
        let mut found = workers(proc.path(), 7).expect("read");
        found.sort();
        let worker = |pid, started, is_old| Worker { pid, started, is_old };
        assert_eq!(found, [worker(10, 700, true), worker(11, 701, false), worker(14, 704, true)]);
    }

    #[test]
    fn reads_the_kernels_own_words() {
        let text = fs::read_to_string("/proc/self/stat").expect("read");
        let (parent, start) = stat(&text).expect("understood");
        assert_eq!(parent.unsigned_abs(), std::os::unix::process::parent_id());
        assert!(start > 0);
    }

    #[test]
    fn only_nginx_is_told_to_reload() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid_file = dir.path().join("nginx.pid");
        let outcome = reload(&pid_file).expect("an Nginx that does not run needs no reload");
        assert!(matches!(outcome, Reload::NotRunning), "{outcome:?}");
        // This very process would die of the signal.
        fs::write(&pid_file, format!("{}\n", std::process::id())).expect("written");
        let error = reload(&pid_file).expect_err("this is not nginx").to_string();
        assert!(error.contains("not nginx"), "{error}");
        fs::write(&pid_file, "-1\n").expect("written");
        assert!(reload(&pid_file).is_err(), "every process of ours would be told");
        fs::write(&pid_file, "junk").expect("written");
        assert!(reload(&pid_file).is_err());
    }
}

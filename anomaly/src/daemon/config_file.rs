//! Whether the configuration file would be taken, also while nobody asks for a reload.
//!
//! A daemon goes on with the configuration that it has; with a file that is refused the next start fails, at a reboot at the
//! latest. So that is a fault from the moment it is seen until the file is mended. Nothing here puts a file in force.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError, Loaded, in_one_line};

/// What a changed file is known by.
type Stamp = Option<(i64, i64, u64, u64)>;

/// The files that are read at a reload, and what is known of them.
#[derive(Debug)]
pub struct ConfigFile {
    paths: Vec<PathBuf>,
    stamps: Vec<Stamp>,
    /// Why the file is refused, as it was reported.
    refused: Option<String>,
    /// It was refused at the last look for the first time: an editor may be writing it.
    suspected: bool,
    /// The file is good, but could not be put in force: only a reload ends that.
    not_taken: bool,
}

impl ConfigFile {
    /// The file that was read at the start, if any, and the allow-list's.
    pub fn new(path: Option<&Path>, config: &Config) -> Self {
        let paths: Vec<PathBuf> =
            path.into_iter().map(Path::to_owned).chain(config.allowlist_file.iter().cloned()).collect();
        let stamps = stamps(&paths);
        Self { paths, stamps, refused: None, suspected: false, not_taken: false }
    }

    /// Looks whether the files have changed, and if so whether `read` takes them. Gives what is new: why they are refused, or
    /// none when they are good again. To be called every few seconds.
    pub fn look(&mut self, read: impl FnOnce() -> Result<Loaded, ConfigError>) -> Option<Option<String>> {
        let stamps = stamps(&self.paths);
        let is_quiet = stamps == self.stamps && !self.suspected && self.refused.is_none();
        if is_quiet || self.not_taken {
            return None;
        }
        self.stamps = stamps;
        match read() {
            Ok(_) => {
                self.suspected = false;
                self.refused.take().map(|_| None)
            }
            Err(_) if self.refused.is_none() && !self.suspected => {
                self.suspected = true;
                None
            }
            Err(error) => {
                self.suspected = false;
                let reason = Some(reason(&error));
                if self.refused == reason {
                    return None;
                }
                self.refused.clone_from(&reason);
                Some(reason)
            }
        }
    }

    /// From now on these are the files: the configuration that was read last may name another list.
    pub fn follow(&mut self, path: Option<PathBuf>, allowlist_file: Option<PathBuf>) {
        self.paths = path.into_iter().chain(allowlist_file).collect();
    }

    /// A reload has read the files: they are refused, or good; and whether they are in force.
    pub fn reloaded(&mut self, refused: Option<&ConfigError>, taken: bool) {
        self.stamps = stamps(&self.paths);
        self.refused = refused.map(reason);
        self.suspected = false;
        self.not_taken = refused.is_none() && !taken;
    }
}

/// The fault in words.
pub fn reason(error: &ConfigError) -> String {
    format!(
        "{}; the daemon goes on with the configuration it has, but would not start again with this one",
        in_one_line(error)
    )
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino()))
    };
    paths.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    struct Fixture {
        dir: tempfile::TempDir,
        watched: ConfigFile,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("a.toml");
            std::fs::write(&file, "allowlist_file = \"\"\n").unwrap();
            let config = load(Some(&file), []).unwrap().config;
            Self { watched: ConfigFile::new(Some(&file), &config), dir }
        }

        fn write(&self, text: &str) {
            std::fs::write(self.dir.path().join("a.toml"), format!("allowlist_file = \"\"\n{text}")).unwrap();
        }

        fn read(&self) -> impl Fn() -> Result<Loaded, ConfigError> + use<> {
            let file = self.dir.path().join("a.toml");
            move || load(Some(&file), [])
        }

        fn look(&mut self) -> Option<Option<String>> {
            let read = self.read();
            self.watched.look(read)
        }
    }

    #[test]
    fn a_file_that_stays_refused_is_reported_once_and_until_it_is_mended() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.watched.look(|| panic!("nothing has changed")), None);
        fixture.write("[bans]\nduration = 3\n");
        assert_eq!(fixture.look(), None, "it may be half written");
        let refused = fixture.look().flatten().expect("refused");
        assert!(refused.contains("duration") && refused.contains("would not start"), "{refused}");
        assert_eq!(fixture.look(), None, "reported");
        fixture.write("[bans]\ndurations = []\n");
        assert!(fixture.look().flatten().is_some_and(|reason| reason.contains("at least one step")));
        fixture.write("");
        assert_eq!(fixture.look(), Some(None));
        assert_eq!(fixture.watched.look(|| panic!("nothing has changed")), None);
    }

    #[test]
    fn a_file_that_was_half_written_is_not_reported() {
        let mut fixture = Fixture::new();
        fixture.write("[bans\n");
        assert_eq!(fixture.look(), None);
        fixture.write("[bans]\n");
        assert_eq!((fixture.look(), fixture.look()), (None, None));
    }

    #[test]
    fn what_a_reload_has_refused_ends_with_the_mended_file_and_what_it_could_not_take_with_the_next_reload() {
        let mut fixture = Fixture::new();
        fixture.write("[bans\n");
        let error = fixture.read()().unwrap_err();
        fixture.watched.reloaded(Some(&error), false);
        assert_eq!(fixture.look(), None, "the reload has reported it");
        fixture.write("");
        assert_eq!(fixture.look(), Some(None));
        fixture.watched.reloaded(None, false);
        fixture.write("[bans]\n");
        assert_eq!(fixture.look(), None, "good, and still not in force");
        fixture.watched.reloaded(None, true);
        assert_eq!(fixture.look(), None);
    }
}

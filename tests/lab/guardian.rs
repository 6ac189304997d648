//! The lab's directory and the process that cleans up after us when we cannot.
//!
//! A shell reads our end of a pipe. When we die in whatever way (panic in a test that aborts, Ctrl-C,
//! `kill -9`), the pipe closes; then it kills the process groups it was told of and removes the
//! directory. Network and mount namespaces, and with them rules, links and pins, go with their last
//! process. So no signal handler is needed, and none could do as much.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

const SCRIPT: &str = r#"
trap '' INT TERM HUP
groups=' '
while read -r op id; do
    case $op in
        add) groups="$groups$id " ;;
        del) groups="${groups%% $id *} ${groups#* $id }" ;;
    esac
done
for id in $groups; do kill -KILL "-$id" 2>/dev/null; done
rm -rf -- "$1"
[ -z "$2" ] || echo "$2" >&2
"#;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory of ours and who removes it.
pub struct Guardian {
    dir: PathBuf,
    shell: Mutex<Child>,
    orders: Mutex<ChildStdin>,
}

impl Guardian {
    /// Makes the directory and starts the shell; `farewell` is what it says when it had to clean up.
    ///
    /// # Errors
    /// When either cannot be had.
    pub fn start(farewell: &str) -> Result<Self> {
        let name = format!("anomaly-lab-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).with_context(|| format!("{} could not be made", dir.display()))?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "guardian"])
            .arg(&dir)
            .arg(farewell)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A terminal's Ctrl-C must not reach it.
            .process_group(0)
            .spawn()
            .context("sh could not be started")?;
        let orders = shell.stdin.take().context("sh has no standard input")?;
        Ok(Self { dir, shell: Mutex::new(shell), orders: Mutex::new(orders) })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kill this process group, should we die.
    pub fn watch(&self, group: u32) {
        self.order("add", group);
    }

    /// It is gone.
    pub fn forget(&self, group: u32) {
        self.order("del", group);
    }

    fn order(&self, word: &str, group: u32) {
        // A guardian that is gone cannot be told; the lab still works, only less safely.
        if let Ok(mut orders) = self.orders.lock() {
            let _ = writeln!(orders, "{word} {group}");
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if let Ok(shell) = self.shell.get_mut() {
            let _ = shell.kill();
            let _ = shell.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

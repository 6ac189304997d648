//! Debian's Docker Engine and docker-compose inside the lab's server, started by hand.
//!
//! The engine lives in the server's network and mount namespace and in a process namespace of its own, with its own
//! `/run`, bpffs, data and control group: nothing of it can meet the machine's interfaces, rules or engine, and all of it,
//! containers included, ends with one process. Deliberately not a way to run arbitrary containers: it knows `compose/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::process::Process;
use crate::lab::{Lab, clock, run};

/// Name of the compose project, and so of its containers, networks and volumes.
const PROJECT: &str = "stack";

/// What the engine's mount namespace needs of its own: `/run` for its sockets, the `/sys` of its network (with the
/// control groups that hang there), and bpffs where a host has it.
const MOUNTS: &str = r#"
set -e
mount -t tmpfs -o mode=0755 anomaly-run /run
mkdir "$1/cgroup"
mount --rbind /sys/fs/cgroup "$1/cgroup"
mount -t sysfs anomaly-sys /sys
mount --rbind "$1/cgroup" /sys/fs/cgroup
mount -t bpf -o mode=0700 anomaly-bpf /sys/fs/bpf
"#;

/// A running engine.
pub struct Engine<'lab> {
    lab: &'lab Lab,
    daemon: Process,
    cgroup: String,
}

impl<'lab> Engine<'lab> {
    /// Starts it, and waits until it answers.
    ///
    /// # Errors
    /// With what it printed, when it does not.
    pub fn start(lab: &'lab Lab) -> Result<Self> {
        run(lab.server.command("sh").args(["-c", MOUNTS, "mounts"]).arg(lab.dir()))
            .context("the engine's mounts could not be made")?;
        let dir = lab.dir();
        std::fs::create_dir_all(dir.join("docker"))?;
        std::fs::write(dir.join("docker/daemon.json"), "{}")?;
        let cgroup = format!("anomaly-lab-{}", lab.server.pid());
        let mut command = lab.server.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "dockerd", "--cgroup-parent", &cgroup]);
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--exec-root", "/run/docker"]);
        command.arg("--config-file").arg(dir.join("docker/daemon.json"));
        command.arg("--data-root").arg(dir.join("docker/data"));
        command.arg("--host").arg(socket(lab));
        let daemon = lab.start("dockerd", command, &dir.join("dockerd.out"))?;
        let mut engine = Self { lab, daemon, cgroup };
        let answered = clock::wait_until("dockerd to answer", Duration::from_secs(60), || {
            engine.daemon.ended().is_some() || engine.docker(&["version"]).is_ok()
        });
        answered.and_then(|()| engine.docker(&["version"])).with_context(|| engine.daemon.output())?;
        Ok(engine)
    }

    /// `docker ...`: its standard output.
    ///
    /// # Errors
    /// With what it printed.
    pub fn docker(&self, words: &[&str]) -> Result<String> {
        run(self.client("docker").args(words))
    }

    /// Builds one stage of the Dockerfile in `context` as `image`.
    ///
    /// # Errors
    /// With what the engine printed.
    pub fn build(&self, context: &Path, stage: &str, base: &str) -> Result<String> {
        let image = format!("anomaly-test/{stage}:1");
        let mut command = self.client("docker");
        command.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--network", "none", "--target", stage]);
        command.args(["--build-arg", &format!("BASE={base}"), "--tag", &image]).arg(context);
        run(&mut command)?;
        Ok(image)
    }

    /// Builds `compose/Dockerfile` from the sources as `image`, with these build arguments.
    ///
    /// # Errors
    /// With what the engine printed.
    pub fn image(&self, arguments: &[String], image: &str) -> Result<()> {
        let mut command = self.client("docker");
        command.env("DOCKER_BUILDKIT", "0").args(["build", "--network", "none", "--tag", image, "--file"]);
        command.arg(repository().join("compose/Dockerfile"));
        for argument in arguments {
            command.args(["--build-arg", argument]);
        }
        run(command.arg(repository())).map(drop)
    }

    /// `docker-compose ...` on `compose/compose.yaml`, for an engine that knows no CAP_BPF.
    ///
    /// # Errors
    /// With what it printed.
    pub fn compose(&self, settings: &[(&str, String)], words: &[&str]) -> Result<String> {
        let directory = repository().join("compose");
        let mut command = self.client("docker-compose");
        command.arg("--file").arg(directory.join("compose.yaml"));
        command.arg("--env-file").arg(directory.join("old-engine.env"));
        command.args(["--project-name", PROJECT]).args(words);
        command.envs(settings.iter().map(|(key, value)| (key, value)));
        run(&mut command)
    }

    /// The container of a service.
    pub fn container(service: &str) -> String {
        format!("{PROJECT}_{service}_1")
    }

    /// `anomaly ...` in its container.
    ///
    /// # Errors
    /// With what it printed.
    pub fn anomaly(&self, words: &[&str]) -> Result<String> {
        self.docker(&[&["exec", &Self::container("anomaly"), "anomaly"], words].concat())
    }

    /// The JSON that `anomaly ... --json` prints in its container.
    ///
    /// # Errors
    /// As [`Engine::anomaly`].
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.anomaly(&[words, &["--json"]].concat())?)?)
    }

    /// The rules of one chain, as the host's `iptables` lists them.
    ///
    /// # Errors
    /// When there is no such chain.
    pub fn rules(&self, chain: &str) -> Result<String> {
        run(self.lab.server.command("iptables").args(["-w", "-S", chain]))
    }

    /// Logs of all containers and of the engine, for whoever reads a failure.
    pub fn told(&self, settings: &[(&str, String)]) -> String {
        let logs = self.compose(settings, &["logs", "--no-color", "--tail", "40"]);
        format!("containers: {}\ndockerd: {}", logs.unwrap_or_else(|e| format!("{e:#}")), self.daemon.output())
    }

    /// Fails when a container, network or volume of the project is left.
    ///
    /// # Errors
    /// Names what is left.
    pub fn holds_nothing(&self) -> Result<()> {
        for list in [&["ps", "--all", "--quiet"][..], &["volume", "ls", "--quiet"]] {
            let left = self.docker(list)?;
            ensure!(left.is_empty(), "docker {list:?} after `down`: {left}");
        }
        let networks = self.docker(&["network", "ls", "--format", "{{.Name}}"])?;
        ensure!(!networks.contains(PROJECT), "networks after `down`: {networks}");
        Ok(())
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"ANOMALY_")) {
            command.env_remove(key);
        }
        command.env("DOCKER_HOST", socket(self.lab)).env("DOCKER_CONFIG", self.lab.dir().join("docker"));
        command
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        self.daemon.kill();
        // Control groups are the one thing that outlives a namespace. They can be removed when the last process in
        // them has ended, which the kernel is busy with now.
        let _ = clock::wait_until("the engine's control groups to empty", Duration::from_secs(10), || {
            groups(&self.cgroup).iter().all(|group| remove_groups(group))
        });
    }
}

/// The engine's control group in each hierarchy.
fn groups(name: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies.chain([top.to_owned()]).map(|path| path.join(name)).filter(|path| path.is_dir()).collect()
}

/// Removes a control group with those in it; true when it is gone.
fn remove_groups(group: &Path) -> bool {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    std::fs::remove_dir(group).is_ok()
}

fn socket(lab: &Lab) -> String {
    format!("unix://{}", lab.dir().join("docker.sock").display())
}

/// The top of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

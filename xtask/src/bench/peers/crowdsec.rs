//! CrowdSec as Debian packs it, unpacked and with a home of its own: the files of its hub that come in the package, none
//! from the network, and no account with its makers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::lab::run;

/// What a home is made of.
pub(super) struct Setup<'a> {
    /// Parsers of the hub: stage and name.
    pub parsers: &'a [(&'a str, &'a str)],
    /// A parser of our own, in the stage s01-parse.
    pub own_parser: Option<&'a str>,
    /// Collections of the hub whose scenarios are enabled; the collections within them are not.
    pub collections: &'a [&'a str],
    /// From which level on it logs.
    pub log_level: &'a str,
    /// What it reads, as YAML.
    pub acquisition: &'a str,
    /// Its local API's, on loopback.
    pub port: u16,
}

/// A configured CrowdSec.
pub(super) struct Home {
    root: PathBuf,
    dir: PathBuf,
    /// How many scenarios are enabled.
    pub scenarios: usize,
}

impl Home {
    /// Makes the directory anew and registers with the local API in it. `root` is where the package is unpacked.
    pub(super) fn make(root: PathBuf, dir: PathBuf, setup: &Setup<'_>) -> Result<Self> {
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        let (etc, data, hub) = (dir.join("etc"), dir.join("data"), root.join("usr/share/crowdsec/hub"));
        for stage in ["parsers/s00-raw", "parsers/s01-parse", "parsers/s02-enrich", "scenarios", "notifications"] {
            std::fs::create_dir_all(etc.join(stage))?;
        }
        std::fs::create_dir_all(dir.join("plugins"))?;
        let copy_all = |from: &Path, to: &Path| run(Command::new("cp").arg("-rT").arg(from).arg(to)).map(drop);
        copy_all(&root.join("usr/share/crowdsec/data"), &data)?;
        copy_all(&root.join("etc/crowdsec/patterns"), &etc.join("patterns"))?;
        // The scenario asks for it by another name than the package has.
        std::fs::copy(data.join("path_traversal.txt"), data.join("http_path_traversal.txt"))?;
        for name in ["profiles.yaml", "simulation.yaml"] {
            std::fs::copy(root.join("etc/crowdsec").join(name), etc.join(name))?;
        }
        for (stage, name) in setup.parsers {
            let (stage, name) = (Path::new("parsers").join(stage), format!("{name}.yaml"));
            std::fs::copy(hub.join(&stage).join("crowdsecurity").join(&name), etc.join(&stage).join(&name))?;
        }
        if let Some(parser) = setup.own_parser {
            std::fs::write(etc.join("parsers/s01-parse/own.yaml"), parser)?;
        }
        let mut scenarios = 0;
        for collection in setup.collections {
            let collection = hub.join("collections/crowdsecurity").join(format!("{collection}.yaml"));
            let text = std::fs::read_to_string(collection)?;
            for word in text.lines().filter_map(|line| line.trim().strip_prefix("- ")) {
                let file = hub.join("scenarios").join(format!("{word}.yaml"));
                if file.exists() {
                    std::fs::copy(&file, etc.join("scenarios").join(file.file_name().context("a file has a name")?))?;
                    scenarios += 1;
                }
            }
        }
        ensure!(scenarios >= 10, "the package has {scenarios} of the HTTP scenarios only");
        std::fs::write(etc.join("acquis.yaml"), setup.acquisition)?;
        std::fs::write(etc.join("credentials.yaml"), "")?;
        // A hub of its own with the index alone: what lies below it is taken for downloaded.
        std::fs::create_dir_all(dir.join("hub"))?;
        copy_all(&hub.join(".index.json"), &dir.join("hub/.index.json"))?;
        let home = Self { root, dir, scenarios };
        std::fs::write(home.config(), configuration(&home.dir, setup))?;
        let mut register = home.cscli(&["machines", "add", "bench", "--auto", "--force", "--file"]);
        let url = format!("http://127.0.0.1:{}", setup.port);
        run(register.arg(home.dir.join("etc/credentials.yaml")).args(["--url", &url]))?;
        Ok(home)
    }

    /// One of the package's programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.root.join("usr/bin").join(name)
    }

    /// Its configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    /// Its command line, which works on its database: also without a running CrowdSec.
    pub(super) fn cscli(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.program("cscli"));
        command.arg("-c").arg(self.config()).args(words);
        command
    }
}

fn configuration(dir: &Path, setup: &Setup<'_>) -> String {
    let (dir, Setup { port, log_level, .. }) = (dir.display(), setup);
    format!(
        "\
common: {{daemonize: false, log_media: stdout, log_level: {log_level}, working_dir: {dir}}}
config_paths:
  {{config_dir: {dir}/etc/, data_dir: {dir}/data/, simulation_path: {dir}/etc/simulation.yaml, hub_dir: {dir}/hub/,
   index_path: {dir}/hub/.index.json, notification_dir: {dir}/etc/notifications/, plugin_dir: {dir}/plugins/}}
crowdsec_service: {{acquisition_path: {dir}/etc/acquis.yaml, parser_routines: 1}}
db_config: {{log_level: {log_level}, type: sqlite, db_path: {dir}/data/crowdsec.db}}
plugin_config: {{user: nobody, group: nogroup}}
api:
  client: {{credentials_path: {dir}/etc/credentials.yaml}}
  server: {{log_level: {log_level}, listen_uri: '127.0.0.1:{port}', profiles_path: {dir}/etc/profiles.yaml}}
prometheus: {{enabled: false}}
"
    )
}

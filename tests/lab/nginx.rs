//! Debian's Nginx in the lab's server namespace, with the log format of `nginx/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::process::Process;
use super::{Lab, clock, run};

/// A running Nginx on port 80.
pub struct Nginx {
    process: Process,
}

impl Lab {
    /// The access log that Nginx writes and the daemon reads.
    pub fn log(&self) -> PathBuf {
        self.dir().join("log/access.json")
    }

    /// The list of denied clients, where Nginx is [`Nginx::behind`] a proxy.
    pub fn deny_list(&self) -> PathBuf {
        self.dir().join("denied.list")
    }

    /// Where Nginx writes its process number.
    pub fn nginx_pid(&self) -> PathBuf {
        self.dir().join("nginx/nginx.pid")
    }

    /// Puts lines into the log before anybody runs.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_log(&self, text: &str) -> Result<()> {
        let log = self.log();
        std::fs::create_dir_all(log.parent().unwrap_or(self.dir()))?;
        std::fs::write(&log, text).with_context(|| log.display().to_string())
    }
}

impl Nginx {
    /// Starts it, and waits until it answers the honest client. Its log goes to [`Lab::log`].
    ///
    /// # Errors
    /// With its error log, when it does not.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::configured(lab, "", "")
    }

    /// As [`Nginx::start`], behind a proxy that may name its clients, with the deny list at [`Lab::deny_list`].
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub fn behind(lab: &Lab, proxy: &str) -> Result<Self> {
        let list = lab.deny_list();
        std::fs::write(&list, "")?;
        let deny = repository().join("nginx/deny.conf");
        let deny = std::fs::read_to_string(deny)?.replace("/var/lib/nginx-deny/anomaly.list", &list.to_string_lossy());
        std::fs::write(lab.dir().join("deny.conf"), deny)?;
        let (realip, dir) = (repository().join("nginx/realip.conf"), lab.dir().display());
        let http = format!("set_real_ip_from {proxy}; include {}; include {dir}/deny.conf;", realip.display());
        Self::configured(lab, &http, "if ($anomaly_denied) { return 403; }")
    }

    /// As [`Nginx::start`], with more directives in the http and the server block. Its error log is `nginx/error.log` in
    /// the lab's directory.
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub fn configured(lab: &Lab, http: &str, server: &str) -> Result<Self> {
        let dir = lab.dir().join("nginx");
        let site = dir.join("site");
        std::fs::create_dir_all(&site)?;
        std::fs::create_dir_all(lab.dir().join("log"))?;
        std::fs::write(site.join("index.html"), "<!doctype html><title>lab</title><p>Hello.\n")?;
        let file = dir.join("nginx.conf");
        std::fs::write(&file, configuration(lab, &dir, http, server))?;
        let nginx = || {
            let mut command = lab.server.command("nginx");
            command.arg("-p").arg(&dir).arg("-c").arg(&file).arg("-e").arg(dir.join("error.log"));
            command
        };
        run(nginx().args(["-t", "-q"])).context("the configuration of nginx/ does not pass nginx -t")?;
        let mut process = lab.start("nginx", nginx(), &dir.join("nginx.out"))?;
        let pid = lab.nginx_pid();
        clock::wait_until("nginx to listen", Duration::from_secs(20), || {
            process.ended().is_some() || pid.metadata().is_ok_and(|m| m.len() > 0)
        })?;
        if process.ended().is_some() {
            bail!("nginx ended: {}", std::fs::read_to_string(dir.join("error.log")).unwrap_or_default());
        }
        Ok(Self { process })
    }

    /// What logrotate's `postrotate` does: open the log files anew.
    pub fn reopen(&self) {
        self.process.signal(Signal::USR1);
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The format is the product's own file; the rest is the smallest server that can use it, and `http` and `server` besides.
fn configuration(lab: &Lab, dir: &Path, http: &str, server: &str) -> String {
    let (format, log) = (repository().join("nginx/log_format.conf"), lab.log());
    let (format, log, dir) = (format.display(), log.display(), dir.display());
    format!(
        r#"
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    include {format};
    {http}
    server {{
        listen 80;
        listen [::]:80;
        root {dir}/site;
        access_log {log} anomaly_json;
        {server}
    }}
}}
"#
    )
}

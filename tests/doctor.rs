//! `anomaly doctor` as people run it, in set-ups that are broken in one way each.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::lab;
use crate::lab::guardian::Guardian;
use crate::lab::space::Space;

const LINE: &str = r#"{"source_ip":"198.51.100.7","timestamp":"2026-01-01T00:00:00Z","method":"GET","path":"/","status":200,"response_size":5,"peer":"198.51.100.7"}"#;

struct Patient {
    guardian: Arc<Guardian>,
    space: Space,
}

impl Patient {
    /// A host with one interface that carries a default route, and a readable log.
    fn new() -> Self {
        let guardian = Arc::new(Guardian::start("").unwrap());
        let space = Space::new("patient", &guardian, false).unwrap();
        for words in [
            "link set lo up",
            "link add eth0 type veth peer name eth1",
            "addr add 192.0.2.1/24 dev eth0",
            "link set eth0 up",
            "route add default via 192.0.2.2 dev eth0",
        ] {
            space.ip(words).unwrap();
        }
        std::fs::write(guardian.dir().join("access.json"), format!("{LINE}\n")).unwrap();
        Self { guardian, space }
    }

    /// Exit status and rows of `doctor --json`.
    fn examine(&self, config: &str, path: Option<&Path>) -> (Option<i32>, Vec<Value>) {
        let dir = self.guardian.dir().display().to_string();
        let file = self.guardian.dir().join("anomaly.toml");
        let common = format!(
            "allowlist = [\"192.0.2.9\"]\nstore.path = \"{dir}/state.db\"\naudit.path = \"{dir}/audit\"\n\
             dashboard.socket = \"{dir}/none.sock\"\nenforcer.pin_dir = \"{dir}/pins\"\n"
        );
        let log =
            if config.contains("log.paths") { String::new() } else { format!("log.paths = [\"{dir}/access.json\"]\n") };
        std::fs::write(&file, common + &log + &config.replace("DIR", &dir)).unwrap();
        let mut command = self.space.command(env!("CARGO_BIN_EXE_anomaly"));
        command.args(["doctor", "--json", "-c"]).arg(&file);
        if let Some(path) = path {
            // nsenter must be found; iptables is in /usr/sbin.
            command.env("PATH", format!("{}:/usr/bin:/bin", path.display()));
        }
        let output = command.output().unwrap();
        let rows = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), rows)
    }
}

fn row<'a>(rows: &'a [Value], check: &str, status: &str, words: &str) -> &'a Value {
    let found = rows.iter().find(|row| {
        row["check"] == check && row["status"] == status && row["detail"].as_str().unwrap().contains(words)
    });
    found.unwrap_or_else(|| panic!("no {status} {check} with {words:?} in {rows:#?}"))
}

#[test]
fn each_broken_set_up_is_named_with_the_next_step() {
    if !lab::ready("each_broken_set_up_is_named_with_the_next_step") {
        return;
    }
    let patient = Patient::new();
    let (code, rows) = patient.examine("", None);
    assert_eq!(code, Some(0), "{rows:#?}");
    row(&rows, "interface", "ok", "eth0 (veth, MTU 1500): native XDP expected");
    row(&rows, "iptables", "ok", "work");
    row(&rows, "format", "ok", "complete");
    assert!(rows.iter().all(|row| row["status"] == "ok" || row["next"].is_string()));

    type Broken = (&'static str, i32, &'static str, &'static str, &'static str);
    let broken: [Broken; 7] = [
        ("enforcer.interfaces = [\"eth7\"]", 1, "interface", "fail", "no interface eth7"),
        ("enforcer.xdp_mode = \"generic\"", 0, "interface", "warn", "generic XDP, as configured"),
        ("enforcer.backend = \"dry-run\"", 0, "enforcer", "warn", "nothing is dropped"),
        ("log.paths = [\"DIR/nothing.json\"]", 1, "log", "fail", "is not there"),
        ("log.paths = [\"DIR\"]", 1, "log", "fail", "directory"),
        ("trusted_proxies = [\"198.51.100.0/24\"]", 1, "clients", "fail", "a trusted proxy"),
        ("notify.webhook.url = \"http://127.0.0.1:9/hook\"", 1, "notify", "fail", "127.0.0.1:9"),
    ];
    for (config, expected, check, status, words) in broken {
        let (code, rows) = patient.examine(config, None);
        assert!(row(&rows, check, status, words)["next"].is_string());
        assert_eq!(code, Some(expected), "{config}: {rows:#?}");
    }

    // Somebody else has the dashboard's port.
    let listener = patient.space.within(|| std::net::TcpListener::bind("127.0.0.1:8081").unwrap()).unwrap();
    let (code, rows) = patient.examine("", None);
    assert!(row(&rows, "dashboard", "fail", "another program")["next"].as_str().unwrap().contains("ss -ltnp"));
    assert_eq!(code, Some(1));
    drop(listener);
    row(&patient.examine("", None).1, "dashboard", "ok", "the port is free");

    // A CDN hides the clients; it is named, with what to do.
    let log = patient.guardian.dir().join("access.json");
    let healthy = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, LINE.replace("198.51.100.7", "172.71.3.4") + "\n").unwrap();
    let (code, rows) = patient.examine("", None);
    let next = row(&rows, "clients", "fail", "Cloudflare")["next"].as_str().unwrap();
    assert!(
        code == Some(1) && next.contains("anomaly config realip cloudflare") && next.contains("deny_map"),
        "{next}"
    );
    std::fs::write(&log, healthy).unwrap();

    // A list that Nginx does not read, and one for which it is reloaded without an end of the old workers.
    let dir = patient.guardian.dir();
    let shim = dir.join("nginx-here");
    std::fs::create_dir(&shim).unwrap();
    let conf = dir.join("nginx.conf");
    let script =
        format!("#!/bin/sh\nexec /usr/sbin/nginx -c {} -e {}/error.log \"$@\"\n", conf.display(), dir.display());
    std::fs::write(shim.join("nginx"), script).unwrap();
    std::fs::set_permissions(shim.join("nginx"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(dir.join("deny.list"), "203.0.113.1/32 1;\n").unwrap();
    let include = format!("geo $denied {{ default 0; include {}/deny.list; }}", dir.display());
    for (main, http, status, words) in [
        ("", "", "fail", "does not include"),
        ("", &*include, "warn", "worker_shutdown_timeout is not set"),
        ("worker_shutdown_timeout 1h;", &*include, "warn", "worker_shutdown_timeout is 1h"),
        ("worker_shutdown_timeout 10s;", &*include, "ok", "old workers end in 10s"),
        ("worker_shutdown_timeout;", &*include, "warn", "nginx -T"),
    ] {
        let place = dir.display();
        std::fs::write(&conf, format!("{main} pid {place}/nginx.pid; events {{}} http {{ {http} }}\n")).unwrap();
        let (_, rows) =
            patient.examine("nginx.deny_map = \"DIR/deny.list\"\nnginx.pid_file = \"DIR/nginx.pid\"", Some(&shim));
        row(&rows, "nginx", status, words);
    }

    // Jumbo frames; no default route; no JSON; no iptables.
    patient.space.ip("link set eth0 mtu 9000").unwrap();
    row(&patient.examine("", None).1, "interface", "warn", "jumbo frames");
    patient.space.ip("route del default").unwrap();
    row(&patient.examine("", None).1, "interface", "warn", "none carries a default route");
    std::fs::write(log, "198.51.100.7 - - [01/Jan/2026:00:00:00 +0000] \"GET / HTTP/1.1\" 200 5\n").unwrap();
    row(&patient.examine("", None).1, "format", "fail", "it is not JSON");
    let (code, rows) = patient.examine("enforcer.backend = \"iptables\"", Some(Path::new("/nonexistent")));
    row(&rows, "iptables", "fail", "iptables is ");
    assert_eq!(code, Some(1));
}

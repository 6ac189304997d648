//! The deny list with real Nginx: a banned client behind a trusted proxy gets 403, everybody else
//! through the same proxy goes on, and a forged header bans nobody else.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anomaly::config;
use anomaly::enforce::dry_run::DryRun;
use anomaly::enforce::{Drop as Ban, Enforcer, deny_map};
use ipnet::IpNet;

use crate::lab::guardian::Guardian;
use crate::lab::process::Process;
use crate::lab::space::Space;
use crate::lab::{self, clock, run};

const VICTIM: &str = "203.0.113.10";
const NEIGHBOUR: &str = "203.0.113.11";
const V6: &str = "2001:db8::66";

/// The files of `nginx/` with the list at `list`, one trusted proxy (127.0.0.1), and a site.
fn configuration(dir: &Path, list: &Path) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let deny = std::fs::read_to_string(repository.join("nginx/deny.conf")).unwrap();
    let shipped = "/var/lib/nginx-deny/anomaly.list";
    assert_eq!(deny.matches(&format!("include {shipped};")).count(), 1);
    std::fs::write(dir.join("deny.conf"), deny.replace(shipped, list.to_str().unwrap())).unwrap();
    let (realip, dir) = (repository.join("nginx/realip.conf"), dir.display());
    format!(
        "daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
         events {{}}
         http {{
             access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
             fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
             set_real_ip_from 127.0.0.1;
             include {}; include {dir}/deny.conf;
             server {{ listen 80; if ($anomaly_denied) {{ return 403; }} location / {{ return 200 hello; }} }}
         }}",
        realip.display()
    )
}

/// The status that a client gets through the proxy, which says who it is.
fn status(space: &Space, from_proxy: bool, client: &str) -> Option<u16> {
    let ask = || -> std::io::Result<String> {
        let address = if from_proxy { "127.0.0.1:80" } else { "192.0.2.1:80" };
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET / HTTP/1.0\r\nX-Forwarded-For: {client}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    space.within(ask).unwrap().ok()?.split(' ').nth(1)?.parse().ok()
}

#[test]
fn a_banned_client_behind_a_proxy_gets_403_and_nobody_else_does() {
    if !lab::ready("a_banned_client_behind_a_proxy_gets_403_and_nobody_else_does") {
        return;
    }
    let guardian = Arc::new(Guardian::start("").unwrap());
    let space = Space::new("proxy and server", &guardian, false).unwrap();
    space.ip("link set lo up").unwrap();
    // Who connects to this address connects from it: a peer that nobody trusts.
    space.ip("addr add 192.0.2.1/32 dev lo").unwrap();
    let (dir, list) = (guardian.dir(), guardian.dir().join("anomaly.list"));
    let nginx = config::Nginx { deny_map: Some(list.clone()), pid_file: Some(dir.join("nginx.pid")) };
    let mut enforcer = deny_map::wrap(Box::new(DryRun::new()), &nginx);
    enforcer.set_never_drop(&["127.0.0.0/8".parse().unwrap()]).unwrap();
    enforcer.maintain();
    let file = dir.join("nginx.conf");
    std::fs::write(&file, configuration(dir, &list)).unwrap();
    let command = || {
        let mut command = space.command("nginx");
        command.arg("-c").arg(&file).arg("-e").arg(dir.join("error.log"));
        command
    };
    run(command().arg("-t")).unwrap();
    let _process = Process::start("nginx", command(), &dir.join("nginx.out"), &guardian).unwrap();
    let settles = |from_proxy, client, wanted| {
        clock::wait_until(&format!("{wanted} for {client}"), Duration::from_secs(20), || {
            status(&space, from_proxy, client) == Some(wanted)
        })
        .unwrap();
    };
    settles(true, VICTIM, 200);

    let prefixes: [IpNet; 3] = [VICTIM, "2001:db8::", "127.0.0.1"].map(|a| {
        let length = if a.contains(':') { 64 } else { 32 };
        IpNet::new(a.parse().unwrap(), length).unwrap()
    });
    let drops = prefixes.map(|prefix| Ban { prefix, left: None });
    enforcer.ban(&drops);
    // What the daemon does every second.
    let maintain = |enforcer: &mut dyn Enforcer| (0..3).for_each(|_| assert_eq!(enforcer.maintain(), []));
    maintain(enforcer.as_mut());
    settles(true, VICTIM, 403);
    settles(true, V6, 403);
    assert_eq!(status(&space, true, NEIGHBOUR), Some(200), "others pass through the same proxy");
    assert_eq!(status(&space, true, "127.0.0.1"), Some(200), "the proxy itself is never denied");
    assert_eq!(status(&space, false, VICTIM), Some(200), "an untrusted peer is only ever itself");

    enforcer.unban(&prefixes);
    maintain(enforcer.as_mut());
    settles(true, VICTIM, 200);
    settles(true, V6, 200);
}

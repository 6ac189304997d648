//! Live frames: the kernel lets real packets in at `va`, through the program and, where that passes them, through
//! the whole stack to a socket, on one processor. This is where XDP, ipset, nft and rule lists compare.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions};
use ipnet::IpNet;

use super::program::{Bench, Guard, Numbers, Writer, XdpFilter, packet, sample, v4};
use super::{Row, Table, run};

const HOW: &str = "live frames on one processor, random banned sources, best of 5";

struct Live<'a> {
    table: &'a mut Table,
    bench: Bench,
    index: u32,
}

impl Live<'_> {
    /// The best of several runs, in ns a frame.
    fn ns(&mut self, frames: u32) -> Result<f64> {
        let packet = packet(false);
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> =
            [0, packet.len() as u32, 0, self.index, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let program = self.bench.writer(Writer::V4)?;
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let options = TestRunOptions {
                data_in: Some(&packet),
                ctx_in: Some(&context),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(64),
                ..TestRunOptions::new()
            };
            best = best.min(program.test_run(options)?.duration);
        }
        Ok(best.as_nanos() as f64)
    }

    fn add(&mut self, what: &str, entries: Option<usize>, frames: u32) -> Result<f64> {
        let value = self.ns(frames)?;
        self.table.add(Row { what: format!("live: {what}"), entries, value, unit: "ns", how: HOW });
        Ok(value)
    }

    fn sources(&mut self, banned: &[IpAddr]) -> Result<()> {
        self.bench.set_sources(&sample(banned, &mut Numbers(7)))
    }
}

/// Adds the lines of this part.
pub fn measure(table: &mut Table) -> Result<()> {
    let index = std::fs::read_to_string("/proc/thread-self/net/igmp")?
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("va"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("va is not there")?;
    // Somebody takes the packets that pass; its queue fills at once, which is cheaper than an ICMP answer.
    let _socket = UdpSocket::bind((Ipv4Addr::new(10, 77, 0, 1), 9))?;
    let mut live = Live { table, bench: Bench::load()?, index };
    live.sources(&v4(1024, true))?;
    live.bench.set_own("bench_drop")?;
    let drop_all = live.add("a program that drops everything", None, 2_000_000)?;
    live.bench.set_own("bench_pass")?;
    let pass_all = live.add("a program that passes everything, to a socket", None, 500_000)?;
    let mut guard = Guard::open()?;
    let mut xdp_1k = f64::NAN;
    for entries in [1000, 10_000, 100_000, 1_000_000] {
        let banned = v4(entries, true);
        guard.ban(banned.iter().copied().map(IpNet::from))?;
        let fd = guard.xdp.program(false)?.fd()?.try_clone()?;
        live.bench.set_program(Writer::V4, &fd)?;
        live.sources(&banned)?;
        let ns = live.add("anomaly", Some(entries), 2_000_000)?;
        if entries == 1000 {
            xdp_1k = ns;
        }
    }
    guard.close()?;
    for entries in [1000, 10_000] {
        let banned = v4(entries, true);
        let mut filter = XdpFilter::load(&banned)?;
        filter.put_behind(&mut live.bench)?;
        live.sources(&banned)?;
        live.add("xdp-filter (addresses only)", Some(entries), 2_000_000)?;
    }
    live.bench.set_own("bench_pass")?;
    let set = sets(&mut live)?;
    let rules = rules(&mut live)?;
    for (what, value) in [
        ("anomaly, 1,000 bans, against dropping everything", xdp_1k / drop_all),
        ("anomaly, 1,000 bans, against passing everything", xdp_1k / pass_all),
        ("ipset, 10,000 members, against anomaly, 1,000 bans", set / xdp_1k),
        ("10,000 iptables-legacy rules against anomaly, 1,000 bans", rules / xdp_1k),
    ] {
        live.table.add(Row { what: what.into(), entries: None, value, unit: "x", how: "from the lines above" });
    }
    Ok(())
}

/// An ipset of iptables-legacy, and a set of nft. Answers the ipset's figure at 10,000.
fn sets(live: &mut Live<'_>) -> Result<f64> {
    let mut ten_thousand = f64::NAN;
    for entries in [1000, 10_000, 100_000] {
        let banned = v4(entries, true);
        live.sources(&banned)?;
        let mut text = "create banned hash:ip maxelem 1000000\n".to_owned();
        for address in &banned {
            text.push_str(&format!("add banned {address}\n"));
        }
        feed("ipset", &["restore"], &text)?;
        run("iptables-legacy", &["-A", "INPUT", "-m", "set", "--match-set", "banned", "src", "-j", "DROP"])?;
        let ns = live.add("ipset and one iptables-legacy rule", Some(entries), 1_000_000)?;
        if entries == 10_000 {
            ten_thousand = ns;
        }
        run("iptables-legacy", &["-F", "INPUT"])?;
        run("ipset", &["destroy", "banned"])?;
        let members: Vec<String> = banned.iter().map(IpAddr::to_string).collect();
        let text = format!(
            "table ip bench {{\n set banned {{\n type ipv4_addr\n elements = {{ {} }}\n }}\n\
             chain input {{\n type filter hook input priority 0\n ip saddr @banned drop\n }}\n }}\n",
            members.join(", ")
        );
        feed("nft", &["-f", "-"], &text)?;
        live.add("nft set and one rule", Some(entries), 1_000_000)?;
        run("nft", &["delete", "table", "ip", "bench"])?;
    }
    Ok(ten_thousand)
}

/// One rule a ban. Answers the figure of iptables-legacy at 10,000.
fn rules(live: &mut Live<'_>) -> Result<f64> {
    let mut slowest = f64::NAN;
    for entries in [500, 10_000] {
        let banned = v4(entries, true);
        live.sources(&banned)?;
        for variant in ["legacy", "nft"] {
            let mut text = "*filter\n".to_owned();
            for address in &banned {
                text.push_str(&format!("-A INPUT -s {address}/32 -j DROP\n"));
            }
            text.push_str("COMMIT\n");
            feed(&format!("iptables-{variant}-restore"), &[], &text)?;
            let frames = if entries > 1000 { 20_000 } else { 200_000 };
            let ns = live.add(&format!("iptables-{variant}, a rule a ban"), Some(entries), frames)?;
            if variant == "legacy" {
                slowest = ns;
            }
            run(&format!("iptables-{variant}"), &["-F", "INPUT"])?;
        }
    }
    Ok(slowest)
}

fn feed(program: &str, words: &[&str], text: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| program.to_owned())?;
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "{program} refused what it was fed");
    Ok(())
}

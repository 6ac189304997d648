//! What a packet costs: our program against xdp-filter, iptables, ipset and nft. Needs root.
//!
//! The measuring is done by `anomaly/benches/xdp`, in a network namespace of its own; this installs the peers.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::cargo::cargo;
use crate::setup::{self, package};

/// What a packet costs: our program against xdp-filter, iptables, ipset and nft. Needs root, takes minutes.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Only these parts: compare (with xdp-filter), program, maps, live.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Write the figures here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "`cargo xtask bench xdp` needs root: it makes a network namespace");
    let peers = [
        package("iproute2", "ip"),
        package("iptables", "iptables-legacy"),
        package("ipset", "ipset"),
        package("nftables", "nft"),
        package("xdp-tools", "xdp-filter"),
    ];
    setup::packages("the XDP bench", &peers, args.yes)?;
    let mut bench = cargo(&["bench", "--package", "anomaly", "--bench", "xdp", "--"]);
    bench.args(&args.only);
    if let Some(json) = &args.json {
        bench.env("ANOMALY_BENCH_JSON", std::path::absolute(json)?);
    }
    ensure!(bench.status()?.success(), "the bench failed");
    Ok(())
}

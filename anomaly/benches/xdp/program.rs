//! Nanoseconds of the program itself, by BPF_PROG_TEST_RUN: every packet from another source, the same
//! packet writer in front of every program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anomaly::config;
use anomaly::enforce::xdp::XdpEnforcer;
use anomaly::enforce::{Drop, Enforcer};
use anyhow::{Context, Result, anyhow, ensure};
use aya::maps::{Array, MapData, PerCpuHashMap, PerCpuValues, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;

use super::{Row, Table};

/// Packets per run; the best of several runs counts, because others share the machine.
const PACKETS: u32 = 1_000_000;
const RUNS: usize = 7;
const DROP: u32 = 1;
const PASS: u32 = 2;

/// Which writer, and which kind of program it calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    V4,
    V4Frags,
    V6Frags,
}

impl Writer {
    const fn program(self) -> &'static str {
        match self {
            Self::V4 => "bench_v4",
            Self::V4Frags => "bench_v4_frags",
            Self::V6Frags => "bench_v6_frags",
        }
    }

    const fn slot(self) -> &'static str {
        match self {
            Self::V4 => "UNDER_TEST",
            Self::V4Frags | Self::V6Frags => "UNDER_TEST_FRAGS",
        }
    }
}

/// The packet writer.
pub struct Bench {
    ebpf: Ebpf,
    sources: Array<MapData, [u64; 2]>,
    mask: Array<MapData, u64>,
}

impl Bench {
    pub fn load() -> Result<Self> {
        let object = aya::include_bytes_aligned!("../../../anomaly-ebpf/bench.bpf.o");
        let mut ebpf = Ebpf::load(object).context("loading the packet writer")?;
        let take = |ebpf: &mut Ebpf, name: &str| ebpf.take_map(name).with_context(|| name.to_owned());
        let sources = Array::try_from(take(&mut ebpf, "SOURCES")?)?;
        let mask = Array::try_from(take(&mut ebpf, "MASK")?)?;
        for name in ["bench_v4", "bench_v4_frags", "bench_v6_frags", "bench_pass", "bench_drop"] {
            xdp_of(&mut ebpf, name)?.load()?;
        }
        Ok(Self { ebpf, sources, mask })
    }

    /// Takes turns through these; a power of two of them.
    pub fn set_sources(&mut self, sources: &[IpAddr]) -> Result<()> {
        ensure!(sources.len().is_power_of_two(), "the writer masks its counter");
        for (n, source) in sources.iter().enumerate() {
            self.sources.set(n as u32, words(*source), 0)?;
        }
        Ok(self.mask.set(0, sources.len() as u64 - 1, 0)?)
    }

    /// Puts a program behind the writer.
    pub fn set_program(&mut self, writer: Writer, program: &ProgramFd) -> Result<()> {
        let map = self.ebpf.map_mut(writer.slot()).context("no slot")?;
        Ok(ProgramArray::try_from(map)?.set(0, program, 0)?)
    }

    /// Puts one of the writer's own programs behind it.
    pub fn set_own(&mut self, name: &str) -> Result<()> {
        let fd = xdp_of(&mut self.ebpf, name)?.fd()?.try_clone()?;
        self.set_program(Writer::V4, &fd)
    }

    /// The writer itself.
    pub fn writer(&mut self, writer: Writer) -> Result<&mut Xdp> {
        xdp_of(&mut self.ebpf, writer.program())
    }

    /// The best of several runs, in ns a packet. Fails when the last packet met another verdict.
    fn ns(&mut self, writer: Writer, verdict: u32) -> Result<f64> {
        (0..RUNS).try_fold(f64::INFINITY, |best, _| Ok(best.min(self.once(writer, verdict)?)))
    }

    /// What the writer itself costs.
    fn floor(&mut self) -> Result<f64> {
        self.set_sources(&sample(&v4(1024, true), &mut Numbers(7)))?;
        self.set_own("bench_pass")?;
        self.ns(Writer::V4, PASS)
    }

    fn once(&mut self, writer: Writer, verdict: u32) -> Result<f64> {
        let packet = packet(writer == Writer::V6Frags);
        let options = TestRunOptions { data_in: Some(&packet), repeat: PACKETS, ..TestRunOptions::new() };
        let result = self.writer(writer)?.test_run(options)?;
        ensure!(result.return_value == verdict, "verdict {} and not {verdict}", result.return_value);
        Ok(result.duration.as_nanos() as f64)
    }
}

fn xdp_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| name.to_owned())?.try_into()?)
}

/// What the packet writer writes: the address, and behind an IPv4 one the checksum of the header that it makes. With a
/// wrong one the kernel would throw away what passes before any rule has seen it.
fn words(address: IpAddr) -> [u64; 2] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => {
            bytes[..4].copy_from_slice(&address.octets());
            let mut header = packet(false)[14..34].to_vec();
            header[12..16].copy_from_slice(&address.octets());
            let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            bytes[4..6].copy_from_slice(&(!(folded as u16 + (folded >> 16) as u16)).to_be_bytes());
        }
        IpAddr::V6(address) => bytes = address.octets(),
    }
    let [high, low] =
        [&bytes[..8], &bytes[8..]].map(|half| half.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)));
    [high, low]
}

/// Ethernet to `va`, IPv4 or IPv6, UDP to port 9, 64 bytes and some.
pub fn packet(v6: bool) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, 17, 64]);
        packet.extend(Ipv6Addr::UNSPECIFIED.octets());
        packet.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        // The writer fills in source and checksum.
        packet.extend([0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend(Ipv4Addr::UNSPECIFIED.octets());
        packet.extend([10, 77, 0, 1]);
    }
    packet.extend([0x30, 0x39, 0, 9, 0, 26, 0, 0]);
    packet.extend([0; 18]);
    packet
}

/// splitmix64: the same numbers in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// `count` different IPv4 addresses of 32.0.0.0/3 (`banned`) or 64.0.0.0/3, in random order.
pub fn v4(count: usize, banned: bool) -> Vec<IpAddr> {
    // Odd multiplier: a permutation of the lower 29 bits, so that none comes twice.
    let base: u32 = if banned { 0x2000_0000 } else { 0x4000_0000 };
    let scatter = |n: usize| (n as u32).wrapping_mul(0x9e37_79b1) & 0x1fff_ffff;
    (0..count).map(|n| IpAddr::V4(Ipv4Addr::from(base | scatter(n)))).collect()
}

fn v6(count: usize, banned: bool) -> Vec<IpAddr> {
    let mut numbers = Numbers(if banned { 1 } else { 2 });
    let top: u64 = if banned { 0x2001_0db8 << 32 } else { 0x2001_0db9 << 32 };
    (0..count)
        .map(|n| {
            let high = top | (n as u32).wrapping_mul(0x9e37_79b1) as u64;
            IpAddr::V6(Ipv6Addr::from(u128::from(high) << 64 | u128::from(numbers.next())))
        })
        .collect()
}

/// Sources out of a list, in random order, as many as the writer holds at most.
pub fn sample(from: &[IpAddr], numbers: &mut Numbers) -> Vec<IpAddr> {
    let count = (from.len() * 4).next_power_of_two().clamp(1024, 1 << 20);
    (0..count).map(|_| from[(numbers.next() % from.len() as u64) as usize]).collect()
}

/// An enforcer on `va` of this namespace.
pub struct Guard {
    pub xdp: XdpEnforcer,
    dir: tempfile::TempDir,
}

impl Guard {
    pub fn open() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("anomaly-b").tempdir()?;
        let settings = config::Enforcer {
            backend: config::Backend::Xdp,
            interfaces: vec!["va".into()],
            xdp_mode: config::XdpMode::Auto,
            on_stop: config::OnStop::Detach,
            grace: Duration::from_secs(86_400),
            pin_dir: dir.path().join("pins"),
            max_bans: 1 << 20,
            iptables_max_rules: 500,
            iptables_raw_prerouting: false,
            probe_log: false,
        };
        let (xdp, incidents) = match std::env::var_os("ANOMALY_EBPF_OBJECT") {
            Some(path) => XdpEnforcer::open_object(&settings, &std::fs::read(path)?)?,
            None => XdpEnforcer::open(&settings)?,
        };
        ensure!(incidents.is_empty(), "{incidents:?}");
        Ok(Self { xdp, dir })
    }

    /// Where a map is pinned.
    pub fn pin(&self, map: &str) -> PathBuf {
        self.dir.path().join(format!("pins/v{}/{map}", anomaly_common::LAYOUT_VERSION))
    }

    pub fn ban(&mut self, prefixes: impl Iterator<Item = IpNet>) -> Result<()> {
        let left = Some(Duration::from_secs(36_000));
        let drops: Vec<Drop> = prefixes.map(|prefix| Drop { prefix, left }).collect();
        self.xdp.ban(&drops).into_iter().collect::<Result<(), _>>().map_err(Into::into)
    }

    fn never_drop(&mut self) -> Result<()> {
        let never: Vec<IpNet> = NEVER.iter().filter_map(|text| text.parse().ok()).collect();
        Ok(self.xdp.set_never_drop(&never)?)
    }

    pub fn clear(&mut self) -> Result<()> {
        let held: Vec<IpNet> = self.xdp.banned()?.into_iter().map(|held| held.prefix).collect();
        self.xdp.unban(&held).into_iter().collect::<Result<(), _>>()?;
        // Tells the program that its tables are empty.
        self.xdp.maintain();
        Ok(())
    }

    pub fn close(self) -> Result<()> {
        Ok(Box::new(self.xdp).close(false)?)
    }

    /// Both builds of the program behind the writer.
    fn put_behind(&mut self, bench: &mut Bench) -> Result<()> {
        for (frags, writer) in [(false, Writer::V4), (true, Writer::V4Frags)] {
            let fd = self.xdp.program(frags)?.fd()?.try_clone()?;
            bench.set_program(writer, &fd)?;
        }
        Ok(())
    }
}

const HOW: &str = "test_run, random sources, best of 7 runs of 1 M; less the packet writer";

/// Adds the lines of this part.
pub fn measure(table: &mut Table) -> Result<()> {
    let mut numbers = Numbers(7);
    let mut bench = Bench::load()?;
    let floor = bench.floor()?;
    table.add(Row { what: "packet writer alone".into(), entries: None, value: floor, unit: "ns", how: "test_run" });
    let add = |table: &mut Table, what: String, entries: usize, ns: f64| {
        table.add(Row { what, entries: Some(entries), value: ns - floor, unit: "ns", how: HOW });
    };
    let mut guard = Guard::open()?;
    guard.put_behind(&mut bench)?;
    add(table, "IPv4, no ban at all".into(), 0, bench.ns(Writer::V4Frags, PASS)?);
    for entries in [1, 1000, 10_000, 100_000, 1_000_000] {
        let banned = v4(entries, true);
        guard.ban(banned.iter().copied().map(IpNet::from))?;
        guard.put_behind(&mut bench)?;
        bench.set_sources(&sample(&banned, &mut numbers))?;
        add(table, "IPv4 dropped".into(), entries, bench.ns(Writer::V4Frags, DROP)?);
        add(table, "IPv4 dropped, program without frags".into(), entries, bench.ns(Writer::V4, DROP)?);
        bench.set_sources(&sample(&v4(entries.max(1000), false), &mut numbers))?;
        add(table, "IPv4 passed".into(), entries, bench.ns(Writer::V4Frags, PASS)?);
    }
    // As the daemon runs it: with its own addresses, link-local, multicast and a few proxies never dropped.
    guard.clear()?;
    guard.never_drop()?;
    let banned = v4(1000, true);
    guard.ban(banned.iter().copied().map(IpNet::from))?;
    bench.set_sources(&sample(&banned, &mut numbers))?;
    add(
        table,
        format!("IPv4 dropped, {} prefixes on the allow-list", NEVER.len()),
        1000,
        bench.ns(Writer::V4Frags, DROP)?,
    );
    guard.xdp.set_never_drop(&[])?;
    guard.clear()?;
    for entries in [1000, 10_000] {
        let banned = v4(entries, true);
        let nets = banned.iter().filter_map(|address| Some(IpNet::new(*address, 24).ok()?.trunc()));
        guard.ban(nets)?;
        bench.set_sources(&sample(&banned, &mut numbers))?;
        add(table, "IPv4 dropped by a CIDR ban".into(), entries, bench.ns(Writer::V4Frags, DROP)?);
        bench.set_sources(&sample(&v4(entries, false), &mut numbers))?;
        add(table, "IPv4 passed, CIDR bans".into(), entries, bench.ns(Writer::V4Frags, PASS)?);
        guard.clear()?;
    }
    for (len, what) in [(64, "IPv6 dropped by a /64"), (128, "IPv6 dropped by a /128")] {
        for entries in [1, 1000, 100_000, 1_000_000] {
            let banned = v6(entries, true);
            guard.ban(banned.iter().filter_map(|address| Some(IpNet::new(*address, len).ok()?.trunc())))?;
            guard.put_behind(&mut bench)?;
            bench.set_sources(&sample(&banned, &mut numbers))?;
            add(table, what.into(), entries, bench.ns(Writer::V6Frags, DROP)?);
            bench.set_sources(&sample(&v6(entries.max(1000), false), &mut numbers))?;
            add(table, format!("IPv6 passed, /{len}s"), entries, bench.ns(Writer::V6Frags, PASS)?);
        }
        guard.clear()?;
    }
    guard.close()
}

/// Adds the lines that compare with xdp-filter.
pub fn compare(table: &mut Table) -> Result<()> {
    let mut bench = Bench::load()?;
    let floor = bench.floor()?;
    xdp_filter(table, &mut bench, floor)
}

/// What a daemon keeps off the ban list on a usual host.
const NEVER: [&str; 16] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "10.77.0.1/32",
    "10.77.0.2/32",
    "192.0.2.53/32",
    "192.0.2.54/32",
    "198.51.100.7/32",
    "203.0.113.0/28",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
    "fd77::1/128",
    "fd77::2/128",
    "2001:db8:53::/64",
];

/// Debian's xdp-filter, in its leanest build for addresses.
pub struct XdpFilter {
    ebpf: Ebpf,
    _dir: tempfile::TempDir,
    pins: PathBuf,
}

impl XdpFilter {
    pub fn load(banned: &[IpAddr]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("anomaly-b").tempdir()?;
        let pins = dir.path().to_owned();
        // It asks for pinned maps; these go with the directory.
        rustix::mount::mount("bpf", &pins, "bpf", rustix::mount::MountFlags::empty(), None)?;
        let path = format!("/usr/lib/{}-linux-gnu/bpf/xdpfilt_alw_ip.o", std::env::consts::ARCH);
        let mut ebpf =
            EbpfLoader::new().default_map_pin_directory(&pins).load_file(&path).with_context(|| path.clone())?;
        for (_, program) in ebpf.programs_mut() {
            <&mut Xdp>::try_from(program)?.load()?;
        }
        let mut map: PerCpuHashMap<_, u32, u64> =
            PerCpuHashMap::try_from(ebpf.map_mut("filter_ipv4").context("xdp-filter has another map now")?)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| anyhow!(e))?;
        for address in banned {
            // Source, active: what `xdp-filter ip ADDRESS -m src` writes.
            map.insert(words(*address)[0] as u32, PerCpuValues::try_from(vec![0b1_0001u64; cpus])?, 0)?;
        }
        Ok(Self { ebpf, _dir: dir, pins })
    }

    pub fn put_behind(&mut self, bench: &mut Bench) -> Result<()> {
        let (_, program) = self.ebpf.programs_mut().next().context("xdp-filter has no program")?;
        bench.set_program(Writer::V4, <&mut Xdp>::try_from(program)?.fd()?)
    }
}

impl std::ops::Drop for XdpFilter {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.pins, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Runs of each, in turn: what disturbs the machine meanwhile disturbs both.
const TURNS: usize = 15;
const TURNS_HOW: &str = "test_run, random sources, in turn, best of 15 runs of 1 M each; less the packet writer";

fn xdp_filter(table: &mut Table, bench: &mut Bench, floor: f64) -> Result<()> {
    // Its map holds 10,000.
    for entries in [1, 1000, 10_000] {
        let banned = v4(entries, true);
        let mut guard = Guard::open()?;
        // As the daemon runs it.
        guard.never_drop()?;
        guard.ban(banned.iter().copied().map(IpNet::from))?;
        guard.put_behind(bench)?;
        let mut filter = XdpFilter::load(&banned)?;
        filter.put_behind(bench)?;
        for (what, sources, verdict) in [("dropped", &banned, DROP), ("passed", &v4(entries.max(1000), false), PASS)] {
            bench.set_sources(&sample(sources, &mut Numbers(7)))?;
            let (mut ours, mut theirs) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..TURNS {
                ours = ours.min(bench.once(Writer::V4Frags, verdict)? - floor);
                theirs = theirs.min(bench.once(Writer::V4, verdict)? - floor);
            }
            for (who, value) in [("anomaly", ours), ("xdp-filter (addresses only)", theirs)] {
                let what = format!("{who} IPv4 {what}");
                table.add(Row { what, entries: Some(entries), value, unit: "ns", how: TURNS_HOW });
            }
            let what = format!("anomaly against xdp-filter, {what}");
            table.add(Row {
                what,
                entries: Some(entries),
                value: ours / theirs,
                unit: "x",
                how: "from the lines above",
            });
        }
        guard.close()?;
    }
    Ok(())
}

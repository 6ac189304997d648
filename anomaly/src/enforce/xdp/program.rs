//! The kernel program and its maps: loaded, taken over from an earlier daemon, or moved into larger ones.
//!
//! Everything new is made beside what runs, and put in place at the end; until then nothing that
//! drops packets has changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anomaly_common::{Ban, NetBan, Sieve, State, Totals};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, MapType, PerCpuArray};
use aya::pin::PinError;
use aya::programs::{ProgramError, ProgramType, Xdp};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use ipnet::IpNet;

use super::pins::{self, PinDir};
use super::raw;
use super::tables::{Address, Hosts, Kind, Nets, Table, io_error, trie_prefix};
use crate::enforce::EnforceError;

/// The object that a release ships, built by `cargo xtask build-ebpf`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../anomaly-ebpf/anomaly.bpf.o");

/// Tries are small and taken entry by entry; this only bounds them.
const TRIE_CAPACITY: u32 = 16_384;
/// Where a table of addresses starts: less than 2 MB. It grows as bans come.
const FIRST_CAPACITY: u32 = 16_384;

const NO_PREALLOC: u32 = 1;

/// So often a program is given to the verifier while signals interrupt it; aya makes two attempts of each.
const LOAD_TRIES: u32 = 10;

/// What a map must look like to be taken over.
struct Spec {
    name: &'static str,
    kind: MapType,
    key: u32,
    value: u32,
    flags: u32,
}

const fn spec(name: &'static str, kind: MapType, key: usize, value: usize, flags: u32) -> Spec {
    Spec { name, kind, key: key as u32, value: value as u32, flags }
}

const SPECS: [Spec; 10] = [
    spec("BANS_V4", MapType::Hash, 4, size_of::<Ban>(), 0),
    spec("BANS_V6", MapType::Hash, 16, size_of::<Ban>(), 0),
    spec("BANS_V6_64", MapType::Hash, 8, size_of::<Ban>(), 0),
    spec("NETS_V4", MapType::LpmTrie, 8, size_of::<NetBan>(), NO_PREALLOC),
    spec("NETS_V6", MapType::LpmTrie, 20, size_of::<NetBan>(), NO_PREALLOC),
    spec("ALLOW_V4", MapType::LpmTrie, 8, 8, NO_PREALLOC),
    spec("ALLOW_V6", MapType::LpmTrie, 20, 8, NO_PREALLOC),
    spec("SWITCH", MapType::Array, 4, 8, 0),
    spec("STATE", MapType::Array, 4, size_of::<State>(), 0),
    spec("TOTALS", MapType::PerCpuArray, 4, size_of::<Totals>(), 0),
];

impl Spec {
    fn fits(&self, info: &MapInfo, capacity: Option<u32>) -> bool {
        info.map_type().is_ok_and(|kind| kind == self.kind)
            && (info.key_size(), info.value_size(), info.map_flags()) == (self.key, self.value, self.flags)
            && match self.kind {
                MapType::Hash => capacity.is_none_or(|wanted| info.max_entries() >= wanted),
                MapType::LpmTrie => info.max_entries() == TRIE_CAPACITY,
                _ => info.max_entries() == 1,
            }
    }
}

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The ELF object.
    pub object: &'a [u8],
    /// Let the program log every drop.
    pub log: bool,
    /// Smallest capacity of a table of addresses, by [`Kind`]; what is pinned is kept where that suffices.
    pub capacities: [Option<u32>; 3],
    /// No table of addresses is made larger than this.
    pub max_bans: u32,
}

/// What loads objects. It is made once and kept: in making one, aya reads the types of the running kernel, wanted or not, and
/// that takes as long as all the rest of a start.
pub struct Loader(EbpfLoader<'static>);

impl Loader {
    /// Takes some 10 ms.
    pub fn make() -> Self {
        let mut loader = EbpfLoader::new();
        loader
            // Nothing in the object is relocated against the running kernel.
            .btf(None)
            // aya tries again with a buffer for the verifier's log whatever it was that failed. Without a level the kernel
            // refuses that with EINVAL, which hides why.
            .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS);
        Self(loader)
    }
}

/// The loaded program with its maps.
pub struct Kernel {
    ebpf: Ebpf,
    /// Ban tables in the order of [`Kind::ALL`].
    pub tables: [Box<dyn Table>; 5],
    /// IPv4 prefixes that are never dropped.
    pub allow_v4: LpmTrie<MapData, u32, u64>,
    /// IPv6 prefixes that are never dropped.
    pub allow_v6: LpmTrie<MapData, [u64; 2], u64>,
    /// What the program is told of those two, so that it need not ask them for most addresses.
    pub allow: Sieve,
    /// One of `anomaly_common::switch`.
    pub switch: Array<MapData, u64>,
    /// What the daemon tells the program.
    pub state: Array<MapData, State>,
    /// What became of the packets.
    pub totals: PerCpuArray<MapData, Totals>,
    /// Bans that were not moved: there was no room for them.
    pub left_behind: Vec<(IpNet, Ban)>,
}

/// A pinned map that does not fit, out of which the entries are to be moved.
struct Old {
    name: &'static str,
    map: MapData,
    /// Its entries are what they are now: only its capacity does not fit.
    whole: bool,
}

impl Kernel {
    /// Loads the object, with the maps that are pinned where they fit; what does not fit is replaced, and its
    /// bans are moved. Everything is pinned in `stage`; nothing elsewhere is touched.
    pub fn load(dir: &PinDir, stage: &Path, options: Options<'_>, loader: &mut Loader) -> Result<Self, EnforceError> {
        let mut old = Vec::new();
        let mut capacities = [TRIE_CAPACITY; SPECS.len()];
        for (n, spec) in SPECS.iter().enumerate() {
            let wanted = options.capacities.get(n).copied().flatten();
            let mut moved = 0;
            if let Some((map, info)) = open_pinned(&dir.current().join(spec.name))? {
                if spec.fits(&info, wanted) {
                    raw::pin(map.fd().as_fd(), &stage.join(spec.name)).map_err(|e| failed("pinning", spec.name, e))?;
                    capacities[n] = info.max_entries();
                    continue;
                }
                moved = info.max_entries();
                old.push(Old { name: spec.name, map, whole: spec.fits(&info, None) });
            }
            for version in pins::versions(dir.path()).into_iter().filter(|version| *version != dir.current()) {
                if let Some((map, info)) = open_pinned(&version.join(spec.name))? {
                    moved = moved.max(info.max_entries());
                    old.push(Old { name: spec.name, map, whole: false });
                }
            }
            if spec.kind == MapType::Hash {
                capacities[n] = wanted.unwrap_or(FIRST_CAPACITY).max(moved).min(options.max_bans.max(1));
            }
        }
        let mut kernel = Self::create(stage, options, capacities, loader)?;
        for old in old {
            kernel.move_from(&old)?;
        }
        kernel.sift().map_err(|e| failed("reading", "ALLOW", e))?;
        Ok(kernel)
    }

    fn create(
        stage: &Path,
        options: Options<'_>,
        capacities: [u32; SPECS.len()],
        Loader(loader): &mut Loader,
    ) -> Result<Self, EnforceError> {
        let coarse = is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_ktime_get_coarse_ns);
        let coarse: &'static u8 = if coarse.unwrap_or(false) { &1 } else { &0 };
        let level: &'static u8 = if options.log { &(aya_log::Level::Debug as u8) } else { &0 };
        loader
            .override_global("COARSE_CLOCK", coarse, true)
            .override_global(aya_log::LEVEL, level, true)
            .map_max_entries("AYA_LOGS", if options.log { 1 << 17 } else { 4096 });
        for (spec, capacity) in SPECS.iter().zip(capacities) {
            loader.map_pin_path(spec.name, stage.join(spec.name));
            if spec.kind == MapType::Hash {
                loader.map_max_entries(spec.name, capacity);
            }
        }
        let mut ebpf = loader.load(options.object).map_err(load_failed)?;
        let tables = [
            hosts::<u32>(&mut ebpf, Kind::V4, capacities[0], 32)?,
            hosts::<[u64; 2]>(&mut ebpf, Kind::V6, capacities[1], 128)?,
            hosts::<u64>(&mut ebpf, Kind::V6Subnet, capacities[2], 64)?,
            nets::<u32>(&mut ebpf, Kind::Net4)?,
            nets::<[u64; 2]>(&mut ebpf, Kind::Net6)?,
        ];
        Ok(Self {
            tables,
            allow_v4: take(&mut ebpf, "ALLOW_V4")?,
            allow_v6: take(&mut ebpf, "ALLOW_V6")?,
            allow: Sieve::default(),
            switch: take(&mut ebpf, "SWITCH")?,
            state: take(&mut ebpf, "STATE")?,
            totals: take(&mut ebpf, "TOTALS")?,
            left_behind: Vec::new(),
            ebpf,
        })
    }

    /// The program, loaded at the first call: with or without support for packets in several buffers.
    pub fn program(&mut self, frags: bool) -> io::Result<BorrowedFd<'_>> {
        let name = if frags { "anomaly_frags" } else { "anomaly" };
        let program = self.ebpf.program_mut(name).ok_or(io::ErrorKind::NotFound)?;
        let program: &mut Xdp = program.try_into().map_err(program_io)?;
        load(program).map_err(program_io)?;
        program.fd().map(AsFd::as_fd).map_err(program_io)
    }

    /// The program for `BPF_PROG_TEST_RUN`.
    ///
    /// # Errors
    /// The kernel's, when it refuses the program.
    pub fn xdp(&mut self, frags: bool) -> io::Result<&mut Xdp> {
        self.program(frags)?;
        let name = if frags { "anomaly_frags" } else { "anomaly" };
        let program = self.ebpf.program_mut(name).ok_or(io::ErrorKind::NotFound)?;
        program.try_into().map_err(program_io)
    }

    /// The object, for the logger.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The table for a prefix.
    pub fn table(&mut self, kind: Kind) -> &mut dyn Table {
        &mut *self.tables[kind as usize]
    }

    /// Every prefix that is never dropped.
    pub fn never_dropped(&self) -> io::Result<Vec<IpNet>> {
        let v4 = self.allow_v4.keys().map(|key| key.map(|k| k.data().prefix(bits(k.prefix_len()))));
        let v6 = self.allow_v6.keys().map(|key| key.map(|k| k.data().prefix(bits(k.prefix_len()))));
        v4.chain(v6).collect::<Result<_, _>>().map_err(io_error)
    }

    /// Never drops this prefix, or no longer never.
    pub fn set_never_drop(&mut self, prefix: &IpNet, never: bool) -> io::Result<()> {
        let len = u32::from(prefix.prefix_len());
        let answer = match (prefix, never) {
            (IpNet::V4(_), true) => self.allow_v4.insert(&Key::new(len, u32::of(prefix)), 1, 0),
            (IpNet::V4(_), false) => self.allow_v4.remove(&Key::new(len, u32::of(prefix))),
            (IpNet::V6(_), true) => self.allow_v6.insert(&Key::new(len, <[u64; 2]>::of(prefix)), 1, 0),
            (IpNet::V6(_), false) => self.allow_v6.remove(&Key::new(len, <[u64; 2]>::of(prefix))),
        };
        answer.map_err(io_error)
    }

    /// Makes [`Kernel::allow`] what the allow-list is now.
    pub fn sift(&mut self) -> io::Result<()> {
        let mut sieve = Sieve::default();
        for prefix in self.never_dropped()? {
            match prefix {
                IpNet::V4(net) => sieve.add_v4(net.network().octets(), net.prefix_len()),
                IpNet::V6(net) => {
                    let [a, b, c, d, ..] = net.network().octets();
                    sieve.add_v6([a, b, c, d], net.prefix_len());
                }
            }
        }
        self.allow = sieve;
        Ok(())
    }

    /// Moves what an older map holds. Its entries may be laid out otherwise; what holds of every version is
    /// said in `anomaly_common`.
    fn move_from(&mut self, old: &Old) -> Result<(), EnforceError> {
        let reading = |e| failed("moving bans out of", old.name, e);
        let fd = old.map.fd().as_fd();
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.map() == old.name) else {
            if old.name.starts_with("ALLOW") {
                let entries = bytes_of(&old.map).map_err(reading)?;
                for prefix in entries.iter().filter_map(|(key, _)| trie_prefix(key)) {
                    self.set_never_drop(&prefix, true).map_err(reading)?;
                }
            }
            return Ok(());
        };
        let mut bans: Vec<(IpNet, Ban)> = match kind {
            // Laid out as now: counters and all, and fast enough to be done while packets are dropped.
            Kind::V4 if old.whole => entries::<u32>(fd, 32),
            Kind::V6 if old.whole => entries::<[u64; 2]>(fd, 128),
            Kind::V6Subnet if old.whole => entries::<u64>(fd, 64),
            _ => bytes_of(&old.map).map(|entries| {
                let ban = |value: &[u8]| {
                    let until_ns = u64::from_ne_bytes(*value.first_chunk()?);
                    Some(Ban { until_ns, ..Ban::default() })
                };
                entries.iter().filter_map(|(key, value)| Some((kind.prefix(key)?, ban(value)?))).collect()
            }),
        }
        .map_err(reading)?;
        let held = bans.len();
        let table = self.table(kind);
        // A smaller map: those that last longest stay.
        let room = (table.capacity() as usize).saturating_sub(table.len());
        bans.sort_by_key(|(_, ban)| std::cmp::Reverse(ban.until_ns));
        let left_behind = bans.split_off(room.min(bans.len()));
        let fresh = bans.len();
        tracing::info!("moving {fresh} of {held} bans into a new {}", old.name);
        self.left_behind.extend(left_behind);
        let table = self.table(kind);
        table.put(fresh, &|n| bans[n], fresh).map_err(reading)
    }
}

/// Loads a program that may be loaded already. The verifier gives up with `EAGAIN` when a signal reaches its thread, as any
/// reload or stop of the daemon may be one; that says nothing of the program.
fn load(program: &mut Xdp) -> Result<(), ProgramError> {
    let mut tries = 1;
    loop {
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => return Ok(()),
            Err(ProgramError::LoadError { io_error, .. })
                if matches!(io_error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
                    && tries < LOAD_TRIES =>
            {
                tries += 1;
            }
            Err(e) => return Err(e),
        }
    }
}

fn entries<K: Address>(map: BorrowedFd<'_>, len: u8) -> io::Result<Vec<(IpNet, Ban)>> {
    let mut all = Vec::new();
    raw::for_each(map, 0, |key: K, ban| all.push((key.prefix(len), ban)))?;
    Ok(all)
}

fn bytes_of(map: &MapData) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let info = map.info().map_err(io_error)?;
    raw::lookup_bytes(map.fd().as_fd(), info.key_size() as usize, info.value_size() as usize)
}

fn bits(len: u32) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

fn hosts<K: Address>(ebpf: &mut Ebpf, kind: Kind, capacity: u32, len: u8) -> Result<Box<dyn Table>, EnforceError> {
    let map: HashMap<MapData, K, Ban> = take(ebpf, kind.map())?;
    Ok(Box::new(Hosts::new(map, capacity, len).map_err(|e| failed("reading", kind.map(), e))?))
}

fn nets<K: Address>(ebpf: &mut Ebpf, kind: Kind) -> Result<Box<dyn Table>, EnforceError> {
    let map: LpmTrie<MapData, K, NetBan> = take(ebpf, kind.map())?;
    Ok(Box::new(Nets::new(map, TRIE_CAPACITY).map_err(|e| failed("reading", kind.map(), e))?))
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, EnforceError> {
    let map = ebpf.take_map(name).ok_or_else(|| failed("finding", name, io::ErrorKind::NotFound.into()))?;
    M::try_from(map).map_err(|e| failed("opening", name, io_error(e)))
}

/// A pinned map; `None` when there is no such pin.
fn open_pinned(path: &Path) -> Result<Option<(MapData, MapInfo)>, EnforceError> {
    let opening = |e| pins::pin_error("opening", path, e);
    match raw::get(path) {
        Ok(fd) => {
            let map = MapData::from_fd(fd).map_err(|e| opening(io_error(e)))?;
            let info = map.info().map_err(|e| opening(io_error(e)))?;
            Ok(Some((map, info)))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(opening(e)),
    }
}

/// An error about a map.
pub fn failed(doing: &str, map: &str, source: io::Error) -> EnforceError {
    EnforceError::Kernel { doing: format!("{doing} map {map}"), source, hint: None }
}

/// Names the call that failed and what for; the kernel's number stays what it is, for those who match on it.
fn load_failed(error: EbpfError) -> EnforceError {
    let (doing, source, hint) = match error {
        EbpfError::MapError(MapError::CreateError { name, io_error, .. }) => {
            (format!("making map {name}"), io_error, None)
        }
        EbpfError::MapError(MapError::PinError { name, error }) => (
            format!("pinning map {}", name.as_deref().unwrap_or_default()),
            match error {
                PinError::SyscallError(e) => e.io_error,
                other => io::Error::other(other),
            },
            None,
        ),
        EbpfError::MapError(MapError::SyscallError(e)) => {
            (format!("setting up the maps ({})", e.call), e.io_error, None)
        }
        EbpfError::MapError(e) => ("setting up the maps".into(), io_error(e), None),
        EbpfError::ProgramError(e) => ("loading the kernel program".into(), program_io(e), None),
        other => (
            "loading the kernel program".into(),
            io::Error::other(other),
            Some("the kernel is older than 5.10, or the object is damaged".to_owned()),
        ),
    };
    EnforceError::Kernel { doing, source, hint }
}

/// What the kernel said, out of aya's error.
fn program_io(error: ProgramError) -> io::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            if !log.is_empty() {
                tracing::debug!("verifier: {log}");
            }
            io_error
        }
        ProgramError::SyscallError(e) => e.io_error,
        ProgramError::IOError(e) => e,
        other => io::Error::other(other),
    }
}

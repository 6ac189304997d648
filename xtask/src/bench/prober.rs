//! Looks into the kernel's maps of a running daemon, as the XDP program does: a look-up takes about a microsecond and
//! the daemon does not notice.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anomaly_common::{Ban, LAYOUT_VERSION, Totals};
use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};

use crate::lab::Lab;

/// The pins of one daemon of a lab.
pub struct Prober {
    pins: PathBuf,
    bans: HashMap<MapData, u32, Ban>,
}

impl Prober {
    /// Of the daemon with this name in its configuration, which must run.
    ///
    /// # Errors
    /// When it has pinned nothing.
    pub fn open(lab: &Lab, name: &str) -> Result<Self> {
        let dir = lab.bpffs().join(name).join(format!("v{LAYOUT_VERSION}"));
        // The lab's bpffs is mounted in the server's mount namespace only.
        let pins = PathBuf::from(format!("/proc/{}/root{}", lab.server.pid(), dir.display()));
        let bans = open_bans(&pins)?;
        Ok(Self { pins, bans })
    }

    /// Whether this address is in the map of banned ones.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn holds(&self, address: Ipv4Addr) -> Result<bool> {
        match self.bans.get(&u32::from_ne_bytes(address.octets()), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the map again: a daemon whose table has grown uses another one.
    ///
    /// # Errors
    /// As [`Prober::open`].
    pub fn reopen(&mut self) -> Result<()> {
        self.bans = open_bans(&self.pins)?;
        Ok(())
    }

    /// Packets dropped so far because of a banned address, on all processors.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn dropped(&self) -> Result<u64> {
        let path = self.pins.join("TOTALS");
        let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
        let totals: PerCpuArray<_, Totals> = Map::PerCpuArray(map).try_into()?;
        Ok(totals.get(&0, 0)?.iter().map(|totals| totals.dropped_host).sum())
    }
}

fn open_bans(pins: &std::path::Path) -> Result<HashMap<MapData, u32, Ban>> {
    let path = pins.join("BANS_V4");
    let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    Ok(Map::HashMap(map).try_into()?)
}

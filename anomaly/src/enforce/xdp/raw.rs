//! The calls of `bpf(2)` that aya 0.14 does not offer: batches, and links that say what they refuse.
//!
//! The only unsafe code of the daemon. It knows numbers and bytes, no bans. A link is made here and
//! not by aya because aya answers `EINVAL` with a second attempt over netlink, whose result cannot
//! be pinned.

#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper; every call is explained where it is made")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

/// Commands of `bpf(2)` and constants, by their names in `linux/bpf.h`.
mod uapi {
    pub const MAP_LOOKUP_ELEM: u32 = 1;
    pub const MAP_UPDATE_ELEM: u32 = 2;
    pub const MAP_GET_NEXT_KEY: u32 = 4;
    pub const OBJ_PIN: u32 = 6;
    pub const OBJ_GET: u32 = 7;
    pub const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub const MAP_LOOKUP_BATCH: u32 = 24;
    pub const MAP_UPDATE_BATCH: u32 = 26;
    pub const MAP_DELETE_BATCH: u32 = 27;
    pub const LINK_CREATE: u32 = 28;
    pub const LINK_UPDATE: u32 = 29;
    pub const LINK_DETACH: u32 = 34;
    pub const ATTACH_XDP: u32 = 37;
}

/// `bpf_attr` of the map commands.
#[derive(Default)]
#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

/// `bpf_attr` of the batch commands.
#[derive(Default)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `bpf_attr` of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[derive(Default)]
#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `bpf_attr` of `BPF_LINK_CREATE`; also of `BPF_LINK_UPDATE`, which has other names for the same words.
#[derive(Default)]
#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[derive(Default)]
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `bpf_link_info`, of an XDP link.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LinkInfo {
    kind: u32,
    id: u32,
    /// The program it runs.
    pub prog_id: u32,
    _pad: u32,
    /// The interface it is on; 0 once that is gone.
    pub ifindex: u32,
    _tail: u32,
}

/// What is attached in which mode: the flags of `BPF_LINK_CREATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

/// # Safety
/// `attr` is what `command` takes, and every pointer in it is good for what the command does with it.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is a live, initialised `bpf_attr` of exactly the size given; the rest is the caller's word.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor that is open is not negative.
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Attaches a program to an interface. It stays attached as long as the answer, or a pin of it, lives.
pub fn link_create(program: BorrowedFd<'_>, ifindex: u32, flags: Flags) -> io::Result<OwnedFd> {
    let flags = match flags {
        Flags::Generic => 1 << 1,
        Flags::Native => 1 << 2,
    };
    let mut attr = LinkAttr { prog_fd: number(program), target: ifindex, attach_type: uapi::ATTACH_XDP, flags };
    // SAFETY: the command takes a `LinkAttr` without pointers.
    let fd = unsafe { bpf(uapi::LINK_CREATE, &mut attr)? };
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Lets a link run another program from the next packet on. `ENOLINK` when its interface is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkAttr { prog_fd: number(link), target: number(program), ..LinkAttr::default() };
    // SAFETY: the command takes link, program, flags and an unused fourth word; no pointers.
    unsafe { bpf(uapi::LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link off its interface at once, although other programs may still hold it.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkAttr { prog_fd: number(link), ..LinkAttr::default() };
    // SAFETY: the command takes a link; no pointers.
    unsafe { bpf(uapi::LINK_DETACH, &mut attr) }.map(drop)
}

/// What a link runs, and where.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: number(link),
        info_len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: `info` is writable for `info_len` bytes and outlives the call.
    unsafe { bpf(uapi::OBJ_GET_INFO_BY_FD, &mut attr)? };
    const LINK_TYPE_XDP: u32 = 6;
    if info.kind != LINK_TYPE_XDP {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a pin that should be an XDP link is none"));
    }
    Ok(info)
}

/// Gives an object a name in bpffs, which keeps it alive.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr =
        ObjAttr { pathname: path.as_ptr().expose_provenance() as u64, bpf_fd: number(object), file_flags: 0 };
    // SAFETY: `path` is a string that ends in NUL and outlives the call.
    unsafe { bpf(uapi::OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at a path.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr().expose_provenance() as u64, ..ObjAttr::default() };
    // SAFETY: as in `pin`.
    let fd = unsafe { bpf(uapi::OBJ_GET, &mut attr)? };
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// How many of a batch were done before something went wrong.
#[derive(Debug)]
pub struct Partly {
    /// Elements done.
    pub done: usize,
    /// What the next one met.
    pub error: io::Error,
}

/// Sets many elements. One call costs less than half of as many single ones.
pub fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "a batch has a value for every key");
    batch(uapi::MAP_UPDATE_BATCH, map, keys, Some(values)).map_err(|partly| partly.error)
}

/// Deletes many elements. Stops at the first that is not there (`ENOENT`).
pub fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), Partly> {
    batch::<K, u8>(uapi::MAP_DELETE_BATCH, map, keys, None)
}

fn batch<K: Pod, V: Pod>(command: u32, map: BorrowedFd<'_>, keys: &[K], values: Option<&[V]>) -> Result<(), Partly> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = BatchAttr {
        keys: keys.as_ptr().expose_provenance() as u64,
        values: values.map_or(0, |v| v.as_ptr().expose_provenance() as u64),
        count: keys.len() as u32,
        map_fd: number(map),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel reads `count` keys (and values) of the sizes that aya checked against the map when
    // it was opened; both slices are that long and outlive the call.
    match unsafe { bpf(command, &mut attr) } {
        Ok(_) => Ok(()),
        Err(error) => Err(Partly { done: (attr.count as usize).min(keys.len()), error }),
    }
}

/// Shows `visit` everything a hash map holds. Elements that come or go meanwhile may be missed, none is made up.
pub fn for_each<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    expected: usize,
    mut visit: impl FnMut(K, V),
) -> io::Result<()> {
    let mut size = (expected / 4).clamp(256, 32_768);
    let (mut keys, mut values) = (vec![K::default(); size], vec![V::default(); size]);
    let mut cursor: Option<u64> = None;
    loop {
        let (mut next, from) = (0u64, cursor.unwrap_or(0));
        let mut attr = BatchAttr {
            in_batch: if cursor.is_some() { std::ptr::from_ref(&from).expose_provenance() as u64 } else { 0 },
            out_batch: std::ptr::from_mut(&mut next).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: size as u32,
            map_fd: number(map),
            ..BatchAttr::default()
        };
        // SAFETY: both buffers hold `count` elements of the sizes that aya checked against the map when it
        // was opened; the cursor of a hash map is four bytes, and there is room for eight.
        let answer = unsafe { bpf(uapi::MAP_LOOKUP_BATCH, &mut attr) };
        let end = match answer {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A single bucket holds more than a batch: ask again from the same place with more room.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < 1 << 22 => {
                size *= 2;
                keys.resize(size, K::default());
                values.resize(size, V::default());
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (attr.count as usize).min(size);
        for (key, value) in keys[..count].iter().zip(&values[..count]) {
            visit(*key, *value);
        }
        if end {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// Sets the first element of an array of `u64`, whichever version made it. The kernel refuses maps of another shape only
/// by their key, so the caller must know that it is such an array.
pub fn set_first(array: BorrowedFd<'_>, value: u64) -> io::Result<()> {
    let key = 0u32;
    let mut attr = ElemAttr {
        map_fd: number(array),
        key: std::ptr::from_ref(&key).expose_provenance() as u64,
        value_or_next_key: std::ptr::from_ref(&value).expose_provenance() as u64,
        ..ElemAttr::default()
    };
    // SAFETY: key and value outlive the call and are as large as those of the array.
    unsafe { bpf(uapi::MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Keys and values as bytes: for maps that another version laid out.
///
/// `key_size` and `value_size` are what the kernel says of the map.
pub fn lookup_bytes(map: BorrowedFd<'_>, key_size: usize, value_size: usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = Vec::new();
    let mut key: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0u8; key_size];
        let mut attr = ElemAttr {
            map_fd: number(map),
            key: key.as_ref().map_or(0, |k| k.as_ptr().expose_provenance() as u64),
            value_or_next_key: next.as_mut_ptr().expose_provenance() as u64,
            ..ElemAttr::default()
        };
        // SAFETY: both keys are `key_size` bytes, which is what the kernel reads and writes.
        match unsafe { bpf(uapi::MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(all),
            Err(error) => return Err(error),
        }
        let mut value = vec![0u8; value_size];
        let mut attr = ElemAttr {
            map_fd: number(map),
            key: next.as_ptr().expose_provenance() as u64,
            value_or_next_key: value.as_mut_ptr().expose_provenance() as u64,
            ..ElemAttr::default()
        };
        // SAFETY: the key is `key_size` and the value `value_size` bytes.
        match unsafe { bpf(uapi::MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => all.push((next.clone(), value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        key = Some(next);
    }
}

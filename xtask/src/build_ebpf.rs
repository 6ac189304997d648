//! Builds the kernel program and records what it was built from.
//!
//! The object is committed beside its source, so that nobody needs a BPF tool chain to build the daemon. The
//! record beside it holds the SHA-256 of the sources; a test here fails when they have changed since.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::cargo::{cargo, root};
use crate::setup;

/// Builds the kernel program and records what it was built from.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
    /// Build nothing: fail when the committed object is not from the present sources.
    #[arg(long, conflicts_with_all = ["yes", "output"])]
    check: bool,
    /// Write the object here and leave the committed one and its record alone (for
    /// ANOMALY_EBPF_OBJECT=FILE cargo test ...).
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

const TARGET: &str = "bpfel-unknown-none";
/// Crates that may use the one unstable feature (BPF inline assembly) on a stable compiler. A list and not
/// `1`, with which aya's build script insists on building core.
const UNSTABLE: &str = "aya_ebpf,anomaly_ebpf,anomaly_ebpf_bench";
/// What aya-ebpf 0.2 needs.
const OLDEST_RUSTC: (u32, u32) = (1, 87);
/// Binary of the program, name of the committed object.
const OBJECTS: [(&str, &str); 2] = [("anomaly-ebpf", "anomaly.bpf.o"), ("anomaly-ebpf-bench", "bench.bpf.o")];
const RECORD: &str = "anomaly.bpf.sources";

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    let root = root();
    if args.check {
        check(root)?;
        println!("the committed object is from the present sources");
        return Ok(());
    }
    let tool_chain = ToolChain::find(root, args.yes)?;
    let linker = tool_chain.linker(root, args.yes)?;
    let built = tool_chain.build(root, &linker)?;
    if let Some(output) = &args.output {
        copy(&built.join(OBJECTS[0].0), output)?;
        println!("{} by {}", output.display(), tool_chain.version);
        return Ok(());
    }
    let ebpf = root.join("anomaly-ebpf");
    for (binary, object) in OBJECTS {
        copy(&built.join(binary), &ebpf.join(object))?;
    }
    let record = format!(
        "# Written by `cargo xtask build-ebpf`; `cargo test -p xtask` compares.\nsources sha256:{}\nobject sha256:{}\nbuilt by {}\n",
        hash_of_sources(root)?,
        hash(&fs::read(ebpf.join(OBJECTS[0].1))?),
        tool_chain.version,
    );
    fs::write(ebpf.join(RECORD), &record)?;
    print!("{record}");
    Ok(())
}

/// Fails when the committed object is not what the record says, or not from the present sources.
fn check(root: &Path) -> Result<()> {
    let ebpf = root.join("anomaly-ebpf");
    let record = fs::read_to_string(ebpf.join(RECORD)).context("there is no record; run `cargo xtask build-ebpf`")?;
    let recorded = |what: &str| {
        let line = record.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(" sha256:"));
        line.with_context(|| format!("{RECORD} has no line for {what}"))
    };
    ensure!(
        recorded("sources")? == hash_of_sources(root)?,
        "the kernel program's sources changed since it was built: run `cargo xtask build-ebpf` and commit what it writes"
    );
    let object = OBJECTS[0].1;
    ensure!(
        recorded("object")? == hash(&fs::read(ebpf.join(object))?),
        "anomaly-ebpf/{object} is not the object that was recorded: run `cargo xtask build-ebpf`"
    );
    Ok(())
}

/// SHA-256 over names and contents of everything the object is made of, the lock file included.
fn hash_of_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for dir in ["anomaly-ebpf", "anomaly-common"] {
        files.push(format!("{dir}/Cargo.toml"));
        collect(root, &format!("{dir}/src"), &mut files)?;
    }
    files.push("anomaly-ebpf/Cargo.lock".into());
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        let content = fs::read(root.join(&file)).with_context(|| file.clone())?;
        hasher.update(format!("{file}\0{}\0", content.len()));
        hasher.update(content);
    }
    Ok(hex(&hasher.finalize()))
}

fn collect(root: &Path, dir: &str, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir)).with_context(|| dir.to_owned())? {
        let entry = entry?;
        let name = format!("{dir}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(root, &name, files)?;
        } else {
            files.push(name);
        }
    }
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

/// A compiler that can make BPF.
struct ToolChain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// Has no core for the target, but its source.
    build_std: bool,
    /// `rustc 1.96.0 (...), LLVM 22.1.8`.
    version: String,
    llvm: u32,
}

impl ToolChain {
    /// A compiler that can make BPF and for which there is, or can be, a bpf-linker: what is here already comes first.
    fn find(root: &Path, yes: bool) -> Result<Self> {
        let mut tried = Vec::new();
        for found in [Self::nightly("nightly")?, Self::nightly(NIGHTLY)?, Self::with_target()?].into_iter().flatten() {
            if let Some(usable) = found.usable(root, &mut tried) {
                return Ok(usable);
            }
        }
        for set in DEBIAN_RUST {
            if !setup::can_be_installed(set) {
                tried.push(format!("this distribution has no {}", set.join(" ")));
            } else if let Err(why) = setup::install("building the kernel program", set, yes) {
                tried.push(format!("{why:#}"));
            } else if let Some(found) = Self::with_target()? {
                if let Some(usable) = found.usable(root, &mut tried) {
                    return Ok(usable);
                }
            } else {
                tried.push(format!("{} is older than Rust {}.{}", set[0], OLDEST_RUSTC.0, OLDEST_RUSTC.1));
            }
        }
        let install = ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"];
        let by_hand = format!("rustup {}", install.join(" "));
        if setup::is_there("rustup") && setup::confirm(&by_hand, yes)? {
            let status = Command::new("rustup").args(install).status()?;
            match Self::nightly(NIGHTLY)? {
                Some(found) if status.success() => {
                    if let Some(usable) = found.usable(root, &mut tried) {
                        return Ok(usable);
                    }
                }
                _ => tried.push(format!("rustup could not install {NIGHTLY} with rust-src")),
            }
        }
        bail!(
            "no compiler here can build for {TARGET}. Install one of these:\n\
             - on Debian bookworm with security updates: apt-get install {}\n\
             - rustup (https://rustup.rs) and the LLVM that its compiler has (https://apt.llvm.org), then: {by_hand}\n\
             or say --yes. ({})",
            DEBIAN_RUST[0].join(" "),
            if tried.is_empty() { "nothing was tried".to_owned() } else { tried.join("; ") },
        );
    }

    /// This, where there is a bpf-linker for it or one can be built; else why not goes to `tried`.
    fn usable(self, root: &Path, tried: &mut Vec<String>) -> Option<Self> {
        match self.linker_packages(root) {
            Ok(_) => Some(self),
            Err(why) => {
                tried.push(why.to_string());
                None
            }
        }
    }

    /// rustup's tool chain of this name, where rust-src is installed with it.
    fn nightly(name: &str) -> Result<Option<Self>> {
        let which = |tool: &str| -> Option<PathBuf> {
            let output = Command::new("rustup").args(["which", "--toolchain", name, tool]).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().into())
        };
        let (Some(rustc), Some(cargo)) = (which("rustc"), which("cargo")) else { return Ok(None) };
        if !sysroot(&rustc)?.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            return Ok(None);
        }
        Self::new(cargo, rustc, true).map(Some)
    }

    /// Any compiler that brings core for the target.
    fn with_target() -> Result<Option<Self>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
        dirs.push("/usr/bin".into());
        for dir in dirs {
            let (rustc, cargo) = (dir.join("rustc"), dir.join("cargo"));
            if !rustc.is_file() || !cargo.is_file() {
                continue;
            }
            let lib = sysroot(&rustc).unwrap_or_default().join("lib/rustlib").join(TARGET);
            if lib.is_dir() {
                let found = Self::new(cargo, rustc, false)?;
                if found.is_new_enough() {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    fn new(cargo: PathBuf, rustc: PathBuf, build_std: bool) -> Result<Self> {
        let text = output(clean(&rustc).arg("-vV"))?;
        let llvm = text.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or_default();
        let version = format!("{}, LLVM {llvm}", text.lines().next().unwrap_or_default());
        let llvm = llvm.split('.').next().and_then(|major| major.parse().ok());
        let llvm = llvm.with_context(|| format!("{} does not say which LLVM it is built with", rustc.display()))?;
        Ok(Self { cargo, rustc, build_std, version, llvm })
    }

    fn is_new_enough(&self) -> bool {
        let mut numbers = self.version.split([' ', '.', '-']).filter_map(|word| word.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(OLDEST_RUSTC.0), Some(OLDEST_RUSTC.1))
    }

    /// Where bpf-linker with the compiler's LLVM is installed: below target/ and nowhere else.
    fn linker_home(&self, root: &Path) -> PathBuf {
        root.join(format!("target/bpf-linker/llvm-{}", self.llvm))
    }

    /// The version of bpf-linker that can be built with the compiler's LLVM.
    fn linker_version(&self) -> Result<&'static str> {
        let found = LINKERS.iter().find(|(_, llvms)| llvms.contains(&self.llvm));
        Ok(found.with_context(|| format!("{}: no known bpf-linker is built with LLVM {}", self.version, self.llvm))?.0)
    }

    /// The packages that are missing for building bpf-linker, none where it is there.
    ///
    /// # Errors
    /// When it cannot be built here, and why.
    fn linker_packages(&self, root: &Path) -> Result<Vec<String>> {
        if self.linker_home(root).join(LINKER).is_file() {
            return Ok(Vec::new());
        }
        self.linker_version()?;
        let mut needed = Vec::new();
        if !self.llvm_tools().join("llvm-config").is_file() {
            needed.extend([format!("llvm-{}-dev", self.llvm), format!("libpolly-{}-dev", self.llvm)]);
        }
        let multiarch = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
        needed.extend(LIBRARIES.into_iter().filter_map(|(package, header)| {
            let there = ["/usr/include", &multiarch].iter().any(|dir| Path::new(dir).join(header).is_file());
            (!there).then(|| package.to_owned())
        }));
        ensure!(
            needed.is_empty() || setup::can_be_installed(&needed),
            "bpf-linker is built with LLVM {} (that of {}), and this distribution has no {}; https://apt.llvm.org has",
            self.llvm,
            self.version,
            needed.join(" "),
        );
        Ok(needed)
    }

    fn llvm_tools(&self) -> PathBuf {
        format!("/usr/lib/llvm-{}/bin", self.llvm).into()
    }

    /// bpf-linker with the compiler's LLVM.
    fn linker(&self, root: &Path, yes: bool) -> Result<PathBuf> {
        let home = self.linker_home(root);
        let linker = home.join(LINKER);
        if linker.is_file() {
            return Ok(linker);
        }
        let version = self.linker_version()?;
        let needed = self.linker_packages(root)?;
        if !needed.is_empty() {
            setup::install("building bpf-linker", &needed, yes)?;
        }
        if !setup::confirm(&format!("cargo install bpf-linker {version} below target/ (a minute or two)"), yes)? {
            bail!("bpf-linker is missing; say --yes");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([self.llvm_tools()].into_iter().chain(std::env::split_paths(&path)))?;
        // The compiler of this workspace builds it: bpf-linker itself needs nothing special.
        let status = cargo(&["install", "bpf-linker", "--locked", "--version", version, "--no-default-features"])
            .args(["--features", &format!("llvm-{}", self.llvm), "--root"])
            .arg(&home)
            .env("PATH", path)
            .status()?;
        ensure!(
            status.success() && linker.is_file(),
            "bpf-linker {version} could not be built with LLVM {}",
            self.llvm
        );
        Ok(linker)
    }

    /// The directory of the finished objects.
    fn build(&self, root: &Path, linker: &Path) -> Result<PathBuf> {
        let target = root.join("target/ebpf");
        let flags = [
            // The program looks into no registers of a traced process; aya wants to know all the same.
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
            // 32-bit instructions: Linux 5.1.
            "-Ctarget-cpu=v3".to_owned(),
            format!("-Clinker={}", linker.display()),
        ];
        let mut cargo = clean(&self.cargo);
        cargo
            .args(["build", "--release", "--locked", "--target", TARGET])
            .current_dir(root.join("anomaly-ebpf"))
            .env("RUSTC", &self.rustc)
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        if self.build_std {
            cargo.args(["-Z", "build-std=core"]);
        } else {
            cargo.env("RUSTC_BOOTSTRAP", UNSTABLE);
        }
        let status = cargo.status().with_context(|| self.cargo.display().to_string())?;
        ensure!(status.success(), "the kernel program could not be built by {}", self.version);
        Ok(target.join(TARGET).join("release"))
    }
}

/// Debian's compilers with core for BPF: compiler, cargo, core.
const DEBIAN_RUST: [&[&str]; 2] =
    [&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"], &["rustc", "cargo", "libstd-rust-dev-bpf"]];

/// The nightly compiler that is installed where the distribution has none: of a day, because the newest one moves to an
/// LLVM that no distribution has yet, and because what else uses `nightly` here must not change under it.
const NIGHTLY: &str = "nightly-2026-05-20";

/// bpf-linker, where cargo installs it.
const LINKER: &str = "bin/bpf-linker";

/// What LLVM is linked to: Debian's package, and a header that shows that it is there.
const LIBRARIES: [(&str, &str); 4] = [
    ("libzstd-dev", "zstd.h"),
    ("zlib1g-dev", "zlib.h"),
    ("libxml2-dev", "libxml2/libxml/parser.h"),
    ("libffi-dev", "ffi.h"),
];

/// Versions of bpf-linker and the LLVMs they can be built with.
const LINKERS: [(&str, &[u32]); 2] = [("0.13.0", &[21, 22, 23]), ("0.9.15", &[19, 20])];

/// A command without what the cargo that runs this task set for itself.
fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO", "RUSTC_WRAPPER"] {
        command.env_remove(name);
    }
    command
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(output(clean(rustc).args(["--print", "sysroot"]))?.trim().into())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_is_from_the_present_sources() {
        check(root()).unwrap();
    }

    #[test]
    fn the_hash_follows_every_source() {
        let dir = std::env::temp_dir().join(format!("anomaly-xtask-{}", std::process::id()));
        for part in ["anomaly-ebpf/src", "anomaly-common/src"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        let files = [
            "anomaly-ebpf/Cargo.toml",
            "anomaly-ebpf/Cargo.lock",
            "anomaly-ebpf/src/main.rs",
            "anomaly-common/Cargo.toml",
            "anomaly-common/src/lib.rs",
        ];
        for file in files {
            fs::write(dir.join(file), file).unwrap();
        }
        let mut seen = vec![hash_of_sources(&dir).unwrap()];
        for file in files {
            fs::write(dir.join(file), "changed").unwrap();
            let now = hash_of_sources(&dir).unwrap();
            assert!(!seen.contains(&now), "{file}");
            seen.push(now);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}

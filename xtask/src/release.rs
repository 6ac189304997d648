//! What a release consists of: the program, its Debian package, manual page, completions, bill of materials, checksums.
//!
//! Deliberately no upload and no tag: those are decisions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::cargo::{cargo, executable, root};
use crate::setup;

/// Third-party tools, at the versions that were tried. They go to `target/tools`, never among the user's own.
const CARGO_DEB: (&str, &str) = ("cargo-deb", "3.8.0");
const CARGO_CYCLONEDX: (&str, &str) = ("cargo-cyclonedx", "0.5.9");

/// Builds what a release consists of, in target/dist: program, .deb, manual page, completions, SBOM, checksums.
#[derive(clap::Args)]
pub struct Args {
    /// Install the cargo tools that are missing (into target/tools) without asking.
    #[arg(long)]
    yes: bool,
    /// Version of the Debian package, where it is not the program's own.
    #[arg(long, value_name = "VERSION")]
    deb_version: Option<String>,
    /// Leave the software bill of materials (and its tool) out.
    #[arg(long)]
    no_sbom: bool,
}

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    let dist = root().join("target/dist");
    let _ = fs::remove_dir_all(&dist);
    fs::create_dir_all(&dist).with_context(|| format!("{} cannot be made; is this your clone?", dist.display()))?;
    let program = build()?;
    let version = args.deb_version.as_deref().map(|version| ["--deb-version", version]);
    debian_package(version.as_ref().map_or(&[], |words| words), &dist, args.yes)?;
    for name in ["anomaly.8", "anomaly.bash", "_anomaly", "anomaly.fish"] {
        fs::copy(texts().join(name), dist.join(name))?;
    }
    fs::copy(program, dist.join("anomaly"))?;
    if !args.no_sbom {
        bill_of_materials(&dist, args.yes)?;
    }
    checksums(&dist)?;
    println!("{}", dist.display());
    Ok(())
}

/// What the program prints about itself; beside cargo's own directories, because cargo-deb takes everything in those
/// for a compiler's output, and compresses no manual page among it.
fn texts() -> PathBuf {
    root().join("target/package")
}

/// Builds the program. Gives its path, which is not always below `target/`: cargo knows where it builds.
fn build() -> Result<PathBuf> {
    let mut command = cargo(&["build", "--release", "--locked", "--package", "anomaly", "--bin", "anomaly"]);
    environment(&mut command).args(["--message-format", "json-render-diagnostics"]);
    let program = executable(command, "anomaly").context("the release could not be built")?;
    print_texts(&program)?;
    Ok(program)
}

/// Has the program print its manual page and completions.
fn print_texts(program: &Path) -> Result<()> {
    let package = texts();
    fs::create_dir_all(&package)?;
    let printed: [(&str, &[&str]); 4] = [
        ("anomaly.8", &["man"]),
        ("anomaly.bash", &["completions", "bash"]),
        ("_anomaly", &["completions", "zsh"]),
        ("anomaly.fish", &["completions", "fish"]),
    ];
    for (name, words) in printed {
        let output = Command::new(program).args(words).output()?;
        if !output.status.success() {
            bail!("anomaly {words:?}: {}", output.status);
        }
        fs::write(package.join(name), output.stdout)?;
    }
    Ok(())
}

/// Packs a program that the tests have built, as [`run`] packs a release. Each version has a directory of its own:
/// cargo-deb clears others of the same name out of its way.
///
/// # Errors
/// When cargo-deb is unavailable, or refuses the package.
pub fn package_for_tests(program: &Path, version: &str, yes: bool) -> Result<PathBuf> {
    print_texts(program)?;
    let directory = root().join("target/tried").join(version);
    fs::create_dir_all(&directory)?;
    debian_package(&["--profile", "dev", "--fast", "--deb-version", version], &directory, yes)
}

/// Packs what was built. Gives the package's path, in `directory`.
fn debian_package(words: &[&str], directory: &Path, yes: bool) -> Result<PathBuf> {
    let mut command = tool(CARGO_DEB, "deb", yes)?;
    command.args(["--no-build", "--locked", "--package", "anomaly", "--output"]).arg(directory).args(words);
    let output = environment(&mut command).output()?;
    if !output.status.success() {
        bail!("cargo deb: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().rfind(|line| line.ends_with(".deb")).map(PathBuf::from).context("cargo deb named no package")
}

fn bill_of_materials(dist: &Path, yes: bool) -> Result<()> {
    let mut command = tool(CARGO_CYCLONEDX, "cyclonedx", yes)?;
    command.args(["--format", "json", "--manifest-path", "anomaly/Cargo.toml", "--override-filename", "anomaly.cdx"]);
    let output = environment(&mut command).output()?;
    if !output.status.success() {
        bail!("cargo cyclonedx: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // It writes one beside each manifest of the workspace.
    for package in ["anomaly", "anomaly-common", "xtask"] {
        let beside = root().join(package).join("anomaly.cdx.json");
        if package == "anomaly" {
            let text = fs::read_to_string(&beside).context("cargo cyclonedx wrote nothing")?;
            // It names packages by where they lie: with the root of the sources as the root of all, it is the same everywhere.
            fs::write(dist.join("anomaly.cdx.json"), text.replace(&root().display().to_string(), ""))?;
        }
        let _ = fs::remove_file(beside);
    }
    Ok(())
}

fn checksums(dist: &Path) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(dist)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let mut text = String::new();
    for name in names {
        let digest = Sha256::digest(fs::read(dist.join(&name))?);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("{hex}  {}\n", name.display());
    }
    Ok(fs::write(dist.join("SHA256SUMS"), text)?)
}

/// The same sources give the same bytes, wherever they lie: no build paths in the program, and the commit's date.
fn environment(command: &mut Command) -> &mut Command {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut flags = format!("--remap-path-prefix={}=/anomaly", root().display());
    if let Some(home) = home {
        flags += &format!("\u{1f}--remap-path-prefix={}=/cargo", home.display());
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags);
    let date = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()).output();
    let date = date.ok().filter(|output| output.status.success());
    if let Some(date) = date {
        command.env("SOURCE_DATE_EPOCH", String::from_utf8_lossy(&date.stdout).trim());
    }
    command
}

/// A cargo subcommand of target/tools, installed there first where it is missing or of another version.
fn tool((name, version): (&str, &str), subcommand: &str, yes: bool) -> Result<Command> {
    let tools = root().join("target/tools");
    let bin = tools.join("bin");
    let mark = tools.join(format!("{name}-{version}"));
    if !mark.exists() || !bin.join(name).exists() {
        let what = format!("cargo install --locked --version {version} --root target/tools {name}");
        if !setup::confirm(&format!("a release needs: {what}"), yes)? {
            bail!("a release needs: {what}   (run it with --yes)");
        }
        // Unoptimised: they are built in half the time, and run for seconds.
        let status = cargo(&["install", "--locked", "--force", "--debug", "--version", version, name, "--root"])
            .arg(&tools)
            .arg("--target-dir")
            .arg(tools.join("build"))
            .status()?;
        if !status.success() {
            bail!("{what}: {status}");
        }
        fs::write(mark, "")?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path)))?;
    let mut command = cargo(&[subcommand]);
    command.env("PATH", path);
    Ok(command)
}

//! `compose/Dockerfile` itself: the image built in it from the sources, and what it holds.
//!
//! A whole optimised build takes longer than all other tests of the stack together, so it is a step of its own: `cargo
//! xtask test --only dockerfile`. The bases are made here, with this machine's tool chain and crates in the builder.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::engine::{Engine, repository};
use super::programs;
use crate::debian;
use crate::lab::{Lab, ready, run};

/// Set by `cargo xtask test`'s step.
const WANTED: &str = "ANOMALY_DOCKERFILE_TEST";

#[test]
fn the_image_is_built_from_the_sources() -> Result<()> {
    let test = "the_image_is_built_from_the_sources";
    if std::env::var_os(WANTED).is_none() {
        println!("{test} is a step of its own: cargo xtask test --only dockerfile");
        return Ok(());
    }
    if !ready(test) || !programs(test) {
        return Ok(());
    }
    let lab = Lab::new("")?;
    let engine = Engine::start(&lab)?;
    let import = |packages, name| -> Result<()> {
        let archive = debian::make(debian::SUITE, packages)?;
        engine.docker(&["import", &archive.to_string_lossy(), name]).map(drop)
    };
    import("iptables,ipset,ca-certificates", "anomaly-test/runtime:1")?;
    import("gcc,libc6-dev,ca-certificates", "anomaly-test/compiler:1")?;
    let context = lab.dir().join("rust");
    std::fs::create_dir(&context)?;
    std::fs::copy(repository().join("tests/compose/Dockerfile.rust"), context.join("Dockerfile"))?;
    tool_chain(&context)?;
    let builder = engine.build(&context, "rust", "anomaly-test/compiler:1")?;

    let image = "anomaly-test/anomaly:1";
    engine.image(&["BUILDER_IMAGE=".to_owned() + &builder, "RUNTIME_IMAGE=anomaly-test/runtime:1".into()], image)?;
    let said = engine.docker(&["run", "--rm", "--network", "none", image, "--version"])?;
    ensure!(said.trim() == concat!("anomaly ", env!("CARGO_PKG_VERSION")), "{said}");
    let said = engine.docker(&["run", "--rm", "--network", "none", image, "config", "check"])?;
    ensure!(said.contains("good"), "{said}");
    let bytes = |image| -> Result<u64> {
        let said = engine.docker(&["image", "inspect", "--format", "{{.Size}}", image])?;
        said.trim().parse().with_context(|| format!("no size: {said}"))
    };
    let (whole, base) = (bytes(image)?, bytes("anomaly-test/runtime:1")?);
    println!("the image has {} MB, {} MB of it on top of its base", whole / 1_000_000, (whole - base) / 1_000_000);
    ensure!(whole - base < 30_000_000, "the image adds {} bytes to its base", whole - base);
    Ok(())
}

/// Copies the compiler that built this test, and the crates that cargo has fetched for it.
fn tool_chain(context: &Path) -> Result<()> {
    let sysroot = run(Command::new("rustc").args(["--print", "sysroot"]).current_dir(repository()))?;
    let home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let registry = home.context("neither CARGO_HOME nor HOME is set")?.join("registry");
    let copy = |from: &Path, to: &str| -> Result<()> {
        std::fs::create_dir_all(context.join(to))?;
        run(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(context.join(to))).map(drop)
    };
    for part in ["bin", "lib"] {
        copy(&Path::new(sysroot.trim()).join(part), "rust")?;
    }
    for part in ["cache", "index"] {
        copy(&registry.join(part), "registry")?;
    }
    Ok(())
}

//! `cargo xtask house`: the shape of the source in figures, as `tests/tidy.rs` measures it.

use std::path::Path;

use anyhow::{Context, Result};

use crate::house::{files, imports, items};

/// Print the import graph, its circles, and the figures that the tidy tests limit.
#[derive(clap::Args)]
pub struct Args {
    /// Print every import between rooms, not only circles.
    #[arg(long)]
    imports: bool,
}

/// Measures the repository and prints the figures.
///
/// # Errors
/// When the repository cannot be found.
pub fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let files = files(root);
    let arrows = imports::arrows(&files);
    if args.imports {
        let mut between = std::collections::BTreeSet::new();
        for (from, targets) in &arrows {
            between.extend(targets.iter().map(|to| (imports::room(from), imports::room(to))));
        }
        for (from, to) in between.iter().filter(|(from, to)| from != to) {
            println!("{from} -> {to}");
        }
    }
    let circles = imports::circles(&arrows);
    circles.iter().for_each(|arrow| println!("circle {arrow}"));
    let names = items::names(&files);
    let doubled = items::doubled_names(&files);
    for (name, places) in &doubled {
        println!("type name {name}: {}", places.iter().cloned().collect::<Vec<_>>().join(", "));
    }
    let (long, functions) = items::long_functions(&files, 60);
    for (name, lines) in &long {
        println!("long function {name}: {lines} lines");
    }
    for (name, fields) in items::large_structs(&files, 12) {
        println!("large struct {name}: {fields} fields");
    }
    let lines = items::lines(&files);
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    println!("files: {}; lines of code: {}", files.len(), lines.code);
    println!("arrows in circles: {}", circles.len());
    println!(
        "names of types that mean several: {} of {} ({:.1} %)",
        doubled.len(),
        names.len(),
        100.0 * share(doubled.len(), names.len())
    );
    println!("functions over 60 lines: {} of {functions} ({:.1} %)", long.len(), 100.0 * share(long.len(), functions));
    println!("lines of documentation per line of code: {:.2}", share(lines.docs, lines.code));
    println!("lines of other comments per line of code: {:.3}", share(lines.comments, lines.code));
    Ok(())
}

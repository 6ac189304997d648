//! Builds the kernel program and records what it was built from.

/// Builds the kernel program and records what it was built from.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing without asking.
    #[arg(long)]
    yes: bool,
}

/// Runs the task.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let _ = args.yes;
    anyhow::bail!("not built yet")
}

//! Plays the main job in a lab of network namespaces.

/// Plays the main job in a lab of network namespaces.
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

//! Measures, and prints one table for each thing that is measured.

mod xdp;

/// Measures, and prints one table for each thing that is measured.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Xdp(xdp::Args),
}

/// Runs the task.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Xdp(args) => xdp::run(args),
    }
}

//! Build, test, demo and measurement tasks; `cargo xtask help` lists them.

mod bench;
mod build_ebpf;
mod cargo;
mod demo;
mod eval;
mod fuzz;
#[path = "../../tests/house/mod.rs"]
#[expect(dead_code, reason = "the tidy tests use what the task does not")]
mod house;
#[path = "../../tests/lab/mod.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it than the demo does")]
mod lab;
mod measure;
mod release;
mod setup;
mod test;
mod torture;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// anomaly's tasks. Each installs what it needs: it asks first, or does not with --yes.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    BuildEbpf(build_ebpf::Args),
    Test(test::Args),
    Demo(demo::Args),
    Eval(eval::Args),
    Fuzz(fuzz::Args),
    House(measure::Args),
    Bench(bench::Args),
    Release(release::Args),
    Torture(torture::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Eval(args) => eval::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::House(args) => measure::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Release(args) => release::run(&args),
        Task::Torture(args) => torture::run(&args),
    };
    // Where RUST_BACKTRACE is set, a missing package would otherwise be told in thirty lines.
    outcome.map_or_else(
        |error| {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

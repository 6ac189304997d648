//! Build, test, demo and measurement tasks; `cargo xtask help` lists them.

fn main() {}

//! The project's own commands: `cargo xtask VERB`.
//!
//! Each verb finds or installs what it needs, and says so before it does. Exit codes: 0 done,
//! 1 failed, 2 something is missing that was not to be installed (`--no-install`).

mod apt;
mod bench;
mod build;
mod clean;
mod kernels;
mod missing;
mod place;
mod root;
mod run;
mod test;
mod tidy;
mod toolchain;
mod vnstat;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use xshell::Shell;

use missing::Missing;

/// Builds, runs, tests and measures the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Xtask {
    /// Install nothing: say what is missing and how to get it, and stop with exit code 2.
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Compile the eBPF object and the release binary; its path is the last line of the output.
    Build,
    /// Build, then `traffic run ARGS` with root's rights (by sudo when not root).
    Run(Passed),
    /// Format, lints, project rules, unit tests, then the tests that need root.
    ///
    /// ARGS go to the last of them, for example `cargo xtask test -- --nocapture tcx`.
    Test(Passed),
    /// Build, then measure against the alternatives: writes tables and charts to target/bench.
    Bench(Passed),
    /// Check the project's own rules: who may use what, sizes of files, documents.
    Tidy,
    /// What CI runs: `test` where nothing may be skipped (sets TRAFFIC_TEST_ALL=1).
    Ci,
    /// Remove results of measurements, cached build tools and what `traffic` left in the kernel.
    Clean,
}

#[derive(Debug, Args)]
struct Passed {
    /// Handed on as they are; put `--` in front.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    let xtask = Xtask::parse();
    match perform(&xtask) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::from(if err.is::<Missing>() { 2 } else { 1 })
        }
    }
}

fn perform(xtask: &Xtask) -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(place::project());
    let install = !xtask.no_install;
    match &xtask.verb {
        Verb::Build => {
            println!("{}", build::release(&sh, install)?.binary.display());
            Ok(())
        }
        Verb::Run(passed) => run::run(&sh, install, &passed.args),
        Verb::Test(passed) => test::test(&sh, install, &passed.args),
        Verb::Bench(passed) => bench::bench(&sh, install, &passed.args),
        Verb::Tidy => tidy::tidy(),
        Verb::Ci => {
            sh.set_var(test::EVERYTHING, "1");
            test::test(&sh, install, &[])
        }
        Verb::Clean => clean::clean(&sh),
    }
}

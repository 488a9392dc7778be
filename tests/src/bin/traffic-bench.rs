//! `traffic-bench`: measures what counting costs. Started by `cargo xtask bench`; needs root.

use anyhow::Result;
use clap::Parser as _;
use traffic_tests::bench;

fn main() -> Result<()> {
    bench::run(&bench::Args::parse())
}

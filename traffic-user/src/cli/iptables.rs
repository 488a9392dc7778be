//! `traffic iptables`: what rules of nftables or iptables counted, and their cleanup.

mod clean;
mod menu;
mod show;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use anyhow::Result;
use clap::Subcommand;

use super::Common;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    show: show::Args,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One line a port group
    Port(show::Args),
    /// By user: shares where the proxy says who moved what, else the users of a group together
    User(show::Args),
    /// All groups together
    Total(show::Args),
    /// Take rules away: ours of one port, all of ours, or those that multi-v2ray left
    Clean(clean::Args),
}

pub(super) fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    match &args.what {
        Some(What::Port(args)) => show::run(common, show::Part::Port, args),
        Some(What::User(args)) => show::run(common, show::Part::User, args),
        Some(What::Total(args)) => show::run(common, show::Part::Total, args),
        Some(What::Clean(args)) => clean::run(common, args),
        None if args.show.is_plain() && !common.json && on_a_terminal() => menu::run(common),
        None => show::run(common, show::Part::Port, &args.show),
    }
}

fn on_a_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

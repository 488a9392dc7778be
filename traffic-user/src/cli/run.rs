//! `traffic run`: attach, count and show until stopped.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;
use jiff::SignedDuration;

use super::{Global, MOST_GROUPS, groups, host};
use crate::{
    accounting::ident::Groups,
    daemon::{self, Output, Settings},
    meter::{
        Lock, MeterError,
        devices::{Facts, Wanted, choose},
        ebpf::{EbpfMeter, Hook, Options},
        listening::listening,
    },
};

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to count: ports, ranges, lists joined by +, each with /tcp or /udp and a name if wanted,
    /// such as 443,8443/tcp,20000-50000/udp=hop. Without it: the ports that something listens on
    #[arg(long, value_name = "LIST", value_parser = groups)]
    ports: Option<Groups>,
    /// Devices to count on (globs). Without it: those with a default route, followed as they change
    #[arg(long, value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    iface: Vec<String>,
    /// Which hook counts
    #[arg(long, value_name = "METER", default_value = "auto")]
    meter: MeterChoice,
    /// Folder in cgroup2, for the cgroup meter. Without it: its root
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Time between ticks. Without it: 2s for a table, 10s for JSON
    #[arg(long, value_name = "TIME", value_parser = interval)]
    interval: Option<Duration>,
    /// What to write at each tick
    #[arg(long, value_name = "FORM")]
    output: Option<OutputChoice>,
    /// End after so many ticks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Go on counting when this ends; the next start takes over without losing a packet
    #[arg(long)]
    persist: bool,
    /// Keep no state in --state
    #[arg(long)]
    no_ledger: bool,
    /// Log every packet to stderr: for looking into one, not for a busy server
    #[arg(long)]
    log_packets: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MeterChoice {
    /// The best that works here
    Auto,
    /// tcx links (kernel 6.6 and later)
    Tcx,
    /// clsact qdisc and filters
    Tc,
    /// Sockets of a cgroup
    Cgroup,
}

impl MeterChoice {
    const fn hook(self) -> Option<Hook> {
        match self {
            Self::Auto => None,
            Self::Tcx => Some(Hook::Tcx),
            Self::Tc => Some(Hook::Tc),
            Self::Cgroup => Some(Hook::Cgroup),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputChoice {
    /// A table that is drawn again
    Table,
    /// One document a line
    Json,
}

fn interval(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text
        .parse()
        .map_err(|_| "write a time such as 500ms, 10s or 1m".to_owned())?;
    let duration = Duration::try_from(parsed).map_err(|_| "a time is not negative".to_owned())?;
    if (SHORTEST..=LONGEST).contains(&duration) {
        Ok(duration)
    } else {
        Err("a tick takes 10ms to 24h".to_owned())
    }
}

pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode> {
    let output = match args.output {
        Some(OutputChoice::Json) => Output::Json,
        Some(OutputChoice::Table) => Output::Table,
        None if global.json => Output::Json,
        None => Output::Table,
    };
    let default = if output == Output::Json { 10 } else { 2 };
    let interval = args.interval.unwrap_or(Duration::from_secs(default));
    let hook = args.meter.hook();
    if args.cgroup.is_some() && !matches!(hook, None | Some(Hook::Cgroup)) {
        bail!("--cgroup goes with --meter cgroup (or auto)");
    }
    // A path in cgroup2 says which meter is meant.
    let hook = if args.cgroup.is_some() {
        Some(Hook::Cgroup)
    } else {
        hook
    };
    let wanted = Wanted::new(&args.iface).map_err(|error| anyhow!("--iface: {error}"))?;

    let _state = if args.no_ledger {
        None
    } else {
        Some(state(global)?)
    };
    let _lock = Lock::of_this_netns()?;
    let groups = match &args.ports {
        Some(groups) => groups.clone(),
        None => Groups::new(listening()?, MOST_GROUPS)?,
    };
    check_devices(&wanted)?;
    let options = Options {
        hook,
        cgroup: args.cgroup,
        persist: args.persist,
        pins: global.pins.clone(),
        log: args.log_packets,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let meter = EbpfMeter::start(&options, &groups)?;
    let settings = Settings {
        host: host(),
        wanted,
        groups: args.ports,
        interval,
        output,
        count: args.count,
        log: args.log_packets,
    };
    runtime.block_on(daemon::run(settings, meter))?;
    Ok(ExitCode::SUCCESS)
}

/// A device that is asked for by name must be there, before anything is attached.
fn check_devices(wanted: &Wanted) -> Result<()> {
    let Wanted::Named(_) = wanted else {
        return Ok(());
    };
    let facts = Facts::gather()?;
    let choice = choose(&facts, wanted);
    match choice.unmatched.into_iter().next() {
        None => Ok(()),
        Some(pattern) => {
            let names: Vec<_> = facts
                .devices
                .into_iter()
                .map(|device| device.name)
                .collect();
            Err(MeterError::NoDevice {
                pattern,
                present: names.join(", "),
            }
            .into())
        }
    }
}

/// The state folder, made if need be and locked: it has one writer.
fn state(global: &Global) -> Result<Lock> {
    crate::state::folder(&global.state)?;
    let lock = Lock::take(&global.state.join("lock"));
    lock.with_context(|| {
        format!(
            "the state folder {} cannot be used (--state chooses another, --no-ledger none)",
            global.state.display()
        )
    })
}

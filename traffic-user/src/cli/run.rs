//! `traffic run`: attach, count and show until stopped.

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;

use super::{CHECKS, Common, MOST_GROUPS, books::own_zone, groups, host, proxy::ProxyArgs};
use crate::{
    accounting::{
        ident::{Groups, Hook, MeterKind, shown},
        period::{Calendar, Period},
        tick::{Begin, Cursors, State},
    },
    config::{Config, Output, interval},
    daemon::{
        self, Books, Fresh, Live, Messages, Proxy, ProxyPlace, Reload, Settings, Signals, unix_time,
    },
    fault,
    ledger::{self, LedgerError},
    meter::{
        self, Lock, Meter, MeterError, Options,
        devices::{Facts, Wanted, choose},
        host::{boot_id, missing_capabilities},
        listening::listening,
    },
};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// What to count: ports, ranges, lists joined by +, each with /tcp or /udp and a name if wanted,
    /// such as 443,8443/tcp,20000-50000/udp=hop. Without it: the ports that something listens on
    #[arg(long, value_name = "LIST", value_parser = groups)]
    ports: Option<Groups>,
    #[command(flatten)]
    proxy: ProxyArgs,
    /// Devices to count on (globs). Without it: those with a default route, followed as they change
    #[arg(long, value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    iface: Vec<String>,
    /// What counts. Without it: auto
    #[arg(long, value_name = "METER")]
    meter: Option<MeterChoice>,
    /// Folder in cgroup2, for the cgroup meter. Without it: its root
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Time between ticks. Without it: 2s for a table, else 10s
    #[arg(long, value_name = "TIME", value_parser = interval)]
    interval: Option<Duration>,
    /// What to write at each tick. Without it: a table; none where a service manager started it
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

impl Args {
    /// Whether every packet is to be logged.
    pub(super) fn logs_packets(&self) -> bool {
        self.log_packets
    }
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
    /// Rules of nftables: where eBPF cannot run
    Nft,
    /// Rules of iptables: the last resort
    Iptables,
}

impl MeterChoice {
    const fn kind(self) -> Option<MeterKind> {
        Some(match self {
            Self::Auto => return None,
            Self::Tcx => MeterKind::Ebpf(Hook::Tcx),
            Self::Tc => MeterKind::Ebpf(Hook::Tc),
            Self::Cgroup => MeterKind::Ebpf(Hook::Cgroup),
            Self::Nft => MeterKind::Nft,
            Self::Iptables => MeterKind::Iptables,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputChoice {
    /// A table that is drawn again
    Table,
    /// One document a line
    Json,
    /// Nothing
    None,
}

impl OutputChoice {
    const fn output(self) -> Output {
        match self {
            Self::Table => Output::Table,
            Self::Json => Output::Json,
            Self::None => Output::None,
        }
    }
}

pub(super) fn run(common: &Common, args: Args, messages: Messages) -> Result<ExitCode> {
    let config = &common.config;
    let typed = args.output.map(OutputChoice::output).or(common.json.then_some(Output::Json));
    if common.json && typed != Some(Output::Json) {
        bail!(
            "--json is --output json, and another --output is named\n  remedy: leave one of them out"
        );
    }
    // A journal is no place for a table that is drawn again and again.
    let output = typed.or(config.output).unwrap_or_else(|| {
        if daemon::is_watched() && !io::stdout().is_terminal() {
            Output::None
        } else {
            Output::Table
        }
    });
    let place = args.proxy.place(common)?;
    let live = live(&args, config, output, place.as_ref())?;
    let kind = args.meter.map_or(config.meter.flatten(), MeterChoice::kind);
    // Another meter that is typed stands above a cgroup of the configuration.
    let of_config = match args.meter.and_then(MeterChoice::kind) {
        None | Some(MeterKind::Ebpf(Hook::Cgroup)) => config.cgroup.clone(),
        Some(_) => None,
    };
    let cgroup = args.cgroup.clone().or(of_config);
    if cgroup.is_some() && !matches!(kind, None | Some(MeterKind::Ebpf(Hook::Cgroup))) {
        bail!("--cgroup goes with --meter cgroup (or auto)");
    }
    // A path in cgroup2 says which meter is meant.
    let kind = if cgroup.is_some() { Some(MeterKind::Ebpf(Hook::Cgroup)) } else { kind };
    if kind == Some(MeterKind::Ebpf(Hook::Cgroup)) && !args.iface.is_empty() {
        let named = if args.cgroup.is_none() && args.meter.is_none() {
            "the cgroup of the configuration"
        } else {
            "--meter cgroup"
        };
        bail!("--iface does not go with {named}, which counts sockets wherever their packets pass");
    }
    // First of all: whoever lacks a right is not to be told of a folder.
    check_rights(kind)?;
    let no_ledger = args.no_ledger || config.ledger == Some(false);
    let state_lock = if no_ledger { None } else { Some(state(common)?) };
    let _lock = Lock::of_this_netns((!no_ledger).then_some(common.state.as_path()))?;
    let started = unix_time();
    let begin = Begin { now: started, boot: boot_id() };
    let typed = live.typed.clone().unwrap_or_default();
    let mut proxy = match place.clone() {
        Some(place) => Proxy::find(place, typed.clone(), live.interval, started)?,
        None => None,
    };
    let asked = match &proxy {
        Some(proxy) => proxy.groups(),
        None => typed,
    };
    let listeners = asked.is_empty();
    let groups = if listeners { Groups::new(listening()?, MOST_GROUPS)? } else { asked };
    check_devices(&live.wanted)?;
    let persist = args.persist || config.persist == Some(true);
    // Before anything counts, so that a ledger that cannot be used leaves nothing behind.
    let (mut state, books) = match &state_lock {
        Some(_) => {
            let opened = Books::open(&common.state, live.ledger.clone(), begin);
            let (books, state) = opened.map_err(or_without_ledger)?;
            (state, Some(books))
        }
        None => (State::begin(Cursors::default(), begin), None),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // Before anything counts, so that no signal can end us without taking it off.
    let signals = {
        let _inside = runtime.enter();
        Signals::listen(persist).context("cannot listen for signals")?
    };
    let here = format!("{}:", meter::netns()?);
    let gone = state.left().is_some_and(|left| {
        // What counts in another network namespace cannot be looked at from here.
        let pins = left.place.strip_prefix(&here);
        pins.is_some_and(|pins| meter::gone(left.meter, Path::new(pins)))
    });
    let options = Options {
        kind,
        cgroup,
        wanted: live.wanted.clone(),
        persist,
        pins: common.pins.clone(),
        log: args.log_packets,
        gap: gone,
    };
    let meter = Meter::start(&options, &groups, &state.unfinished())?;
    if gone && let Some(what) = state.left_is_gone(unix_time()) {
        tracing::warn!("{what}");
    }
    state.leave(meter.kind().name(), persist.then(|| format!("{here}{}", common.pins.display())));
    fault::signal_at("meter started");
    if let Some(proxy) = &mut proxy
        && let Err(error) = proxy.watch()
    {
        tracing::warn!(error = format!("{error:#}"), "the proxy's API is not read");
    }
    let settings = Settings {
        host: host(),
        wanted: live.wanted,
        listeners,
        proxy: live.proxy,
        interval: live.interval,
        output,
        count: args.count,
        log: args.log_packets,
        messages,
        state: state_lock.as_ref().map(|_| common.state.clone()),
        reload: persist.then(|| reload(common, args, output, place)),
    };
    runtime.block_on(daemon::run(settings, signals, meter, proxy, (state, books)))?;
    Ok(ExitCode::SUCCESS)
}

const GLOB: &str =
    "in a glob `*`, `?` and `[...]` stand for others; write `[[]` for the bracket itself";

/// What can change while counting goes on: the command line, else the configuration, else the default.
fn live(args: &Args, config: &Config, output: Output, place: Option<&ProxyPlace>) -> Result<Live> {
    let default = if output == Output::Table { 2 } else { 10 };
    let globs = if args.iface.is_empty() { config.iface.as_deref() } else { None };
    let typed = args.ports.clone().or_else(|| config.ports.clone());
    Ok(Live {
        wanted: Wanted::new(globs.unwrap_or(&args.iface))
            .map_err(|error| anyhow!("--iface: {error}\n  remedy: {GLOB}"))?,
        interval: args.interval.or(config.interval).unwrap_or(Duration::from_secs(default)),
        // One that was named is there now or never; with ports that were typed, they are what is
        // wanted.
        proxy: place.filter(|place| !place.is_named() && typed.is_none()).cloned(),
        typed,
        ledger: ledger_options(config)?,
    })
}

/// Reads the configuration again. The proxy that is meant stays.
fn reload(common: &Common, args: Args, output: Output, place: Option<ProxyPlace>) -> Reload {
    let (file, before) = (common.config_file.clone(), common.config.clone());
    Reload(Box::new(move || {
        let now = Config::load(file.as_deref(), CHECKS)?;
        let live = live(&args, &now, output, place.as_ref())?;
        check_devices(&live.wanted)?;
        Ok(Fresh { live, later: daemon::later(&before, &now) })
    }))
}

/// What this kind of meter needs; rules, which `auto` can fall back to, only the right to change the network.
fn check_rights(kind: Option<MeterKind>) -> Result<(), MeterError> {
    const NETWORK: &str = "CAP_NET_ADMIN";
    let mut missing = missing_capabilities();
    let (doing, needed) = match kind {
        Some(MeterKind::Ebpf(_)) => ("count in the kernel", !missing.is_empty()),
        None => ("count in the kernel", missing.contains(&NETWORK)),
        Some(MeterKind::Nft | MeterKind::Iptables) => {
            missing.retain(|name| *name == NETWORK);
            ("set rules that count", !missing.is_empty())
        }
    };
    if needed {
        return Err(MeterError::Denied { doing, capability: missing.join(", ") });
    }
    Ok(())
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
            let names: Vec<_> = facts.devices.iter().map(|device| shown(&device.name)).collect();
            Err(MeterError::NoDevice { pattern, present: names.join(", ") }.into())
        }
    }
}

/// Says what helps against a ledger that cannot be used; the program can also run without one.
fn or_without_ledger(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<LedgerError>() {
        Some(cause) => {
            anyhow!("{error:#}\n  remedy: {}, or run with --no-ledger", cause.remedy())
        }
        None => error,
    }
}

/// Locks the state folder, which is there: it has one writer.
pub(super) fn lock(common: &Common) -> Result<Lock, MeterError> {
    Lock::take(&common.state.join("lock"))
}

/// The state folder, made if need be and locked.
pub(super) fn state(common: &Common) -> Result<Lock> {
    crate::state::folder(&common.state)?;
    lock(common).map_err(|error| match error {
        MeterError::Busy { pid, .. } => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            anyhow!(
                "another traffic daemon{pid} books in the state folder {}\n  remedy: stop that one first, or choose another folder with --state",
                common.state.display()
            )
        }
        MeterError::File { .. } => {
            let error = meter::chain(&error);
            anyhow!("{error}\n  remedy: choose another folder with --state, or run with --no-ledger")
        }
        other => other.into(),
    })
}

/// How the ledger is kept: days are those of the reports.
pub(super) fn ledger_options(config: &Config) -> Result<ledger::Options> {
    // Only its days are asked for, and a billing month may begin on any.
    let days = Calendar::new(own_zone(config), 1)?;
    let day = move |second: i64| days.period(Period::Day, second);
    Ok(ledger::Options { retention: config.retention(), calendar: ledger::Calendar::new(day) })
}

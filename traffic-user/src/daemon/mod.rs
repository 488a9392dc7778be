//! The loop: read at every tick, follow the devices, stop when told to.
//!
//! It waits and writes, and decides nothing. However it ends, the meter's own `Drop` leaves nothing
//! attached, unless the meter was started to persist.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    accounting::{
        delta::{First, diff},
        ident::Groups,
        reading::Snapshot,
        report::{DeviceReport, Dump},
    },
    fault,
    meter::{
        devices::{Choice, Events, Facts, Wanted, choose},
        ebpf::{EbpfMeter, Hook},
        listening::listening,
    },
    view::{json, table},
};

/// How often the programs' log is looked at, when packets are logged.
const LOG_PERIOD: Duration = Duration::from_millis(100);
/// Lines that a table takes besides those of groups.
const TABLE_FRAME: usize = 7;

/// What `run` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// A table that is drawn again at every tick.
    Table,
    /// One JSON document a tick on a line of its own.
    Json,
}

/// How `run` runs, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) wanted: Wanted,
    /// The groups that were asked for; `None` watches what listens.
    pub(crate) groups: Option<Groups>,
    pub(crate) interval: Duration,
    pub(crate) output: Output,
    /// Documents to write before ending by itself.
    pub(crate) count: Option<u64>,
    pub(crate) log: bool,
}

/// The signals that end the loop.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// Counts until a signal, the end of the reader, or `count`.
pub(crate) async fn run(settings: Settings, mut meter: EbpfMeter) -> Result<()> {
    let mut stop = Stop::listen().context("cannot listen for signals")?;
    // Before the first look at the devices, so that a change in between is seen.
    let mut events = Events::listen()?;
    let mut facts = Facts::gather()?;
    let choice = choose(&facts, &settings.wanted);
    if meter.hook() != Hook::Cgroup && choice.devices.is_empty() {
        tracing::warn!("no device has a default route yet: counting begins when one does");
    }
    if let Err(error) = follow(&mut meter, &choice, true) {
        meter.give_up();
        return Err(error);
    }
    let mut screen = Screen::new(&settings);

    let mut written = 0;
    let mut last: Option<Snapshot> = None;
    let mut ticks = interval_at(Instant::now(), settings.interval);
    // After a suspend one late tick, not a burst: totals do not care how long the gap was.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut log = interval_at(Instant::now(), LOG_PERIOD);
    log.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        tokio::select! {
            biased;
            name = stop.wait() => {
                tracing::info!(signal = name, "stopping");
                break;
            }
            news = events.next() => {
                match news {
                    Ok(Some(news)) => {
                        facts = news;
                        follow(&mut meter, &choose(&facts, &settings.wanted), false)?;
                    }
                    Ok(None) => anyhow::bail!("the kernel closed the netlink connection"),
                    Err(error) => tracing::warn!(%error, "devices may have changed unseen"),
                }
                continue;
            }
            _ = log.tick(), if settings.log => {
                meter.flush_log();
                continue;
            }
            _ = ticks.tick() => {}
        }
        if settings.groups.is_none() {
            follow_listeners(&mut meter)?;
        }
        let snapshot = screen.write(&mut meter, last.as_ref())?;
        last = Some(snapshot);
        written += 1;
        if settings.count == Some(written) {
            return Ok(());
        }
        fault::panic_at("tick");
    }
    // What passed since the last tick counts too.
    screen.write(&mut meter, last.as_ref())?;
    Ok(())
}

/// Counts on the chosen devices. At the start a device that cannot be counted is an error if it
/// leaves nothing to count; later it is a warning.
fn follow(meter: &mut EbpfMeter, choice: &Choice, first: bool) -> Result<()> {
    for (device, reason) in &choice.left_out {
        tracing::debug!(%device, %reason, "left out");
    }
    let mut errors = meter.count_on(choice);
    if first && meter.devices().next().is_none() && !errors.is_empty() {
        return Err(errors.swap_remove(0).into());
    }
    for error in errors {
        tracing::warn!(
            error = format!("{:#}", anyhow::Error::from(error)),
            "a device is not counted"
        );
    }
    Ok(())
}

/// Watches ports that something began to listen on. One that is watched stays so.
fn follow_listeners(meter: &mut EbpfMeter) -> Result<()> {
    let listening = listening()?;
    let watched: Vec<_> = meter.watched().map(|group| (**group).clone()).collect();
    let known = Groups::new(watched, usize::MAX)?;
    let more = known.extended_by(&listening);
    if more.len() > known.len()
        && let Err(error) = meter.watch(&more)
    {
        tracing::warn!(%error, "ports that began to listen are not watched");
    }
    Ok(())
}

/// Where the documents or tables go.
struct Screen {
    host: String,
    output: Output,
    /// Draw over what was there.
    redraw: bool,
    rows: usize,
}

impl Screen {
    fn new(settings: &Settings) -> Self {
        let redraw = settings.output == Output::Table && io::stdout().is_terminal();
        let rows = if redraw { terminal_rows() } else { usize::MAX };
        Self { host: settings.host.clone(), output: settings.output, redraw, rows }
    }

    /// Reads the meter and writes what it says.
    fn write(&mut self, meter: &mut EbpfMeter, last: Option<&Snapshot>) -> Result<Snapshot> {
        let snapshot = meter.read()?;
        let report = report(&self.host, meter, snapshot);
        let mut stdout = io::stdout().lock();
        match self.output {
            Output::Json => writeln!(stdout, "{}", json::dump(&report)?)?,
            Output::Table => {
                let deltas = last.map(|last| diff(Some(last), &report.snapshot, First::Baseline).0);
                let most = self.rows.saturating_sub(TABLE_FRAME).max(3);
                let text = table::live(&report, deltas.as_ref(), most);
                if self.redraw {
                    // Home, then each line to its end, then what is left below.
                    let text = text.replace('\n', "\x1b[K\n");
                    write!(stdout, "\x1b[H{text}\x1b[J")?;
                } else {
                    writeln!(stdout, "{text}")?;
                }
            }
        }
        stdout.flush()?;
        Ok(report.snapshot)
    }
}

/// What a meter says, with what is needed to understand it.
fn report(host: &str, meter: &EbpfMeter, snapshot: Snapshot) -> Dump {
    let hook = meter.hook().name();
    let devices = meter
        .devices()
        .map(|device| DeviceReport {
            name: device.name.clone(),
            link_header: device.link_header,
            hook,
        })
        .collect();
    let passed_over =
        meter.passed_over().iter().map(|(hook, why)| (hook.name(), why.clone())).collect();
    Dump { host: host.to_owned(), snapshot, devices, passed_over }
}

/// Height of the terminal; 24 where it does not say.
fn terminal_rows() -> usize {
    terminal_size::terminal_size().map_or(24, |(_, height)| usize::from(height.0))
}

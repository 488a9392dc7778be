//! The signals that the loop listens to.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::run::exit_at_once;

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// End; by this signal.
    Stop(&'static str),
    /// Read the configuration again.
    Reload,
}

/// SIGINT, SIGTERM and SIGHUP.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where whoever started us had it ignored, as `nohup` does.
    hangup: Option<Signal>,
    reloads: bool,
}

impl Signals {
    /// With `reloads` SIGHUP means to read again; otherwise it ends, as the closing of a terminal does.
    pub(crate) fn listen(reloads: bool) -> io::Result<Self> {
        let hangup = if reloads || !is_ignored(SignalKind::hangup()) {
            Some(signal(SignalKind::hangup())?)
        } else {
            None
        };
        let signals = Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
            reloads,
        };
        // Last: a signal that it took and the loop did not would be the first of two.
        exit_at_second()?;
        Ok(signals)
    }

    /// The next one.
    pub(super) async fn wait(&mut self) -> Told {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            Some(_) = next(&mut self.hangup) => {
                if self.reloads { Told::Reload } else { Told::Stop("SIGHUP") }
            }
        }
    }
}

async fn next(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

fn is_ignored(kind: SignalKind) -> bool {
    let status = procfs::process::Process::myself().and_then(|me| me.status());
    status.is_ok_and(|status| status.sigign & 1 << (kind.as_raw_value() - 1) != 0)
}

/// Signals that come closer together than this are one wish: a key that was pressed twice.
const ONE_WISH: Duration = Duration::from_secs(1);

/// Ends the process at once when it is told to stop a second time: the loop may wait for a reader of its output that
/// never comes back. A thread of its own, because the loop's is the one that waits; and without a word, which the
/// same reader may not take.
fn exit_at_second() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        let mut first: Option<Instant> = None;
        loop {
            let kind = tokio::select! {
                Some(()) = interrupt.recv() => SignalKind::interrupt(),
                Some(()) = terminate.recv() => SignalKind::terminate(),
                else => return,
            };
            if first.get_or_insert_with(Instant::now).elapsed() >= ONE_WISH {
                exit_at_once(128 + kind.as_raw_value());
            }
        }
    };
    std::thread::Builder::new()
        .name("second signal".to_owned())
        .spawn(move || runtime.block_on(wait))?;
    Ok(())
}

//! The signals that the loop listens to.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

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
    hangup: Signal,
    reloads: bool,
}

impl Signals {
    /// With `reloads` SIGHUP means to read again; otherwise it ends, as the closing of a terminal does.
    pub(crate) fn listen(reloads: bool) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            reloads,
        })
    }

    /// The next one.
    pub(super) async fn wait(&mut self) -> Told {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.hangup.recv() => {
                if self.reloads { Told::Reload } else { Told::Stop("SIGHUP") }
            }
        }
    }
}

//! SIGHUP: what the configuration says now is put into force while counting goes on.
//!
//! All or nothing: what cannot be used leaves everything as it was.

use std::{fmt, time::Duration};

use anyhow::Result;

use super::{Books, Proxy, ProxyPlace, Settings, pending::Pending};
use crate::{
    accounting::ident::Groups,
    config::Config,
    ledger,
    meter::{Meter, MeterError, devices::Wanted, listening::listening},
};

/// Keys that a reload puts into force.
const LIVE: [&str; 7] =
    ["ports", "iface", "interval", "time_zone", "keep_minutes", "keep_hours", "keep_days"];
/// Keys that the daemon does not use: verbs read them each time.
const OF_VERBS: [&str; 3] = ["billing_day", "counting", "unit"];

/// What can change while counting goes on.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// Groups that were named by hand.
    pub(crate) typed: Option<Groups>,
    pub(crate) wanted: Wanted,
    pub(crate) interval: Duration,
    /// As in [`Settings`].
    pub(crate) proxy: Option<ProxyPlace>,
    /// How the ledger is kept.
    pub(crate) ledger: ledger::Options,
}

/// The configuration as it was read again.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) live: Live,
    /// Keys that changed and stay as they were until a restart.
    pub(crate) later: Vec<&'static str>,
}

/// Reads the configuration again, with the same command line.
pub(crate) struct Reload(pub(crate) Box<dyn Fn() -> Result<Fresh>>);

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// Keys that differ and that only a restart puts into force.
pub(crate) fn later(before: &Config, now: &Config) -> Vec<&'static str> {
    let used_now = |key: &&str| LIVE.contains(key) || OF_VERBS.contains(key);
    before.differing(now).into_iter().filter(|key| !used_now(key)).collect()
}

/// Reads the configuration again and puts it into force. Gives what should be known about it. `refused` is
/// why the meter does not take its groups: then it is to be tried again, and is said once. Groups that are
/// `pending` are among those that come into force, or stay pending.
pub(super) fn reload(
    settings: &mut Settings,
    meter: &mut Meter,
    proxy: Option<&mut Proxy>,
    books: Option<&mut Books>,
    refused: &mut Option<String>,
    pending: &mut Pending,
) -> Option<String> {
    let read = settings.reload.as_ref().map(|reload| (reload.0)())?;
    let outcome = read.and_then(|Fresh { live, later }| {
        put_into_force(live, settings, meter, proxy, books)?;
        Ok(later)
    });
    let before = refused.take();
    if outcome.is_ok() {
        pending.forget();
    }
    match outcome {
        Ok(later) if later.is_empty() => {
            tracing::info!("the configuration was read again");
            None
        }
        Ok(later) => {
            let keys = later.join(", ");
            tracing::warn!(%keys, "the configuration was read again, but these keys need a restart");
            Some(format!("a restart is needed for {keys}"))
        }
        Err(error) if error.is::<Refused>() => {
            let why = format!("{error:#}");
            if before.as_ref() != Some(&why) {
                let again = "the configuration is not used yet: it is tried again at each tick";
                tracing::warn!(error = why, "{again}");
            }
            *refused = Some(why.clone());
            Some(format!("the configuration is not used yet: {why}"))
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "the configuration is not used: the last good one stays");
            Some(format!("the configuration is not used: {error}"))
        }
    }
}

/// The meter cannot watch what is asked for, now.
#[derive(Debug, thiserror::Error)]
#[error("the ports are not watched")]
struct Refused(#[source] MeterError);

fn put_into_force(
    live: Live,
    settings: &mut Settings,
    meter: &mut Meter,
    proxy: Option<&mut Proxy>,
    books: Option<&mut Books>,
) -> Result<()> {
    let Live { typed, wanted, interval, proxy: place, ledger } = live;
    let typed = typed.unwrap_or_default();
    let asked = match &proxy {
        Some(proxy) => proxy.groups_with(&typed)?,
        None => typed.clone(),
    };
    let listeners = asked.is_empty();
    let groups = if listeners { Groups::new(listening()?, usize::MAX)? } else { asked };
    meter.watch(&groups).map_err(Refused)?;
    if let Some(proxy) = proxy {
        proxy.take_over(typed, interval);
    }
    if let Some(books) = books {
        books.keep(ledger);
    }
    settings.wanted = wanted;
    settings.interval = interval;
    settings.listeners = listeners;
    settings.proxy = place;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Checks;

    fn config(text: &str) -> Config {
        let checks = Checks { most_groups: 10, iface: |_| Ok(()), api: |_| Ok(()) };
        Config::parse(text, checks).unwrap()
    }

    #[test]
    fn only_keys_that_cannot_change_under_way_need_a_restart() {
        let before = config("ports = '1'\nmeter = 'tcx'\nstate = '/s'\nbilling_day = 1\n");
        let now = config(
            "ports = '2'\niface = 'e*'\ninterval = '1s'\nmeter = 'tc'\nbilling_day = 2\nstate = '/s'\n\
             keep_minutes = '3d'\nkeep_hours = 'forever'\nkeep_days = 'forever'\ntime_zone = 'UTC'\n",
        );
        assert_eq!(later(&before, &now), ["meter"]);
        assert_eq!(later(&before, &before), [""; 0]);
        assert_eq!(later(&before, &Config::default()), ["meter", "state"]);
    }
}

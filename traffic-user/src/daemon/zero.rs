//! A new zero because the user asks: of a proxy's counters, and of a period in the ledger.

use anyhow::{Context as _, Result};

use super::Whose;
use crate::{
    accounting::{
        ident::{Group, shown},
        proxy::CounterName,
        subject::Subject,
        tick::State,
        usage::Event,
    },
    meter::proxy::{Address, ProxyMeter},
};

/// What came of setting counters to zero.
#[derive(Debug, Default)]
pub(crate) struct Zeroed {
    /// Those that are zero now, with what they were.
    pub(crate) done: Vec<(CounterName, i64)>,
    /// Names that the proxy has no counter for.
    absent: usize,
    /// Why it could not go on.
    failed: Option<anyhow::Error>,
}

impl Zeroed {
    /// For people.
    ///
    /// # Errors
    ///
    /// When not all was done that was asked for.
    pub(crate) fn said(self) -> Result<String> {
        let count = self.done.len();
        match self.failed {
            Some(error) if count > 0 => {
                Err(error.context(format!("only {count} counters of the proxy were set to zero")))
            }
            Some(error) => Err(error),
            None if count == 0 && self.absent > 0 => anyhow::bail!(
                "the proxy has no such counter: nothing was set to zero\n  remedy: `traffic stats user` and `traffic ports` show what there is"
            ),
            None => Ok(format!("{count} counters of the proxy were set to zero")),
        }
    }
}

/// Sets these counters of a proxy to zero, or all.
pub(crate) fn zero(address: Address, names: Option<Vec<CounterName>>) -> Zeroed {
    let failed = |error: anyhow::Error| Zeroed { failed: Some(error), ..Zeroed::default() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(error.into()),
    };
    let mut meter = ProxyMeter::new(address);
    let zeroed = runtime.block_on(async {
        match names {
            None => match meter.reset_matching("").await {
                Ok(done) => Zeroed { done, ..Zeroed::default() },
                Err(error) => failed(error.into()),
            },
            Some(names) => {
                let resets = meter.reset(&names).await;
                Zeroed {
                    done: resets.done,
                    absent: resets.absent.len(),
                    failed: resets.failed.map(Into::into),
                }
            }
        }
    });
    // Without waiting for a resolver that may still be at work.
    runtime.shutdown_background();
    zeroed
}

/// What rules and pins have counted is shown from zero on.
pub(super) fn begin_at_zero(state: &mut State, whose: &Whose, at: i128) {
    match whose {
        // What the kernel counts is of groups.
        Whose::User(_) => {}
        Whose::Port(port) => {
            state.begin_at_zero(|group| group.ports().any(|own| own == *port), at);
        }
        Whose::All => state.begin_at_zero(|_| true, at),
    }
}

/// That there is a group with the port that is asked for.
///
/// # Errors
///
/// When there is none.
pub(crate) fn is_known<'a>(
    mut groups: impl Iterator<Item = &'a Group>,
    whose: &Whose,
) -> Result<Option<&'a Group>> {
    let Whose::Port(port) = whose else { return Ok(None) };
    let group = groups.find(|group| group.ports().any(|own| own == *port));
    Ok(Some(group.with_context(|| format!("no group has port {port}"))?))
}

/// A new period of somebody's numbers begins.
///
/// # Errors
///
/// When nobody is known by that name.
pub(super) fn period_begins<'a>(
    groups: impl Iterator<Item = &'a Group>,
    proxy: bool,
    whose: &Whose,
    at: i128,
) -> Result<Event> {
    let group = is_known(groups, whose)?;
    let (subject, name) = match (whose, group) {
        (Whose::User(_), _) if !proxy => anyhow::bail!(
            "no proxy is known, so no user is: give --proxy-config or --api to `traffic run`"
        ),
        (Whose::User(email), _) => {
            (Subject::User(email.as_str().into()), format!("user {}", shown(email)))
        }
        (_, Some(group)) => (Subject::group(group), format!("port {}", group.ports_text())),
        (_, None) => (Subject::Host, "all groups".to_owned()),
    };
    let what = format!("{name}: a new period begins; what was counted before stays in the ledger");
    Ok(Event { at, kind: "reset".to_owned(), subject: Some(subject), what })
}

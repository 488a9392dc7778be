//! What the daemon answers to those who ask at its socket.

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::mpsc;

use super::{
    Counting, Proxy, Zeroed,
    control::{Asked, Before, Question, Read, Whose},
    report, unix_time,
    zero::{begin_at_zero, is_known, zero},
};
use crate::meter::{Meter, proxy::boot_time};

/// A reset that the proxy has answered.
pub(super) struct Reset {
    asked: Asked,
    whose: Whose,
    outcome: Zeroed,
    /// Boot time after it.
    boot: i128,
}

impl Reset {
    /// Begins anew on our side, once the other side has.
    pub(super) fn settle(
        self,
        counting: &mut Counting,
        meter: &mut Meter,
        proxy: Option<&mut Proxy>,
    ) {
        let Self { asked, whose, outcome, boot } = self;
        let settled = proxy.context("no proxy is known any more").and_then(|proxy| {
            counting.tick(meter, Some(&mut *proxy))?;
            proxy.counters_were_reset(&mut counting.state, &outcome.done, boot);
            let before = Before::of(&outcome.done);
            let said = outcome.said()?;
            let now = unix_time();
            proxy.begin_anew(&mut counting.state, &whose, now);
            begin_at_zero(&mut counting.state, &whose, now);
            counting.book_now();
            match &asked.question {
                Question::Zero { .. } => Ok(serde_json::to_string(&Some(before))?),
                Question::Stats | Question::Groups | Question::Ledger | Question::Reset(_) => {
                    Ok(said)
                }
            }
        });
        asked.answer(settled);
    }
}

/// Answers a question, or begins to.
pub(super) fn answer(
    asked: Asked,
    counting: &mut Counting,
    meter: &mut Meter,
    proxy: Option<&mut Proxy>,
    finished: &mpsc::Sender<Reset>,
) {
    let no_proxy =
        || Err(anyhow!("no proxy is known: give --proxy-config or --api to `traffic run`"));
    match (asked.question.clone(), proxy) {
        (Question::Ledger, _) => asked.answer(counting.standing()),
        (Question::Groups, _) => {
            let snapshot = counting.last.clone().context("nothing was read yet: ask again");
            let read = snapshot.map(|last| Read::of(&report(&counting.host, meter, last)));
            asked.answer(read.and_then(|read| Ok(serde_json::to_string(&read)?)));
        }
        (Question::Stats, Some(proxy)) => {
            // As of the last tick: asking often must not make ticks, by which claims age.
            let snapshot = counting.last.as_ref().context("nothing was read yet: ask again");
            let document = snapshot.and_then(|last| {
                Ok(proxy.document(&counting.host, last, counting.state.merge()).json()?)
            });
            asked.answer(document);
        }
        (Question::Reset(whose), Some(proxy)) => {
            let (named, read) = (proxy.groups(), counting.last.iter());
            let read = read.flat_map(|last| last.groups.iter()).map(|reading| &*reading.group);
            match is_known(named.iter().chain(read), &whose) {
                Ok(_) => begin(asked, whose, proxy, finished),
                Err(error) => asked.answer(Err(error)),
            }
        }
        (Question::Zero { user, api }, Some(proxy)) if proxy.reads(&api) => {
            begin(asked, Whose::User(user), proxy, finished);
        }
        // Not ours to set to zero.
        (Question::Zero { .. }, _) => asked.answer(none()),
        (Question::Reset(whose), None) if counting.books.is_some() => {
            let said = counting.begin_anew(&whose, meter);
            asked.answer(said);
        }
        (Question::Stats | Question::Reset(_), None) => asked.answer(no_proxy()),
    }
}

/// What is answered where there is nothing to say.
fn none() -> Result<String> {
    Ok(serde_json::to_string(&None::<Before>)?)
}

/// Asks the proxy to set counters to zero.
fn begin(asked: Asked, whose: Whose, proxy: &mut Proxy, finished: &mpsc::Sender<Reset>) {
    let (address, finished) = (proxy.address(), finished.clone());
    let names = proxy.names(&whose);
    proxy.hold_polls();
    // On a thread of its own: a proxy that is slow must not delay the kernel's tick.
    std::thread::spawn(move || {
        let outcome = address.map_or_else(Zeroed::default, |address| zero(address, names));
        let reset = Reset { asked, whose, outcome, boot: boot_time() };
        // It fails when the daemon is ending; whoever asked is told so.
        let _ended = finished.blocking_send(reset);
    });
}

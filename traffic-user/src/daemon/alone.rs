//! What verbs do to counters while no daemon runs: a reset, and cleaning. One tick in its place: all that was
//! moved until now is booked, and what is moved from now on is of a new period, or counted by nobody.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};

use super::{
    Books, Whose,
    books::Standing,
    names, second_of, unix_time,
    zero::{Zeroed, begin_at_zero, period_begins, zero},
};
use crate::{
    accounting::{
        frame::Frame,
        proxy::{Inbound, ProxySnapshot},
        reading::{Epoch, Snapshot},
        relay::Devices,
        tick::{Begin, Cursors, State},
    },
    ledger,
    meter::{
        MeterError,
        devices::{Facts, own_counters},
        host::boot_id,
        proxy::{Address, boot_time},
    },
};

/// A proxy that was asked a moment ago.
pub(crate) struct Asked {
    pub(crate) address: Address,
    pub(crate) inbounds: Vec<Inbound>,
    pub(crate) uncounted: Vec<Arc<str>>,
    pub(crate) poll: ProxySnapshot,
}

/// Begins anew for somebody, at the proxy and in the ledger of a state folder, whose lock the caller holds.
/// `kernel` is what goes on counting without a daemon. Gives what was done, for people.
///
/// # Errors
///
/// When the ledger cannot be written: the proxy has its numbers then. When there is nobody of that name.
pub(crate) fn reset_alone(
    (folder, options): (&Path, ledger::Options),
    kernel: Option<Snapshot>,
    proxy: Option<Asked>,
    whose: &Whose,
) -> Result<String> {
    let begin = Begin { now: unix_time(), boot: boot_id() };
    let groups =
        kernel.iter().flat_map(|kernel| kernel.groups.iter()).map(|reading| &*reading.group);
    let inbounds = proxy.iter().flat_map(|proxy| &proxy.inbounds).map(|inbound| &inbound.group);
    let event = period_begins(groups.chain(inbounds), proxy.is_some(), whose, begin.now)?;
    let (mut books, mut state) = Books::open(folder, options, begin)?;
    let devices = devices_again(&state.cursors());

    let mut frame = Frame::new(kernel.as_ref().map_or(begin.now, |kernel| kernel.window.end));
    kernel.into_iter().for_each(|kernel| drop(frame.insert(kernel)));
    devices.into_iter().for_each(|devices| frame.set_devices(devices));
    if let Some(proxy) = &proxy {
        state.watch_proxy(boot_time());
        state.merge_mut().configure(&proxy.inbounds, &proxy.uncounted);
    }
    state.tick(frame, proxy.as_ref().map(|proxy| &proxy.poll));
    // Before anything goes at the proxy.
    book(&mut books, &mut state)?;

    let zeroed = proxy
        .map_or_else(Zeroed::default, |proxy| zero(proxy.address, names(&proxy.inbounds, whose)));
    state.counters_were_reset(&zeroed.done);
    let what = event.what.clone();
    let of_proxy = !zeroed.done.is_empty();
    let said = zeroed.said();
    if said.is_ok() {
        begin_at_zero(&mut state, whose, event.at);
        state.note(event);
    }
    book(&mut books, &mut state)?;
    Ok(if of_proxy { format!("{what}; {}", said?) } else { said.map(|_| what)? })
}

/// Books what goes on counting without a daemon before it is taken off, and that it was on purpose. `read`
/// reads it, `clean` takes it off and says what went. What stays is booked until after that; of what goes, what
/// passes between the last reading and its end is lost. The caller holds the lock of the state folder.
///
/// # Errors
///
/// What `clean` fails with. A ledger that cannot be written keeps nothing from being taken off.
pub(crate) fn clean_alone(
    (folder, options): (&Path, ledger::Options),
    read: impl Fn() -> Result<Option<Snapshot>, MeterError>,
    clean: impl FnOnce() -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let opened = Books::open(folder, options, Begin { now: unix_time(), boot: boot_id() });
    let (mut books, mut state) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            not_booked(&error);
            return clean();
        }
    };
    // Twice, so that the time that the disk takes is not lost.
    let mut known = tick_of(&read, &mut state);
    if let Err(error) = book(&mut books, &mut state) {
        not_booked(&error);
    }
    known = tick_of(&read, &mut state).or(known);
    let cleaned = clean();
    let Some((meter, epoch)) = known else { return cleaned };
    match read() {
        // Whether anything goes on is not known, so that its end is to be missed.
        Err(error) => not_booked(&error.into()),
        Ok(rest) => {
            let rest = rest.filter(|rest| (rest.meter, rest.epoch) == (meter, epoch));
            let what = match (&cleaned, &rest) {
                (Err(_), _) => "`clean` failed half way: what is gone went on purpose".to_owned(),
                (Ok(said), Some(_)) => format!("taken off by `clean`: {}", in_short(said)),
                (Ok(_), None) => "all that counted was taken off by `clean`".to_owned(),
            };
            let rest = rest.map(|rest| frame_of(rest, &state));
            state.took_off(meter, rest, format!("{meter}: {what}"), unix_time());
        }
    }
    if let Err(error) = book(&mut books, &mut state) {
        not_booked(&error);
    }
    cleaned
}

/// The first of many lines: the ledger keeps them for good.
fn in_short(said: &[String]) -> String {
    match said {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
    }
}

/// Counts what is read for the ledger; gives which counters that were.
fn tick_of(
    read: impl Fn() -> Result<Option<Snapshot>, MeterError>,
    state: &mut State,
) -> Option<(&'static str, Epoch)> {
    let kernel = match read() {
        Ok(kernel) => kernel?,
        Err(error) => {
            not_booked(&error.into());
            return None;
        }
    };
    let counters = (kernel.meter, kernel.epoch);
    state.tick(frame_of(kernel, state), None);
    Some(counters)
}

/// A reading, with those of the devices where they are kept beside.
fn frame_of(kernel: Snapshot, state: &State) -> Frame {
    let mut frame = Frame::new(kernel.window.end);
    frame.insert(kernel);
    devices_again(&state.cursors()).into_iter().for_each(|devices| frame.set_devices(devices));
    frame
}

/// Says that a ledger may lack something.
pub(crate) fn not_booked(error: &anyhow::Error) {
    tracing::warn!(
        error = format!("{error:#}"),
        "what was counted since the last booking may not be in the ledger"
    );
}

/// What the devices whose counters were read last have counted now; `None` where that cannot be told.
fn devices_again(cursors: &Cursors) -> Option<Devices> {
    let last = cursors.devices.as_ref()?;
    let mut devices = Facts::gather().ok()?.devices;
    devices.retain(|device| last.readings.iter().any(|reading| reading.index == device.index));
    let readings = own_counters(&devices).ok()?;
    Some(Devices { boot: boot_id(), readings })
}

fn book(books: &mut Books, state: &mut State) -> Result<()> {
    books.settle(state, second_of(unix_time()));
    match books.standing() {
        Standing::Booked => Ok(()),
        Standing::Refused { why, remedy, .. } => {
            let why = anyhow::anyhow!("{why}\n  remedy: {remedy}");
            Err(why).context("what was moved until now cannot be booked")
        }
    }
}

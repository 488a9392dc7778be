//! The loop: read at every tick, follow the devices, stop when told to.
//!
//! It waits and writes, and decides nothing. However it ends, the meter's own `Drop` leaves nothing
//! attached, unless the meter was started to persist.

mod alone;
mod answers;
mod books;
mod control;
mod notify;
mod pending;
mod proxy;
mod reload;
mod screen;
mod signals;
mod zero;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use crate::{
    accounting::{
        delta::{First, diff},
        frame::Frame,
        ident::Groups,
        reading::Snapshot,
        report::{DeviceReport, Dump},
        tick::State,
        usage::Event,
    },
    config::Output,
    fault,
    meter::{
        Handover, Meter,
        devices::{Choice, Events, Wanted, choose},
        listening::listening,
    },
    view::{json, stats, table},
};

pub(crate) use alone::{Asked as AskedProxy, clean_alone, not_booked, reset_alone};
pub(crate) use books::Books;
pub(crate) use control::{Before, Question, Read, Whose, ask};
pub(crate) use notify::is_watched;
pub(crate) use proxy::{
    Proxy, ProxyPlace, api_document, api_report, joined, names, online, watched,
};
pub(crate) use reload::{Fresh, Live, Reload, later};
pub(crate) use screen::Messages;
pub(crate) use signals::Signals;
use zero::period_begins;
pub(crate) use zero::{Zeroed, is_known, zero};

use answers::{Reset, answer};

use books::Standing;
use control::{Asked, Control};
use notify::Notify;
use pending::{Pending, Sparing};
use signals::Told;

/// How often the programs' log is looked at, when packets are logged.
const LOG_PERIOD: Duration = Duration::from_millis(100);
/// Time between two looks for a proxy that was not there at the start.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// Lines that a table takes besides those of groups.
const TABLE_FRAME: usize = 7;

/// How `run` runs, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) wanted: Wanted,
    /// Watch what begins to listen, because nothing was asked for and no proxy is known.
    pub(crate) listeners: bool,
    pub(crate) interval: Duration,
    pub(crate) output: Output,
    /// Documents to write before ending by itself.
    pub(crate) count: Option<u64>,
    pub(crate) log: bool,
    /// What was said, for below a table.
    pub(crate) messages: Messages,
    /// Where to look for a proxy that is not there yet; `None` where one was named or none is wanted.
    pub(crate) proxy: Option<ProxyPlace>,
    /// The state folder, in which verbs can ask.
    pub(crate) state: Option<PathBuf>,
    /// Reads the configuration again at SIGHUP; without it, SIGHUP ends.
    pub(crate) reload: Option<Reload>,
}

/// Counts until a signal, the end of the reader, or `count`.
pub(crate) async fn run(
    mut settings: Settings,
    mut signals: Signals,
    mut meter: Meter,
    mut proxy: Option<Proxy>,
    (state, books): (State, Option<Books>),
) -> Result<()> {
    let mut notify = Notify::from_environment();
    let (mut events, mut facts) = match Events::listen().await {
        Ok(found) => found,
        Err(error) => {
            meter.give_up();
            return Err(error.into());
        }
    };
    let choice = choose(&facts, &settings.wanted);
    if meter.kind().on_devices() && choice.devices.is_empty() {
        tracing::warn!("no device has a default route yet: counting begins when one does");
    }
    if let Err(error) = follow(&mut meter, &choice, true) {
        meter.give_up();
        return Err(error);
    }
    let mut control = settings.state.as_deref().and_then(|folder| {
        Control::listen(folder)
            .inspect_err(|error| {
                let error = format!("{error:#}");
                tracing::warn!(error, "`traffic stats` and `reset` cannot ask this daemon");
            })
            .ok()
    });
    let mut looked = Instant::now();
    let (finished, mut resets) = mpsc::channel::<Reset>(1);
    let mut counting = Counting::new(&settings, state, books);
    let mut pending = Pending::default();
    let mut sparing = Sparing::default();
    let mut refused = None;

    let mut ticks = every(settings.interval);
    let mut log = every(LOG_PERIOD);
    let mut rounds = notify.rounds();
    let mut ended = Ok(());

    loop {
        tokio::select! {
            biased;
            told = signals.wait() => match told {
                Told::Stop(name) => {
                    tracing::info!(signal = name, "stopping");
                    notify.stopping();
                    break;
                }
                Told::Reload => {
                    notify.reloading();
                    refused = None;
                    let (proxy, books) = (proxy.as_mut(), counting.books.as_mut());
                    notify.note(reload::reload(
                        &mut settings, &mut meter, proxy, books, &mut refused, &mut pending,
                    ));
                    follow(&mut meter, &choose(&facts, &settings.wanted), false)?;
                    // At once: what changed is to be seen.
                    ticks = every(settings.interval);
                    continue;
                }
            },
            _ = rounds.tick(), if notify.is_on_guard() => {
                notify.alive();
                continue;
            }
            news = events.next() => {
                match news {
                    Ok(Some(news)) => {
                        facts = news;
                        follow(&mut meter, &choose(&facts, &settings.wanted), false)?;
                    }
                    Ok(None) => {
                        ended = Err(anyhow!("the kernel closed the netlink connection"));
                        break;
                    }
                    Err(error) => tracing::warn!(%error, "devices may have changed unseen"),
                }
                continue;
            }
            Some(reset) = resets.recv() => {
                reset.settle(&mut counting, &mut meter, proxy.as_mut());
                continue;
            }
            _ = log.tick(), if settings.log => {
                meter.flush_log();
                continue;
            }
            _ = ticks.tick() => {}
            // Last: whoever asks again and again must not keep the rest waiting.
            Some(asked) = next(&mut control) => {
                answer(asked, &mut counting, &mut meter, proxy.as_mut(), &finished);
                continue;
            }
        }
        if refused.is_some() {
            let (proxy, books) = (proxy.as_mut(), counting.books.as_mut());
            notify.note(reload::reload(
                &mut settings,
                &mut meter,
                proxy,
                books,
                &mut refused,
                &mut pending,
            ));
            if refused.is_none() {
                follow(&mut meter, &choose(&facts, &settings.wanted), false)?;
                ticks = every(settings.interval);
            }
        }
        if let Some(folder) = &settings.state {
            Control::keep(&mut control, folder);
        }
        if proxy.is_none() {
            proxy = find_later(&settings, &mut pending, &mut looked);
        }
        if settings.listeners && proxy.is_none() {
            match sparing.perhaps(|| listeners(&meter)) {
                None | Some(Ok(None)) => {}
                Some(Ok(Some((all, open)))) => pending.want_or(all, open),
                Some(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "listening ports are not looked at");
                }
            }
        }
        if let Some(groups) = proxy.as_mut().and_then(|proxy| proxy.follow_config(unix_time())) {
            pending.want(groups);
        }
        if let Some(event) = pending.settle(&mut meter, unix_time()) {
            match &mut proxy {
                Some(proxy) => proxy.happened(event),
                None => counting.state.note(event),
            }
        }
        // Readings are totals: what this tick cannot read, the next one does.
        if let Err(error) = counting.tick(&mut meter, proxy.as_mut()) {
            if settings.count.is_some() {
                // Whoever asked for so many documents waits for them.
                counting.close();
                return Err(error);
            }
            tracing::warn!(error = format!("{error:#}"), "nothing was read at this tick");
            continue;
        }
        notify.standing(&standing(&meter));
        if let Err(error) = counting.write(&meter, proxy.as_ref()) {
            // The reader has gone away, and what passed until now counts.
            let _unread = counting.tick(&mut meter, proxy.as_mut());
            counting.close();
            return Err(error.context("cannot write to stdout"));
        }
        if settings.count == Some(counting.written) {
            counting.close();
            return Ok(());
        }
        fault::panic_at("tick");
    }
    // What passed since the last tick counts too.
    if let Some(proxy) = &mut proxy {
        proxy.last_poll().await;
    }
    let last = counting.tick(&mut meter, proxy.as_mut());
    counting.close();
    last?;
    counting.write(&meter, proxy.as_ref()).context("cannot write to stdout")?;
    ended
}

/// Begins at once. After a suspend there is one late tick, not a burst: totals do not care how long the
/// gap was.
fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now(), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// How counting stands, in a line.
fn standing(meter: &Meter) -> String {
    let devices = meter.devices().map(|device| device.name.as_str());
    notify::counting(meter.kind().name(), meter.watched().count(), devices)
}

/// The next question; never, without a socket.
async fn next(control: &mut Option<Control>) -> Option<Asked> {
    match control {
        Some(control) => Some(control.next().await),
        None => std::future::pending().await,
    }
}

/// Whole seconds of Unix time.
pub(crate) fn second_of(nanos: i128) -> i64 {
    i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(i64::MAX)
}

/// Nanoseconds of Unix time.
pub(crate) fn unix_time() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    i128::try_from(now).unwrap_or(i128::MAX)
}

/// A proxy that was started after us: looked for now and then, where none was named.
fn find_later(settings: &Settings, pending: &mut Pending, looked: &mut Instant) -> Option<Proxy> {
    let place = settings.proxy.clone().filter(|_| looked.elapsed() >= LOOK_PERIOD)?;
    *looked = Instant::now();
    let found = match Proxy::find(place, Groups::default(), settings.interval, unix_time()) {
        Ok(Some(mut found)) => found.watch().map(|()| found),
        Ok(None) => return None,
        Err(error) => Err(error),
    };
    match found {
        Ok(found) => {
            // Its groups and no others, as if it had been there at the start: ports that were watched
            // because something listens on them could tear an inbound.
            pending.want(found.groups());
            tracing::info!("a proxy was found");
            Some(found)
        }
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "a proxy that was found is not used");
            None
        }
    }
}

/// Counts on the chosen devices. At the start a device that cannot be counted is an error if it
/// leaves nothing to count; later it is a warning.
fn follow(meter: &mut Meter, choice: &Choice, first: bool) -> Result<()> {
    for (device, reason) in &choice.left_out {
        tracing::debug!(%device, %reason, "left out");
    }
    let mut errors = meter.count_on(choice);
    let none = meter.devices().next().is_none();
    if first && none && !errors.is_empty() {
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

/// What is watched and the ports that something began to listen on; `None` without any. One that is watched
/// stays so, as long as there is room: without those on which nothing listens any more, there may be.
fn listeners(meter: &Meter) -> Result<Option<(Groups, Groups)>> {
    let listening = listening()?;
    let watched: Vec<_> = meter.watched().map(|group| (**group).clone()).collect();
    let known = Groups::new(watched, usize::MAX)?;
    let all = known.extended_by(&listening);
    if all.len() == known.len() {
        return Ok(None);
    }
    let open = Groups::unchecked(listening.clone());
    let still = known.iter().filter(|group| open.meets(group)).cloned().collect();
    Ok(Some((all, Groups::unchecked(still).extended_by(&listening))))
}

/// What was read last, and where the documents or tables go.
struct Counting {
    host: String,
    output: Output,
    /// Draw over what was there.
    redraw: bool,
    messages: Messages,
    written: u64,
    /// The snapshot that was shown last, from which rates are told.
    shown: Option<Snapshot>,
    /// The snapshot that was merged last.
    last: Option<Snapshot>,
    state: State,
    books: Option<Books>,
}

impl Counting {
    fn new(settings: &Settings, state: State, books: Option<Books>) -> Self {
        let redraw = settings.output == Output::Table && screen::can_be_drawn_over();
        Self {
            host: settings.host.clone(),
            output: settings.output,
            redraw,
            messages: settings.messages.clone(),
            written: 0,
            shown: None,
            last: None,
            state,
            books,
        }
    }

    /// Reads the kernel's meter, merges what it says, and books it.
    fn tick(&mut self, meter: &mut Meter, mut proxy: Option<&mut Proxy>) -> Result<()> {
        let (taken_over, error) = meter.take_over();
        for Handover { last, baseline, unseen } in taken_over {
            if let Some(what) = self.state.hand_over(last, baseline, unseen) {
                tracing::warn!("{what}");
            }
        }
        if let Some(error) = error {
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "what another meter was left to count goes on beside this one"
            );
        }
        let devices = meter.own_counters().unwrap_or_else(|error| {
            tracing::debug!(%error, "what passes beside the groups is not known at this tick");
            None
        });
        let snapshot = meter.read()?;
        let at = snapshot.window.end;
        for (kind, what) in meter.losses() {
            tracing::warn!("{what}");
            self.state.note(Event { at, kind: kind.to_owned(), subject: None, what });
        }
        let poll = proxy.as_mut().and_then(|proxy| {
            proxy.configure(&mut self.state);
            proxy.poll()
        });
        let mut frame = Frame::new(at);
        // One that counts nowhere yet must not end the life of the one whose place it is to take.
        if !meter.waits() {
            frame.insert(snapshot.clone());
        }
        if let Some(devices) = devices {
            frame.set_devices(devices);
        }
        let ticked = self.state.tick(frame, poll.as_deref());
        for anomaly in ticked.anomalies {
            tracing::warn!(%anomaly, "the kernel's meter");
        }
        if let Some(proxy) = proxy {
            proxy.took(ticked.payload.as_ref(), at);
            for event in proxy.take_events() {
                self.state.note(event);
            }
        }
        self.last = Some(snapshot);
        match &mut self.books {
            Some(books) => books.book(&mut self.state, second_of(at)),
            None => self.state.forget(),
        }
        Ok(())
    }

    /// A new period of numbers without a proxy: an event in the ledger, which keeps what was.
    fn begin_anew(&mut self, whose: &Whose, meter: &mut Meter) -> Result<String> {
        self.tick(meter, None)?;
        let last = self.last.as_ref().context("nothing was read yet: ask again")?;
        let groups = last.groups.iter().map(|reading| &*reading.group);
        let event = period_begins(groups, false, whose, unix_time())?;
        let what = event.what.clone();
        zero::begin_at_zero(&mut self.state, whose, event.at);
        self.state.note(event);
        self.book_now();
        Ok(what)
    }

    /// Books what is owed before somebody looks.
    fn book_now(&mut self) {
        if let Some(books) = &mut self.books {
            books.book_now(&mut self.state, second_of(unix_time()));
        }
    }

    /// Books what is left and waits for it.
    fn close(&mut self) {
        let now = second_of(unix_time());
        if let Some(books) = &mut self.books {
            books.close(&mut self.state, now);
        }
    }

    /// Whether what is counted is booked, for people.
    fn standing(&self) -> Result<String> {
        match self.books.as_ref().map(Books::standing) {
            None => Ok("nothing is booked: --no-ledger".to_owned()),
            Some(Standing::Booked) => Ok("everything is booked".to_owned()),
            Some(Standing::Refused { since, why, remedy }) => anyhow::bail!(
                "nothing is booked since {}: {why}\n  remedy: {remedy}",
                json::time(i128::from(*since) * 1_000_000_000)
            ),
        }
    }

    /// Writes what was read last.
    fn write(&mut self, meter: &Meter, proxy: Option<&Proxy>) -> Result<()> {
        self.written += 1;
        if self.output == Output::None {
            return Ok(());
        }
        let snapshot = self.last.clone().context("nothing was read yet")?;
        let report = report(&self.host, meter, snapshot);
        let merge = self.state.merge();
        let merged = proxy.map(|proxy| proxy.document(&self.host, &report.snapshot, merge));
        let mut stdout = io::BufWriter::new(io::stdout().lock());
        match self.output {
            Output::None => {}
            Output::Json => json::dump(&mut stdout, &report, merged.as_ref())?,
            Output::Table => {
                let shown = self.shown.as_ref();
                let deltas =
                    shown.map(|shown| diff(Some(shown), &report.snapshot, First::Baseline).0);
                // Asked each time: a window changes its size.
                let (rows, columns) =
                    if self.redraw { screen::size() } else { (usize::MAX, usize::MAX) };
                let messages = if self.redraw { self.messages.recent() } else { Vec::new() };
                // A line that says which are not watched any more.
                let retired = report.snapshot.groups.iter().any(|reading| !reading.watched);
                let frame = TABLE_FRAME + messages.len() + usize::from(retired);
                let most = rows.saturating_sub(frame).max(3);
                let mut text = table::live(&report, deltas.as_ref(), most, columns);
                if let Some(merged) = &merged {
                    let left = rows.saturating_sub(text.lines().count() + frame);
                    text.push('\n');
                    text.push_str(&stats::live(merged, left));
                }
                for message in messages {
                    text.push_str(&message);
                    text.push('\n');
                }
                if self.redraw {
                    if self.written == 1 {
                        // What was on the screen moves up and is not drawn over.
                        write!(stdout, "{}", "\n".repeat(rows))?;
                    }
                    // Home, then each line to its end, then what is left below.
                    let text = screen::cut(&text, rows, columns).replace('\n', "\x1b[K\n");
                    write!(stdout, "\x1b[H{text}\x1b[J")?;
                } else {
                    writeln!(stdout, "{text}")?;
                }
            }
        }
        stdout.flush()?;
        self.shown = Some(report.snapshot);
        Ok(())
    }
}

/// What a meter says, with what is needed to understand it.
fn report(host: &str, meter: &Meter, snapshot: Snapshot) -> Dump {
    let hook = meter.kind().name();
    let devices = meter
        .devices()
        .map(|device| DeviceReport {
            name: device.name.clone(),
            link_header: device.link_header,
            hook,
        })
        .collect();
    let passed_over =
        meter.passed_over().iter().map(|(kind, why)| (kind.name(), why.clone())).collect();
    Dump { host: host.to_owned(), snapshot, devices, passed_over }
}

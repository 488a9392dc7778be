//! A tick of all users, from the plan to the disk, and what is done between ticks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use traffic_user::{
    accounting::{
        frame::Frame,
        proxy::{CounterName, Product, ProxySnapshot, Subject, Way},
        reading::{Layer, Window},
        subject::SubjectKind,
        tick::{Begin, Cursors, Plan, State},
        usage::{By, Span},
    },
    ledger::{Ledger, Options, Reader, Store, Tidied},
};

use super::{
    super::{
        chart::Chart,
        clock,
        proxy::{EACH, Proxy, email, inbounds, kernel, moved, tag, users_of},
        report::{Section, Table, Target},
        stats::{number, percentile},
    },
    Books, Extent, Folder, HOUR, ms, now,
};

const NANOS: i128 = 1_000_000_000;
/// Seconds between two ticks.
const APART: i64 = 10;
/// Starts of a process.
const STARTS: i64 = 7;
/// Which boot of the host it is.
const BOOT: u64 = 1;
const MOST_MILLISECONDS: f64 = 50.0;

/// Milliseconds.
#[derive(Debug, Default)]
pub(super) struct Booked {
    /// Of each commit, until it is on the disk.
    commits: Vec<f64>,
    /// Processor time of it.
    work: Vec<f64>,
    /// From the plan's entries and cursors being asked for to there.
    plans: Vec<f64>,
    /// The first commit of a process.
    firsts: Vec<f64>,
    /// Opening the ledger.
    opens: Vec<f64>,
    /// Steps of tidying, by what was done.
    steps: BTreeMap<&'static str, Vec<f64>>,
    disk: String,
}

/// A host whose users all move something between two ticks.
struct Host<'a> {
    proxy: &'a Proxy,
    /// What each counter grows by.
    counters: Vec<(CounterName, i64)>,
    /// How often all have moved something.
    times: u32,
}

impl<'a> Host<'a> {
    fn new(proxy: &'a Proxy) -> Self {
        let mut counters = Vec::new();
        let mut add = |subject: Subject, (up, down)| {
            counters.push((CounterName { subject: subject.clone(), way: Way::Uplink }, up));
            counters.push((CounterName { subject, way: Way::Downlink }, down));
        };
        for inbound in inbounds(proxy.users) {
            let (mut up, mut down) = (0, 0);
            for user in users_of(inbound, proxy.users) {
                let more = moved(user);
                up += more.0;
                down += more.1;
                add(Subject::User(email(user).into()), more);
            }
            add(Subject::Inbound(tag(inbound).into()), (up, down));
        }
        counters.sort_unstable();
        Self { proxy, counters, times: 0 }
    }

    /// What a process begins with.
    fn state(&self, store: &Opening, at: i64) -> State {
        let at = i128::from(at) * NANOS;
        let mut state = State::begin(store.cursors.clone(), Begin { now: at, boot: BOOT });
        state.watch_proxy(at);
        state.merge_mut().configure(&self.proxy.config.inbounds, &self.proxy.config.unreported);
        state
    }

    /// All move something, and it is read.
    fn tick(&mut self, state: &mut State, at: i64) -> Result<()> {
        self.times += 1;
        let at = i128::from(at) * NANOS;
        let window = Window { begin: at, end: at };
        let mut snapshot = kernel(&self.proxy.config.inbounds, self.proxy.users, self.times);
        snapshot.window = window;
        let mut frame = Frame::new(at);
        frame.insert(snapshot);
        let ticked = state.tick(frame, Some(&self.poll(window)));
        let payload = ticked.payload.context("no poll was followed")?;
        ensure!(
            ticked.anomalies.is_empty() && payload.anomalies.is_empty() && payload.gaps.is_empty(),
            "{:?} {:?} {:?}",
            ticked.anomalies,
            payload.anomalies,
            payload.gaps
        );
        Ok(())
    }

    fn poll(&self, window: Window) -> ProxySnapshot {
        let times = i64::from(self.times);
        let counters = self.counters.iter().map(|(name, more)| (name.clone(), more * times));
        ProxySnapshot {
            product: Some(Product::V2ray),
            connection: 1,
            // It began when the clock did.
            uptime: u32::try_from(window.end / NANOS).ok(),
            window,
            boot: window,
            counters: counters.collect(),
        }
    }

    /// Entries of a plan in which every user is, with payload and wire: and with each group, its lane
    /// and the host.
    fn entries(&self) -> usize {
        let users = usize::from(self.proxy.users);
        2 * users + 2 * users.div_ceil(EACH.into()) + 1
    }
}

/// An open ledger, and what counting goes on from.
struct Opening {
    store: Store,
    cursors: Cursors,
    took: Duration,
}

impl Opening {
    fn of(folder: &Folder, at: i64) -> Result<Self> {
        let begin = Instant::now();
        let opened = Store::open(&folder.0, Options::default(), at)?;
        let took = begin.elapsed();
        ensure!(opened.damaged.is_none(), "the ledger is damaged: {:?}", opened.damaged);
        Ok(Self { store: opened.store, cursors: opened.cursors, took })
    }
}

/// Books ticks into the copy, and leaves their hour as it is.
pub(super) fn measure(
    extent: Extent,
    books: &Books,
    copy: &Folder,
    proxy: &Proxy,
) -> Result<Booked> {
    let mut booked = Booked { disk: books.disk.clone(), ..Booked::default() };
    let mut host = Host::new(proxy);
    let first = books.sample.end;
    let mut at = first;

    // The proxy and its counters are new to it: their names are written once.
    let mut opening = Opening::of(copy, at)?;
    let mut state = host.state(&opening, at);
    host.tick(&mut state, at)?;
    opening.store.commit(&state.plan(at))?;
    for _ in 0..STARTS {
        drop(opening);
        at += APART;
        opening = Opening::of(copy, at)?;
        booked.opens.push(ms(opening.took));
        state = host.state(&opening, at);
        host.tick(&mut state, at)?;
        let plan = plan(&mut state, &host, at)?;
        let begin = Instant::now();
        opening.store.commit(&plan)?;
        booked.firsts.push(ms(begin.elapsed()));
        opening.store.tidy(at)?;
    }
    // One tick for the time in between, which is told to be late; then from the next hour's beginning on.
    at = first + HOUR - APART;
    host.tick(&mut state, at)?;
    opening.store.commit(&state.plan(at))?;
    for _ in 0..extent.ticks {
        at += APART;
        host.tick(&mut state, at)?;
        let begin = Instant::now();
        let plan = plan(&mut state, &host, at)?;
        booked.plans.push(ms(begin.elapsed()));
        let (begin, before) = (Instant::now(), clock::now()?);
        opening.store.commit(&plan)?;
        booked.commits.push(ms(begin.elapsed()));
        booked.work.push(ms(clock::now()?.saturating_sub(before)));
        drop(plan);
        opening.store.tidy(at)?;
    }
    drop(opening);
    let all = u64::from(host.times - 1) * all_moved(proxy.users);
    is_booked(copy, Span { begin: first, end: first + 2 * HOUR }, all, proxy.users)?;
    Ok(booked)
}

/// Does what comes between ticks, until the copy is as that of a daemon that ran until now: the next one
/// has nothing to make up for.
pub(super) fn catch_up(books: &Books, copy: &Folder, booked: &mut Booked) -> Result<()> {
    let (mut ledger, _) = Ledger::open(&copy.0, Options::default())?;
    let mut step = |name, until| {
        let begin = Instant::now();
        let done = ledger.tidy(until)?;
        let name = match done {
            Tidied::Nothing => return Ok(done),
            Tidied::SummedUp => name,
            Tidied::LetGo => "let a bucket go",
            Tidied::GaveBack => "give 1 MiB back",
        };
        booked.steps.entry(name).or_default().push(ms(begin.elapsed()));
        anyhow::Ok(done)
    };
    let done = step("sum up an hour of all users", books.sample.end + 2 * HOUR)?;
    ensure!(done == Tidied::SummedUp, "the hour is not summed up: {done:?}");
    let now = now()?;
    while step("sum up a day", now)? != Tidied::Nothing {}
    Ok(())
}

/// A plan that has everything.
fn plan(state: &mut State, host: &Host<'_>, at: i64) -> Result<Plan> {
    let plan = state.plan(at);
    ensure!(
        plan.entries.len() == host.entries() && plan.events.is_empty(),
        "{} entries are not {}, or something happened: {:?}",
        plan.entries.len(),
        host.entries(),
        plan.events
    );
    Ok(plan)
}

/// Payload bytes of all users at one time.
fn all_moved(users: u16) -> u64 {
    (0..users).map(moved).map(|(up, down)| (up + down).unsigned_abs()).sum()
}

/// Whether a span holds exactly this payload, and a share of the wire for every user.
pub(super) fn is_booked(folder: &Folder, span: Span, payload: u64, users: u16) -> Result<()> {
    let reader = Reader::open(&folder.0)?.context("no ledger is there")?;
    let top = |layer| reader.top(SubjectKind::User, layer, span, By::Total, 1);
    let (of_payload, of_wire) = (top(Layer::Payload)?, top(Layer::L3)?);
    let found = of_payload.total.map_or(0, |usage| usage.traffic.bytes());
    ensure!(found == payload, "{found} bytes are booked of {payload}");
    let counts = [of_payload.subjects, of_wire.subjects];
    ensure!(counts == [usize::from(users); 2], "{counts:?} users are booked of {users}");
    Ok(())
}

/// Median, 95th of a hundred, and the most.
fn spread(values: &[f64]) -> [f64; 3] {
    [50, 95, 100].map(|percent| percentile(values, percent).unwrap_or_default())
}

fn row(name: &str, values: &[f64]) -> Vec<String> {
    let mut row = vec![name.to_owned(), values.len().to_string()];
    row.extend(spread(values).map(number));
    row
}

fn spread_json(values: &[f64]) -> Value {
    let [median, p95, most] = spread(values).map(|ms| (ms * 1e4).round() / 1e4);
    json!({ "median": median, "p95": p95, "max": most, "count": values.len() })
}

/// What it says.
pub(super) fn report(extent: Extent, booked: &Booked) -> Section {
    let users = number(extent.users.into());
    let mut rows = vec![
        row("commit of a tick", &booked.commits),
        row("of it, processor time", &booked.work),
        row("first commit of a process", &booked.firsts),
        row("opening the ledger", &booked.opens),
        row("making the plan of a tick", &booked.plans),
    ];
    let tidying = booked.steps.iter();
    rows.extend(tidying.map(|(name, values)| row(&format!("between ticks: {name}"), values)));
    let [median, p95, most] = spread(&booked.commits);
    let [first, _, most_first] = spread(&booked.firsts);
    let groups = vec![
        ("commit of a tick".to_owned(), vec![Some(median), Some(p95), Some(most)]),
        ("first of a process".to_owned(), vec![Some(first), None, Some(most_first)]),
    ];
    let steps: BTreeMap<_, _> =
        booked.steps.iter().map(|(name, values)| (*name, spread_json(values))).collect();
    Section {
        name: "ledger-commit",
        title: "Booking a tick".to_owned(),
        method: format!(
            "{users} users with {} days of history each move something before every tick, 10 s of the \
             ledger's time apart, for an hour: a plan has payload and a share of the wire for each, \
             their groups, and the readings of all counters. A commit is one transaction and ends when \
             it is on the disk ({}); every thirtieth begins a bucket of five minutes, and some write \
             the log back into the file. Afterwards exactly what was moved is booked. Beside it: the \
             first commit after the ledger was opened, and what is done between ticks on the ledger's \
             own thread.",
            extent.days, booked.disk
        ),
        tables: vec![Table {
            title: format!("ms, {users} active users"),
            head: ["", "count", "median", "95 %", "most"].map(str::to_owned).to_vec(),
            rows,
        }],
        charts: vec![Chart {
            file: "ledger-commit",
            title: format!("Booking a tick of {users} users"),
            unit: "ms",
            logarithmic: false,
            series: ["median", "95 %", "most"].map(str::to_owned).to_vec(),
            groups,
        }],
        json: json!({
            "users": extent.users,
            "days": extent.days,
            "disk": booked.disk,
            "commit_ms": spread_json(&booked.commits),
            "commit_cpu_ms": spread_json(&booked.work),
            "first_commit_ms": spread_json(&booked.firsts),
            "open_ms": spread_json(&booked.opens),
            "plan_ms": spread_json(&booked.plans),
            "tidy_steps_ms": steps,
        }),
        targets: vec![Target {
            promise: "ledger: commit of a tick with 10,000 active users at most 50 ms".to_owned(),
            measured: format!(
                "{} ms (95 %: {}, most: {}, first of a process: {}), {users} users",
                number(median),
                number(p95),
                number(most),
                number(first)
            ),
            kept: median <= MOST_MILLISECONDS,
        }],
    }
}

//! A tick with many users: processor time of each step, of the whole daemon, and its memory.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use traffic_user::{
    accounting::{
        attribute::Merge,
        delta::{First, diff},
        payload::Polls,
        proxy::Inbound,
        reading::{
            Coverage, Epoch, GroupReading, Lanes, Layer, Skipped, Snapshot, Traffic, Window,
        },
        stats::ApiReport,
    },
    meter::proxy::ProxyMeter,
    view::stats::{Beside, Document},
};

use super::{
    super::{
        Plan,
        chart::Chart,
        clock,
        report::{Section, Table, Target},
        running::{Memory, Running, binary, mib, parse},
        stats::{Estimate, Rounds, number},
    },
    EACH, PROMISED, Proxy, moved, users_of,
};

/// Users, 20 in each inbound.
const USERS: [u16; 3] = [100, 1000, PROMISED];
const INTERVAL: &str = "250ms";
/// Ticks until the proxy must have answered.
const MOST_TICKS: u32 = 40;
const MOST_MILLISECONDS: f64 = 100.0;
const MOST_MIB: f64 = 64.0;

/// What a tick with an answer of the proxy consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Poll,
    Follow,
    Merge,
    Json,
    Whole,
}

impl Step {
    const ALL: [Self; 5] = [Self::Poll, Self::Follow, Self::Merge, Self::Json, Self::Whole];

    const fn name(self) -> &'static str {
        match self {
            Self::Poll => "ask, read, parse and sort",
            Self::Follow => "what each counter moved",
            Self::Merge => "merge with the kernel's counters",
            Self::Json => "report as JSON",
            Self::Whole => "all, and giving memory back",
        }
    }
}

/// What a tick took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// Processor time of the steps, in their order.
    steps: [Duration; 5],
    /// From the question to the JSON.
    pub(super) time: Duration,
}

impl Took {
    /// Processor time.
    pub(super) fn work(&self) -> Duration {
        self.steps[4]
    }
}

/// Both sides of one proxy, read and merged on this thread, as `traffic run` does on two.
pub(super) struct Reader<'a> {
    proxy: &'a Proxy,
    runtime: Runtime,
    meter: ProxyMeter,
    polls: Polls,
    merge: Merge,
    kernel: Snapshot,
    moved: u64,
}

impl<'a> Reader<'a> {
    /// One that has connected and read the counters once, at 0.
    pub(super) fn new(proxy: &'a Proxy) -> Result<Self> {
        let mut merge = Merge::default();
        merge.configure(&proxy.config.inbounds, &proxy.config.unreported);
        let mut reader = Self {
            proxy,
            runtime: Builder::new_current_thread().enable_all().build()?,
            meter: ProxyMeter::new(proxy.address().to_string().parse()?),
            polls: Polls::default(),
            merge,
            kernel: kernel(&proxy.config.inbounds, proxy.users, 0),
            moved: 0,
        };
        reader.tick(0)?;
        Ok(reader)
    }

    /// Lets every user move something, and reads it.
    pub(super) fn next(&mut self, tick: u32) -> Result<Took> {
        self.moved += self.proxy.move_on();
        self.tick(tick)
    }

    fn tick(&mut self, tick: u32) -> Result<Took> {
        let kernel = kernel(&self.proxy.config.inbounds, self.proxy.users, tick);
        let begin = Instant::now();
        let mut times = [clock::now()?; 6];
        let poll = self.runtime.block_on(self.meter.poll())?;
        times[1] = clock::now()?;
        let payload = self.polls.follow(&poll, First::Baseline, None);
        times[2] = clock::now()?;
        let (deltas, _) = diff(Some(&self.kernel), &kernel, First::Baseline);
        self.merge.tick(Some(&deltas), Some(&payload));
        times[3] = clock::now()?;
        let product = self.meter.identity().and_then(|identity| identity.product);
        let api = ApiReport { state: "ok", since: Some(0), product, uptime: poll.uptime };
        let report = self.merge.report(kernel.window.end, api);
        let beside = Beside { host: "bench", since: Some(0), ..Beside::default() };
        let document = Document::new(&report, beside);
        let text = document.json()?;
        times[4] = clock::now()?;
        let time = begin.elapsed();
        let (total, groups) = (report.system_total.payload.total(), report.groups.len());
        let length = text.len();
        drop((poll, payload, deltas, report, document, text));
        self.kernel = kernel;
        times[5] = clock::now()?;

        let users = usize::from(self.proxy.users);
        ensure!(total == self.moved, "{total} bytes were found of {}", self.moved);
        ensure!(groups == users.div_ceil(EACH.into()), "{groups} groups were found");
        ensure!(length > users * 100, "{length} bytes of JSON are too few");
        let took = |from: usize, to: usize| times[to].saturating_sub(times[from]);
        let steps = [took(0, 1), took(1, 2), took(2, 3), took(3, 4), took(0, 5)];
        Ok(Took { steps, time })
    }
}

/// What the kernel has counted after so many times: payload and 5 %.
pub(in super::super) fn kernel(inbounds: &[Inbound], users: u16, times: u32) -> Snapshot {
    let groups = (0..)
        .zip(inbounds)
        .map(|(number, inbound)| {
            let (mut up, mut down) = (0, 0);
            for user in users_of(number, users) {
                let more = moved(user);
                up += more.0.unsigned_abs();
                down += more.1.unsigned_abs();
            }
            let of = |bytes: u64| (bytes + bytes / 20) * u64::from(times);
            let traffic = Traffic {
                input_bytes: of(up),
                input_packets: of(up) / 100,
                output_bytes: of(down),
                output_packets: of(down) / 1000,
            };
            GroupReading {
                group: Arc::new(inbound.group.clone()),
                lanes: Lanes { tcp4: traffic, ..Lanes::default() },
                watched: true,
            }
        })
        .collect();
    let at = i128::from(times) * 1_000_000_000;
    Snapshot {
        meter: "tcx",
        layer: Layer::L3,
        epoch: Epoch(1),
        since: Some(0),
        window: Window { begin: at, end: at },
        coverage: Coverage::Complete,
        groups,
        skipped: Some(Skipped::default()),
    }
}

/// What a whole daemon takes.
struct Daemon {
    /// Milliseconds of processor time of each tick.
    work: Vec<f64>,
    memory: Memory,
    /// Bytes of one document.
    document: usize,
}

impl Daemon {
    fn measure(plan: &Plan) -> Result<Self> {
        let proxy = Proxy::new(PROMISED)?;
        let arguments = ["--proxy-config", proxy.file()?, "--interval", INTERVAL];
        let mut running = Running::start(&binary()?, &arguments)?;
        // Until the first answer was shown and what began with it has ended.
        let mut more = 0..MOST_TICKS;
        while parse(&running.line()?)?["stats"]["api"]["state"] != "ok" {
            ensure!(more.next().is_some(), "the API was not read within {MOST_TICKS} ticks");
        }
        let mut moved = proxy.move_on();
        running.line()?;
        let before = asked(&proxy);
        let mut last = running.work()?;
        let mut work = Vec::new();
        let mut line = String::new();
        for _ in 0..plan.daemon_ticks {
            moved += proxy.move_on();
            line = running.line()?;
            let now = running.work()?;
            work.push(now.saturating_sub(last).as_secs_f64() * 1e3);
            last = now;
        }
        let memory = running.memory()?;
        // One is asked for on each tick, and shown by the next. A busy machine may come late.
        let polls = asked(&proxy) - before;
        ensure!(polls * 2 >= work.len(), "{polls} polls in {} ticks", work.len());
        let found = parse(&line)?["stats"]["system_total"]["total"].as_u64().unwrap_or(0);
        ensure!(found <= moved && found * 2 >= moved, "{found} bytes were found of {moved}");
        Ok(Self { work, memory, document: line.len() })
    }
}

/// How often all counters were asked for.
pub(in super::super) fn asked(proxy: &Proxy) -> usize {
    proxy.server.questions().iter().filter(|question| question.call == "QueryStats").count()
}

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let proxies = USERS.map(Proxy::new).into_iter().collect::<Result<Vec<_>>>()?;
    let mut readers = proxies.iter().map(Reader::new).collect::<Result<Vec<_>>>()?;
    let mut rounds = Rounds::default();
    for round in 0..plan.poll_rounds {
        for reader in &mut readers {
            let took = reader.next(round + 1)?;
            for (step, work) in Step::ALL.into_iter().zip(took.steps) {
                rounds.record((step, reader.proxy.users), round, work.as_secs_f64() * 1e3);
            }
        }
    }
    drop(readers);
    drop(proxies);
    Ok(report(&rounds, &Daemon::measure(plan)?))
}

fn report(rounds: &Rounds<(Step, u16)>, daemon: &Daemon) -> Section {
    let of = |step: Step, users: u16| rounds.of(&(step, users));
    let mut head = vec!["step".to_owned()];
    head.extend(USERS.map(|users| number(users.into())));
    let rows = Step::ALL
        .iter()
        .map(|&step| {
            let mut row = vec![step.name().to_owned()];
            row.extend(USERS.map(|users| of(step, users).map_or_else(String::new, |ms| ms.text())));
            row
        })
        .collect();
    let steps = Table { title: "ms of processor time, by users".to_owned(), head, rows };

    let tick = Estimate::of(&daemon.work);
    let Memory { resident, most, .. } = &daemon.memory;
    let document = daemon.document.div_ceil(1024) as u64;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let whole = Table {
        title: "`traffic run --output json` with 10,000 users".to_owned(),
        head: ["", "measured"].map(str::to_owned).to_vec(),
        rows: vec![
            row("processor time of a tick, ms", tick.map_or_else(String::new, |ms| ms.text())),
            row("resident, MiB", mib(*resident)),
            row("most, MiB", mib(*most)),
            row("maps, MiB", mib(daemon.memory.map_total())),
            row("a document, MiB", mib(document)),
        ],
    };
    let cells = || USERS.into_iter().flat_map(|users| Step::ALL.map(|step| (step, users)));
    let steps_json: Vec<_> = cells()
        .map(|(step, users)| {
            json!({
                "step": step.name(),
                "users": users,
                "inbounds": users.div_ceil(EACH),
                "cpu_ms": of(step, users).map(|ms| ms.json()),
            })
        })
        .collect();
    let daemon_json = json!({
        "users": PROMISED,
        "inbounds": PROMISED.div_ceil(EACH),
        "cpu_ms_per_tick": tick.map(|ms| ms.json()),
        "resident_kib": resident,
        "most_kib": most,
        "maps_kib": daemon.memory.maps,
        "document_bytes": daemon.document,
    });
    let target = |promise: &str, estimate: Option<Estimate>| {
        estimate.map(|ms| Target {
            promise: promise.to_owned(),
            measured: format!("{} ms", ms.text()),
            kept: ms.median <= MOST_MILLISECONDS,
        })
    };
    let mut targets = Vec::new();
    targets.extend(target(
        "10,000 users in 500 inbounds, poll to JSON: at most 100 ms of processor time",
        of(Step::Whole, PROMISED),
    ));
    targets.extend(target(
        "the same in `traffic run`, a whole tick: at most 100 ms of processor time",
        tick,
    ));
    targets.push(Target {
        promise: "the same, memory of the process: at most 64 MiB".to_owned(),
        measured: format!("{} MiB", mib(*most)),
        kept: mib(*most).parse().is_ok_and(|most: f64| most <= MOST_MIB),
    });
    Section {
        name: "proxy",
        title: "Many users of a proxy".to_owned(),
        method: format!(
            "An API with a counter of each direction of each user and inbound, 20 users in each \
             inbound, answers on the loopback, in no order; every counter has moved since it was \
             last read. Time is that of the reading thread, without the server's. For the daemon, it \
             is of all threads from one document to the next, {INTERVAL} apart, and contains all that \
             a tick does."
        ),
        tables: vec![steps, whole],
        charts: vec![Chart {
            file: "proxy",
            title: "Processor time of a tick with a proxy".to_owned(),
            unit: "ms",
            logarithmic: true,
            series: USERS.map(|users| format!("{} users", number(users.into()))).to_vec(),
            groups: Step::ALL
                .iter()
                .map(|&step| {
                    let value = |users| of(step, users).map(|ms| ms.median);
                    (step.name().to_owned(), USERS.map(value).to_vec())
                })
                .collect(),
        }],
        json: json!({ "steps": steps_json, "daemon": daemon_json }),
        targets,
    }
}

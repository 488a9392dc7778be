//! Part (s): one TCP stream: throughput and processor time while 10,000 ports are watched.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::json;

use super::{
    Plan,
    chart::Chart,
    clock,
    lab::{self, ADDRESS, DEVICE, Lab, OwnCgroup, Processors},
    packets::HIT,
    report::{Section, Table, Target},
    stats::{Estimate, Random, Rounds},
    ways::{Installed, Way},
};
use crate::netns::NetNs;

const PORTS: u16 = 10_000;
const BLOCK: usize = 256 << 10;
const MOST_LOST: f64 = 0.03;

const INTERLEAVED: [Way; 7] =
    [Way::None, Way::NoneAgain, Way::Empty, Way::Tcx, Way::Tc, Way::Cgroup, Way::NftSet];

/// What is told of one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    /// Gigabits a second.
    Throughput,
    /// Processor seconds a gigabyte, of both ends and the kernel's threads between them.
    Work,
}

type Cell = (Quantity, Way);

/// Two namespaces and the wire between them.
struct Wire {
    lab: Lab,
    client: NetNs,
}

impl Wire {
    fn new(processors: Processors) -> Result<Self> {
        let (ns, client) = (NetNs::new(), NetNs::new());
        for ns in [&ns, &client] {
            ns.set("net/ipv6/conf/all/disable_ipv6", "1");
            ns.set("net/ipv6/conf/default/disable_ipv6", "1");
        }
        ns.ip(&format!(
            "link add {DEVICE} type veth peer name out0 netns {}\n\
             addr add {ADDRESS}/24 dev {DEVICE}\n\
             link set {DEVICE} up\n",
            client.path()
        ));
        client.ip("addr add 10.9.0.2/24 dev out0\nlink set out0 up\n");
        processors.receive_from(&ns, DEVICE);
        processors.receive_from(&client, "out0");
        let device = lab::device(&ns)?;
        Ok(Self { lab: Lab { ns, device }, client })
    }

    /// One transfer from the client to a watched port of this thread's namespace.
    fn transfer(&self, time: Duration, processors: Processors) -> Result<Transfer> {
        let listener = TcpListener::bind((ADDRESS, HIT))?;
        let kernel = kernel_threads();
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                self.client.run(|| {
                    processors.step_aside()?;
                    send(time)
                })
            });
            let receiver = scope.spawn(|| {
                processors.measure()?;
                receive(&listener)
            });
            let failed = |_| anyhow!("an end of the transfer panicked");
            let received = receiver.join().map_err(failed)??;
            let sent = sender.join().map_err(failed)??;
            Ok(Transfer {
                bytes: received.bytes,
                time: received.time,
                work: received.work + sent + (kernel_threads() - kernel),
            })
        })
    }
}

/// What one transfer took.
struct Transfer {
    bytes: u64,
    time: Duration,
    work: f64,
}

/// What its receiver saw.
struct Received {
    bytes: u64,
    time: Duration,
    work: f64,
}

fn send(time: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect((ADDRESS, HIT)).context("connect over the wire")?;
    let block = vec![0xa5; BLOCK];
    let begin = Instant::now();
    while begin.elapsed() < time {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    // The other end closes when it has all.
    stream.read_exact(&mut [0])?;
    work_of_this_thread()
}

fn receive(listener: &TcpListener) -> Result<Received> {
    let (mut stream, _) = listener.accept()?;
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    let begin = Instant::now();
    loop {
        match stream.read(&mut block)? {
            0 => break,
            more => bytes += more as u64,
        }
    }
    let time = begin.elapsed();
    stream.write_all(&[0])?;
    Ok(Received { bytes, time, work: work_of_this_thread()? })
}

/// Processor seconds of this thread so far, and of what the kernel did on its back.
fn work_of_this_thread() -> Result<f64> {
    Ok(clock::now()?.as_secs_f64())
}

/// Processor seconds of the threads that do the kernel's network work when it is too much for the
/// ends, and, where the kernel keeps interrupts apart from the threads they interrupt, of those.
fn kernel_threads() -> f64 {
    let of_thread = |folder: fs::DirEntry| {
        let path = folder.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        if !name.starts_with("ksoftirqd/") {
            return None;
        }
        let times = fs::read_to_string(path.join("schedstat")).ok()?;
        let nanoseconds: f64 = times.split(' ').next()?.parse().ok()?;
        Some(nanoseconds / 1e9)
    };
    let threads = fs::read_dir("/proc").into_iter().flatten().flatten();
    let threads: f64 = threads.filter_map(of_thread).sum();
    if keeps_interrupts_apart() { threads + interrupts().unwrap_or(0.0) } else { threads }
}

/// Whether the time of a thread is without the interrupts in between (`CONFIG_IRQ_TIME_ACCOUNTING`).
fn keeps_interrupts_apart() -> bool {
    let config = match nix::sys::utsname::uname() {
        Ok(names) => format!("/boot/config-{}", names.release().to_string_lossy()),
        Err(_) => return false,
    };
    let text = fs::read_to_string(config).or_else(|_| lab::run(&["zcat", "/proc/config.gz"], ""));
    text.is_ok_and(|text| text.contains("\nCONFIG_IRQ_TIME_ACCOUNTING=y"))
}

/// Seconds in interrupts and soft interrupts, of all processors.
fn interrupts() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let mut times = text.lines().next()?.split_whitespace().skip(6);
    let hard: f64 = times.next()?.parse().ok()?;
    let soft: f64 = times.next()?.parse().ok()?;
    // Hundredths of a second, whatever the kernel's own clock.
    Some((hard + soft) / 100.0)
}

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Section> {
    let cgroup = OwnCgroup::enter()?;
    let processors = Processors::choose()?;
    let ports: Vec<u16> = (HIT - PORTS + 1..=HIT).collect();
    let mut rounds = Rounds::default();
    let wire = Wire::new(processors)?;
    // The first transfer finds out how large its buffers may become.
    run(&wire, Way::None, &ports, &cgroup, plan, processors)?;
    for round in 0..plan.stream_rounds {
        let mut ways = INTERLEAVED;
        Random::new(round).shuffle(&mut ways);
        for way in ways {
            let transfer = run(&wire, way, &ports, &cgroup, plan, processors)?;
            record(&mut rounds, way, round, &transfer);
        }
    }
    // As on the way of single packets: its hooks stay, so it comes last.
    for round in plan.stream_rounds..plan.stream_rounds + plan.stream_rounds.div_ceil(4) {
        let none = run(&wire, Way::None, &ports, &cgroup, plan, processors)?;
        record(&mut rounds, Way::None, round, &none);
        let wire = Wire::new(processors)?;
        let legacy = run(&wire, Way::IptablesLegacy, &ports, &cgroup, plan, processors)?;
        record(&mut rounds, Way::IptablesLegacy, round, &legacy);
    }
    Ok(report(&rounds))
}

fn run(
    wire: &Wire,
    way: Way,
    ports: &[u16],
    cgroup: &OwnCgroup,
    plan: &Plan,
    processors: Processors,
) -> Result<Transfer> {
    wire.lab.ns.run(|| {
        processors.step_aside()?;
        let mut installed = way.install(&wire.lab, ports, cgroup.path())?;
        let transfer = wire.transfer(plan.stream_time, processors)?;
        check(&mut installed, way, transfer.bytes)?;
        installed.remove()?;
        Ok(transfer)
    })
}

/// Every way but nothing must have counted at least the payload.
fn check(installed: &mut Installed, way: Way, payload: u64) -> Result<()> {
    if let Some((_, bytes)) = installed.counted()? {
        ensure!(bytes >= payload, "{} counted {bytes} bytes of {payload}", way.name());
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "53 bits are plenty")]
fn record(rounds: &mut Rounds<Cell>, way: Way, round: u32, transfer: &Transfer) {
    let bytes = transfer.bytes as f64;
    let gigabits = bytes * 8.0 / 1e9 / transfer.time.as_secs_f64();
    rounds.record((Quantity::Throughput, way), round, gigabits);
    rounds.record((Quantity::Work, way), round, transfer.work / (bytes / 1e9));
}

fn report(rounds: &Rounds<Cell>) -> Section {
    let ways: Vec<Way> = INTERLEAVED.into_iter().chain([Way::IptablesLegacy]).collect();
    let ratio = |quantity, way| rounds.ratio(&(quantity, way), &(quantity, Way::None));
    let percent = |estimate: Estimate| {
        let of = |value: f64| (value - 1.0) * 100.0;
        format!(
            "{:+.1} % ({:+.1} to {:+.1})",
            of(estimate.median),
            of(estimate.low),
            of(estimate.high)
        )
    };
    let cell = |found: Option<Estimate>, text: &dyn Fn(Estimate) -> String| {
        found.map(text).unwrap_or_default()
    };
    let two = |estimate: Estimate| {
        format!("{:.2} ({:.2} to {:.2})", estimate.median, estimate.low, estimate.high)
    };
    let rows = ways
        .iter()
        .map(|&way| {
            vec![
                way.name().to_owned(),
                cell(rounds.of(&(Quantity::Throughput, way)), &two),
                cell(ratio(Quantity::Throughput, way), &percent),
                cell(rounds.of(&(Quantity::Work, way)), &two),
                cell(ratio(Quantity::Work, way), &percent),
            ]
        })
        .collect();
    let head =
        ["way of counting", "Gbit/s", "against nothing", "processor s/GB", "against nothing"];
    let json = ways
        .iter()
        .map(|&way| {
            let of = |quantity| rounds.of(&(quantity, way)).map(|estimate| estimate.json());
            let against = |quantity| ratio(quantity, way).map(|estimate| estimate.json());
            json!({
                "way": way.name(),
                "ports": PORTS,
                "gigabits_per_second": of(Quantity::Throughput),
                "throughput_ratio": against(Quantity::Throughput),
                "cpu_seconds_per_gigabyte": of(Quantity::Work),
                "cpu_ratio": against(Quantity::Work),
            })
        })
        .collect();
    let chart = |file, title: &str, unit, quantity| Chart {
        file,
        title: title.to_owned(),
        unit,
        logarithmic: false,
        series: vec!["10,000 ports".to_owned()],
        groups: ways
            .iter()
            .map(|&way| {
                let value = rounds.of(&(quantity, way)).map(|estimate| estimate.median);
                (way.name().to_owned(), vec![value])
            })
            .collect(),
    };
    let target = |promise: &str, quantity, lost: f64| {
        ratio(quantity, Way::Tcx).map(|estimate| Target {
            promise: promise.to_owned(),
            measured: percent(estimate),
            kept: (estimate.median - 1.0) * lost <= MOST_LOST,
        })
    };
    Section {
        name: "stream",
        title: "One TCP stream".to_owned(),
        method: "One connection between two network namespaces over veth with its offloads, to the \
                 last of 10,000 watched ports, each end on a processor of its own. What both receive \
                 is worked off on the receiver's, as it is for one queue of a network card: \
                 otherwise veth does that wherever a segment was sent, they overtake each other, \
                 and a tenth is sent again. Processor time is that of both ends with all that the \
                 kernel did for them."
            .to_owned(),
        tables: vec![Table {
            title: "With 10,000 watched ports".to_owned(),
            head: head.map(str::to_owned).to_vec(),
            rows,
        }],
        charts: vec![
            chart("stream", "Throughput of one TCP stream", "Gbit/s", Quantity::Throughput),
            chart(
                "stream-work",
                "Processor time of one TCP stream",
                "s/GB",
                Quantity::Work,
            ),
        ],
        json,
        targets: [
            target(
                "one TCP stream, 10,000 ports, tcx: throughput within 3 %",
                Quantity::Throughput,
                -1.0,
            ),
            target(
                "one TCP stream, 10,000 ports, tcx: processor time a GB within 3 %",
                Quantity::Work,
                1.0,
            ),
        ]
        .into_iter()
        .flatten()
        .collect(),
    }
}

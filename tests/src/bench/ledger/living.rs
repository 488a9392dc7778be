//! The real `traffic run` on a ledger with a long history, while all users move something.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::unistd::Pid;
use serde_json::json;
use traffic_user::accounting::usage::Span;

use super::{
    super::{
        lab::{ADDRESS, DEVICE, Lab},
        proxy::{EACH, FIRST_PORT, Proxy, asked, inbounds},
        report::{Section, Table, Target},
        running::{Running, binary, mib, resident, work},
        stats::number,
    },
    Extent, Folder, MINUTES,
    booking::is_booked,
    ms, now,
};
use crate::{craft, device::Device, load::Injector};

const MOST_MIB: f64 = 64.0;
const MOST_PERCENT: f64 = 1.0;
/// Payload bytes of a frame.
const FRAME: usize = 1400;
/// Of each group: more than what its users move at most, and a tenth of it.
const FRAMES_IN: usize = 1;
const FRAMES_OUT: usize = 7;
/// Payload bytes of a user, less than this.
const UP: u16 = 50;
const DOWN: u16 = 400;
const _: () = assert!(EACH as usize * UP as usize * 11 / 10 < FRAMES_IN * FRAME);
const _: () = assert!(EACH as usize * DOWN as usize * 11 / 10 < FRAMES_OUT * FRAME);

/// What a process took while it was looked at.
#[derive(Clone, Debug)]
pub(super) struct Took {
    /// Processor time of all its threads.
    pub(super) work: Duration,
    /// KiB, now and at most.
    pub(super) resident: u64,
    pub(super) most: u64,
}

/// What was seen.
#[derive(Clone, Debug)]
pub(super) struct Lived {
    pub(super) daemon: Took,
    /// Another process, in the same time.
    pub(super) beside: Option<Took>,
    pub(super) wall: Duration,
    ticks: u32,
    /// KiB of its BPF maps.
    maps: u64,
}

impl Took {
    /// In parts of a hundred of one processor.
    pub(super) fn percent(&self, wall: Duration) -> f64 {
        self.work.as_secs_f64() / wall.as_secs_f64() * 100.0
    }
}

/// What a user moves from one tick to the next: each something else, and little, because it passes a
/// real device.
fn moved(user: u16) -> (i64, i64) {
    (1 + i64::from(user % (UP - 1)), 1 + i64::from(user % (DOWN - 1)))
}

/// Frames on the ports of all groups.
struct Wire {
    from_outside: Injector,
    from_inside: Injector,
    inward: Vec<Vec<u8>>,
    outward: Vec<Vec<u8>>,
}

impl Wire {
    fn new(lab: &Lab, users: u16) -> Self {
        let device = |name: &str, last| Device {
            ns: lab.ns.again(),
            name: name.to_owned(),
            v4: ADDRESS,
            v6: std::net::Ipv6Addr::UNSPECIFIED,
            mac: [2, 0, 0, 0, 0, last],
        };
        let (inside, outside) = (device(DEVICE, 1), device("out0", 2));
        // Nobody has these addresses, so that nothing is answered.
        let host: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 77);
        let peer: SocketAddr = (Ipv4Addr::new(10, 9, 0, 78), 40_000).into();
        let payload = [0x5a; FRAME];
        let frames = |inward: bool| {
            let frame = |inbound: u16| {
                let group: SocketAddr = (host, FIRST_PORT + inbound).into();
                let (from, to) = if inward { (peer, group) } else { (group, peer) };
                let macs =
                    if inward { (outside.mac, inside.mac) } else { (inside.mac, outside.mac) };
                craft::ethernet(macs.0, macs.1, &craft::tcp(from, to, &payload, false))
            };
            inbounds(users).map(frame).collect()
        };
        let (inward, outward) = (frames(true), frames(false));
        let (from_outside, from_inside) = (Injector::new(&outside), Injector::new(&inside));
        Self { from_outside, from_inside, inward, outward }
    }

    /// What carries the payload of all users once.
    fn pass(&self) {
        for frame in &self.inward {
            (0..FRAMES_IN).for_each(|_| self.from_outside.send(frame));
        }
        for frame in &self.outward {
            (0..FRAMES_OUT).for_each(|_| self.from_inside.send(frame));
        }
    }
}

/// Waits until the proxy was asked so often.
fn polled(proxy: &Proxy, times: usize, most: Duration) -> Result<()> {
    let end = Instant::now() + most;
    while asked(proxy) < times {
        ensure!(Instant::now() < end, "it has not asked the proxy for the {times}. time");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Runs it until all that was moved is booked.
pub(super) fn measure(
    extent: Extent,
    lab: &Lab,
    copy: &Folder,
    proxy: &Proxy,
    beside: Option<Pid>,
) -> Result<Lived> {
    let wire = Wire::new(lab, extent.users);
    let begin = now()?.div_euclid(MINUTES) * MINUTES;
    let interval = format!("{}ms", extent.interval.as_millis());
    let arguments = [
        "--state",
        copy.text()?,
        "--proxy-config",
        proxy.file()?,
        "--interval",
        &interval,
        "--output",
        "none",
    ];
    let daemon = Running::spawn(&binary()?, &arguments)?;
    let most = extent.interval * 2 + Duration::from_secs(30);
    let mut payload = 0;
    let mut first = None;
    let mut last = None;
    // The first poll is the one from which is counted; what moved until the second one is booked by
    // the third tick, as new users. From then on a tick is one as any other.
    let (from, to) = (3, 3 + usize::try_from(extent.daemon_ticks)?);
    for poll in 1..=to {
        polled(proxy, poll, most)?;
        // Half way to the next tick.
        thread::sleep(extent.interval / 2);
        if poll == from || poll == to {
            let other = beside.map(work).transpose()?;
            let seen = (Instant::now(), daemon.work()?, other);
            if poll == from { first = Some(seen) } else { last = Some(seen) }
        }
        wire.pass();
        payload += proxy.move_on_by(moved);
    }
    let (Some(first), Some(last)) = (first, last) else { anyhow::bail!("nothing was measured") };
    let memory = daemon.memory()?;
    let beside = match (beside, first.2, last.2) {
        (Some(pid), Some(first), Some(last)) => {
            let (resident, most) = resident(pid)?;
            Some(Took { work: last.saturating_sub(first), resident, most })
        }
        _ => None,
    };
    daemon.stop()?;
    is_booked(copy, Span { begin, end: i64::MAX }, payload, extent.users)?;
    Ok(Lived {
        daemon: Took {
            work: last.1.saturating_sub(first.1),
            resident: memory.resident,
            most: memory.most,
        },
        beside,
        wall: last.0 - first.0,
        ticks: extent.daemon_ticks,
        maps: memory.map_total(),
    })
}

/// What it says.
pub(super) fn report(extent: Extent, lived: &Lived) -> Section {
    let Lived { daemon, wall, ticks, .. } = lived;
    let users = number(extent.users.into());
    let percent = daemon.percent(*wall);
    let tick = ms(daemon.work) / f64::from(*ticks);
    // At the interval that the promise is about, whatever it was here.
    let promised = tick / 1e4 * 100.0;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let interval = extent.interval.as_secs_f64();
    let mut targets = vec![Target {
        promise:
            "daemon with a ledger and 10,000 users: at most 1 % of one core at an interval of 10 s"
                .to_owned(),
        measured: format!("{} % ({users} users)", number(promised)),
        kept: promised <= MOST_PERCENT,
    }];
    targets.push(Target {
        promise: "the same: memory of the process at most 64 MiB".to_owned(),
        measured: format!(
            "{} MiB, {} MiB at most ({users} users)",
            mib(daemon.resident),
            mib(daemon.most)
        ),
        kept: mib(daemon.most).parse().is_ok_and(|most: f64| most <= MOST_MIB),
    });
    Section {
        name: "ledger-daemon",
        title: "The daemon with a ledger".to_owned(),
        method: format!(
            "`traffic run --output none --interval {interval}s` on a copy of the ledger, up to date, with \
             {users} users in {} inbounds who all move something before every poll; their packets pass a \
             real device, so that payload and share of the wire of each are booked at every tick. \
             Processor time is that of all its threads over {ticks} ticks, half an interval after the \
             first tick that books all to half an interval after the last. At the end exactly what was \
             moved is booked. Summing up an hour comes once an hour beside, see above.",
            extent.users.div_ceil(EACH)
        ),
        tables: vec![Table {
            title: format!("{users} users"),
            head: ["", "measured"].map(str::to_owned).to_vec(),
            rows: vec![
                row("processor time of a tick, ms", number(tick)),
                row("of one core, %", number(percent)),
                row("resident, MiB", mib(daemon.resident)),
                row("most, MiB", mib(daemon.most)),
                row("BPF maps, MiB", mib(lived.maps)),
            ],
        }],
        charts: Vec::new(),
        json: json!({
            "users": extent.users,
            "interval_seconds": interval,
            "ticks": ticks,
            "wall_seconds": wall.as_secs_f64(),
            "cpu_ms_per_tick": tick,
            "cpu_percent": percent,
            "resident_kib": daemon.resident,
            "most_kib": daemon.most,
            "maps_kib": lived.maps,
        }),
        targets,
    }
}

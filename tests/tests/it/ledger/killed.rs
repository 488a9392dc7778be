//! Daemons that are killed under load, again and again: in the end everything is booked, once.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::signal::Signal;
use traffic_tests::{
    daemon::{Daemon, Ended, Site},
    document::Traffic,
    need,
    netns::NetNs,
    stats_server::{Kind, StatsServer},
    wait,
};
use traffic_user::{
    accounting::{
        reading::{Coverage, Layer},
        subject::Subject,
        usage::Usage,
    },
    ledger::Reader,
};

use super::{
    super::lifecycle::{DATAGRAM, Load},
    events, events_of, group, has_begun, reader, usage_of,
};

const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_085);
/// Older than any pause between two daemons.
const AGE: Duration = Duration::from_secs(1000);

/// Numbers that are spread, and the same at each run.
struct Spread(u64);

impl Spread {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// What goes on while daemons come and go: so many steps of it until now.
type Steps<'a> = &'a dyn Fn() -> u64;

/// Kills so many daemons: by a fault inside of a commit or right after it, or by a signal after so many
/// steps at most, wherever it is then.
fn kill(kills: u32, start: impl Fn() -> std::process::Command, steps: Steps<'_>, most: u64) {
    let mut spread = Spread(7);
    let mut killed = 0;
    while killed < kills {
        let mut command = start();
        let point = match spread.below(4) {
            0 => Some("ledger-commit"),
            1 => Some("ledger-committed"),
            _ => None,
        };
        let enough = steps() + spread.below(most);
        if let Some(point) = point {
            command.env("TRAFFIC_FAULT", point);
        }
        let daemon = Daemon::spawn(command);
        if point.is_none() {
            wait::until("enough steps", || (steps() >= enough).then_some(()));
            daemon.signal(Signal::SIGKILL);
        }
        let Ended { code, stderr, .. } = daemon.end();
        // A tool that the one before was about to start may have its lock for a moment more.
        let locked = stderr.contains("another traffic daemon");
        assert!(code.is_none() || locked, "{point:?}: {code:?}: {stderr}");
        killed += u32::from(code.is_none());
    }
}

fn persisting(site: &Site, load: &Load, meter: &str) -> std::process::Command {
    let args = ["run", "--output", "json", "--interval", "20ms", "--no-proxy", "--iface", "eth0"];
    let mut command = site.traffic(&load.host, &args);
    command.args(["--ports", "5000/udp", "--persist", "--meter", meter]);
    command
}

/// Everything that is sent through so many kills is booked, exactly and without a gap.
fn nothing_is_lost(meter: &str, layer: Layer, kills: u32) {
    let (site, mut load) = (Site::new(), Load::new());
    let start = || {
        let mut daemon = Daemon::spawn(persisting(&site, &load, meter));
        daemon.wait_for("its first document", |document| {
            (document.text("meter") == meter).then_some(())
        });
        daemon
    };
    let first = start();
    load.begin();
    load.goes_on();
    has_begun(&site);
    first.kill();
    let sent = || load.sent.load(Relaxed);
    kill(kills, || persisting(&site, &load, meter), &sent, 60_000);
    let last = start();
    load.goes_on();
    let sent = load.end();
    last.stop();

    assert!(sent.input_packets > 1000 && sent.input_bytes == sent.input_packets * DATAGRAM);
    let usages = reader(&site).totals(&group("5000/udp")).expect("ask the ledger");
    assert_eq!(usages, [usage_of(layer, sent, Coverage::Complete)], "{meter}");
    assert_eq!(events(&site), [], "{meter}");
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
}

#[test]
fn after_two_hundred_kills_under_load_the_ledger_equals_what_was_sent() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    nothing_is_lost("tcx", Layer::L3, 200);
}

#[test]
fn after_forty_kills_the_ledger_equals_what_rules_of_nft_have_counted() {
    need!(Root, Netns, Tool("ip"), Tool("nft"));
    nothing_is_lost("nft", Layer::L3Skb, 40);
}

#[test]
fn after_forty_kills_the_ledger_equals_what_rules_of_iptables_have_counted() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-nft-save"));
    nothing_is_lost("iptables", Layer::L3Skb, 40);
}

/// Two users whose counters grow all the time.
struct Growing {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// What each step adds: email, uplink and downlink.
const STEP: [(&str, u64, u64); 2] = [("a@x", 13, 1009), ("b@x", 0, 7)];

impl Growing {
    fn start(fake: Arc<StatsServer>) -> Self {
        let (stop, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, count) = (Arc::clone(&stop), Arc::clone(&steps));
        let thread = thread::spawn(move || {
            while !end.load(Relaxed) {
                for (email, up, down) in STEP {
                    fake.user(email, up.cast_signed(), down.cast_signed());
                }
                count.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, steps, thread: Some(thread) }
    }

    fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Ends it: how many steps there were.
    fn end(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the growing counters");
        }
        self.steps()
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

#[test]
fn after_forty_kills_each_byte_of_a_proxy_is_booked_once() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, host) = (Site::new(), NetNs::new());
    let fake = Arc::new(StatsServer::inside(&host, Kind::V2ray4, API));
    fake.began(AGE);
    let command = || {
        let args = ["run", "--output", "json", "--interval", "20ms", "--iface", "lo"];
        let mut command = site.traffic(&host, &args);
        command.args(["--ports", "443", "--meter", "tcx", "--api"]).arg(API.to_string());
        command
    };
    // What was before the first poll is nobody's: there is nothing yet.
    let first = Daemon::spawn(command());
    wait::until("the first poll in the ledger", || {
        let cursors = Reader::open(&site.state).ok()??.cursors().expect("ask the ledger");
        cursors.proxy.map(|_| ())
    });
    let growing = Growing::start(Arc::clone(&fake));
    first.kill();
    kill(40, command, &|| growing.steps(), 400);
    let last = Daemon::spawn(command());
    let steps = growing.end();
    assert!(steps > 1000, "{steps}");
    let totals =
        |email: &str| reader(&site).totals(&Subject::User(email.into())).expect("ask the ledger");
    let wanted = |up: u64, down: u64| -> Vec<Usage> {
        let moved =
            Traffic { input_bytes: steps * up, output_bytes: steps * down, ..Traffic::default() };
        vec![usage_of(Layer::Payload, moved, Coverage::Complete)]
    };
    wait::until("the last step in the ledger", || {
        STEP.iter().all(|(email, up, down)| totals(email) == wanted(*up, *down)).then_some(())
    });
    last.stop();
    for (email, up, down) in STEP {
        assert_eq!(totals(email), wanted(up, down), "{email}");
    }
    let losses = ["gap", "counters-reset", "proxy-restarted", "proxy-unclear", "proxy-replaced"];
    assert_eq!(events_of(&site, &losses), []);
    assert!(fake.questions().iter().all(|question| !question.reset));
}

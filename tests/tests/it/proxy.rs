//! A real proxy with users: what each of the two meters says, against what was really moved.

mod faults;
mod payload;

use std::collections::BTreeMap;

use traffic_tests::{
    capture::{Capture, Flow},
    daemon::{Daemon, Site},
    document::Traffic,
    proxy::{Kind, Program, Proxy, TAG},
};
use traffic_user::accounting::proxy::Payload;

const ALICE: &str = "alice@example.com";
const BOB: &str = "bob@example.com";

/// As many users as the inbound may have.
const fn users(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Shadowsocks => &[ALICE],
        _ => &[ALICE, BOB],
    }
}

/// A proxy, the daemon on its server's device, and captures of both ways between it and its users.
struct Bench {
    // Ends before the namespaces do.
    daemon: Daemon,
    inward: Capture,
    outward: Capture,
    site: Site,
    proxy: Proxy,
}

impl Bench {
    #[track_caller]
    fn start(program: Program, kind: Kind, ipv6: bool) -> Self {
        let proxy = Proxy::start(program, kind, ipv6, users(kind));
        let site = Site::new();
        let group = proxy.group();
        let args = ["--iface", "eth0", "--ports", &group];
        let mut daemon = site.start(&proxy.road.server.ns, &args);
        daemon.counts_on(&["eth0"]);
        let inward = Capture::outgoing(&proxy.road.far);
        let outward = Capture::outgoing(&proxy.road.near);
        Self { daemon, inward, outward, site, proxy }
    }

    /// What the StatsService says, by name, without what the API says of itself.
    #[track_caller]
    fn counters(&self) -> BTreeMap<String, i64> {
        self.proxy.counters()
    }

    /// The user counters alone.
    #[track_caller]
    fn of_users(&self) -> BTreeMap<String, i64> {
        let mut counters = self.counters();
        counters.retain(|name, _| name.starts_with("user>>>"));
        counters
    }

    /// A counter of the inbound: `uplink` or `downlink`.
    #[track_caller]
    fn inbound(&self, way: &str) -> u64 {
        self.counters()[&format!("inbound>>>{TAG}>>>traffic>>>{way}")].cast_unsigned()
    }

    /// Layer-3 bytes of the group until now.
    #[track_caller]
    fn kernel(&mut self) -> Traffic {
        let key = self.proxy.port.to_string();
        self.daemon.fresh().group(&key)
    }

    /// Ends all, asserts that the kernel's meter counted exactly what was on the wire, lane by lane, and
    /// gives it.
    #[track_caller]
    fn end(mut self) -> Traffic {
        self.proxy.end();
        let port = self.proxy.port;
        let document = self.daemon.stop();
        let (inward, outward) = (self.inward.stop(), self.outward.stop());
        let key = port.to_string();
        for (lane, udp, ipv6) in [
            ("tcp4", false, false),
            ("tcp6", false, true),
            ("udp4", true, false),
            ("udp6", true, true),
        ] {
            let kind = |flow: &Flow| (flow.udp, flow.ipv6) == (udp, ipv6);
            let to = inward.sum(|flow| kind(flow) && flow.destination == port);
            let from = outward.sum(|flow| kind(flow) && flow.source == port);
            let wire =
                Traffic::input(to.bytes, to.packets) + Traffic::output(from.bytes, from.packets);
            assert_eq!(document.lane(&key, lane), wire, "{lane}");
        }
        traffic_tests::leaks::nothing(&self.proxy.road.server.ns, &self.site.pins);
        document.group(&key)
    }
}

/// Names and values of a user's two counters.
fn both(user: &str, payload: Payload) -> [(String, i64); 2] {
    let name = |way| format!("user>>>{user}>>>traffic>>>{way}");
    let value = |bytes: u64| i64::try_from(bytes).expect("a test moves little");
    [(name("downlink"), value(payload.downlink)), (name("uplink"), value(payload.uplink))]
}

/// The counters of both users, each with its uplink and downlink.
fn two(alice: (u64, u64), bob: (u64, u64)) -> BTreeMap<String, i64> {
    let payload = |(uplink, downlink)| Payload { uplink, downlink };
    both(ALICE, payload(alice)).into_iter().chain(both(BOB, payload(bob))).collect()
}

//! Flows of which the payload is known: the proxy counts it to the byte, and the kernel what it cost.

use std::{collections::BTreeMap, ops::RangeInclusive};

use traffic_tests::{
    need,
    proxy::{HEAD, Kind, Program, Proxy},
};
use traffic_user::accounting::proxy::Payload;

use super::{ALICE, BOB, Bench, both, two, users};

/// Requests and answers of one connection each, in bytes.
const FETCHES: [(u64, u64); 5] =
    [(HEAD, 1), (100, 1000), (3000, 70_000), (500_000, 17), (1000, 2_000_000)];
/// Of one datagram each. V2Ray passes on none that is empty, and cuts one that is longer than its
/// buffers of 2,048 bytes.
const DATAGRAMS: [(u64, u64); 4] = [(HEAD, 1), (100, 1200), (1200, 100), (1400, 1400)];

/// Kernel bytes for one byte of payload, both directions together, where much of it moves at once.
const fn bulk(kind: Kind) -> RangeInclusive<f64> {
    match kind {
        // Sends again what has not been acknowledged within a few milliseconds.
        Kind::VmessKcp => 1.05..=12.0,
        _ => 1.03..=1.15,
    }
}

/// All users fetch over TCP and UDP, by IPv4 and IPv6. Their counters show the payload and nothing
/// else, no header of the proxy's protocol and no answer of the origin's twice.
#[track_caller]
fn every_byte(program: Program, kind: Kind) {
    for ipv6 in [false, true] {
        let what = format!("{program:?}, {kind:?}, IPv6: {ipv6}");
        let bench = Bench::start(program, kind, ipv6);
        let (mut wanted, mut sum) = (BTreeMap::new(), Payload::default());
        for user in users(kind) {
            let mut moved = Payload::default();
            for (request, response) in FETCHES {
                moved = moved.plus(bench.proxy.fetch(user, request, response));
            }
            let socket = bench.proxy.datagrams(user);
            for (request, response) in DATAGRAMS {
                moved = moved.plus(bench.proxy.ask(&socket, request, response));
            }
            wanted.extend(both(user, moved));
            sum = sum.plus(moved);
        }
        assert_eq!(bench.of_users(), wanted, "{what}");
        let (uplink, downlink) = (bench.inbound("uplink"), bench.inbound("downlink"));
        let kernel = bench.end();
        // The inbound's counters are those of the stream that carries the payload.
        for (payload, stream, wire) in [
            (sum.uplink, uplink, kernel.input_bytes),
            (sum.downlink, downlink, kernel.output_bytes),
        ] {
            assert!(payload <= stream && stream < wire, "{what}: {payload}, {stream}, {wire}");
        }
        let ratio = (kernel.input_bytes + kernel.output_bytes) as f64 / sum.total() as f64;
        assert!(bulk(kind).contains(&ratio), "{what}: {kernel:?} for {sum:?}: {ratio}");
    }
}

#[test]
fn vmess_over_tcp_counts_each_byte_of_payload_and_the_kernel_each_of_the_wire() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    every_byte(Program::V2ray, Kind::VmessTcp);
}

#[test]
fn vmess_in_a_websocket_counts_each_byte_of_payload_and_the_kernel_each_of_the_wire() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    every_byte(Program::V2ray, Kind::VmessWs);
}

#[test]
fn vmess_over_kcp_counts_each_byte_of_payload_and_the_kernel_each_of_the_wire() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    every_byte(Program::V2ray, Kind::VmessKcp);
}

#[test]
fn vless_counts_each_byte_of_payload_and_the_kernel_each_of_the_wire() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    every_byte(Program::V2ray, Kind::VlessTcp);
}

#[test]
fn trojan_counts_each_byte_of_payload_and_the_kernel_each_of_the_wire() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    every_byte(Program::V2ray, Kind::TrojanTcp);
}

#[test]
fn shadowsocks_counts_each_byte_of_payload_and_the_kernel_each_of_the_wire() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    every_byte(Program::V2ray, Kind::Shadowsocks);
}

#[test]
fn xray_counts_each_byte_of_payload_and_the_kernel_each_of_the_wire() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    if need::optional(Program::Xray.name()) {
        for kind in Kind::ALL {
            every_byte(Program::Xray, kind);
        }
    }
}

/// Kernel bytes for one byte of payload, both directions together.
#[track_caller]
fn ratio(moves: impl Fn(&Proxy) -> Payload) -> f64 {
    let bench = Bench::start(Program::V2ray, Kind::VmessTcp, false);
    let payload = moves(&bench.proxy);
    assert_eq!(bench.of_users(), BTreeMap::from(both(ALICE, payload)));
    let kernel = bench.end();
    (kernel.input_bytes + kernel.output_bytes) as f64 / payload.total() as f64
}

#[test]
fn the_less_a_connection_moves_the_more_each_byte_costs() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    let connections = ratio(|proxy| (0..50).map(|_| proxy.fetch(ALICE, 100, 900)).sum());
    let exchanges = ratio(|proxy| {
        let mut conversation = proxy.open(ALICE);
        for _ in 0..50 {
            conversation.exchange(100, 900).expect("an answer");
        }
        conversation.end()
    });
    let bulk = ratio(|proxy| proxy.fetch(ALICE, 100, 10_000_000));
    let found = [connections, exchanges, bulk];
    let bounds = [1.5..=3.0, 1.1..=1.5, 1.03..=1.12];
    let inside = bounds.iter().zip(&found).all(|(bounds, ratio)| bounds.contains(ratio));
    assert!(inside, "{found:?} and not in {bounds:?}");
}

#[test]
fn two_users_of_one_port_have_numbers_of_their_own_at_the_same_time() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    let bench = Bench::start(Program::V2ray, Kind::VmessTcp, false);
    let mut alice = bench.proxy.open(ALICE);
    let mut bob = bench.proxy.open(BOB);
    for bytes in [100, 10_000, 50_000] {
        alice.exchange(bytes, 3 * bytes).expect("an answer");
        bob.exchange(2 * bytes, bytes).expect("an answer");
    }
    assert_eq!(bench.of_users(), two((60_100, 180_300), (120_200, 60_100)));
    drop((alice, bob));
    bench.end();
}

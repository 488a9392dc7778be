//! TCP and UDP with segmentation and receive offloads on and off: the same numbers at both ends, and
//! on a wire between them that carries segments only.

use std::process::Stdio;

use traffic_tests::{
    capture::{Capture, Captured, Flow},
    daemon::Site,
    device::{Device, veth},
    document::Traffic,
    leaks, load, need,
    neighbour::{Neighbour, Order, Side, verdict},
    netns::NetNs,
    wait,
};

/// A sender and a receiver with a router between them. The wire from the router to the receiver
/// carries segments only, whatever the ends do, so a capture there is the truth for both.
struct Path {
    sender: Device,
    router: NetNs,
    wire: Device,
    receiver: Device,
}

impl Path {
    fn new(offloads: bool) -> Self {
        let (a, router, b) = (NetNs::new(), NetNs::new(), NetNs::new());
        router.forward();
        let (sender, near) = veth((&a, "eth0"), (&router, "near"), 1);
        let (wire, receiver) = veth((&router, "wire"), (&b, "eth0"), 2);
        sender.default_route(&near);
        receiver.default_route(&wire);
        for end in [&sender, &receiver] {
            end.offloads(offloads);
        }
        wire.offloads(false);
        Self { sender, router, wire, receiver }
    }
}

/// What the wire carried for one port, as one end sees it: towards the receiver is the wire's output.
fn on_the_wire(captured: &Captured, udp: bool, ipv6: bool, port: u16) -> Traffic {
    let amount =
        |outgoing| captured.amount(Flow { outgoing, udp, ipv6, source: port, destination: port });
    let (to, from) = (amount(true), amount(false));
    Traffic {
        input_bytes: to.bytes,
        input_packets: to.packets,
        output_bytes: from.bytes,
        output_packets: from.packets,
    }
}

/// Transfers of many sizes through the path, and the same numbers at both ends and on the wire.
fn every_byte_of_every_segment(offloads: bool) {
    let path = Path::new(offloads);
    let streams = [0, 1, 1447, 1448, 1449, 65_536, 5_000_000u64];
    let ports: Vec<u16> = (30_000..).take(streams.len()).collect();
    let udp_port = 31_000;
    let each: Vec<String> = ports.iter().map(|port| format!("{port}/tcp")).collect();
    let list = format!("{},{udp_port}/udp", each.join(","));

    let (near, far) = (Site::new(), Site::new());
    let args = ["--iface", "eth0", "--ports", &list];
    let mut at_sender = near.start(&path.sender.ns, &args);
    let mut at_receiver = far.start(&path.receiver.ns, &args);
    at_sender.counts_on(&["eth0"]);
    at_receiver.counts_on(&["eth0"]);
    let capture = Capture::start(&path.wire);

    for ipv6 in [false, true] {
        for (port, bytes) in ports.iter().zip(streams) {
            load::tcp(&path.sender, &path.receiver, ipv6, *port, bytes);
        }
        let from = load::udp(&path.sender, ipv6, udp_port);
        let to = load::udp(&path.receiver, ipv6, udp_port);
        for bytes in [0, 1, 17, 18, 1000, 1452] {
            load::datagram(&from, &to, bytes);
            load::datagram(&to, &from, bytes);
        }
        // Several datagrams in one buffer, the last one shorter.
        load::segmented(&from, &to, 30_001, 1000);
    }

    let captured = capture.stop();
    let buffers = path.sender.moved().tx_packets;
    let (sender, receiver) = (at_sender.stop(), at_receiver.stop());
    let packets = sender.everything().output_packets;
    // The hook of the sender saw large buffers in the one case and packets in the other.
    assert_eq!(2 * buffers < packets, offloads, "{buffers} buffers, {packets} packets");
    let lanes = ["tcp4", "tcp6", "udp4", "udp6"];
    let all = ports.iter().map(|port| (port, false)).chain([(&udp_port, true)]);
    for (port, udp) in all {
        let key = port.to_string();
        for (ipv6, lane) in [false, true].into_iter().zip(&lanes[2 * usize::from(udp)..]) {
            let wire = on_the_wire(&captured, udp, ipv6, *port);
            let what = format!("port {port}, {lane}, offloads {offloads}");
            assert!(wire.input_packets > 0 && wire.output_packets > 0, "{what}");
            assert_eq!(receiver.lane(&key, lane), wire, "{what}, receiver");
            assert_eq!(sender.lane(&key, lane), wire.turned(), "{what}, sender");
        }
    }
    // Known without any capture: 12 datagrams and 31 segments, of which the last has one byte.
    let payload = 1 + 17 + 18 + 1000 + 1452;
    let udp = |headers: u64| Traffic {
        input_bytes: payload + 30_001 + 37 * headers,
        input_packets: 37,
        output_bytes: payload + 6 * headers,
        output_packets: 6,
    };
    assert_eq!(receiver.lane("31000", "udp4"), udp(28));
    assert_eq!(receiver.lane("31000", "udp6"), udp(48));
    leaks::nothing(&path.sender.ns, &near.pins);
    leaks::nothing(&path.receiver.ns, &far.pins);
    drop(path.router);
}

#[test]
fn segments_are_counted_one_by_one_with_offloads_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    every_byte_of_every_segment(true);
}

#[test]
fn segments_are_counted_one_by_one_with_offloads_off() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    every_byte_of_every_segment(false);
}

/// BIG TCP: of such a buffer no IP header can say the length. Both ends join segments; what passes between them
/// is cut at the sender, behind the hook.
#[test]
fn segments_of_buffers_beyond_64_kib_are_counted_one_by_one() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    let (a, b) = (NetNs::new(), NetNs::new());
    let (sender, receiver) = veth((&a, "eth0"), (&b, "eth0"), 1);
    for end in [&sender, &receiver] {
        end.ns.sh(&["ethtool", "-K", "eth0", "tso", "off", "gso", "on", "gro", "on"]);
        end.ns.ip("link set eth0 gso_max_size 185000 gro_max_size 185000");
    }
    let (near, far) = (Site::new(), Site::new());
    let args = ["--iface", "eth0", "--ports", "30000/tcp"];
    let mut at_sender = near.start(&sender.ns, &args);
    let mut at_receiver = far.start(&receiver.ns, &args);
    at_sender.counts_on(&["eth0"]);
    at_receiver.counts_on(&["eth0"]);
    let (out, back) = (Capture::outgoing(&sender), Capture::outgoing(&receiver));
    let large = [(&sender, Side::Output), (&receiver, Side::Input)].map(|(device, side)| {
        let seen = Neighbour::of_more_than(65_535 + 14, verdict::UNSPEC);
        let link = seen.tcx(device, side, Order::Last);
        (seen, link)
    });

    load::tcp(&sender, &receiver, true, 30_000, 40_000_000);
    let flow = Flow { outgoing: true, udp: false, ipv6: true, source: 30_000, destination: 30_000 };
    let (out, back) = (out.stop().amount(flow), back.stop().amount(flow));
    let wire = Traffic {
        input_bytes: out.bytes,
        input_packets: out.packets,
        output_bytes: back.bytes,
        output_packets: back.packets,
    };
    let large = large.map(|(seen, _link)| seen.seen());
    assert!(large.iter().all(|seen| *seen > 10), "large buffers at the two hooks: {large:?}");
    assert_eq!(at_receiver.stop().lane("30000", "tcp6"), wire, "receiver");
    assert_eq!(at_sender.stop().lane("30000", "tcp6"), wire.turned(), "sender");
}

#[test]
fn a_bulk_transfer_is_exact_at_both_ends() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("iperf3"));
    let path = Path::new(true);
    let (near, far) = (Site::new(), Site::new());
    let args = ["--iface", "eth0", "--ports", "5201/tcp"];
    let mut at_sender = near.start(&path.sender.ns, &args);
    let mut at_receiver = far.start(&path.receiver.ns, &args);
    at_sender.counts_on(&["eth0"]);
    at_receiver.counts_on(&["eth0"]);
    let capture = Capture::start(&path.wire);

    let iperf3 = need::tool("iperf3").expect("asked for above");
    let mut server = path
        .receiver
        .ns
        .command(&iperf3)
        .args(["-s", "-1", "-p", "5201"])
        .stdout(Stdio::null())
        .spawn()
        .expect("start iperf3");
    wait::until("iperf3 to listen", || {
        let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
        let listens =
            |file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(":1451 "));
        path.receiver.ns.run(|| tables.into_iter().any(listens)).then_some(())
    });
    let to = path.receiver.v4.to_string();
    let queue = load::alone();
    let report = path.sender.ns.sh(&["iperf3", "-c", &to, "-p", "5201", "-n", "32M", "-w", "128K"]);
    assert!(server.wait().expect("the end of iperf3").success());
    drop(queue);
    // iperf3 may end its connection while the last of the data is on its way.
    wait::until("all packets to arrive", || {
        let sent = at_sender.fresh().skipped("unwatched");
        (sent.turned() == at_receiver.fresh().lane("5201", "tcp4")).then_some(())
    });

    let captured = capture.stop();
    let (sender, receiver) = (at_sender.stop(), at_receiver.stop());
    let to_server = captured.sum(|flow| flow.outgoing && flow.destination == 5201);
    let to_client = captured.sum(|flow| !flow.outgoing && flow.source == 5201);
    let wire = Traffic::input(to_server.bytes, to_server.packets)
        + Traffic::output(to_client.bytes, to_client.packets);
    assert!(wire.input_bytes > 16 << 20, "{wire:?}, {report}");
    assert_eq!(receiver.lane("5201", "tcp4"), wire);
    // The client's own ports are nobody's group there.
    assert_eq!(sender.skipped("unwatched"), wire.turned());
}

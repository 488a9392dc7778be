//! Devices without a link header: the packets of a tun device begin with IP.

use std::net::SocketAddr;

use traffic_tests::{
    craft,
    daemon::Site,
    device::{Segments, Tun},
    document::Traffic,
    leaks, load, need,
    netns::NetNs,
};

#[test]
fn a_device_without_link_header_counts_what_passes_it() {
    need!(Root, Bpf, Object, Netns, Tun, Tool("ip"), Tool("tc"));
    let host = NetNs::new();
    let tun = Tun::new(&host, "tun0", 1, false);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--iface", "tun*", "--ports", "4433/udp"]);
    daemon.counts_on(&["tun0"]);
    daemon.wait_for("the length of the link header", |document| {
        (document.0["devices"]["tun0"]["link_header"] == 0).then_some(())
    });

    let mut wanted = Vec::new();
    for ipv6 in [false, true] {
        let server = load::udp(&tun.device, ipv6, 4433);
        let client = SocketAddr::from((tun.peer(ipv6), 50_000));
        let mut traffic = Traffic::default();
        for size in [0, 1, 100, 1200] {
            let packet = craft::udp(client, server.local_addr().unwrap(), &vec![1; size]);
            tun.put(&packet);
            traffic += Traffic::input(packet.len() as u64, 1);
            let mut buffer = [0; 2000];
            let (length, from) = server.recv_from(&mut buffer).expect("the datagram");
            assert_eq!((length, from), (size, client));

            server.send_to(&buffer[..size], client).expect("an answer");
            // The kernel's own reports of multicast groups may come in between.
            let answer = loop {
                let (packet, _) = tun.take();
                if packet.len() == packet_size(ipv6, size) && is_udp(&packet) {
                    break packet;
                }
            };
            traffic += Traffic::output(answer.len() as u64, 1);
        }
        wanted.push(traffic);
    }
    let document = daemon.stop();
    assert_eq!(document.lane("4433", "udp4"), wanted[0]);
    assert_eq!(document.lane("4433", "udp6"), wanted[1]);
    assert_eq!(document.skipped("malformed"), Traffic::default());
    leaks::nothing(&host, &site.pins);
}

fn packet_size(ipv6: bool, payload: usize) -> usize {
    payload + if ipv6 { 48 } else { 28 }
}

fn is_udp(packet: &[u8]) -> bool {
    matches!((packet[0] >> 4, packet[6], packet[9]), (4, _, 17) | (6, 17, _))
}

#[test]
fn a_buffer_of_several_segments_counts_as_so_many_packets_on_such_a_device() {
    need!(Root, Bpf, Object, Netns, Tun, Tool("ip"), Tool("tc"));
    let host = NetNs::new();
    let tun = Tun::new(&host, "tun0", 1, true);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--iface", "tun0", "--ports", "443/tcp"]);
    daemon.counts_on(&["tun0"]);
    let mut wanted = Vec::new();
    for (ipv6, headers) in [(false, 40u16), (true, 60)] {
        let client = SocketAddr::from((tun.peer(ipv6), 50_000));
        let server = SocketAddr::from((tun.device.ip(ipv6), 443));
        let packet = craft::tcp(client, server, &[1; 30_000], true);
        let segments = Segments { size: 1400, ipv6, transport: headers - 20, headers };
        tun.put_segments(&packet, segments);
        // 21 full ones and one of 600 bytes; nobody listens, so one reset is the answer.
        let reset = loop {
            let (packet, _) = tun.take();
            if packet.len() == usize::from(headers) {
                break packet;
            }
        };
        let input = 30_000 + 22 * u64::from(headers);
        wanted.push(Traffic::input(input, 22) + Traffic::output(reset.len() as u64, 1));
    }
    let document = daemon.stop();
    assert_eq!(document.lane("443", "tcp4"), wanted[0]);
    assert_eq!(document.lane("443", "tcp6"), wanted[1]);
    leaks::nothing(&host, &site.pins);
}

#[test]
fn headers_outside_the_linear_part_of_a_buffer_are_counted_like_others() {
    need!(Root, Bpf, Object, Netns, Tun, Tool("ip"), Tool("tc"));
    let host = NetNs::new();
    let tun = Tun::new(&host, "tun0", 1, true);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--iface", "tun0", "--ports", "4433/udp"]);
    daemon.counts_on(&["tun0"]);
    let mut wanted = Vec::new();
    for (ipv6, header) in [(false, 20), (true, 40)] {
        let client = SocketAddr::from((tun.peer(ipv6), 50_000));
        let server = SocketAddr::from((tun.device.ip(ipv6), 4433));
        let packet = craft::udp(client, server, &[1; 5000]);
        // Cut in the middle of the IP header, before the ports, and between them.
        for linear in [1, 8, header, header + 2] {
            tun.put_scattered(&packet, linear);
        }
        wanted.push(Traffic::input(4 * packet.len() as u64, 4));
    }
    let document = daemon.stop();
    assert_eq!(document.skipped("malformed"), Traffic::default());
    assert_eq!(document.lane("4433", "udp4"), wanted[0]);
    assert_eq!(document.lane("4433", "udp6"), wanted[1]);
    leaks::nothing(&host, &site.pins);
}

#[test]
fn a_device_that_begins_its_packets_otherwise_gets_the_program_for_them() {
    need!(Root, Bpf, Object, Netns, Tun, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let host = NetNs::new();
        let tun = Tun::new(&host, "tun0", 1, false);
        let site = Site::new();
        let args = ["--iface", "tun0", "--ports", "4433/udp", "--meter", meter];
        let mut daemon = site.start(&host, &args);
        daemon.counts_on(&["tun0"]);
        let to = SocketAddr::from((tun.device.ip(false), 4433));
        let packet = craft::udp(SocketAddr::from((tun.peer(false), 50_000)), to, &[1; 100]);
        tun.put(&packet);
        // As a bond does when its first device joins.
        tun.set_link_type(libc::ARPHRD_ETHER);
        daemon.wait_for("another link header", |document| {
            (document.0["devices"]["tun0"]["link_header"] == 14).then_some(())
        });
        daemon.says("begins its packets otherwise");
        // The device takes what looks like IP: so does the address that this begins with.
        tun.put(&craft::ethernet([2, 0, 0, 0, 0, 2], [0x42, 0, 0, 0, 0, 1], &packet));
        // One that no program understands keeps nothing of ours.
        tun.set_link_type(803);
        daemon.counts_on(&[]);
        let document = daemon.stop();
        let counted = Traffic::input(2 * packet.len() as u64, 2);
        assert_eq!(document.lane("4433", "udp4"), counted, "{meter}");
        assert_eq!(document.text("coverage"), "gap", "{meter}");
        leaks::nothing(&host, &site.pins);
    }
}

//! The same traffic, counted by programs at tcx and by rules, to the byte.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpStream},
};

use traffic_tests::{
    capture::Capture, daemon::Site as Folders, device::Device, document::Traffic as Documented,
    load, need, wait,
};
use traffic_user::{
    accounting::reading::{Coverage, Lane, Snapshot, Traffic},
    meter::{Before, iptables::IptablesMeter, nft::NftMeter},
};

use super::{Site, lane, parse};

const LANES: [(Lane, &str); 4] =
    [(Lane::Tcp4, "tcp4"), (Lane::Tcp6, "tcp6"), (Lane::Udp4, "udp4"), (Lane::Udp6, "udp6")];

fn documented(traffic: Traffic) -> Documented {
    Documented {
        input_bytes: traffic.input_bytes,
        input_packets: traffic.input_packets,
        output_bytes: traffic.output_bytes,
        output_packets: traffic.output_packets,
    }
}

fn without_offloads(site: &Site) {
    site.here.offloads(false);
    site.there.offloads(false);
}

#[test]
fn programs_and_rules_of_nft_and_of_iptables_count_the_same() {
    need!(
        Root,
        Bpf,
        Object,
        Netns,
        Tool("ip"),
        Tool("nft"),
        Tool("ethtool"),
        Tool("iptables-legacy"),
        Tool("iptables-nft")
    );
    let list = "5000,443+8443=web,20000-20010/udp=hop";
    let groups =
        [("5000", "5000"), ("443+8443=web", "443,8443"), ("20000-20010/udp=hop", "20000-20010")];
    for site in Site::both() {
        without_offloads(&site);
        let ns = &site.here.ns;
        let mut nft =
            ns.run(|| NftMeter::start(&parse(list), true, Before::default())).expect("start nft");
        // They are left to go on: the daemon would take off what a killed run left.
        let mut iptables = site.start(list, true).expect("start iptables");
        let folders = Folders::new();
        let args = ["--no-proxy", "--meter", "tcx", "--iface", "eth0", "--ports", list];
        let mut daemon = folders.start(ns, &args);
        daemon.counts_on(&["eth0"]);
        for ipv6 in [false, true] {
            for port in [5000, 443, 8443, 20_000, 20_005, 20_010, 20_011] {
                let server = load::udp(&site.here, ipv6, port);
                let client = load::udp(&site.there, ipv6, 40_000);
                for size in [0, 1, 100, 1000, 1452] {
                    load::datagram(&client, &server, size);
                    load::datagram(&server, &client, size);
                }
            }
            for (port, bytes) in [(5000, 300_000), (443, 1), (8443, 100_000), (20_000, 1000)] {
                load::tcp(&site.there, &site.here, ipv6, port, bytes);
            }
        }
        let by_nft = ns.run(|| nft.read()).expect("read nft");
        let by_iptables = site.read(&mut iptables);
        let document = daemon.stop();
        for (group, key) in groups {
            for (at, name) in LANES {
                let counted = document.lane(key, name);
                let empty = key == "20000-20010" && name.starts_with("tcp");
                assert_eq!(counted == Documented::default(), empty, "{group} {name}");
                for by in [&by_nft, &by_iptables] {
                    let rules = documented(lane(by, group, at));
                    assert_eq!(rules, counted, "{} {group} {name}", by.meter);
                }
            }
        }
        ns.run(move || drop(nft));
        site.drop(iptables);
    }
}

#[test]
fn a_packet_over_the_loopback_enters_its_port_once() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("5000/udp,6000/udp", false).expect("start");
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let server = load::udp_at(&site.here.ns, (local, 5000).into());
        let client = load::udp_at(&site.here.ns, (local, 6000).into());
        load::datagram(&client, &server, 72);
        load::datagram(&client, &server, 72);
        load::datagram(&server, &client, 972);
        let snapshot = site.read(&mut meter);
        let server =
            Traffic { input_bytes: 200, input_packets: 2, output_bytes: 1000, output_packets: 1 };
        let client =
            Traffic { input_bytes: 1000, input_packets: 1, output_bytes: 200, output_packets: 2 };
        assert_eq!(lane(&snapshot, "5000/udp", Lane::Udp4), server);
        assert_eq!(lane(&snapshot, "6000/udp", Lane::Udp4), client);
        site.drop(meter);
    }
}

/// One connection that rests between two pieces.
struct Transfer<'a> {
    site: &'a Site,
    from: TcpStream,
    to: TcpStream,
}

impl<'a> Transfer<'a> {
    fn new(site: &'a Site, port: u16) -> Self {
        let server = load::tcp_socket(&site.here, false, port);
        let client = load::tcp_socket(&site.there, false, 40_000);
        server.listen(1).expect("listen");
        client.connect(&server.local_addr().expect("an address")).expect("connect");
        let (to, _) = server.accept().expect("accept");
        let transfer = Self { site, from: client.into(), to: to.into() };
        transfer.rest();
        transfer
    }

    /// Waits until nothing is on its way: all is read, and all is acknowledged.
    fn rest(&self) {
        let quiet = |device: &Device| {
            let table = device.ns.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
            let table = table.expect("read the sockets");
            table.lines().skip(1).all(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.get(3) != Some(&"01") || words.get(4) == Some(&"00000000:00000000")
            })
        };
        wait::until("the stream to rest", || {
            (quiet(&self.site.there) && quiet(&self.site.here)).then_some(())
        });
    }

    /// Sends so much, and gives what that was on the wire, seen from the port.
    fn piece(&mut self, bytes: usize) -> Traffic {
        let capture = Capture::start(&self.site.here);
        {
            let _queue = load::alone();
            let sent = vec![0x5a; bytes];
            let mut arrived = vec![0; bytes];
            let (from, to) = (&mut self.from, &mut self.to);
            std::thread::scope(|scope| {
                scope.spawn(move || from.write_all(&sent).expect("send"));
                to.read_exact(&mut arrived).expect("receive");
            });
            self.rest();
        }
        let captured = capture.stop();
        let input = captured.sum(|flow| !flow.outgoing && !flow.udp);
        let output = captured.sum(|flow| flow.outgoing && !flow.udp);
        Traffic {
            input_bytes: input.bytes,
            input_packets: input.packets,
            output_bytes: output.bytes,
            output_packets: output.packets,
        }
    }
}

#[test]
fn a_flush_in_the_middle_of_a_transfer_costs_what_passed_before_the_next_look() {
    need!(Root, Netns, Tool("ip"), Tool("ethtool"), Tool("iptables-legacy"), Tool("iptables-nft"));
    let read = |site: &Site, meter: &mut IptablesMeter| -> (Snapshot, Traffic) {
        let snapshot = site.read(meter);
        let traffic = lane(&snapshot, "5000/tcp", Lane::Tcp4);
        (snapshot, traffic)
    };
    for site in Site::both() {
        without_offloads(&site);
        let mut meter = site.start("5000/tcp", false).expect("start");
        let mut transfer = Transfer::new(&site, 5000);
        let (_, handshake) = read(&site, &mut meter);
        assert_eq!((handshake.input_packets, handshake.output_packets), (2, 1));
        let piece = transfer.piece(200_000);
        assert!(piece.input_bytes > 200_000, "{piece:?}");
        let (before, counted) = read(&site, &mut meter);
        assert_eq!(counted, handshake.plus(piece));
        assert_eq!(before.coverage, Coverage::Complete);

        site.sh("iptables", "-F");
        // Nobody counts this, and it is said.
        assert!(transfer.piece(50_000).input_bytes > 50_000);
        let (after, counted) = read(&site, &mut meter);
        assert_ne!(after.epoch, before.epoch);
        assert_eq!((after.coverage, counted), (Coverage::Gap, Traffic::default()));
        let losses = meter.losses();
        assert!(losses.iter().any(|line| line.contains("IPv4: the jump from INPUT")), "{losses:?}");

        let piece = transfer.piece(100_000);
        let (last, counted) = read(&site, &mut meter);
        assert_eq!((last.epoch, counted), (after.epoch, piece));
        assert_eq!(meter.losses(), Vec::<String>::new());
        site.drop(meter);
    }
}

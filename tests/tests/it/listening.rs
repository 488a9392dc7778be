//! Without `--ports` what listens is watched, and what begins to listen as well.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use traffic_tests::{
    daemon::Site, device::veth, document::Traffic, leaks, load, need, netns::NetNs,
};

#[test]
fn what_listens_is_watched_and_what_begins_to_listen_as_well() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
    here.default_route(&there);
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let first = load::udp_at(&host, any(7001));
    let listener = load::tcp_socket(&here, false, 7002);
    listener.listen(1).expect("listen");
    // Nobody outside can reach this one.
    let _local = load::udp_at(&host, (Ipv4Addr::LOCALHOST, 7003).into());
    let site = Site::new();
    let mut daemon = site.start(&host, &[]);
    daemon.counts_on(&["eth0"]);
    assert_eq!(daemon.fresh().groups(), ["7001", "7002"]);

    let second = load::udp(&here, false, 7004);
    daemon.wait_for("the new port", |document| document.groups().contains(&"7004").then_some(()));
    for ipv6 in [false, true] {
        let client = load::udp(&there, ipv6, 0);
        load::datagram_to(&client, &first, (here.ip(ipv6), 7001).into(), 72);
    }
    let client = load::udp(&there, false, 0);
    for _ in 0..10 {
        load::datagram(&client, &second, 72);
    }
    // One that stops to listen is still watched: its numbers are not forgotten.
    drop((first, second));
    let document = daemon.fresh();
    assert_eq!(document.groups(), ["7001", "7002", "7004"]);
    assert_eq!(document.lane("7001", "udp4"), Traffic::input(100, 1));
    assert_eq!(document.lane("7001", "udp6"), Traffic::input(120, 1));
    assert_eq!(document.group("7004"), Traffic::input(1000, 10));
    assert_eq!(document.text("meter"), "tcx", "{}", document.0["passed_over"]);
    daemon.stop();
    leaks::nothing(&host, &site.pins);
}

#[test]
fn ports_on_which_nothing_listens_any_more_make_room_for_others() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (host, other) = (NetNs::new(), NetNs::new());
    let (here, there) = veth((&host, "eth0"), (&other, "eth0"), 1);
    here.default_route(&there);
    let server = load::udp(&here, false, 7000);
    let client = load::udp(&there, false, 0);
    let site = Site::new();
    let mut daemon = site.start(&host, &["--interval", "20ms"]);
    daemon.counts_on(&["eth0"]);
    (0..10).for_each(|_| load::datagram(&client, &server, 72));
    // More than there are slots, one half after the other.
    for first in [10_000, 11_000] {
        let last = first + 599;
        let listeners: Vec<_> = (first..=last)
            .map(|port| {
                let socket = load::tcp_socket(&here, false, port);
                socket.listen(1).expect("listen");
                socket
            })
            .collect();
        daemon.wait_for("the last port", |document| {
            (document.0["ports"][last.to_string()]["watched"] != false)
                .then_some(())
                .filter(|()| document.groups().contains(&last.to_string().as_str()))
        });
        drop(listeners);
    }
    (0..10).for_each(|_| load::datagram(&client, &server, 72));
    let document = daemon.stop();
    assert_eq!(document.group("7000"), Traffic::input(2000, 20));
    assert_eq!(document.text("coverage"), "complete");
    assert_ne!(document.0["ports"]["7000"]["watched"], false);
    leaks::nothing(&host, &site.pins);
}

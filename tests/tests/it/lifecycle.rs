//! What stays and what goes: signals, kills, panics, pins, the next start, and a second daemon. A
//! sender goes on all the time, and in the end every packet of it is counted once.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, JoinHandle},
};

use aya::maps::{Array, Map, MapData};
use nix::sys::signal::Signal;
use traffic_ebpf::abi::{LANES, Meta, counter_index, maps, part};
use traffic_tests::{
    bpf,
    daemon::{Daemon, Ended, Site},
    device::{connect, pair},
    document::{Document, Traffic},
    leaks, load, need,
    netns::NetNs,
    wait,
};

/// Layer-3 bytes of each datagram that the sender sends.
pub(super) const DATAGRAM: u64 = 20 + 8 + PAYLOAD as u64;
const PAYLOAD: usize = 100;
const PORT: u16 = 5000;

/// Two namespaces with a device between them, and a sender from one to the other that never pauses.
pub(super) struct Load {
    pub(super) host: NetNs,
    _other: NetNs,
    stop: Arc<AtomicBool>,
    /// Odd while it is to rest.
    told: Arc<AtomicU64>,
    heard: Arc<AtomicU64>,
    pub(super) sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
}

impl Load {
    /// Begins to send when [`begin`](Self::begin) is called.
    pub(super) fn new() -> Self {
        let (host, other) = (NetNs::new(), NetNs::new());
        let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
        connect(&here, &there);
        let server = load::udp(&here, false, PORT);
        let client = load::udp(&there, false, 40_000);
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let [told, heard] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let (end, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let (tells, hears) = (Arc::clone(&told), Arc::clone(&heard));
        let sender = thread::spawn(move || {
            thread::park();
            while !end.load(Relaxed) {
                let order = tells.load(SeqCst);
                hears.store(order, SeqCst);
                if order % 2 == 1 {
                    thread::park();
                    continue;
                }
                load::datagram(&client, &server, PAYLOAD);
                count.fetch_add(1, Relaxed);
            }
        });
        Self { host, _other: other, stop, told, heard, sent, sender: Some(sender) }
    }

    pub(super) fn begin(&self) {
        if let Some(sender) = &self.sender {
            sender.thread().unpark();
        }
    }

    /// Waits until some more datagrams have passed.
    pub(super) fn goes_on(&self) {
        let enough = self.sent.load(Relaxed) + 200;
        wait::until("the sender", || (self.sent.load(Relaxed) >= enough).then_some(()));
    }

    /// Lets the sender rest: what it has sent until now, all of which has arrived.
    pub(super) fn pause(&self) -> Traffic {
        let order = self.told.fetch_add(1, SeqCst) + 1;
        wait::until("the sender to rest", || (self.heard.load(SeqCst) == order).then_some(()));
        self.has_sent()
    }

    /// Lets it go on after a rest.
    pub(super) fn resume(&self) {
        self.told.fetch_add(1, SeqCst);
        self.begin();
    }

    fn has_sent(&self) -> Traffic {
        let packets = self.sent.load(Relaxed);
        Traffic::input(packets * DATAGRAM, packets)
    }

    /// Stops the sender: what it sent, all of which has arrived.
    pub(super) fn end(&mut self) -> Traffic {
        self.stop.store(true, Relaxed);
        self.begin();
        if let Some(sender) = self.sender.take() {
            sender.join().expect("the sender");
        }
        self.has_sent()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.begin();
    }
}

/// A daemon whose ticks never come: only the document after the signal can know.
fn silent(site: &Site, load: &Load, meter: &str) -> Daemon {
    let args = ["run", "--output", "json", "--interval", "1h", "--iface", "eth0"];
    let mut command = site.traffic(&load.host, &args);
    command.args(["--ports", "5000/udp", "--meter", meter]);
    let mut daemon = Daemon::spawn(command);
    daemon.counts_on(&["eth0"]);
    daemon
}

/// A daemon that counts the sender's port.
pub(super) fn start(site: &Site, load: &Load, meter: &str, more: &[&str]) -> Daemon {
    let mut args = vec!["--iface", "eth0", "--ports", "5000/udp", "--meter", meter];
    args.extend(more);
    let mut daemon = site.start(&load.host, &args);
    daemon.counts_on(&["eth0"]);
    daemon
}

fn dump(site: &Site, load: &Load) -> Document {
    Document(site.run(&load.host, &["dump", "--json"]).json())
}

#[test]
fn every_signal_that_ends_it_leaves_nothing_and_gives_a_last_document() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let (site, mut load) = (Site::new(), Load::new());
            let daemon = start(&site, &load, meter, &[]);
            load.begin();
            load.goes_on();
            let last = daemon.stop_by(signal);
            assert_eq!(last.text("meter"), meter);
            leaks::nothing(&load.host, &site.pins);
            let sent = load.end();
            let counted = last.group("5000");
            assert!(counted.input_packets <= sent.input_packets, "{counted:?} of {sent:?}");
            assert_eq!(counted.input_bytes, counted.input_packets * DATAGRAM);
        }
    }
}

#[test]
fn the_last_document_has_every_packet_until_the_signal() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (site, mut load) = (Site::new(), Load::new());
        let daemon = silent(&site, &load, meter);
        load.begin();
        load.goes_on();
        let sent = load.end();
        assert_eq!(daemon.stop().group("5000"), sent, "{meter}");
    }
}

#[test]
fn counters_that_the_kernel_does_not_map_are_looked_up_to_the_last_packet() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, mut load) = (Site::new(), Load::new());
    let run = || {
        let args = ["run", "--output", "json", "--interval", "20ms", "--iface", "eth0", "-vv"];
        let args = [&args[..], &["--ports", "80,5000/udp,443", "--persist"]].concat();
        let mut command = site.traffic(&load.host, &args);
        command.env("TRAFFIC_FAULT", "map the counters");
        let mut daemon = Daemon::spawn(command);
        daemon.counts_on(&["eth0"]);
        daemon.says("the counters cannot be mapped");
        daemon
    };
    let daemon = run();
    load.begin();
    load.goes_on();
    daemon.stop();
    load.goes_on();
    let daemon = run();
    load.goes_on();
    let sent = load.end();
    let last = daemon.stop();
    assert_eq!((last.group("5000"), last.text("coverage")), (sent, "complete"));
    // Mapped, they say the same.
    assert_eq!(dump(&site, &load).group("5000"), sent);
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
    leaks::nothing(&load.host, &site.pins);
}

#[test]
fn a_panic_leaves_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (site, load) = (Site::new(), Load::new());
        let args = ["run", "--output", "json", "--iface", "eth0", "--ports", "1", "--meter", meter];
        let mut command = site.traffic(&load.host, &args);
        command.env("TRAFFIC_FAULT", "tick");
        let Ended { code, stderr, .. } = Daemon::spawn(command).end();
        assert_eq!(code, Some(101), "{stderr}");
        assert!(stderr.contains("asked to fail"), "{stderr}");
        leaks::nothing(&load.host, &site.pins);
    }
}

#[test]
fn a_kill_leaves_nothing_of_tcx() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, load) = (Site::new(), Load::new());
    start(&site, &load, "tcx", &[]).kill();
    // The kernel closes what a killed process held a moment after it is gone.
    wait::until("the links to end", || leaks::attached(&load.host).is_empty().then_some(()));
    leaks::nothing(&load.host, &site.pins);
}

#[test]
fn a_kill_leaves_filters_of_clsact_and_clean_or_the_next_start_removes_them() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let left = ["eth0 clsact", "eth0 in filter traffic_eth_in", "eth0 out filter traffic_eth_out"];
    let (site, mut load) = (Site::new(), Load::new());
    start(&site, &load, "tc", &[]).kill();
    assert_eq!(leaks::attached(&load.host), left);

    let said = site.run(&load.host, &["clean", "--dry-run", "--json"]).json();
    assert_eq!(said["removed"].as_array().map(Vec::len), Some(3), "{said}");
    assert_eq!(leaks::attached(&load.host), left, "a dry run removed something");
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
    leaks::nothing(&load.host, &site.pins);
    assert_eq!(site.run(&load.host, &["clean"]).stdout, "nothing of ours is here\n");

    // What a daemon counts with is no leftover, and what it leaves goes at the start of any meter.
    let daemon = start(&site, &load, "tc", &[]);
    let doctor = site.run(&load.host, &["doctor"]).stdout;
    assert!(doctor.contains("not looked for while a daemon runs"), "{doctor}");
    daemon.kill();
    let doctor = site.run(&load.host, &["doctor"]).stdout;
    assert!(doctor.contains("filter traffic_eth_in on eth0 (in)"), "{doctor}");
    let mut rules = site.start(&load.host, &["--meter", "nft", "--ports", "5000"]);
    rules.fresh();
    rules.stop();
    leaks::nothing(&load.host, &site.pins);

    start(&site, &load, "tc", &[]).kill();
    let daemon = silent(&site, &load, "tc");
    load.begin();
    load.goes_on();
    let sent = load.end();
    // Two filters of ours on one side would count twice.
    assert_eq!(daemon.stop().group("5000"), sent);
    leaks::nothing(&load.host, &site.pins);

    // One that persists does not begin beside them either.
    start(&site, &load, "tc", &[]).kill();
    start(&site, &load, "tc", &["--persist"]).stop();
    assert_eq!(leaks::attached(&load.host), left);
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
    leaks::nothing(&load.host, &site.pins);
}

#[test]
fn persisted_counters_miss_nothing_through_stop_kill_and_new_starts() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (site, mut load) = (Site::new(), Load::new());
        let daemon = start(&site, &load, meter, &["--persist"]);
        load.begin();
        load.goes_on();
        let epoch = daemon.stop().text("epoch").to_owned();
        load.goes_on();
        // Ports come and go meanwhile; the sender's stays.
        let ports = ["--persist", "--ports", "80,443=web,5000/udp"];
        let args = [&["--iface", "eth0", "--meter", meter], &ports[..]].concat();
        let mut daemon = site.start(&load.host, &args);
        daemon.counts_on(&["eth0"]);
        load.goes_on();
        daemon.kill();
        load.goes_on();
        let between = dump(&site, &load);
        assert_eq!((between.text("epoch"), between.text("meter")), (epoch.as_str(), meter));
        let daemon = start(&site, &load, meter, &["--persist"]);
        load.goes_on();
        let sent = load.end();
        let last = daemon.stop();
        assert_eq!(last.text("epoch"), epoch, "{meter}");
        assert_eq!(last.text("coverage"), "complete", "{meter}");
        assert_eq!(last.group("5000"), sent, "{meter}");
        assert_eq!(last.groups(), ["443", "5000", "80"], "{meter}");
        assert_eq!(dump(&site, &load).group("5000"), sent, "{meter}");

        assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
        leaks::nothing(&load.host, &site.pins);
    }
}

#[test]
fn another_abi_and_more_groups_than_slots_are_carried_over_with_every_packet() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for meter in ["tcx", "tc"] {
        let (site, mut load) = (Site::new(), Load::new());
        let daemon = start(&site, &load, meter, &["--persist"]);
        load.begin();
        load.goes_on();
        let epoch = daemon.stop().text("epoch").to_owned();
        pretend_another_abi(&site);
        load.goes_on();
        let daemon = start(&site, &load, meter, &["--persist"]);
        load.goes_on();
        daemon.kill();

        // More than there are slots: the set moves to larger maps.
        let many: Vec<String> = (10_000..11_500).map(|port| format!("{port}/tcp")).collect();
        let ports = format!("5000/udp,{}", many.join(","));
        let args = ["--iface", "eth0", "--meter", meter, "--persist", "--ports", &ports];
        let mut daemon = site.start(&load.host, &args);
        daemon.counts_on(&["eth0"]);
        load.goes_on();
        daemon.stop();
        load.goes_on();
        let daemon = start(&site, &load, meter, &["--persist"]);
        let sent = load.end();
        let last = daemon.stop();
        assert_eq!(last.text("epoch"), epoch, "{meter}");
        assert_eq!(last.group("5000"), sent, "{meter}");
        assert_eq!(last.groups().len(), 1501, "{meter}");
        assert_eq!(dump(&site, &load).group("5000"), sent, "{meter}");
        assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
        leaks::nothing(&load.host, &site.pins);
    }
}

#[test]
fn counters_of_the_first_abi_are_carried_over_whether_they_can_be_mapped_or_not() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    for mmapable in [true, false] {
        let (site, mut load) = (Site::new(), Load::new());
        let daemon = start(&site, &load, "tcx", &["--persist"]);
        load.begin();
        load.goes_on();
        let sent = load.pause();
        let epoch = daemon.stop().text("epoch").to_owned();
        pretend_the_first_abi(&site, mmapable);
        assert_eq!(dump(&site, &load).group("5000"), sent, "mapped: {mmapable}");
        let daemon = start(&site, &load, "tcx", &["--persist"]);
        load.resume();
        load.goes_on();
        let sent = load.end();
        let last = daemon.stop();
        assert_eq!((last.text("epoch"), last.group("5000")), (epoch.as_str(), sent), "{mmapable}");
        assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
        leaks::nothing(&load.host, &site.pins);
    }
}

#[test]
fn a_change_over_that_is_cut_short_is_finished_by_the_next_start() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for point in ["before carrying over", "after carrying over"] {
        let (site, mut load) = (Site::new(), Load::new());
        let daemon = start(&site, &load, "tcx", &["--persist"]);
        load.begin();
        load.goes_on();
        let epoch = daemon.stop().text("epoch").to_owned();
        pretend_another_abi(&site);
        let args = ["run", "--persist", "--iface", "eth0", "--ports", "5000/udp"];
        let mut command = site.traffic(&load.host, &args);
        command.env("TRAFFIC_FAULT", point);
        let ended = Daemon::spawn(command).end();
        assert_eq!(ended.code, None, "it was to die {point}: {}", ended.stderr);
        load.goes_on();
        let daemon = start(&site, &load, "tcx", &["--persist"]);
        load.goes_on();
        let sent = load.end();
        let last = daemon.stop();
        assert_eq!((last.text("epoch"), last.group("5000")), (epoch.as_str(), sent), "{point}");
        assert!(!site.pins.join("next").exists(), "{point}");
        assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
        leaks::nothing(&load.host, &site.pins);
    }
}

#[test]
fn a_second_daemon_says_so_and_the_first_counts_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, mut load) = (Site::new(), Load::new());
    let daemon = silent(&site, &load, "tcx");
    load.begin();
    load.goes_on();
    let other = Site::new();
    for args in [&["run", "--iface", "eth0"][..], &["run", "--persist"], &["clean"]] {
        let second = other.run(&load.host, args);
        assert_eq!(second.code, Some(2), "{args:?}: {}", second.stdout);
        let pid = format!("pid {}", daemon.pid());
        assert!(second.stderr.contains(&pid), "{args:?}: {}", second.stderr);
        assert!(second.stderr.contains("remedy: stop that one first"), "{}", second.stderr);
    }
    let sent = load.end();
    assert_eq!(daemon.stop().group("5000"), sent);
    leaks::nothing(&load.host, &site.pins);
}

#[test]
fn a_run_that_does_not_persist_does_not_count_beside_pins() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, mut load) = (Site::new(), Load::new());
    start(&site, &load, "tcx", &["--persist"]).stop();
    load.begin();
    let args = ["run", "--iface", "eth0", "--ports", "5000/udp"];
    let refused = site.run(&load.host, &args);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(refused.stderr.contains("run with --persist to take them over"), "{}", refused.stderr);
    let other_meter = ["run", "--iface", "eth0", "--persist", "--meter", "tc"];
    let refused = site.run(&load.host, &other_meter);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(refused.stderr.contains("count at tcx"), "{}", refused.stderr);
    load.goes_on();
    let sent = load.end();
    assert_eq!(dump(&site, &load).group("5000"), sent);
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
    leaks::nothing(&load.host, &site.pins);
}

/// Puts in the place of the pinned counters what the first ABI had: a value for each lane, with both
/// directions in it. The programs go on with the others.
fn pretend_the_first_abi(site: &Site, mmapable: bool) {
    let map =
        |name: &str| MapData::from_pin(site.pins.join("maps").join(name)).expect("open a map");
    let mut meta: Array<_, [u8; Meta::SIZE]> =
        Map::from_map_data(map(maps::META)).and_then(Array::try_from).expect("META is an array");
    let found = Meta::from_bytes(&meta.get(&0, 0).expect("read META"));
    let counts: Array<_, [u64; 2]> =
        Map::from_map_data(map(maps::COUNTERS)).and_then(Array::try_from).expect("an array");
    let entries = found.stripes * found.slots * LANES;
    let fd = bpf::array(32, entries, mmapable).expect("make an array");
    let old = MapData::from_fd(fd).expect("an array");
    let mut old: Array<_, [u64; 4]> =
        Map::from_map_data(old).and_then(Array::try_from).expect("an array");
    for stripe in 0..found.stripes {
        for lane in 0..4u8 {
            for slot in 0..found.slots_used {
                let [input, output] = [false, true].map(|output| {
                    let index = counter_index(stripe, found.slots, slot, part(lane, output));
                    counts.get(&index, 0).expect("read a counter")
                });
                let index = (stripe * LANES + u32::from(lane)) * found.slots + slot;
                let value = [input[0], input[1], output[0], output[1]];
                old.set(index, value, 0).expect("write a counter");
            }
        }
    }
    let pin = site.pins.join("maps").join(maps::COUNTERS);
    std::fs::remove_file(&pin).expect("unpin the counters");
    old.pin(&pin).expect("pin the others");
    let first = Meta { abi: 1, counter_size: 32, ..found };
    meta.set(0, first.to_bytes(), 0).expect("write META");
}

/// Makes the pinned maps say that a version with another ABI made them.
fn pretend_another_abi(site: &Site) {
    let meta = MapData::from_pin(site.pins.join("maps/META")).expect("open META");
    let mut meta: Array<_, [u8; 80]> =
        Map::from_map_data(meta).and_then(Array::try_from).expect("META is an array");
    let mut value = meta.get(&0, 0).expect("read META");
    value[4..8].copy_from_slice(&99u32.to_ne_bytes());
    meta.set(0, value, 0).expect("write META");
}

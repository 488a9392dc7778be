//! `traffic run` as a service: started the way a service manager does, without needing one, and under
//! the restrictions of `contrib/traffic.service` as far as a test can set them.

use std::{
    fs,
    io::Read as _,
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    fcntl::OFlag,
    sys::{signal::Signal, stat::Mode},
    time::{ClockId, clock_gettime},
    unistd::mkfifo,
};
use traffic_tests::{
    daemon::{Daemon, Site, binary},
    device::{Device, connect, pair},
    document::Traffic,
    leaks, load,
    manager::Manager,
    need,
    netns::NetNs,
    wait,
};
use traffic_user::{
    accounting::{
        reading::Layer,
        subject::SubjectKind,
        usage::{Bucket, By, Level, Span},
    },
    ledger::{Reader, Sample, Wanted, generate},
};

/// Layer-3 bytes of each datagram.
const DATAGRAM: u64 = 20 + 8 + PAYLOAD as u64;
const PAYLOAD: usize = 100;

/// A server and one who sends to it.
struct Pair {
    host: NetNs,
    _other: NetNs,
    here: Device,
    there: Device,
}

impl Pair {
    fn new() -> Self {
        let (host, other) = (NetNs::new(), NetNs::new());
        let (here, there) = pair((&host, "eth0"), (&other, "eth0"), 1);
        connect(&here, &there);
        Self { host, _other: other, here, there }
    }

    /// Datagrams that arrive at a port.
    fn arrive(&self, port: u16, count: usize) {
        let server = load::udp(&self.here, false, port);
        let client = load::udp(&self.there, false, 40_000);
        for _ in 0..count {
            load::datagram(&client, &server, PAYLOAD);
        }
    }
}

fn datagrams(count: u64) -> Traffic {
    Traffic::input(count * DATAGRAM, count)
}

/// A configuration that can be written anew; it lies in the state folder.
struct File(PathBuf);

impl File {
    fn new(site: &Site, text: &str) -> Self {
        fs::create_dir_all(&site.state).expect("the state folder");
        let file = Self(site.state.join("traffic.toml"));
        file.says(text);
        file
    }

    fn says(&self, text: &str) {
        fs::write(&self.0, text).expect("write the configuration");
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of ours is text")
    }
}

/// `traffic run --persist` on `eth0`, without anything that a unit would not say.
fn command(site: &Site, pair: &Pair, args: &[&str]) -> Command {
    site.traffic(&pair.host, &[&["run", "--persist", "--iface", "eth0"], args].concat())
}

#[test]
fn a_service_says_when_it_counts_and_when_it_ends_and_writes_no_table() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    for abstract_name in [false, true] {
        let (site, pair) = (Site::new(), Pair::new());
        let manager = if abstract_name { Manager::at_name(&pair.host) } else { Manager::at_path() };
        let args = ["--ports", "5000/udp", "--meter", "tcx", "--interval", "20ms"];
        let service = manager.service(&pair.host, &command(&site, &pair, &args));
        let daemon = Daemon::spawn(service);
        let first = manager.hears_within(wait::DEADLINE).expect("a first message");
        assert!(first.says("READY"), "{first:?}");
        assert_eq!(first.get("STATUS"), Some("counting 1 group at tcx on eth0"));
        assert_eq!(
            leaks::attached(&pair.host),
            ["eth0 in tcx traffic_eth_in", "eth0 out tcx traffic_eth_out"],
            "it was ready before it counted"
        );
        daemon.signal(Signal::SIGTERM);
        manager.hears("the end", |message| message.says("STOPPING"));
        let ended = daemon.end();
        assert_eq!((ended.code, ended.last), (Some(0), None), "{}", ended.stderr);
        // Ticks that change nothing are not worth a message.
        assert_eq!(manager.has_heard(), []);
        assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
    }
}

#[test]
fn a_start_that_fails_is_never_ready() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, pair, manager) = (Site::new(), Pair::new(), Manager::at_path());
    let file = File::new(&site, "port = 1\n");
    let args = ["--config", file.path()];
    let ended = Daemon::spawn(manager.service(&pair.host, &command(&site, &pair, &args))).end();
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("line 1: port: no such key"), "{}", ended.stderr);
    assert_eq!(manager.has_heard(), []);
    leaks::nothing(&pair.host, &site.pins);
}

#[test]
fn the_loop_itself_says_that_it_goes_round_and_one_that_stands_says_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let time = Duration::from_millis(300);
    let (site, pair) = (Site::new(), Pair::new());
    let manager = Manager::at_path().with_watchdog(time);
    // No tick ever comes: rounds do not hang on them.
    let args = ["--ports", "5000/udp", "--interval", "1h"];
    let daemon = Daemon::spawn(manager.service(&pair.host, &command(&site, &pair, &args)));
    manager.hears("readiness", |message| message.says("READY"));
    for _ in 0..5 {
        manager.hears("a sign of life", |message| message.says("WATCHDOG"));
    }
    daemon.signal(Signal::SIGSTOP);
    wait::until("the stop", || (state(&daemon) == 'T').then_some(()));
    manager.has_heard();
    assert_eq!(manager.hears_within(3 * time), None, "a stopped loop goes round");
    daemon.signal(Signal::SIGCONT);
    manager.hears("a sign of life", |message| message.says("WATCHDOG"));
    daemon.signal(Signal::SIGTERM);
    manager.hears("the end", |message| message.says("STOPPING"));
    assert_eq!(daemon.end().code, Some(0));
    assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
}

/// One letter, as in `/proc/PID/stat`.
fn state(daemon: &Daemon) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("a process");
    let (_, after) = stat.rsplit_once(") ").expect("a name in brackets");
    after.chars().next().expect("a state")
}

#[test]
fn a_loop_that_hangs_gives_no_sign_of_life_and_gives_one_again_when_it_goes_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let time = Duration::from_millis(300);
    let (site, pair) = (Site::new(), Pair::new());
    let manager = Manager::at_path().with_watchdog(time);
    // Documents for a reader who does not read: all threads but the loop's go on.
    fs::create_dir_all(&site.state).expect("the state folder");
    let pipe = site.state.join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).expect("make a pipe");
    let open = |flags| fs::OpenOptions::new().read(true).custom_flags(flags).open(&pipe);
    let mut reader = open(OFlag::O_NONBLOCK.bits()).expect("open the pipe");
    let args = ["--ports", "5000/udp", "--interval", "10ms", "--output", "json"];
    let script = format!("exec \"$@\" > {}", pipe.display());
    let wrapper = ["sh", "-c", &script, "sh"].map(str::to_owned);
    let run = through(&pair.host, &wrapper, &command(&site, &pair, &args));
    let daemon = Daemon::spawn(manager.service(&pair.host, &run));
    manager.hears("readiness", |message| message.says("READY"));
    manager.hears("a sign of life", |message| message.says("WATCHDOG"));
    wait::until("silence", || manager.hears_within(3 * time).is_none().then_some(()));
    assert!(matches!(state(&daemon), 'S' | 'D'), "it waits, and was not stopped");

    let mut text = Vec::new();
    let mut read = || {
        // What is there, and no more: the pipe has no end yet.
        let _nothing_more = reader.read_to_end(&mut text);
        text.len()
    };
    wait::until("a sign of life", || {
        read();
        let heard = manager.hears_within(Duration::from_millis(10));
        heard.filter(|message| message.says("WATCHDOG"))
    });
    daemon.signal(Signal::SIGTERM);
    wait::until("the end", || {
        read();
        let heard = manager.hears_within(Duration::from_millis(10));
        heard.filter(|message| message.says("STOPPING"))
    });
    read();
    assert_eq!(daemon.end().code, Some(0));
    assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
}

#[test]
fn who_is_not_watched_gives_no_sign_of_life() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let time = Duration::from_millis(30);
    for manager in [Manager::at_path().with_watchdog_of_another(time), Manager::at_path()] {
        let (site, pair) = (Site::new(), Pair::new());
        let args = ["--ports", "5000/udp", "--interval", "20ms", "--count", "20"];
        let ended = Daemon::spawn(manager.service(&pair.host, &command(&site, &pair, &args))).end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let heard = manager.has_heard();
        // It ran for ten times the time.
        assert!(heard.len() == 1 && heard[0].says("READY"), "{heard:?}");
        assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
    }
}

#[test]
fn a_reload_changes_ports_and_interval_and_loses_no_packet() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, pair, manager) = (Site::new(), Pair::new(), Manager::at_path());
    let file = File::new(&site, "ports = '5000/udp'\ninterval = '1h'\n");
    let args = ["--config", file.path(), "--output", "json", "--meter", "tcx"];
    let mut daemon = Daemon::spawn(manager.service(&pair.host, &command(&site, &pair, &args)));
    manager.hears("readiness", |message| message.says("READY"));
    pair.arrive(5000, 10);

    file.says("ports = ['5000/udp', '6000/udp=more']\ninterval = '20ms'\n");
    let before = monotonic();
    daemon.signal(Signal::SIGHUP);
    let reloading = manager.hears("a reload", |message| message.says("RELOADING"));
    let at = reloading.get("MONOTONIC_USEC").and_then(|time| time.parse().ok());
    assert!(at.is_some_and(|at| (before..=monotonic()).contains(&at)), "{reloading:?}");
    let ready = manager.hears("its end", |message| message.says("READY"));
    assert_eq!(ready.get("STATUS"), Some("counting 2 groups at tcx on eth0"));
    pair.arrive(5000, 7);
    pair.arrive(6000, 5);
    // Documents come now: the interval is another.
    daemon.wait_for("packets of the new port", |document| {
        let counted = document.groups().contains(&"6000") && document.group("6000") == datagrams(5);
        counted.then_some(())
    });
    let last = daemon.stop();
    assert_eq!((last.group("5000"), last.group("6000")), (datagrams(17), datagrams(5)));
    assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
    leaks::nothing(&pair.host, &site.pins);
}

fn monotonic() -> u128 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    Duration::from(now).as_micros()
}

#[test]
fn a_reload_of_what_cannot_be_used_changes_nothing_and_says_why() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, pair, manager) = (Site::new(), Pair::new(), Manager::at_path());
    let file = File::new(&site, "ports = '5000/udp'\ninterval = '1h'\niface = 'eth0'\n");
    let config = ["--config", file.path()];
    let run = site.traffic(&pair.host, &[&["run", "--persist"], &config[..]].concat());
    let daemon = Daemon::spawn(manager.service(&pair.host, &run));
    manager.hears("readiness", |message| message.says("READY"));
    let reload = |text: &str| {
        file.says(text);
        daemon.signal(Signal::SIGHUP);
        manager.hears("a reload", |message| message.says("RELOADING"));
        let ready = manager.hears("its end", |message| message.says("READY"));
        ready.get("STATUS").expect("a status").to_owned()
    };
    let one = "counting 1 group at tcx on eth0";
    for (text, pieces) in [
        ("\nport = 1\ninterval = '0s'\n", &["line 2: port: no such key", "line 3: interval:"][..]),
        ("ports = '6000/udp'\niface = 'eth7'\n", &["no device matches `eth7`"]),
        ("ports = [\n", &["line 1"]),
    ] {
        let status = reload(text);
        let refused = format!("{one}; the configuration is not used: ");
        assert!(status.starts_with(&refused), "{text:?}: {status}");
        for piece in pieces {
            assert!(status.contains(piece), "{text:?}: no `{piece}` in: {status}");
            daemon.says(piece);
        }
    }
    let meter = "ports = '5000/udp'\niface = 'eth0'\nmeter = 'tc'\nbilling_day = 3\n";
    assert_eq!(reload(meter), format!("{one}; a restart is needed for meter"));
    let all = "ports = '5000/udp'\niface = 'eth0'\nmeter = 'tc'\noutput = 'table'\npersist = false\n\
               pins = '/x'\nstate = '/x'\nledger = false\nproxy = false\nproxy_config = '/x'\n\
               api = '127.0.0.1:1'\n";
    let keys = "meter, output, persist, pins, state, ledger, proxy, proxy_config, api";
    assert_eq!(reload(all), format!("{one}; a restart is needed for {keys}"));
    assert_eq!(reload("ports = '5000/udp'\niface = 'eth0'\nkeep_minutes = '3d'\n"), one);
    assert_eq!(reload("ports = '5000/udp'\niface = 'eth0'\n"), one);
    fs::remove_file(&file.0).expect("remove the configuration");
    daemon.signal(Signal::SIGHUP);
    let gone = manager.hears("its end", |message| message.says("READY"));
    let status = gone.get("STATUS").expect("a status");
    assert!(status.contains("cannot read the configuration"), "{status}");

    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end().code, Some(0));
    assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
}

#[test]
fn a_reload_changes_how_long_buckets_are_kept() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, pair, manager) = (Site::new(), Pair::new(), Manager::at_path());
    let ports = "ports = '5000/udp'\n";
    let file =
        File::new(&site, &format!("{ports}keep_minutes = 'forever'\nkeep_hours = 'forever'\n"));
    let (users, hours, day) = (3, 4, 24 * 3600);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    let end = i64::try_from(now / day * day - day).expect("a time");
    generate(&site.state, Sample { users, groups: 0, days: 1, hours, end }).expect("make a ledger");
    let reader = || Reader::open(&site.state).expect("open the ledger").expect("a ledger");
    // Of each length: buckets of these users, in two layers.
    let kept = || {
        Level::ALL.map(|level| {
            let mut count = 0;
            let mut each = |bucket: Bucket| {
                count += u32::from(bucket.subject.kind() == SubjectKind::User);
                ControlFlow::Continue(())
            };
            reader()
                .buckets(Span::ALL, Wanted { level: Some(level), subjects: None }, &mut each)
                .expect("ask the ledger");
            count
        })
    };
    let whole = [2 * users * hours * 12, 2 * users * hours, 2 * users];
    let top = || {
        let (kind, layer) = (SubjectKind::User, Layer::Payload);
        reader().top(kind, layer, Span::ALL, By::Total, 9).expect("ask the ledger")
    };
    let before = top();

    let args = ["--config", file.path(), "--interval", "20ms", "--output", "json"];
    let mut daemon = Daemon::spawn(manager.service(&pair.host, &command(&site, &pair, &args)));
    manager.hears("readiness", |message| message.says("READY"));
    for _ in 0..5 {
        daemon.fresh();
    }
    assert_eq!(kept(), whole);
    file.says(&format!("{ports}keep_minutes = '1h'\nkeep_hours = '1d'\n"));
    daemon.signal(Signal::SIGHUP);
    let ready = manager.hears("the end of the reload", |message| message.says("READY"));
    assert_eq!(ready.get("STATUS"), Some("counting 1 group at tcx on eth0"));
    wait::until("short buckets to go", || (kept() == [0, 0, 2 * users]).then_some(()));
    assert_eq!(top(), before);
    daemon.stop();
    assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
}

#[test]
fn a_socket_that_is_not_there_is_told_and_counting_goes_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, pair) = (Site::new(), Pair::new());
    for (address, piece) in [("nowhere", "NOTIFY_SOCKET cannot be used"), ("/nowhere/socket", "")] {
        let args =
            ["--ports", "5000/udp", "--output", "json", "--interval", "20ms", "--count", "2"];
        let mut service = command(&site, &pair, &args);
        service.env("NOTIFY_SOCKET", address);
        let ended = Daemon::spawn(service).end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(ended.last.expect("a document").groups(), ["5000"]);
        assert!(ended.stderr.contains(piece), "{address}: {}", ended.stderr);
    }
    assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
}

/// The unit file.
fn unit() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/traffic.service");
    fs::read_to_string(file).expect("read the unit")
}

/// All values of a setting of the unit.
fn setting<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix('=');
    unit.lines().filter_map(value).collect()
}

/// The unit's capabilities, as the kernel's header names them.
fn capabilities(unit: &str) -> Vec<&str> {
    let values = setting(unit, "CapabilityBoundingSet");
    assert_eq!(values.len(), 1, "one set of capabilities");
    values[0].split(' ').collect()
}

/// `setpriv` with these capabilities and no others, and no way to more. Older versions know only the
/// numbers of the newest.
fn rights(capabilities: &[&str]) -> Vec<String> {
    let mut set = "-all".to_owned();
    for name in capabilities {
        let name = match *name {
            "CAP_PERFMON" => "cap_38".to_owned(),
            "CAP_BPF" => "cap_39".to_owned(),
            name => name.trim_start_matches("CAP_").to_lowercase(),
        };
        set.push_str(&format!(",+{name}"));
    }
    ["setpriv", "--no-new-privs", "--bounding-set", &set].map(str::to_owned).to_vec()
}

/// A command through another program, which gets it as its last arguments.
fn through(ns: &NetNs, wrapper: &[String], command: &Command) -> Command {
    let mut outer = ns.command(&wrapper[0]);
    outer.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    outer
}

#[test]
fn the_unit_has_the_capabilities_that_are_asked_for_and_no_others() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("setpriv"));
    let (site, pair, unit) = (Site::new(), Pair::new(), unit());
    let all = capabilities(&unit);
    let args = ["--ports", "5000/udp", "--count", "1", "--meter", "tcx"];
    for left_out in &all {
        let rest: Vec<&str> = all.iter().copied().filter(|name| name != left_out).collect();
        let run = through(&pair.host, &rights(&rest), &command(&site, &pair, &args));
        let ended = Daemon::spawn(run).end();
        assert_eq!(ended.code, Some(2), "{left_out} is not needed");
        let said = format!("{left_out} is missing");
        assert!(ended.stderr.contains(&said), "{left_out}: {}", ended.stderr);
    }
    let run = through(&pair.host, &rights(&[]), &command(&site, &pair, &args));
    let said = format!("{} is missing", all.join(", "));
    let ended = Daemon::spawn(run).end();
    assert!(ended.stderr.contains(&said), "{said}: {}", ended.stderr);
    leaks::nothing(&pair.host, &site.pins);
}

#[test]
fn with_the_rights_and_paths_of_the_unit_nothing_is_lost_through_a_kill_and_a_new_start() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("setpriv"), Tool("unshare"));
    let (site, pair, unit) = (Site::new(), Pair::new(), unit());
    assert_eq!(setting(&unit, "ProtectSystem"), ["strict"]);
    assert_eq!(setting(&unit, "ReadOnlyPaths"), ["/sys /proc/sys"]);
    assert_eq!(setting(&unit, "ReadWritePaths"), ["-/sys/fs/bpf /run"]);
    assert_eq!(setting(&unit, "RuntimeDirectoryPreserve"), ["yes"]);
    // What the manager makes before it starts the service.
    fs::create_dir_all(&site.state).expect("the state folder");
    let state = site.state.display();
    let script = format!(
        "mount --bind /run /run && mount --bind {state} {state} && \
         mount -o remount,bind,ro / && mount -o remount,bind,ro /sys && exec \"$@\""
    );
    let mut wrapper: Vec<String> =
        ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    wrapper.extend(rights(&capabilities(&unit)));
    let start = |manager: &Manager| {
        let run = command(&site, &pair, &["--ports", "5000/udp", "--interval", "20ms"]);
        let run = through(&pair.host, &wrapper, &run);
        let daemon = Daemon::spawn(manager.service(&pair.host, &run));
        let ready = manager.hears("readiness", |message| message.says("READY"));
        // What `auto` finds without these restrictions.
        assert_eq!(ready.get("STATUS"), Some("counting 1 group at tcx on eth0"));
        daemon
    };
    let manager = Manager::at_name(&pair.host);
    let daemon = start(&manager);
    pair.arrive(5000, 10);
    daemon.kill();
    pair.arrive(5000, 20);
    let daemon = start(&manager);
    pair.arrive(5000, 30);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end().code, Some(0));
    let dump = site.run(&pair.host, &["dump", "--json"]).json();
    assert_eq!(dump["ports"]["5000"]["input_packets"], 60);
    assert_eq!(dump["ports"]["5000"]["input_bytes"], 60 * DATAGRAM);
    assert_eq!(dump["coverage"], "complete");
    assert_eq!(site.run(&pair.host, &["clean"]).code, Some(0));
    leaks::nothing(&pair.host, &site.pins);
}

#[test]
fn the_unit_is_one_for_systemd() {
    need!(Tool("systemd-analyze"));
    let unit = unit();
    let command = setting(&unit, "ExecStart");
    assert_eq!(command.len(), 1);
    let program = command[0].split(' ').next().expect("a program");
    let folder = std::env::temp_dir().join(format!("traffic-unit-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("traffic.service");
    let text = unit.replace(program, &binary().display().to_string());
    fs::write(&file, &text).expect("write the unit");
    let analyze = |path: &Path, args: &[&str]| {
        let mut command = Command::new(need::tool("systemd-analyze").expect("it is there"));
        let output = command.args(args).arg(path).output().expect("start systemd-analyze");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    assert_eq!(analyze(&file, &["verify"]), (Some(0), String::new()));
    let (code, said) = analyze(&file, &["security", "--offline=true", "--threshold=30"]);
    assert_eq!(code, Some(0), "the unit is open too far: {said}");
    // Neither check is one that takes anything.
    let wrong = folder.join("wrong.service");
    fs::write(&wrong, text.replace("WatchdogSec", "WatchdogTime")).expect("write a unit");
    let (_, said) = analyze(&wrong, &["verify"]);
    assert!(said.contains("WatchdogTime"), "{said}");
    fs::write(&wrong, text.replace("CapabilityBoundingSet=", "#")).expect("write a unit");
    let (code, _) = analyze(&wrong, &["security", "--offline=true", "--threshold=30"]);
    assert_ne!(code, Some(0));
    fs::remove_dir_all(&folder).expect("remove the folder");
}

#[test]
fn the_command_of_the_unit_is_one_that_the_program_takes() {
    let unit = unit();
    let command = setting(&unit, "ExecStart");
    let words: Vec<&str> = command[0].split(' ').skip(1).collect();
    let output = Command::new(binary()).args(words).arg("--help").output().expect("start traffic");
    assert_eq!(output.status.code(), Some(0));
    assert!(command[0].contains("run --persist"), "{command:?}");
    assert_eq!(setting(&unit, "Type"), ["notify"]);
    assert_eq!(setting(&unit, "ExecReload"), ["/bin/kill -HUP $MAINPID"]);
}

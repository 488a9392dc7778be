//! What is said to people while it counts: that it can be read, and that nothing depends on whether it is.

use std::{fs, io::Read as _, os::unix::fs::symlink, process::Stdio, thread, time::Duration};

use nix::sys::signal::{Signal, kill};
use traffic_tests::{
    daemon::{Daemon, Running, Site},
    device::{Device, veth},
    document::{Document, Traffic},
    leaks, load, need,
    netns::NetNs,
    terminal::Terminal,
    wait,
};

const TABLE: [&str; 6] = ["run", "--iface", "eth0", "--ports", "5000", "--no-ledger"];

fn host() -> (Device, Device) {
    let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
    veth((&host, "eth0"), (&other, "eth0"), 1)
}

#[test]
fn a_message_stands_under_the_table_that_is_drawn_over_it() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let ((here, _there), site, terminal) = (host(), Site::new(), Terminal::new(200));
    let mut command =
        site.traffic(&here.ns, &[&TABLE[..], &["--meter", "tc", "--interval", "200ms"]].concat());
    command.stdout(terminal.end()).stderr(terminal.end()).env("TERM", "xterm");
    let mut running = Running::of(command.spawn().expect("start traffic"));
    drop(command);
    let counts = || leaks::attached(&here.ns).len() == 3;
    wait::until("filters", || counts().then_some(()));
    thread::sleep(Duration::from_millis(300));
    here.ns.sh(&["tc", "qdisc", "del", "dev", "eth0", "clsact"]);
    wait::until("filters again", || counts().then_some(()));
    thread::sleep(Duration::from_millis(500));
    kill(running.pid(), Signal::SIGINT).expect("stop it");
    assert_eq!(running.wait().code(), Some(0));
    let shown = terminal.shown();
    // What is on the screen in the end: all since the cursor was at its first line.
    let last = shown.rsplit("\x1b[H").next().expect("the last table");
    assert!(last.contains("PORT") && last.contains("taken off by another program"), "{shown:?}");
}

#[test]
fn a_narrow_terminal_shows_fewer_columns_and_no_half_numbers() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let ports = "443=vless,8443/tcp,20000-50000/udp=hop";
    let all = ["PORT", "NAME", "IN", "OUT", "IN/s", "OUT/s", "PKTS IN", "PKTS OUT"];
    for (width, shown) in [(100, 8), (71, 6), (52, 5), (40, 3)] {
        let ((here, there), site, terminal) = (host(), Site::new(), Terminal::new(width));
        let mut command = site.traffic(&here.ns, &["run", "--iface", "eth0", "--no-ledger"]);
        command.args(["--ports", ports, "--interval", "200ms", "--count", "6"]);
        command.stdout(terminal.end()).stderr(Stdio::null()).env("TERM", "xterm");
        let mut running = Running::of(command.spawn().expect("start traffic"));
        drop(command);
        wait::until("the hook", || (!leaks::attached(&here.ns).is_empty()).then_some(()));
        let (client, server) = (load::udp(&there, false, 40_000), load::udp(&here, false, 443));
        for _ in 0..1000 {
            load::datagram(&client, &server, 1000);
        }
        assert_eq!(running.wait().code(), Some(0));
        let screen = terminal.shown();
        let last = screen.rsplit("\x1b[H").next().expect("the last table");
        let mut lines = last.lines();
        let head = lines.next().unwrap_or_default();
        let head = head.trim_end().trim_end_matches("\x1b[K");
        let names: Vec<_> =
            head.split("  ").map(str::trim).filter(|name| !name.is_empty()).collect();
        assert_eq!(names.len(), shown, "{width}: {head:?}");
        assert!(names.iter().all(|name| all.contains(name)), "{width}: {head:?}");
        let row = lines.next().unwrap_or_default();
        assert!(row.contains("443") && row.contains("1003.9 KB"), "{width}: {last}");
    }
}

#[test]
fn a_stderr_that_takes_nothing_ends_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let ((here, there), site) = (host(), Site::new());
    let args = ["run", "--iface", "eth0", "--ports", "5000", "--output", "json", "--meter", "tc"];
    let mut command = site.traffic(&here.ns, &args);
    command.args(["--interval", "1s", "-vv"]);
    // The pipe of a program that has gone.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut stderr = site.traffic(&here.ns, &["dump"]);
    stderr.stdout(Stdio::null()).stderr(writer.try_clone().expect("another end"));
    assert_eq!(stderr.status().expect("start traffic").code(), Some(2));
    command.stdout(Stdio::piped()).stderr(writer);
    let mut child = command.spawn().expect("start traffic");
    let mut stdout = child.stdout.take().expect("a pipe was asked for");
    let mut running = Running::of(child);
    wait::until("filters", || (leaks::attached(&here.ns).len() == 3).then_some(()));
    let (client, server) = (load::udp(&there, false, 40_000), load::udp(&here, false, 5000));
    for _ in 0..5 {
        load::datagram(&client, &server, 72);
    }
    // Said to nobody.
    here.ns.sh(&["tc", "qdisc", "del", "dev", "eth0", "clsact"]);
    wait::until("filters again", || (leaks::attached(&here.ns).len() == 3).then_some(()));
    for _ in 0..5 {
        load::datagram(&client, &server, 72);
    }
    kill(running.pid(), Signal::SIGTERM).expect("stop it");
    assert_eq!(running.wait().code(), Some(0));
    let mut text = String::new();
    stdout.read_to_string(&mut text).expect("read documents");
    let last = Document::parse(text.lines().last().expect("a document"));
    assert_eq!((last.group("5000"), last.text("coverage")), (Traffic::input(1000, 10), "gap"));
    leaks::nothing(&here.ns, &site.pins);
}

#[test]
fn signals_that_hurry_the_start_leave_nothing_and_are_no_errors() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let ((here, _there), site) = (host(), Site::new());
    let mut stopped = 0;
    for delay in (10..410).step_by(20) {
        let mut command = site.traffic(&here.ns, &[&TABLE[..], &["--output", "json"]].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Running::of(command.spawn().expect("start traffic"));
        thread::sleep(Duration::from_millis(delay));
        for _ in 0..3 {
            kill(running.pid(), Signal::SIGTERM).expect("stop it");
            thread::sleep(Duration::from_millis(2));
        }
        // Before it listens, a signal ends it as any program.
        match running.wait().code() {
            Some(0) => stopped += 1,
            code => assert_eq!(code, None, "after {delay} ms"),
        }
        leaks::nothing(&here.ns, &site.pins);
    }
    assert!(stopped > 0, "all were stopped before they listened");
}

#[test]
fn a_second_wish_to_stop_ends_one_whose_reader_has_stopped_and_one_under_nohup_goes_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("nohup"));
    let ((here, _there), site) = (host(), Site::new());
    let mut command = site.traffic(&here.ns, &[&TABLE[..], &["--interval", "100ms"]].concat());
    command.args(["--output", "json", "--meter", "tcx"]);
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    // Both to a reader that does not read.
    command.stderr(writer.try_clone().expect("another end")).stdout(writer);
    let mut running = Running::of(command.spawn().expect("start traffic"));
    drop(command);
    // More than a pipe holds.
    let waits = || {
        let file = format!("/proc/{}/wchan", running.pid());
        fs::read_to_string(file).is_ok_and(|text| text.contains("pipe")).then_some(())
    };
    wait::until("the pipe to be full", waits);
    let again = || {
        kill(running.pid(), Signal::SIGTERM).expect("stop it");
        thread::sleep(Duration::from_millis(300));
        running.ended()
    };
    assert_eq!(wait::until("the end of traffic", again).code(), Some(128 + 15));
    leaks::nothing(&here.ns, &site.pins);

    let mut command = here.ns.command("nohup");
    let inner = site.traffic(&here.ns, &[&TABLE[..], &["--output", "json"]].concat());
    command.arg(inner.get_program()).args(inner.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut daemon = Daemon::spawn(command);
    daemon.counts_on(&["eth0"]);
    kill(daemon.pid(), Signal::SIGHUP).expect("hang up");
    daemon.fresh();
    daemon.stop();
}

#[test]
fn what_is_no_lock_of_ours_is_neither_written_nor_followed_nor_removed() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let ((here, _there), site) = (host(), Site::new());
    let args = ["run", "--iface", "eth0", "--ports", "5000", "--count", "1", "--json"];
    fs::create_dir_all(&site.state).expect("make a state folder");
    let (lock, theirs) = (site.state.join("lock"), site.state.join("theirs"));
    fs::write(&theirs, "precious\n").expect("write a file");
    type Make<'a> = Box<dyn Fn() + 'a>;
    let makers: [(&str, Make<'_>); 4] = [
        ("is a symbolic link", Box::new(|| symlink(&theirs, &lock).expect("a link"))),
        ("holds what no lock", Box::new(|| fs::write(&lock, "precious\n").expect("a file"))),
        ("holds what no lock", Box::new(|| fs::hard_link(&theirs, &lock).expect("a link"))),
        (
            "holds what no lock",
            Box::new(|| nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).expect("a pipe")),
        ),
    ];
    for (piece, make) in makers {
        make();
        let answer = site.run(&here.ns, &args);
        assert_eq!(answer.code, Some(2), "{}", answer.stdout);
        for piece in [piece, "remedy: move it away", "--state"] {
            assert!(answer.stderr.contains(piece), "{}", answer.stderr);
        }
        assert_eq!(fs::read_to_string(&theirs).expect("read it"), "precious\n");
        fs::remove_file(&lock).expect("it is still there");
        leaks::nothing(&here.ns, &site.pins);
    }
    assert_eq!(site.run(&here.ns, &args).code, Some(0));
}

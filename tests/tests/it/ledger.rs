//! The ledger beside other processes and other users.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use std::sync::atomic::Ordering::Relaxed;

use nix::sys::signal::Signal;
use traffic_tests::{
    daemon::{Daemon, Ended, Site},
    document, need, wait,
};
use traffic_user::{
    accounting::{
        reading::{Coverage, Layer, Traffic},
        subject::Subject,
        tick::Plan,
        usage::{Entry, Usage},
    },
    ledger::{Ledger, LedgerError, Options, Reader},
};

use super::lifecycle::{DATAGRAM, Load, start};

/// Neither a user nor a group that anybody is.
const NOBODY: libc::uid_t = 54_321;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn plan() -> Plan {
    let traffic = Traffic { input_bytes: 1, ..Traffic::default() };
    let usage = Usage { layer: Layer::L3, traffic, coverage: Coverage::Complete };
    Plan { entries: vec![Entry { subject: Subject::Host, name: None, usage }], ..Plan::default() }
}

/// Reads as a user who is in this group and no other.
fn read_as(folder: &Path, group: libc::gid_t) -> Result<Option<u64>, LedgerError> {
    let folder = folder.to_path_buf();
    let reading = std::thread::spawn(move || {
        // SAFETY: a system call without pointers, which changes this thread alone.
        let groups = unsafe { libc::syscall(libc::SYS_setgroups, 0, 0) };
        // SAFETY: as above.
        let of_group = unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) };
        // SAFETY: as above.
        let of_user = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!((groups, of_group, of_user), (0, 0, 0));
        let Some(reader) = Reader::open(&folder)? else { return Ok(None) };
        let totals = reader.totals(&Subject::Host)?;
        Ok(totals.first().map(|usage| usage.traffic.input_bytes))
    });
    reading.join().expect("the reader")
}

#[test]
fn members_of_the_folders_group_read_beside_the_daemon_and_without_it_and_others_never() {
    need!(Root);
    let place = std::env::temp_dir().join(format!("traffic-it-ledger-{}", std::process::id()));
    fs::create_dir(&place).unwrap();
    let folder = Folder(place);
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o750)).unwrap();
    chown(&folder.0, None, Some(NOBODY)).unwrap();

    let (mut ledger, _) = Ledger::open(&folder.0, Options::default()).unwrap();
    ledger.commit(&plan()).unwrap();
    assert_eq!(read_as(&folder.0, NOBODY).unwrap(), Some(1));
    ledger.commit(&plan()).unwrap();
    assert_eq!(read_as(&folder.0, NOBODY).unwrap(), Some(2));
    assert!(matches!(read_as(&folder.0, NOBODY + 1), Err(LedgerError::Denied { .. })));

    // It ended well: nothing is left beside the file. Then it was killed: everything is.
    drop(ledger);
    assert!(!folder.0.join("ledger.db-wal").exists());
    assert_eq!(read_as(&folder.0, NOBODY).unwrap(), Some(2));
    let (mut ledger, _) = Ledger::open(&folder.0, Options::default()).unwrap();
    ledger.commit(&plan()).unwrap();
    let copy = Folder(folder.0.with_extension("killed"));
    fs::create_dir(&copy.0).unwrap();
    fs::set_permissions(&copy.0, fs::Permissions::from_mode(0o750)).unwrap();
    chown(&copy.0, None, Some(NOBODY)).unwrap();
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        let file = copy.0.join(name);
        fs::copy(folder.0.join(name), &file).unwrap();
        chown(&file, None, Some(NOBODY)).unwrap();
    }
    assert_eq!(read_as(&copy.0, NOBODY).unwrap(), Some(3));
}

/// What the ledger has of the sender's port.
fn booked(site: &Site) -> document::Traffic {
    let reader = Reader::open(&site.state).expect("open the ledger").expect("a ledger");
    let group = Subject::group(&"5000/udp".parse().expect("a group"));
    let totals = reader.totals(&group).expect("ask the ledger");
    let [usage] = totals.as_slice() else { panic!("{totals:?}") };
    assert_eq!(usage.traffic.output_packets, 0);
    document::Traffic::input(usage.traffic.input_bytes, usage.traffic.input_packets)
}

/// Numbers that are spread, and the same at each run.
struct Spread(u64);

impl Spread {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A daemon that is killed by a fault inside of a commit or right after it, or by a signal after so many
/// datagrams of the sender, wherever it is then. Says whether it ran.
fn killed(site: &Site, load: &Load, meter: &str, spread: &mut Spread) -> bool {
    let args = ["run", "--output", "json", "--interval", "20ms", "--iface", "eth0"];
    let mut command = site.traffic(&load.host, &args);
    command.args(["--ports", "5000/udp", "--persist", "--meter", meter]);
    let point = match spread.below(4) {
        0 => Some("ledger-commit"),
        1 => Some("ledger-committed"),
        _ => None,
    };
    let enough = load.sent.load(Relaxed) + spread.below(60_000);
    if let Some(point) = point {
        command.env("TRAFFIC_FAULT", point);
    }
    let daemon = Daemon::spawn(command);
    if point.is_none() {
        wait::until("the sender", || (load.sent.load(Relaxed) >= enough).then_some(()));
        daemon.signal(Signal::SIGKILL);
    }
    let Ended { code, stderr, .. } = daemon.end();
    // A tool that the one before was about to start may have its lock for a moment more.
    let locked = stderr.contains("counts in this network namespace already");
    assert!(code.is_none() || locked, "{point:?}: {code:?}: {stderr}");
    code.is_none()
}

#[test]
fn after_two_hundred_kills_under_load_the_ledger_equals_what_was_sent() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let first = start(&site, &load, "tcx", &["--persist"]);
    load.begin();
    load.goes_on();
    first.kill();
    let mut spread = Spread(7);
    let mut kills = 0;
    while kills < 200 {
        kills += u32::from(killed(&site, &load, "tcx", &mut spread));
    }
    let last = start(&site, &load, "tcx", &["--persist"]);
    load.goes_on();
    let sent = load.end();
    last.stop();
    assert_eq!(booked(&site), sent);
    assert!(sent.input_packets > 1000 && sent.input_bytes == sent.input_packets * DATAGRAM);
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
}

#[test]
fn a_state_folder_that_goes_and_comes_back_costs_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &[]);
    load.begin();
    load.goes_on();
    let away = site.state.with_extension("away");
    fs::rename(&site.state, &away).unwrap();
    wait::until("a message", || {
        let messages = daemon.messages();
        (messages.contains("nothing is booked") && messages.contains("is gone")).then_some(())
    });
    load.goes_on();
    let doctor = || site.run(&load.host, &["doctor", "--json"]).json();
    let of_ledger = |document: &serde_json::Value| {
        let checks = document["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == "ledger").unwrap().clone()
    };
    fs::rename(&away, &site.state).unwrap();
    wait::until("the ledger", || {
        let check = of_ledger(&doctor());
        (check["status"] == "ok" && check["found"] == "everything is booked").then_some(())
    });
    let sent = load.end();
    let messages = daemon.messages();
    assert_eq!(messages.matches("nothing is booked").count(), 1, "{messages}");
    daemon.stop();
    assert_eq!(booked(&site), sent);
}

#[test]
fn without_a_ledger_there_is_none() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    start(&site, &load, "tcx", &["--no-ledger"]).stop();
    assert!(!site.state.exists());
}

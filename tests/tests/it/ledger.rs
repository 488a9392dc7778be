//! The ledger beside other processes and other users.

mod failing;
mod killed;
mod lives;
mod reading;
mod reset;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use traffic_tests::{daemon::Site, document, need, netns::NetNs, wait};
use traffic_user::{
    accounting::{
        reading::{Coverage, Layer, Traffic},
        subject::Subject,
        tick::Plan,
        usage::{Entry, Span, Usage},
    },
    ledger::{Ledger, LedgerError, Options, Reader, path},
    meter::Lock,
};

use super::lifecycle::{Load, start};

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

/// The ledger of a site, for reading.
fn reader(site: &Site) -> Reader {
    Reader::open(&site.state).expect("open the ledger").expect("a ledger")
}

fn group(text: &str) -> Subject {
    Subject::group(&text.parse().expect("a group"))
}

fn usage_of(layer: Layer, traffic: document::Traffic, coverage: Coverage) -> Usage {
    let document::Traffic { input_bytes, input_packets, output_bytes, output_packets } = traffic;
    let traffic = Traffic { input_bytes, input_packets, output_bytes, output_packets };
    Usage { layer, traffic, coverage }
}

/// What the ledger has of a group that one meter counted.
#[track_caller]
fn booked(site: &Site, key: &str) -> document::Traffic {
    let totals = reader(site).totals(&group(key)).expect("ask the ledger");
    assert!(totals.len() < 2, "{totals:?}");
    let traffic = totals.first().map(|usage| usage.traffic).unwrap_or_default();
    let Traffic { input_bytes, input_packets, output_bytes, output_packets } = traffic;
    document::Traffic { input_bytes, input_packets, output_bytes, output_packets }
}

/// Waits until a tick is in the ledger: from then on another process knows where to go on.
#[track_caller]
fn has_begun(site: &Site) {
    wait::until("a tick in the ledger", || {
        let cursors = Reader::open(&site.state).ok()??.cursors().expect("ask the ledger");
        (!cursors.kernel.is_empty()).then_some(())
    });
}

/// Kind and text of all that happened.
fn events(site: &Site) -> Vec<(String, String)> {
    let events = reader(site).events(Span::ALL, usize::MAX).expect("ask the ledger");
    events.into_iter().map(|event| (event.kind, event.what)).collect()
}

/// The same of some kinds.
fn events_of(site: &Site, kinds: &[&str]) -> Vec<(String, String)> {
    events(site).into_iter().filter(|(kind, _)| kinds.contains(&kind.as_str())).collect()
}

#[test]
fn a_ledger_or_a_folder_that_cannot_be_used_says_why_and_then_what_helps_once() {
    need!(Root, Netns);
    let (site, host) = (Site::new(), NetNs::new());
    let refused = |args: &[&str], cause: &str, remedy: &str| {
        let said = site.run(&host, args);
        assert_eq!(said.code, Some(2), "{said:?}");
        let at = |text: &str| said.stderr.find(text).unwrap_or_else(|| panic!("{text}: {said:?}"));
        assert!(at(cause) < at(remedy), "{said:?}");
        for text in ["remedy: ", cause, "another traffic daemon"] {
            assert!(said.stderr.matches(text).count() < 2, "{text}: {said:?}");
        }
    };
    let run = ["run", "--count", "1", "--no-proxy", "--ports", "5000/udp"];
    fs::create_dir(&site.state).unwrap();
    let held = Lock::take(&site.state.join("lock")).expect("take the lock");
    refused(&run, "books in the state folder", "remedy: stop that one first");
    drop(held);
    fs::create_dir(path(&site.state)).unwrap();
    for args in [&run[..], &["history"]] {
        refused(args, "ledger.db is a folder", "remedy: move that folder away");
    }
    fs::remove_dir(path(&site.state)).unwrap();
    drop(Ledger::open(&site.state, Options::default()).unwrap());
    let ledger = rusqlite::Connection::open(path(&site.state)).unwrap();
    ledger.pragma_update(None, "user_version", 99).unwrap();
    drop(ledger);
    for args in [&run[..], &["history"]] {
        refused(args, "has schema 99", "remedy: run the version that wrote it");
    }
}

#[test]
fn without_a_ledger_there_is_none() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    start(&site, &load, "tcx", &["--no-ledger"]).stop();
    assert!(!site.state.exists());
}

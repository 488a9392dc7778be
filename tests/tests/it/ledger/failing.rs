//! A ledger that cannot be written while the daemon counts: the disk is full, it may only be read, another
//! holds it, it is damaged, or gone. Counting goes on, it is said, and all is booked when it can be.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt as _,
    time::SystemTime,
};

use nix::sys::signal::Signal;
use rusqlite::Connection;
use serde_json::Value;
use traffic_tests::{
    daemon::{Daemon, Site},
    disk::Disk,
    need,
    stats_server::{Kind, StatsServer},
    wait,
};
use traffic_user::{
    accounting::{
        reading::{Coverage, Layer},
        subject::{Subject, SubjectKind},
        usage::{By, Span},
    },
    ledger::path,
};

use super::{
    super::lifecycle::{Load, start},
    booked, events_of, group, has_begun, reader,
};

const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_085);

/// What `doctor` says of the ledger.
fn standing(site: &Site, load: &Load) -> (String, String) {
    let answer = site.run(&load.host, &["doctor", "--no-proxy", "--json"]);
    // 1 where a check fails.
    assert!(matches!(answer.code, Some(0 | 1)), "{answer:?}");
    let document: Value = serde_json::from_str(&answer.stdout).expect("JSON");
    let checks = document["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == "ledger").expect("the ledger");
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("found"))
}

/// Waits until `doctor` says that everything is booked.
#[track_caller]
fn all_is_booked(site: &Site, load: &Load) {
    let wanted = ("ok".to_owned(), "everything is booked".to_owned());
    wait::until("the ledger", || (standing(site, load) == wanted).then_some(()));
}

/// Waits until the daemon says once, and `doctor` says, that nothing is booked and why; and asserts that
/// counting goes on.
#[track_caller]
fn is_refused(site: &Site, load: &Load, daemon: &mut Daemon, why: &str) {
    daemon.says("nothing is booked: counting goes on, and is kept in memory");
    daemon.says(why);
    let (status, found) = standing(site, load);
    assert_eq!(status, "fail", "{found}");
    assert!(found.contains("nothing is booked since 20") && found.contains(why), "{found}");
    assert!(found.contains("remedy: "), "{found}");
    let before = daemon.fresh().group("5000").input_packets;
    load.goes_on();
    assert!(daemon.fresh().group("5000").input_packets >= before + 200);
}

/// Ends the sender and the daemon, and asserts that every packet is booked once.
#[track_caller]
fn ends_with_all(site: &Site, mut load: Load, daemon: Daemon) {
    let sent = load.end();
    let messages = daemon.messages();
    assert_eq!(messages.matches("nothing is booked").count(), 1, "{messages}");
    daemon.stop();
    assert_eq!(booked(site, "5000/udp"), sent);
}

#[test]
fn a_state_folder_that_goes_and_comes_back_costs_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &[]);
    load.begin();
    load.goes_on();
    let away = site.state.with_extension("away");
    fs::rename(&site.state, &away).unwrap();
    daemon.says("nothing is booked: counting goes on, and is kept in memory");
    daemon.says("is gone");
    let (status, found) = standing(&site, &load);
    assert_eq!(status, "fail", "{found}");
    assert!(found.contains("nothing is booked") && found.contains("has lost"), "{found}");
    load.goes_on();
    fs::rename(&away, &site.state).unwrap();
    all_is_booked(&site, &load);
    ends_with_all(&site, load, daemon);
}

#[test]
fn on_a_full_disk_counting_goes_on_and_all_is_booked_to_the_byte_when_there_is_room() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    let disk = Disk::at(&site.state, 12 << 20);
    let fake = StatsServer::inside(&load.host, Kind::V2ray4, API);
    let mut daemon = start(&site, &load, "tcx", &["--api", &API.to_string()]);
    wait::until("the first poll in the ledger", || {
        let cursors = reader(&site).cursors().expect("ask the ledger");
        cursors.proxy.map(|_| ())
    });
    load.begin();
    load.goes_on();
    all_is_booked(&site, &load);

    disk.fill();
    // More users than any page has room for that the ledger has already.
    let moved = |n: i64| (1000 + n, 2_000_000 + n);
    let users = || (0..5000).map(|n| (format!("user-{n}@x"), moved(n)));
    for (email, (up, down)) in users() {
        fake.user(&email, up, down);
    }
    is_refused(&site, &load, &mut daemon, "the disk is full");
    for (email, (up, down)) in users() {
        fake.user(&email, up, down);
    }
    load.goes_on();
    disk.free();
    all_is_booked(&site, &load);
    ends_with_all(&site, load, daemon);

    let ranking = reader(&site)
        .top(SubjectKind::User, Layer::Payload, Span::ALL, By::Total, usize::MAX)
        .expect("ask the ledger");
    let bytes = |n: u64| i64::try_from(n).expect("a number");
    let told: BTreeMap<_, _> = ranking
        .places
        .iter()
        .map(|place| (place.subject.key(), place.usage.traffic))
        .map(|(key, moved)| (key, (bytes(moved.input_bytes), bytes(moved.output_bytes))))
        .collect();
    let wanted: BTreeMap<_, _> =
        users().map(|(email, (up, down))| (email, (2 * up, 2 * down))).collect();
    assert_eq!(told, wanted);
    assert_eq!(events_of(&site, &["late"]).len(), 1);
    drop(disk);
}

#[test]
fn on_a_full_disk_ticks_that_need_no_more_room_are_booked() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let disk = Disk::at(&site.state, 4 << 20);
    let daemon = start(&site, &load, "tcx", &[]);
    load.begin();
    load.goes_on();
    // All of it in the ledger's own pages, and room ahead of them.
    let first = load.pause();
    wait::until("all in the ledger", || (booked(&site, "5000/udp") == first).then_some(()));
    let other = Connection::open(path(&site.state)).expect("open the ledger");
    other
        .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(2))
        .expect("write it back");
    drop(other);
    load.resume();
    load.goes_on();
    disk.fill();
    // Far more ticks than there is room for ahead.
    let before = booked(&site, "5000/udp");
    let wal = || fs::metadata(path(&site.state).with_extension("db-wal")).expect("a file").len();
    let room = wal();
    for _ in 0..100 {
        load.goes_on();
    }
    let sent = load.end();
    wait::until("all in the ledger", || (booked(&site, "5000/udp") == sent).then_some(()));
    assert!(sent.input_packets >= before.input_packets + 20_000);
    assert!(wal() <= room + 4096, "{room} {}", wal());
    daemon.stop();
    assert_eq!(booked(&site, "5000/udp"), sent);
    drop(disk);
}

#[test]
fn a_start_on_a_full_disk_counts_and_books_all_when_there_is_room() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    for killed in [None, Some(true), Some(false)] {
        let (site, mut load) = (Site::new(), Load::new());
        let disk = Disk::at(&site.state, 4 << 20);
        if let Some(killed) = killed {
            let daemon = start(&site, &load, "tcx", &["--persist"]);
            load.begin();
            load.goes_on();
            has_begun(&site);
            if killed {
                daemon.kill();
            } else {
                daemon.stop();
            }
            load.goes_on();
        }
        disk.fill();
        let mut daemon = start(&site, &load, "tcx", &["--persist"]);
        load.begin();
        load.goes_on();
        // After a kill what was written ahead is there, with its room.
        if killed != Some(true) {
            is_refused(&site, &load, &mut daemon, "the disk is full");
        }
        disk.free();
        all_is_booked(&site, &load);
        let sent = load.end();
        daemon.signal(Signal::SIGTERM);
        let ended = daemon.end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(booked(&site, "5000/udp"), sent, "{killed:?}: {}", ended.stderr);
        assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
        drop(disk);
    }
}

#[test]
fn a_start_on_a_disk_with_room_for_half_a_ledger_counts() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    for kib in [8, 16, 48, 96] {
        let (site, mut load) = (Site::new(), Load::new());
        let disk = Disk::at(&site.state, kib << 10);
        let mut daemon = start(&site, &load, "tcx", &[]);
        load.begin();
        load.goes_on();
        assert!(daemon.fresh().group("5000").input_packets > 0, "{kib} KiB");
        load.end();
        daemon.stop();
        drop(disk);
    }
}

#[test]
fn while_the_state_folder_may_only_be_read_counting_goes_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &[]);
    load.begin();
    load.goes_on();
    all_is_booked(&site, &load);
    // A file system in its place that takes nothing, as when the right one was not mounted.
    let disk = Disk::for_reading(&site.state);
    daemon.says("nothing is booked: counting goes on, and is kept in memory");
    daemon.says("may only be read");
    daemon.says("mount the file system writable");
    load.goes_on();
    drop(disk);
    all_is_booked(&site, &load);
    ends_with_all(&site, load, daemon);
}

#[test]
fn while_another_process_locks_the_ledger_counting_goes_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    let mut daemon = start(&site, &load, "tcx", &[]);
    load.begin();
    load.goes_on();
    all_is_booked(&site, &load);
    let other = Connection::open(path(&site.state)).expect("open the ledger");
    wait::until("the lock", || other.execute_batch("BEGIN EXCLUSIVE").ok());
    is_refused(&site, &load, &mut daemon, "is locked by another process");
    other.execute_batch("ROLLBACK").expect("let go");
    all_is_booked(&site, &load);
    ends_with_all(&site, load, daemon);
}

#[test]
fn a_start_while_another_process_locks_the_ledger_counts_and_books_all_when_it_lets_go() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &["--persist"]);
    load.begin();
    load.goes_on();
    has_begun(&site);
    daemon.stop();
    let other = Connection::open(path(&site.state)).expect("open the ledger");
    other.execute_batch("BEGIN EXCLUSIVE").expect("lock it");
    let mut daemon = start(&site, &load, "tcx", &["--persist"]);
    load.goes_on();
    is_refused(&site, &load, &mut daemon, "is locked by another process");
    other.execute_batch("ROLLBACK").expect("let go");
    all_is_booked(&site, &load);
    let sent = load.end();
    daemon.stop();
    assert_eq!(booked(&site, "5000/udp"), sent);
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
}

/// Names of damaged ledgers that were set aside.
fn set_aside(site: &Site) -> Vec<String> {
    let files = fs::read_dir(&site.state).expect("the state folder");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("text"));
    let mut names: Vec<_> = names.filter(|name| name.starts_with("ledger.db.corrupt-")).collect();
    names.retain(|name| !name.ends_with("-wal") && !name.ends_with("-shm"));
    names
}

/// Overwrites all of the ledger's file but its first page.
fn damage(site: &Site) {
    let file = fs::OpenOptions::new().write(true).open(path(&site.state)).expect("open a file");
    let length = usize::try_from(file.metadata().expect("a file").len()).expect("a length");
    assert!(length > 3 * 4096, "{length}");
    file.write_all_at(&vec![0x5a; length - 4096], 4096).expect("write");
}

#[test]
fn a_ledger_that_is_damaged_under_the_daemon_is_set_aside_and_the_new_one_has_all_that_came_after()
{
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &[]);
    load.begin();
    load.goes_on();
    let first = load.pause();
    wait::until("all in the ledger", || (booked(&site, "5000/udp") == first).then_some(()));

    // What others have written makes the daemon read the file again; it has been damaged meanwhile.
    let other = Connection::open(path(&site.state)).expect("open the ledger");
    other
        .execute_batch(
            "PRAGMA wal_checkpoint(TRUNCATE); BEGIN IMMEDIATE;
             INSERT INTO event (at, kind, what) VALUES (1, 'x', 'x')",
        )
        .expect("write to the ledger");
    damage(&site);
    other.execute_batch("COMMIT").expect("write to the ledger");
    drop(other);
    load.resume();
    load.goes_on();
    daemon.says("the ledger was damaged and is set aside as");
    let sent = load.end();
    daemon.stop();
    let aside = set_aside(&site);
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(booked(&site, "5000/udp"), sent - first);
    let told = events_of(&site, &["ledger-damaged"]);
    assert!(told.len() == 1 && told[0].1.contains(&aside[0]), "{told:?}");
}

#[test]
fn a_ledger_that_is_damaged_at_the_start_but_where_it_had_come_to_costs_nothing_of_what_came_after()
{
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &["--persist"]);
    load.begin();
    load.goes_on();
    has_begun(&site);
    daemon.stop();
    let first = booked(&site, "5000/udp");
    load.goes_on();
    let ledger = Connection::open(path(&site.state)).expect("open the ledger");
    let place: i64 = ledger
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'subject'", [], |row| {
            row.get(0)
        })
        .expect("a page");
    drop(ledger);
    let file = fs::OpenOptions::new().write(true).open(path(&site.state)).expect("open a file");
    let place = u64::try_from(place - 1).expect("a page") * 4096;
    file.write_all_at(&[0x5a; 64], place).expect("write");
    let daemon = start(&site, &load, "tcx", &["--persist"]);
    daemon.says("it goes on from where the damaged one had come to");
    load.goes_on();
    let sent = load.end();
    daemon.stop();
    assert_eq!(booked(&site, "5000/udp"), sent - first);
    assert_eq!((set_aside(&site).len(), events_of(&site, &["gap"]).len()), (1, 0));
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
}

#[test]
fn a_ledger_that_is_damaged_at_the_start_is_set_aside_and_what_it_cannot_tell_is_a_gap() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &["--persist"]);
    load.begin();
    load.goes_on();
    daemon.stop();
    load.goes_on();
    damage(&site);
    let before = load.pause();
    // An epoch has the second in which it began: in the same one it may have begun under the next daemon.
    let second = || SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs();
    let now = second();
    wait::until("another second", || (second() > now + 1).then_some(()));
    let mut daemon = start(&site, &load, "tcx", &["--persist"]);
    daemon.says("set aside as");
    daemon.fresh();
    load.resume();
    load.goes_on();
    let sent = load.end();
    // What the maps have counted until then was booked, or is not known to have been: never twice.
    assert_eq!(daemon.stop().group("5000"), sent);
    assert_eq!(booked(&site, "5000/udp"), sent - before);
    assert_eq!(set_aside(&site).len(), 1);
    assert_eq!(events_of(&site, &["gap"]).len(), 1);
    for subject in [Subject::Host, group("5000/udp")] {
        let totals = reader(&site).totals(&subject).expect("ask the ledger");
        assert!(totals.iter().all(|usage| usage.coverage == Coverage::Gap), "{totals:?}");
    }
    assert_eq!(events_of(&site, &["ledger-damaged"]).len(), 1);
    assert_eq!(site.run(&load.host, &["clean"]).code, Some(0));
}

#[test]
fn a_state_folder_that_was_removed_and_made_anew_has_all_that_came_after_and_can_be_asked() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, mut load) = (Site::new(), Load::new());
    let daemon = start(&site, &load, "tcx", &[]);
    load.begin();
    load.goes_on();
    let first = load.pause();
    wait::until("all in the ledger", || (booked(&site, "5000/udp") == first).then_some(()));
    fs::remove_dir_all(&site.state).expect("remove the state folder");
    daemon.says("is gone");
    load.resume();
    load.goes_on();
    fs::create_dir(&site.state).expect("make a folder");
    all_is_booked(&site, &load);
    let sent = load.end();
    daemon.stop();
    assert_eq!(booked(&site, "5000/udp"), sent - first);
    let told = events_of(&site, &["ledger-replaced"]);
    assert!(told.len() == 1 && told[0].1.contains("a new one is begun"), "{told:?}");
}

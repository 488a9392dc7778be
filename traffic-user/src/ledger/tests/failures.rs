//! Whatever goes wrong with the file, nothing is lost and nothing is booked twice.

use super::*;

fn open(folder: &Path) -> Opened {
    Store::open(folder, Options::default(), 0).unwrap()
}

fn one(at: i64) -> Plan {
    plan(at, vec![entry(&user("a@x"), payload(1, 0))])
}

fn total(folder: &Folder) -> u64 {
    let totals = folder.reader().totals(&user("a@x")).unwrap();
    totals.first().map_or(0, |usage| usage.traffic.input_bytes)
}

fn aside(folder: &Folder) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(&folder.0)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("corrupt"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_that_another_process_locks_is_an_error_and_nothing_of_the_plan_is_booked() {
    let folder = Folder::new();
    let mut store = open(&folder.0).store;
    store.commit(&one(0)).unwrap();
    let other = rusqlite::Connection::open(path(&folder.0)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.commit(&one(0)).unwrap_err();
    assert!(matches!(error, LedgerError::Locked { .. }), "{error:?}");
    assert!(error.to_string().contains("ledger.db") && !error.remedy().is_empty());
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(total(&folder), 1);
    store.commit(&one(0)).unwrap();
    assert_eq!(total(&folder), 2);
}

#[test]
fn a_disk_that_is_full_is_an_error_until_there_is_room() {
    let folder = Folder::new();
    let (mut ledger, made) = Ledger::open(&folder.0, Options::default()).unwrap();
    assert!(made);
    ledger.commit(&one(0)).unwrap();
    // What SQLite says when the file may not grow is what it says when the disk is full.
    let pages: i64 = ledger.db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    ledger.db.pragma_update(None, "max_page_count", pages).unwrap();
    let many = |from: u32| {
        let entries =
            (from..from + 5000).map(|n| entry(&user(&format!("user-{n}")), payload(1, 0)));
        plan(0, entries.collect())
    };
    let error = ledger.commit(&many(0)).unwrap_err();
    assert!(matches!(error, LedgerError::Full { .. }), "{error:?}");
    let users = || folder.reader().subjects(None).unwrap().len();
    assert_eq!((users(), total(&folder)), (1, 1));
    ledger.db.pragma_update(None, "max_page_count", 1 << 30).unwrap();
    // Numbers that were handed out in vain are not taken for good.
    ledger.commit(&many(2500)).unwrap();
    assert_eq!(users(), 5001);
    let ranking = folder
        .reader()
        .top(SubjectKind::User, Layer::Payload, Span::ALL, By::Total, 10_000)
        .unwrap();
    assert_eq!((ranking.subjects, ranking.total), (5001, Some(payload(5001, 0))));
}

#[test]
fn what_could_only_be_read_is_opened_again() {
    let folder = Folder::new();
    let mut store = open(&folder.0).store;
    store.commit(&one(0)).unwrap();
    // What SQLite says of a file that it could open for reading alone.
    store.ledger.as_ref().unwrap().db.pragma_update(None, "query_only", true).unwrap();
    let error = store.commit(&one(0)).unwrap_err();
    assert!(matches!(error, LedgerError::ReadOnly { .. }), "{error:?}");
    assert_eq!(total(&folder), 1);
    store.commit(&one(0)).unwrap();
    assert_eq!(total(&folder), 2);
}

#[test]
fn a_folder_that_is_gone_is_an_error_until_it_is_back() {
    let folder = Folder::new();
    let mut store = open(&folder.0).store;
    store.commit(&one(0)).unwrap();
    let away = folder.0.with_extension("away");
    fs::rename(&folder.0, &away).unwrap();
    for _ in 0..2 {
        let error = store.commit(&one(0)).unwrap_err();
        assert!(matches!(error, LedgerError::Gone { .. }), "{error:?}");
    }
    fs::rename(&away, &folder.0).unwrap();
    store.commit(&one(0)).unwrap();
    assert_eq!(total(&folder), 2);
}

#[test]
fn a_file_that_was_removed_is_begun_anew_with_the_cursors_and_says_so() {
    let folder = Folder::new();
    let mut store = open(&folder.0).store;
    store.commit(&one(0)).unwrap();
    for file in fs::read_dir(&folder.0).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let cursors = Cursors {
        active: vec!["tcx"],
        left: Some(Left { boot: 7, meter: "tcx", epoch: None, place: "/a b".to_owned() }),
        ..Cursors::default()
    };
    let news = store.commit(&Plan { cursors: cursors.clone(), ..one(0) }).unwrap();
    assert_eq!(news[0].kind, "ledger-replaced");
    assert_eq!(total(&folder), 1);
    assert_eq!(folder.reader().cursors().unwrap(), cursors);
    assert_eq!(folder.reader().events(Span::ALL, 9).unwrap(), news);
}

#[test]
fn a_damaged_file_is_set_aside_with_its_date_and_never_deleted() {
    let folder = Folder::new();
    let file = path(&folder.0);
    fs::write(&file, "this is no database, but it is long enough to be looked at as one").unwrap();
    let opened = Store::open(&folder.0, Options::default(), 86_400).unwrap();
    let damaged = opened.damaged.unwrap();
    assert!(damaged.forgotten && damaged.event.what.contains("cannot be read"), "{damaged:?}");
    let place = folder.0.join("ledger.db.corrupt-19700102T000000Z");
    assert_eq!(aside(&folder), ["ledger.db.corrupt-19700102T000000Z"]);
    assert!(fs::read_to_string(place).unwrap().starts_with("this is no database"));

    // The same while it is open.
    let mut store = opened.store;
    for at in 0..400 {
        let entries = (0..30).map(|n| entry(&user(&format!("{n}@x")), payload(1, 0))).collect();
        store.commit(&plan(at * 300, entries)).unwrap();
    }
    drop(store);
    let mut bytes = fs::read(&file).unwrap();
    let (length, page) = (bytes.len(), 4096);
    assert!(length > 8 * page, "{length}");
    bytes[page..].fill(0x5a);
    let mut store = {
        // Opened while it is whole, so that the damage is met by a commit.
        let store = open(&folder.0).store;
        fs::write(&file, &bytes).unwrap();
        store
    };
    let cursors = Cursors { active: vec!["tc"], ..Cursors::default() };
    let mut news = Vec::new();
    for at in 0..5 {
        let plan = Plan { cursors: cursors.clone(), ..one(86_400 + at) };
        news.extend(store.commit(&plan).unwrap());
    }
    assert_eq!(news.len(), 1, "{news:?}");
    assert_eq!(news[0].kind, "ledger-damaged");
    assert!(news[0].what.contains("corrupt-19700102T000000Z-2"), "{news:?}");
    assert_eq!(
        aside(&folder).iter().filter(|name| !name.ends_with('l') && !name.ends_with('m')).count(),
        2
    );
    assert_eq!(total(&folder), 5);
    assert_eq!(folder.reader().cursors().unwrap(), cursors);
}

#[test]
fn a_new_ledger_goes_on_from_where_a_damaged_one_had_come_to_if_that_can_be_read() {
    for readable in [true, false] {
        let folder = Folder::new();
        let mut store = open(&folder.0).store;
        let cursors = Cursors { active: vec!["tcx"], ..Cursors::default() };
        store.commit(&Plan { cursors: cursors.clone(), ..one(0) }).unwrap();
        let ask = |sql: &str| -> i64 {
            let db = &store.ledger.as_ref().unwrap().db;
            db.query_row(sql, [], |row| row.get(0)).unwrap()
        };
        let root = |name| ask(&format!("SELECT rootpage FROM sqlite_schema WHERE name = '{name}'"));
        let (page, length) = (ask("PRAGMA page_size"), ask("PRAGMA page_count"));
        let mut places = vec![root("subject")];
        if !readable {
            places.push(root("cursor"));
        }
        drop(store);
        let mut bytes = fs::read(path(&folder.0)).unwrap();
        assert_eq!(i64::try_from(bytes.len()).unwrap(), page * length);
        for place in places {
            let begin = usize::try_from((place - 1) * page).unwrap();
            bytes[begin..begin + 64].fill(0x5a);
        }
        fs::write(path(&folder.0), &bytes).unwrap();

        // Also where the start after that one is the first that books anything.
        for first in [true, false] {
            let opened = open(&folder.0);
            assert_eq!(opened.damaged.is_some(), first);
            assert_eq!(opened.damaged.is_some_and(|damaged| damaged.forgotten), first && !readable);
            let wanted = if readable { cursors.clone() } else { Cursors::default() };
            assert_eq!(opened.cursors, wanted);
        }
        let events = folder.reader().events(Span::ALL, 9).unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0].kind, "ledger-damaged");
        let aside = fs::read(folder.0.join(&aside(&folder)[0])).unwrap();
        assert!(aside == bytes, "it is kept as it was found");
    }
}

#[test]
fn a_newer_ledger_and_a_foreign_database_are_refused_and_left_alone() {
    let folder = Folder::new();
    let ledger = folder.ledger();
    ledger.db.pragma_update(None, "user_version", 99).unwrap();
    drop(ledger);
    let error = Store::open(&folder.0, Options::default(), 0).unwrap_err();
    assert!(matches!(error, LedgerError::TooNew { found: 99, .. }), "{error:?}");
    assert!(matches!(Reader::open(&folder.0), Err(LedgerError::TooNew { .. })));

    let folder = Folder::new();
    let other = rusqlite::Connection::open(path(&folder.0)).unwrap();
    other.execute_batch("CREATE TABLE addressbook (name TEXT)").unwrap();
    let error = Store::open(&folder.0, Options::default(), 0).unwrap_err();
    assert!(matches!(error, LedgerError::Foreign { .. }), "{error:?}");
    assert_eq!(aside(&folder), [""; 0]);
}

#[test]
fn the_group_of_the_folder_may_read_and_others_may_not() {
    let folder = Folder::new();
    let mut store = open(&folder.0).store;
    store.commit(&one(0)).unwrap();
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        let mode = fs::metadata(folder.0.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640, "{name}");
    }
}

#[test]
fn a_crash_before_the_end_of_a_transaction_leaves_the_one_before() {
    let folder = Folder::new();
    let mut ledger = folder.ledger();
    ledger.commit(&one(0)).unwrap();
    ledger
        .db
        .execute_batch("BEGIN IMMEDIATE; UPDATE usage SET input_bytes = 77; DELETE FROM cursor")
        .unwrap();
    drop(ledger);
    assert_eq!(total(&folder), 1);
    assert_eq!(folder.ledger().cursors().unwrap(), Cursors::default());
}

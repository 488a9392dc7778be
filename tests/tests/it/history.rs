//! What is shown of the ledger: `history`, `top`, `export` and the short report, as scripts get them.

use std::{
    fs::{self, File},
    io::Read as _,
    process::Stdio,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use serde_json::Value;
use traffic_tests::{
    daemon::{Answer, Site},
    disk::Disk,
    need,
    netns::NetNs,
    terminal::Terminal,
    wait,
};
use traffic_user::ledger::{Ledger, Options, Sample, generate, path};

use crate::schema::keeps_to;

/// 2026-11-24 00:00 in UTC.
const END: i64 = 1_795_478_400;

struct Shown {
    site: Site,
    host: NetNs,
    payload: u64,
}

impl Shown {
    fn new() -> Self {
        Self::of(3)
    }

    fn of(users: u32) -> Self {
        let site = Site::new();
        fs::create_dir_all(&site.state).expect("make a state folder");
        let sample = Sample { users, groups: 3, days: 5, hours: 4, end: END };
        let payload = generate(&site.state, sample).expect("make a ledger").bytes();
        Self { site, host: NetNs::new(), payload }
    }

    fn run(&self, args: &[&str]) -> Answer {
        self.site.run(&self.host, args)
    }

    #[track_caller]
    fn document(&self, name: &str, args: &[&str]) -> Value {
        let answer = self.run(args);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let document = answer.json();
        keeps_to(name, &document);
        document
    }
}

fn sum(values: &Value, of: &str) -> u64 {
    values.as_array().expect("a list").iter().filter_map(|value| value[of].as_u64()).sum()
}

const USER: &str = "user-1@example.org";
const ALL: [&str; 5] = ["--from", "2026-11-19", "--to", "2026-11-23", "--time-zone=UTC"];

#[test]
fn every_way_to_ask_gives_the_same_total_and_keeps_to_its_schema() {
    need!(Netns);
    let shown = Shown::new();
    let args = |first: &[&'static str]| [first, &ALL[..]].concat();
    let top = shown.document("top", &args(&["top", "--json"]));
    assert_eq!(top["layers"][0]["layer"], "payload");
    assert_eq!(top["layers"][0]["subjects"], 3);
    assert_eq!(sum(&top["layers"][0]["places"], "total_bytes"), shown.payload);
    for period in ["hour", "day", "week", "month", "billing"] {
        let mut total = 0;
        for user in ["user-1@example.org", "user-2@example.org", "user-3@example.org"] {
            let history =
                shown.document("history", &args(&["history", period, "--json", "--user", user]));
            let layer = &history["layers"][0];
            assert_eq!(layer["layer"], "payload");
            assert_eq!(sum(&layer["periods"], "total_bytes"), layer["total"]["total_bytes"]);
            total += layer["total"]["total_bytes"].as_u64().expect("a number");
        }
        assert_eq!(total, shown.payload, "{period}");
    }
    let buckets = shown.document("buckets", &["export", "json", "buckets"]);
    let payload = buckets["buckets"].as_array().expect("a list").iter();
    let payload = payload.filter(|bucket| bucket["layer"] == "payload");
    assert_eq!(payload.filter_map(|b| b["total_bytes"].as_u64()).sum::<u64>(), shown.payload);
    shown.document("events", &["export", "json", "events"]);
    shown.document("summary", &["--json"]);
    // A schema that takes anything would be none.
    let wrong = serde_json::json!({"jsonversion": "1", "kind": "top"});
    for name in ["history", "top", "summary", "buckets", "events"] {
        let caught = std::panic::catch_unwind(|| keeps_to(name, &wrong));
        assert!(caught.is_err(), "the schema of {name} takes anything");
    }
}

#[test]
fn all_events_are_exported_also_those_before_the_first_booking_and_after_the_last() {
    need!(Netns);
    let shown = Shown::new();
    let ledger = Connection::open(path(&shown.site.state)).expect("open the ledger");
    let day = 86_400;
    for (day, what) in [(END - 100 * day, "before"), (END - day, "in"), (END + 300 * day, "after")]
    {
        ledger
            .execute(
                "INSERT INTO event (at, kind, what) VALUES (?1, 'x', ?2)",
                (day * 1_000_000_000, what),
            )
            .expect("note an event");
    }
    let told = |args: &[&str]| -> Vec<String> {
        let args = [&["export", "json", "events", "--time-zone=UTC"], args].concat();
        let document = shown.document("events", &args);
        assert!(document["from"].as_str() <= document["to"].as_str(), "{document}");
        let events = document["events"].as_array().expect("events").iter();
        events.map(|event| event["what"].as_str().expect("a text").to_owned()).collect()
    };
    assert_eq!(told(&[]), ["before", "in", "after"]);
    assert_eq!(told(&["--limit", "1"]), ["after"]);
    assert_eq!(told(&["--to", "2026-11-23"]), ["before", "in"]);
    assert_eq!(told(&["--from", "2026-11-19", "--to", "2026-11-23"]), ["in"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error_in_any_form() {
    need!(Netns);
    // More than a pipe holds, of everything.
    let shown = Shown::of(300);
    let events = Connection::open(path(&shown.site.state)).expect("open the ledger");
    events
        .execute_batch(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)
             INSERT INTO event (at, kind, what) SELECT n, 'x', 'something that happened' FROM n",
        )
        .expect("note events");
    let of_user = ["--user", USER, "--from", "2026-10-01", "--to", "2026-11-23"];
    let histories = [&["5min"][..], &of_user].concat();
    let tops = [&["--limit", "300"][..], &ALL].concat();
    for form in ["json", "csv", "txt"] {
        let (buckets, events) = (["buckets"], ["events"]);
        let history = [&["history"][..], &histories].concat();
        let top = [&["top"][..], &tops].concat();
        for (what, least) in [(&buckets[..], 65), (&events, 65), (&history, 0), (&top, 0)] {
            let args = [&["export", form], what].concat();
            let whole = shown.run(&args);
            assert_eq!(whole.code, Some(0), "{whole:?}");
            assert!(whole.stdout.len() > least << 10, "{args:?}: {}", whole.stdout.len());
            let mut command = shown.site.traffic(&shown.host, &args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut running = command.spawn().expect("start traffic");
            let mut pipe = running.stdout.take().expect("a pipe");
            pipe.read_exact(&mut [0; 10]).expect("the first bytes");
            drop(pipe);
            let ended = running.wait_with_output().expect("the end of traffic");
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{args:?}");
        }
    }
}

#[test]
fn what_begins_with_a_hyphen_is_taken_for_what_it_is() {
    need!(Netns);
    let shown = Shown::new();
    for (zone, name) in [("-00:30", "-00:30"), ("-03:00", "-03"), ("+05:30", "+05:30")] {
        let asked = ["top", "--json", "--time-zone", zone, "--last", "4w"];
        assert_eq!(shown.document("top", &asked)["time_zone"], name);
    }
    // Without a zone of its own the host counts in UTC, and says so where somebody meant another.
    let asked = ["top", "--json", "--last", "4w"];
    for (named, said) in [("Mars/Olympus", true), ("Asia/Tokyo", false), ("", false)] {
        let answer = Answer::of(shown.site.traffic(&shown.host, &asked).env("TZ", named));
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let count = answer.stderr.matches("TZ is `Mars/Olympus`, which is no time zone").count();
        assert_eq!(count, usize::from(said), "{answer:?}");
    }
    refused(&shown.run(&["history", "--last", "-5d"]), &"--last -5d", "`-5d` is no time: write");
}

/// Every verb that shows the ledger.
const VERBS: [&[&str]; 6] = [
    &["history"],
    &["top"],
    &["export", "json", "history"],
    &["export", "csv", "top"],
    &["export", "csv", "buckets"],
    &["export", "csv", "events"],
];

/// Asserts that it refuses with exit code 2, this text, and no result.
#[track_caller]
fn refused(answer: &Answer, what: &dyn std::fmt::Debug, want: &str) {
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(2), ""), "{what:?}: {answer:?}");
    assert!(answer.stderr.contains(want), "{what:?}: no `{want}` in {answer:?}");
    assert!(!answer.stderr.contains("panicked"), "{what:?}: {answer:?}");
}

#[test]
fn what_cannot_be_shown_says_why_and_what_helps() {
    need!(Netns);
    let shown = Shown::new();
    for (args, want) in [
        (&["--last", "0d"][..], "write at least 1"),
        (&["--last=-1d"], "--last"),
        (&["--last", "soon"], "--last"),
        (&["--from", "2026-02-30"], "2026-02 has days 01 to 28"),
        (&["--from", "2026-13"], "month"),
        (&["--from", "2026-W54"], "2026"),
        (&["--to", "2025-02-29"], "2025-02 has days 01 to 28"),
        (&["--from", "2026-11-24T25:00"], "25"),
        (&["--from", "yesteryear"], "yesteryear"),
        (&["--from", "2026-11-02", "--to", "2026-11-01"], "the wrong way round"),
        (&["--from", "2026-11-01", "--last", "2d"], "cannot be used with"),
        (&["--time-zone", "Mars"], "`Mars` is no time zone"),
        (&["--billing-day", "32"], "32"),
    ] {
        for verb in VERBS {
            let args = [verb, args].concat();
            refused(&shown.run(&args), &args, want);
        }
    }
    for (args, want) in [
        (
            &["--user", "nobody"][..],
            "the ledger knows no user `nobody`; it knows user-1@example.org",
        ),
        (&["--port", "4"], "the ledger knows no group with port 4"),
        (&["--port", "0"], "--port"),
        (&["--group", "web"], "the ledger knows no group `web`"),
        (&["--user", "a", "--relay"], "cannot be used with"),
    ] {
        for verb in
            [&["history"][..], &["export", "json", "history"], &["export", "csv", "buckets"]]
        {
            let args = [verb, args].concat();
            refused(&shown.run(&args), &args, want);
        }
    }
    for (args, want) in [
        (&["history", "year"][..], "year"),
        (&["top", "devices"], "devices"),
        (&["top", "--limit", "0"], "--limit"),
        (&["top", "--by", "size"], "size"),
        (&["export", "xml", "history"], "xml"),
        (&["export", "csv"], "subcommand"),
        (&["history", "--plot", "/nowhere/x.svg"], "there is no folder /nowhere"),
        (&["top", "--plot", "x.png"], "pictures are SVG"),
    ] {
        refused(&shown.run(args), &args, want);
    }
    let file = shown.site.state.join("wrong.toml");
    fs::write(&file, "\ntime_zone = '+02:00'\n").expect("write a file");
    let file = file.to_str().expect("a path of ours is text");
    for verb in VERBS {
        let args = [&["--config", file], verb].concat();
        refused(&shown.run(&args), &args, "line 2: time_zone: no time zone: write a name such as");
    }
}

#[test]
fn no_ledger_and_an_empty_one_are_told() {
    need!(Netns);
    let (site, host) = (Site::new(), NetNs::new());
    for verb in VERBS {
        refused(&site.run(&host, verb), &verb, "there is no ledger in");
    }
    refused(&site.run(&host, &[]), &"no verb", "there is no ledger in");
    fs::create_dir(&site.state).expect("make a state folder");
    drop(Ledger::open(&site.state, Options::default()).expect("make a ledger"));
    // What happened may be known before anything is booked.
    keeps_to("events", &site.run(&host, &["export", "json", "events"]).json());
    for verb in &VERBS[..5] {
        let answer = site.run(&host, verb);
        refused(&answer, &verb, "is empty: nothing was booked yet");
        assert!(answer.stderr.contains("remedy: "), "{answer:?}");
    }
    let short = site.run(&host, &[]);
    assert_eq!(short.code, Some(0), "{short:?}");
    assert!(short.stdout.ends_with(": nothing was booked yet\n"), "{short:?}");
    keeps_to("summary", &site.run(&host, &["--json"]).json());
}

#[test]
fn an_output_that_cannot_be_written_leaves_no_half_file_and_what_was_there() {
    need!(Root, Netns);
    let shown = Shown::new();
    let folder = shown.site.state.with_extension("out");
    let disk = Disk::at(&folder, 128 << 10);
    let place = folder.join("a.csv");
    fs::write(&place, "before").expect("write a file");
    disk.fill();
    let picture = folder.join("a.svg");
    let (place, picture) = (place.to_str().expect("UTF-8"), picture.to_str().expect("UTF-8"));
    let names = || {
        let files = fs::read_dir(&folder).expect("read a folder");
        let mut names: Vec<_> = files.map(|file| file.expect("a file").file_name()).collect();
        names.sort();
        names
    };
    let (there, wanted) = (names(), "No space left");
    for verb in &VERBS[2..] {
        let args = [verb, &["--output", place][..]].concat();
        refused(&shown.run(&args), &args, wanted);
        assert_eq!(fs::read_to_string(place).expect("read"), "before", "{args:?}");
        assert_eq!(names(), there, "{args:?}");
    }
    for verb in &VERBS[..2] {
        let args = [verb, &["--plot", picture][..]].concat();
        refused(&shown.run(&args), &args, wanted);
        assert_eq!(names(), there, "{args:?}");
    }
    disk.free();
    let ledger = path(&shown.site.state);
    let over = ["export", "csv", "buckets", "--output", ledger.to_str().expect("UTF-8")];
    refused(&shown.run(&over), &over, "it belongs to the ledger");
    let args = ["export", "csv", "buckets", "--level", "day", "--output", place];
    assert_eq!(shown.run(&args).code, Some(0));
    assert_eq!(fs::read_to_string(place).expect("read").lines().count(), 46);
    for (to, want) in [
        ("/nowhere/x", "there is no folder /nowhere"),
        ("/dev/full", wanted),
        (folder.to_str().expect("UTF-8"), "it is a folder"),
    ] {
        for verb in &VERBS[2..] {
            let args = [verb, &["--output", to][..]].concat();
            refused(&shown.run(&args), &args, want);
        }
    }
    drop(disk);
    fs::remove_dir(&folder).expect("remove the folder");
}

/// Runs `traffic` with stderr, and stdout as well if asked for, at a terminal of 80 columns.
fn at_a_terminal(shown: &Shown, args: &[&str], stdout: bool, meanwhile: impl FnOnce()) -> String {
    let terminal = Terminal::new(80);
    let mut command = shown.site.traffic(&shown.host, args);
    command.stderr(terminal.end()).env("TERM", "xterm");
    command.stdout(if stdout { terminal.end() } else { Stdio::null() });
    let mut running = command.spawn().expect("start traffic");
    // It holds ends of the terminal until it is gone.
    drop(command);
    meanwhile();
    let code = wait::until("the end of traffic", || running.try_wait().expect("look after it"));
    assert_eq!(code.code(), Some(0), "{args:?}");
    terminal.shown()
}

#[test]
fn a_long_export_shows_at_the_terminal_how_far_it_is_and_a_short_one_does_not() {
    need!(Netns);
    // More than a pipe holds.
    let shown = Shown::of(30);
    let pipe = shown.site.state.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
    let name = pipe.to_str().expect("UTF-8");
    let args = ["export", "csv", "buckets", "--output", name];
    // Whoever takes the lines lets it wait for longer than people do.
    let slow = || {
        let (begin, mut reader) = (Instant::now(), File::open(&pipe).expect("open the pipe"));
        let patience = Duration::from_millis(1200);
        wait::until("the end of patience", || (begin.elapsed() > patience).then_some(()));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read the pipe");
        assert!(text.lines().count() > 1000 && text.ends_with('\n'));
    };
    let said = at_a_terminal(&shown, &args, false, slow);
    assert!(said.contains(" % "), "{said:?}");
    // Cleared away in the end, so that the next line begins where it was.
    assert!(said.ends_with("\u{1b}[2K") || said.ends_with('\r'), "{said:?}");

    let short = ["export", "csv", "buckets", "--output", "/dev/null"];
    assert_eq!(at_a_terminal(&shown, &short, false, || {}), "");
    // Lines and a bar on one terminal would be neither.
    let lines = at_a_terminal(&shown, &["export", "csv", "buckets", "--level=day"], true, || {});
    assert!(!lines.contains('%') && lines.lines().count() == 316, "{lines:?}");
}

#[test]
fn a_signal_during_an_export_leaves_nothing_behind() {
    need!(Netns);
    let shown = Shown::of(300);
    let folder = shown.site.state.join("out");
    fs::create_dir(&folder).expect("make a folder");
    let place = folder.join("a.csv");
    let args = ["export", "csv", "buckets", "--output", place.to_str().expect("UTF-8")];
    let mut running = shown.site.traffic(&shown.host, &args).spawn().expect("start traffic");
    // Something is written already, wherever that is.
    let written = format!("/proc/{}/io", running.id());
    wait::until("the first lines", || {
        let counters = fs::read_to_string(&written).unwrap_or_default();
        let bytes = counters.lines().find_map(|line| line.strip_prefix("wchar: "));
        bytes.is_none_or(|bytes| bytes.parse::<u64>().is_ok_and(|bytes| bytes > 0)).then_some(())
    });
    let id = nix::unistd::Pid::from_raw(i32::try_from(running.id()).expect("a process"));
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).expect("signal it");
    running.wait().expect("its end");
    let names: Vec<_> = fs::read_dir(&folder).expect("a folder").flatten().collect();
    assert!(names.iter().all(|name| name.file_name() == "a.csv"), "{names:?}");
}

#[test]
fn whoever_looks_sees_bars_and_scripts_do_not() {
    need!(Netns);
    let shown = Shown::new();
    for verb in [&["history"][..], &["top"]] {
        let args = [verb, &ALL[..], if verb[0] == "history" { &["--user", USER][..] } else { &[] }];
        let args = args.concat();
        let seen = at_a_terminal(&shown, &args, true, || {});
        assert!(seen.contains('█'), "{args:?}: {seen}");
        let drawn = seen.lines().filter(|line| line.contains('█'));
        let widest = drawn.map(|line| line.trim_end().chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{args:?}: {widest:?}\n{seen}");
        let script = shown.run(&args).stdout;
        assert!(!script.contains('█') && !script.contains('\u{1b}'), "{args:?}: {script}");
    }
}

#[test]
fn an_export_and_a_picture_are_whole_files() {
    need!(Netns);
    let shown = Shown::new();
    let folder = shown.site.state.join("out");
    fs::create_dir(&folder).expect("make a folder");
    let path = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let (csv, svg) = (path("a.csv"), path("a.svg"));
    let answer = shown.run(&["export", "csv", "buckets", "--level", "day", "--output", &csv]);
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), ""), "{answer:?}");
    // Five days of three users in two layers and three groups in one, below the names of the fields.
    assert_eq!(fs::read_to_string(&csv).expect("read").lines().count(), 46);
    let answer = shown.run(&[&["top", "--plot", &svg][..], &ALL[..]].concat());
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let picture = fs::read_to_string(&svg).expect("read");
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture}");
    assert!(picture.contains(USER), "{picture}");
    // Beside the report, which is as it is without, and in the place of the one before.
    let args = [&["history", "--user", USER][..], &ALL[..]].concat();
    let answer = shown.run(&[&args[..], &["--plot", &svg]].concat());
    assert_eq!(answer.stdout, shown.run(&args).stdout);
    let picture = fs::read_to_string(&svg).expect("read");
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"), "{picture}");
    assert!(picture.contains(USER) && picture.matches("<rect").count() >= 5, "{picture}");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("read a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a.csv", "a.svg"]);
}

//! What is shown of the ledger: `history`, `top`, `export` and the short report, as scripts get them.

use std::fs;

use serde_json::Value;
use traffic_tests::{
    daemon::{Answer, Site},
    need,
    netns::NetNs,
};
use traffic_user::ledger::{Sample, generate};

use crate::cli::keeps_to;

/// 2026-11-24 00:00 in UTC.
const END: i64 = 1_795_478_400;

struct Shown {
    site: Site,
    host: NetNs,
    payload: u64,
}

impl Shown {
    fn new() -> Self {
        let site = Site::new();
        fs::create_dir_all(&site.state).expect("make a state folder");
        let sample = Sample { users: 3, days: 5, hours: 4, end: END };
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
fn what_cannot_be_shown_says_why_and_what_helps() {
    need!(Netns);
    let shown = Shown::new();
    for (args, want) in [
        (&["history", "--user", "nobody"][..], "the ledger knows no user `nobody`"),
        (&["history", "--port", "1"], "the ledger knows no group with port 1"),
        (&["history", "--last", "0d"], "write at least 1"),
        (&["history", "--from", "2026-02-30"], "2026-02 has days 01 to 28"),
        (&["top", "--from", "2026-11-02", "--to", "2026-11-01"], "the wrong way round"),
        (&["history", "--time-zone", "Mars"], "`Mars` is no time zone"),
        (&["export", "csv", "buckets", "--output", "/nowhere/x"], "there is no folder /nowhere"),
        (&["export", "csv", "buckets", "--output", "/dev/full"], "No space left"),
    ] {
        let answer = shown.run(args);
        assert_eq!(answer.code, Some(2), "{args:?}: {answer:?}");
        assert!(answer.stderr.contains(want), "{args:?}: {answer:?}");
    }
    let none = Site::new().run(&shown.host, &["history"]);
    assert_eq!(none.code, Some(2));
    assert!(none.stderr.contains("there is no ledger in"), "{none:?}");
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
    // Five days of three users in two layers, below the names of the fields.
    assert_eq!(fs::read_to_string(&csv).expect("read").lines().count(), 31);
    let answer = shown.run(&[&["top", "--plot", &svg][..], &ALL[..]].concat());
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(fs::read_to_string(&svg).expect("read").contains("user-1@example.org"));
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("read a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a.csv", "a.svg"]);
}

//! `traffic config check`: what a file sets, or all that is wrong with it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use serde_json::json;
use traffic_tests::daemon::{Answer, binary};

use crate::schema::keeps_to;

/// A file of its own for each test, which goes with it.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = env::temp_dir().join(format!("traffic-{name}-{}.toml", process::id()));
        fs::write(&path, text).expect("write a file");
        Self(path)
    }

    fn check(&self, args: &[&str]) -> Answer {
        check(&self.0, args)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn check(path: &Path, args: &[&str]) -> Answer {
    Answer::of(Command::new(binary()).args(["config", "check"]).arg(path).args(args))
}

#[test]
fn a_good_file_is_told_with_what_it_sets() {
    let text = "billing_day = 15\nports = '443,8443/tcp=web'\ntime_zone = 'Europe/Berlin'\n\
                keep_hours = '90d'\npersist = true\n";
    let file = File::new("good", text);
    let answer = file.check(&[]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let want = format!(
        "{} is good and sets:\n  ports = [\"443\", \"8443/tcp=web\"]\n  persist = true\n  \
         time_zone = \"Europe/Berlin\"\n  billing_day = 15\n  keep_hours = \"90d\"\n",
        file.0.display()
    );
    assert_eq!(answer.stdout, want);
    let document = file.check(&["--json"]).json();
    keeps_to("config", &document);
    assert_eq!(
        document["settings"],
        json!({"ports": ["443", "8443/tcp=web"], "persist": true, "time_zone": "Europe/Berlin",
               "billing_day": 15, "keep_hours": "90d"})
    );
    assert_eq!((&document["good"], &document["mistakes"]), (&json!(true), &json!([])));
}

#[test]
fn a_wrong_file_is_told_with_all_its_mistakes() {
    let text = "time_zone = 'Mars/Olympus'\n\nbilling_day = 32\napi = 'nowhere'\niface = 'a[b'\n\
                keep_minutes = '90d'\nsecret = 1\n";
    let file = File::new("wrong", text);
    let answer = file.check(&[]);
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(2), ""));
    for piece in [
        "line 1: time_zone: no time zone",
        "line 3: billing_day: write a day from 1 to 31",
        "line 4: api:",
        "line 5: iface:",
        "line 6: keep_minutes: an hour is kept for less time",
        "line 7: secret: no such key; there are ports, iface,",
    ] {
        assert!(answer.stderr.contains(piece), "no `{piece}` in: {}", answer.stderr);
    }
    let answer = file.check(&["--json"]);
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(2), ""));
    let document = serde_json::from_str(&answer.stdout).expect("a document");
    keeps_to("config", &document);
    let lines: Vec<_> = document["mistakes"].as_array().expect("a list").iter().collect();
    let lines: Vec<_> = lines.into_iter().map(|mistake| mistake["line"].as_u64()).collect();
    assert_eq!(lines, [1, 3, 4, 5, 6, 7].map(Some));
    assert_eq!((&document["good"], &document["settings"]), (&json!(false), &json!({})));
}

#[test]
fn a_file_that_is_not_there_is_told_and_the_example_is_good() {
    for args in [&[][..], &["--json"]] {
        let answer = check(Path::new("/nowhere/traffic.toml"), args);
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(2), ""));
        assert!(answer.stderr.contains("cannot read the configuration /nowhere"));
    }
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/traffic.toml");
    let answer = check(&example, &[]);
    assert!(answer.stdout.ends_with("is good and sets nothing: defaults hold\n"), "{answer:?}");
}

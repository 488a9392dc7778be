//! `traffic reset` where no daemon runs: the proxy's counters are zero then, and the ledger lacks nothing.

use std::fs;

use traffic_tests::{daemon::Answer, need, stats_server::Behaviour};
use traffic_user::{
    accounting::{reading::Coverage, subject::Subject, usage::Span},
    ledger::path,
};

use super::{
    lives::{ALICE, API, Host},
    reader,
};

const BOB: &str = "bob@example.com";

impl Host {
    /// A configuration that names the proxy.
    fn config(&self) -> String {
        let file = self.site.state.join("traffic.toml");
        fs::write(&file, format!("api = '{API}'\n")).expect("write the configuration");
        file.to_str().expect("a path of ours is text").to_owned()
    }

    #[track_caller]
    fn reset(&self, args: &[&str]) -> Answer {
        let answer = self.site.run(&self.ns, args);
        assert_eq!(answer.code, Some(0), "{args:?}: {answer:?}");
        answer
    }

    fn at_the_proxy(&self, email: &str) -> i64 {
        let name = format!("user>>>{email}>>>traffic>>>downlink");
        self.proxy.value(&name).expect("a counter")
    }
}

/// Ways to say which proxy is meant.
#[derive(Clone, Copy, Debug)]
enum Named {
    InTheConfiguration,
    OnTheCommandLine,
}

#[test]
fn what_a_proxy_moved_until_its_reset_without_a_daemon_is_booked() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    for named in [Named::InTheConfiguration, Named::OnTheCommandLine] {
        let host = Host::new();
        let daemon = host.start(host.command("tcx"));
        host.proxy.user(ALICE, 300, 70_000);
        host.proxy.user(BOB, 1, 2);
        host.wait_for_user(300, 70_000);
        daemon.stop();
        host.proxy.user(ALICE, 5, 50);
        host.proxy.user(BOB, 10, 20);
        let (config, api) = (host.config(), API.to_string());
        let args = match named {
            Named::InTheConfiguration => ["--config", &config],
            Named::OnTheCommandLine => ["--api", &api],
        };
        let reset = |whose: &[&str]| {
            let all = match named {
                Named::InTheConfiguration => [&args[..], &["reset", "--yes"], whose].concat(),
                Named::OnTheCommandLine => [&["reset", "--yes"], whose, &args[..]].concat(),
            };
            host.reset(&all).stdout
        };
        let said = reset(&["--user", ALICE]);
        assert_eq!(
            said,
            format!(
                "user {ALICE}: a new period begins; what was counted before stays in the ledger; \
                 2 counters of the proxy were set to zero (no daemon was asked)\n"
            )
        );
        assert_eq!((host.at_the_proxy(ALICE), host.at_the_proxy(BOB)), (0, 22), "{named:?}");
        assert_eq!(host.user(), (305, 70_050, Coverage::Complete), "{named:?}");
        host.proxy.user(ALICE, 1, 2);
        // Everybody's; and once more, when there is nothing.
        for _ in 0..2 {
            reset(&["--all"]);
            assert_eq!(host.user(), (306, 70_052, Coverage::Complete), "{named:?}");
        }
        host.proxy.user(ALICE, 7, 8);
        host.start(host.command("tcx")).stop();
        assert_eq!(host.user(), (313, 70_060, Coverage::Complete), "{named:?}");
        let bob = reader(&host.site).totals(&Subject::User(BOB.into())).expect("ask the ledger");
        assert_eq!((bob[0].traffic.input_bytes, bob[0].traffic.output_bytes), (11, 22));
        assert_eq!(host.happened(["gap", "counters-reset", "proxy-restarted"]), [0; 3]);
        let resets = reader(&host.site).events(Span::ALL, usize::MAX).expect("ask the ledger");
        let resets = resets.into_iter().filter(|event| event.kind == "reset");
        let whose: Vec<_> = resets.map(|event| event.subject).collect();
        assert_eq!(
            whose,
            [Some(Subject::User(ALICE.into())), Some(Subject::Host), Some(Subject::Host)],
            "{named:?}"
        );
        assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
    }
}

#[test]
fn a_reset_after_a_restart_of_the_proxy_books_what_it_moved_since() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let host = Host::new();
    let daemon = host.start(host.command("tcx"));
    host.proxy.user(ALICE, 300, 70_000);
    host.wait_for_user(300, 70_000);
    daemon.stop();
    host.proxy.restart();
    host.proxy.user(ALICE, 400, 80_000);
    let config = host.config();
    host.reset(&["--config", &config, "reset", "--yes", "--user", ALICE]);
    assert_eq!(host.user(), (700, 150_000, Coverage::Gap));
    assert_eq!(host.happened(["gap", "proxy-restarted", "reset"]), [1, 1, 1]);
    assert_eq!(host.at_the_proxy(ALICE), 0);
    assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
}

#[test]
fn a_reset_of_another_proxy_and_one_beside_a_daemon_leave_the_ledger_alone() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let host = Host::new();
    let daemon = host.start(host.command("tcx"));
    host.proxy.user(ALICE, 300, 70_000);
    host.wait_for_user(300, 70_000);
    // One that was named while a daemon runs is another reader's to the daemon.
    let api = API.to_string();
    host.reset(&["reset", "--yes", "--user", ALICE, "--api", &api]);
    host.proxy.user(ALICE, 1, 2);
    host.wait_for_user(301, 70_002);
    daemon.stop();
    assert_eq!(host.happened(["counters-reset", "reset"]), [1, 0]);

    let other = host.another_proxy();
    other.user(ALICE, 1_000_000, 2_000_000);
    let before = reader(&host.site).cursors().expect("ask the ledger");
    let place = other.address().to_string();
    let said = host.reset(&["reset", "--yes", "--all", "--api", &place]).stdout;
    assert!(!said.contains("a new period begins"), "{said}");
    assert_eq!(other.value(&format!("user>>>{ALICE}>>>traffic>>>uplink")), Some(0));
    assert_eq!(reader(&host.site).cursors().expect("ask the ledger"), before);
    assert_eq!(host.user().0, 301);
    assert_eq!(host.at_the_proxy(ALICE), 2);

    // What is not there any more resets nothing.
    drop(other);
    let config = host.config();
    host.proxy.behave(Behaviour::Close);
    let args = ["--config", &config, "reset", "--yes", "--all"];
    let refused = host.site.run(&host.ns, &args);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(reader(&host.site).cursors().expect("ask the ledger"), before);
    assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
}

#[test]
fn where_nothing_can_be_booked_nothing_is_reset() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let host = Host::new();
    let daemon = host.start(host.command("tcx"));
    host.proxy.user(ALICE, 300, 70_000);
    host.wait_for_user(300, 70_000);
    daemon.stop();
    host.proxy.user(ALICE, 5, 50);
    let config = host.config();
    let other = rusqlite::Connection::open(path(&host.site.state));
    let other = other.expect("open the ledger");
    other.execute_batch("BEGIN IMMEDIATE").expect("lock the ledger");
    let args = ["--config", &config, "reset", "--yes", "--all"];
    let refused = host.site.run(&host.ns, &args);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    for piece in ["be booked", "is locked by another process", "remedy: "] {
        assert!(refused.stderr.contains(piece), "no `{piece}` in {refused:?}");
    }
    assert_eq!(host.at_the_proxy(ALICE), 70_050);
    assert!(host.proxy.questions().iter().all(|question| !question.reset));
    other.execute_batch("ROLLBACK").expect("let go");
    host.reset(&args);
    assert_eq!(host.user(), (305, 70_050, Coverage::Complete));
    assert_eq!(host.site.run(&host.ns, &["clean"]).code, Some(0));
}

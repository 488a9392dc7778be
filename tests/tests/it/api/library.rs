//! The library's names for it: `StatsFactory` and `Stats`.

use traffic_tests::{
    daemon::Site,
    need,
    stats_server::{Behaviour, Kind, StatsServer},
    wait,
};
use traffic_user::{
    ExportFormat, Stats, StatsError, StatsFactory,
    accounting::{
        proxy::Payload,
        subject::Subject,
        usage::{Event, Span},
    },
    ledger::Reader,
};

use super::super::lifecycle::{Load, start};

fn factory(server: &StatsServer) -> StatsFactory {
    StatsFactory::new(&server.address().to_string()).expect("an address")
}

fn stats(server: &StatsServer, email: &str) -> Stats {
    factory(server).get_stats(email).expect("a counter")
}

#[test]
fn numbers_are_written_in_three_formats_whatever_the_name_is() {
    let server = StatsServer::new(Kind::Xray);
    server.inbound("web", 7, 0);
    let check = |email: &str, [json, csv, txt]: [&str; 3]| {
        server.user(email, 1, 20);
        let stats = stats(&server, email);
        let written = [ExportFormat::Json, ExportFormat::Csv, ExportFormat::Txt];
        let [one, two, three] = written.map(|format| stats.export_stats(format));
        assert_eq!((one.as_str(), two.as_str(), three.as_str()), (json, csv, txt));
        let parsed: serde_json::Value = serde_json::from_str(&one).expect("JSON");
        assert_eq!((&parsed["email"], &parsed["total"]), (&email.into(), &21.into()));
    };
    check(
        "a@x",
        [
            r#"{"downlink":20,"email":"a@x","total":21,"uplink":1}"#,
            "email,uplink,downlink,total\n\"a@x\",1,20,21\n",
            "user a@x\nuplink: 1\ndownlink: 20\ntotal: 21\n",
        ],
    );
    check(
        "=1+1,\"x\"\nnext",
        [
            r#"{"downlink":20,"email":"=1+1,\"x\"\nnext","total":21,"uplink":1}"#,
            "email,uplink,downlink,total\n\"'=1+1,\"\"x\"\"\\nnext\",1,20,21\n",
            "user =1+1,\"x\"\\nnext\nuplink: 1\ndownlink: 20\ntotal: 21\n",
        ],
    );
    let inbound = factory(&server).get_inbound_stats("web").expect("a counter");
    assert_eq!(
        inbound.export_stats(ExportFormat::Csv),
        "tag,uplink,downlink,total\n\"web\",7,0,7\n"
    );
    assert!(server.questions().iter().all(|question| !question.reset));
}

#[test]
fn a_daemon_that_reads_the_same_api_does_the_reset_and_loses_nothing() {
    need!(Root, Bpf, Object, Netns, Tool("ip"));
    let (site, load) = (Site::new(), Load::new());
    let api = "127.0.0.1:10085";
    let server = StatsServer::inside(&load.host, Kind::V2ray5, api.parse().expect("an address"));
    server.user("a@x", 1, 20);
    // What is moved between two polls is known only to whoever sets the counters to zero.
    let daemon = start(&site, &load, "tcx", &["--api", api, "--interval", "5s"]);
    let ledger = || Reader::open(&site.state).expect("open the ledger");
    wait::until("the first poll in the ledger", || {
        ledger()?.cursors().expect("ask the ledger").proxy.map(|_| ())
    });
    server.user("a@x", 300, 4000);
    let reset = |api: &str| {
        load.host.run(|| {
            let factory = StatsFactory::new(api).expect("an address");
            let mut stats = factory.with_state(&site.state).get_stats("a@x").expect("a counter");
            let before = stats.reset_stats().expect("an answer");
            assert_eq!(stats.total(), 0);
            before
        })
    };
    assert_eq!(reset(api), Payload { uplink: 301, downlink: 4020 });
    let user = Subject::User("a@x".into());
    wait::until("what was moved in the ledger", || {
        let totals = ledger()?.totals(&user).expect("ask the ledger");
        let moved = totals.first()?.traffic;
        ((moved.input_bytes, moved.output_bytes) == (300, 4000)).then_some(())
    });
    let resets = || {
        let events = ledger().expect("a ledger").events(Span::ALL, 99).expect("ask the ledger");
        let of_reset = |event: &&Event| event.kind.contains("reset");
        events.iter().filter(of_reset).map(|event| event.kind.clone()).collect::<Vec<_>>()
    };
    wait::until("the event", || (resets() == ["reset"]).then_some(()));
    // By another name it may be another's API: the daemon is not asked.
    server.user("a@x", 5, 7);
    assert_eq!(reset("[::ffff:127.0.0.1]:10085"), Payload { uplink: 5, downlink: 7 });
    daemon.stop();
    assert_eq!(resets(), ["reset"]);
}

#[test]
fn a_reset_tells_what_was_moved_until_then_and_touches_nobody_else() {
    let server = StatsServer::new(Kind::V2ray5);
    server.user("a@x", 1, 20);
    server.user("b@x", 300, 4000);
    let mut a = stats(&server, "a@x");
    server.user("a@x", 50_000, 0);
    let before = a.reset_stats().expect("an answer");
    assert_eq!(before, Payload { uplink: 50_001, downlink: 20 });
    assert_eq!((a.uplink(), a.downlink(), a.total()), (0, 0, 0));
    assert_eq!(a.export_stats(ExportFormat::Txt), "user a@x\nuplink: 0\ndownlink: 0\ntotal: 0\n");
    assert_eq!(stats(&server, "a@x").total(), 0);
    assert_eq!(stats(&server, "b@x").total(), 4300);
    // Nothing more: what is asked for again is what was moved since.
    server.user("a@x", 0, 5);
    assert_eq!(a.reset_stats().expect("an answer"), Payload { uplink: 0, downlink: 5 });

    server.behave(Behaviour::NoService);
    server.cut();
    let failed = a.reset_stats().expect_err("no service");
    assert!(matches!(failed, StatsError::Proxy(_)), "{failed:?}");
}

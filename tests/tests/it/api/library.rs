//! The library's names for it: `StatsFactory` and `Stats`.

use traffic_tests::stats_server::{Behaviour, Kind, StatsServer};
use traffic_user::{ExportFormat, Stats, StatsError, StatsFactory, accounting::proxy::Payload};

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

//! The client of the proxy's API: what it reads, what it makes of all that can be wrong, and that it
//! resets nothing unless it is told to.

mod library;
mod real;
mod watch;

use std::{
    io::copy,
    net::Shutdown,
    os::unix::net::UnixListener,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};
use traffic_tests::{
    daemon::Site,
    need,
    netns::NetNs,
    stats_server::{Behaviour, Kind, Question, StatsServer},
    wait,
};
use traffic_user::{
    accounting::proxy::{ApiHealth, ApiState, CounterName, Product, ProxySnapshot},
    meter::proxy::{Identity, OnlineUser, ProxyError, ProxyMeter, Resets},
};

/// A client with the runtime that its connections live on.
struct Client {
    runtime: Runtime,
    meter: ProxyMeter,
}

impl Client {
    fn of(address: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let meter = ProxyMeter::new(address.parse().expect("an address"));
        // Nothing that works takes long, but the machine may be busy with other things.
        Self { runtime, meter: meter.with_deadline(wait::DEADLINE) }
    }

    fn new(server: &StatsServer) -> Self {
        Self::of(&server.address().to_string())
    }

    /// For those that wait in vain.
    fn hasty(mut self) -> Self {
        self.meter = self.meter.with_deadline(Duration::from_millis(150));
        self
    }

    fn poll(&mut self) -> Result<ProxySnapshot, ProxyError> {
        self.runtime.block_on(self.meter.poll())
    }

    #[track_caller]
    fn read(&mut self) -> ProxySnapshot {
        self.poll().expect("an API that answers")
    }

    fn online(&mut self) -> Result<Option<Vec<OnlineUser>>, ProxyError> {
        self.runtime.block_on(self.meter.online_users())
    }

    fn reset_matching(&mut self, pattern: &str) -> Result<Vec<(CounterName, i64)>, ProxyError> {
        self.runtime.block_on(self.meter.reset_matching(pattern))
    }

    fn reset(&mut self, names: &[CounterName]) -> Resets {
        self.runtime.block_on(self.meter.reset(names))
    }

    #[track_caller]
    fn health(&self) -> &ApiHealth {
        self.meter.health().expect("it was asked")
    }

    /// Asserts that the API is found in a state, and gives the reason.
    #[track_caller]
    fn is(&mut self, state: ApiState) -> String {
        let error = self.poll().expect_err("an API that does not answer");
        assert_eq!(error.state(), state, "{error:?}");
        let health = self.health();
        assert_eq!(health.state, state);
        assert!(health.remedy.is_some());
        let reason = health.reason.clone().expect("a reason");
        assert!(!reason.contains(char::is_control), "{reason:?}");
        reason
    }
}

fn name(text: &str) -> CounterName {
    CounterName::parse(text).expect("the name of a counter")
}

/// Counters as they would be written.
fn written(counters: &[(CounterName, i64)]) -> Vec<(String, i64)> {
    counters.iter().map(|(name, value)| (name.to_string(), *value)).collect()
}

#[track_caller]
fn check(counters: &[(CounterName, i64)], want: &[(&str, i64)]) {
    let want: Vec<_> = want.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    assert_eq!(written(counters), want);
}

/// Questions about a call, under the name of either product.
fn asked(questions: &[Question], service: &str, call: &str) -> usize {
    questions.iter().filter(|asked| asked.service == service && asked.call == call).count()
}

#[test]
fn each_product_is_recognised_once_and_read_without_a_reset() {
    #[track_caller]
    fn check_kind(kind: Kind, want: Identity, service: &str) {
        let server = StatsServer::new(kind);
        server.user("a@x", 100, 2000);
        server.inbound("in", 110, 2200);
        server.uptime(86_400);
        let mut client = Client::new(&server);
        for round in 1..=3 {
            let snapshot = client.read();
            assert_eq!(client.meter.identity(), Some(want));
            assert_eq!(snapshot.product, want.product);
            assert_eq!(snapshot.uptime, Some(86_400));
            assert!(snapshot.window.begin <= snapshot.window.end);
            assert!(snapshot.boot.begin < snapshot.boot.end);
            check(
                &snapshot.counters,
                &[
                    ("user>>>a@x>>>traffic>>>uplink", 100),
                    ("user>>>a@x>>>traffic>>>downlink", 2000),
                    ("inbound>>>in>>>traffic>>>uplink", 110),
                    ("inbound>>>in>>>traffic>>>downlink", 2200),
                ],
            );
            let questions = server.questions();
            let all = questions.iter().filter(|asked| asked.about.is_empty()).cloned();
            let all: Vec<_> = all.collect();
            assert_eq!(asked(&all, service, "QueryStats"), round, "{questions:?}");
            // Once by recognising, and once in each round.
            let recognising = usize::from(service == "xray");
            assert_eq!(asked(&questions, service, "GetSysStats"), round + recognising);
            assert_eq!(
                asked(&questions, "v2ray", "QueryStats") - asked(&all, "v2ray", "QueryStats"),
                usize::from(service == "v2ray")
            );
            assert!(questions.iter().all(|asked| !asked.reset), "{questions:?}");
        }
        assert_eq!(server.connections(), 1);
        assert_eq!(client.health().state, ApiState::Ok);
        assert_eq!(client.health().reason, None);
    }
    let v2ray = |generation| Identity {
        product: Some(Product::V2ray),
        generation: Some(generation),
        online: false,
    };
    let xray = |online| Identity { product: Some(Product::Xray), generation: None, online };
    check_kind(Kind::V2ray4, v2ray(4), "v2ray");
    check_kind(Kind::V2ray5, v2ray(5), "v2ray");
    check_kind(Kind::OldXray, xray(false), "xray");
    check_kind(Kind::Xray, xray(true), "xray");
    check_kind(Kind::NewXray, xray(true), "xray");
}

#[test]
fn an_api_where_nobody_is_or_whose_name_leads_nowhere_is_down() {
    need!(Root, Netns, Tool("ip"));
    let server = StatsServer::new(Kind::V2ray4);
    let mut client = Client::new(&server);
    client.read();
    let address = server.address();
    drop(server);
    let reason = client.is(ApiState::Down);
    assert_eq!(
        reason,
        format!("the proxy's API at {address}: no connection: Connection refused (os error 111)")
    );
    let ns = NetNs::new();
    let far = ns.run(|| Client::of("192.0.2.1:10085").is(ApiState::Down));
    assert_eq!(
        far,
        "the proxy's API at 192.0.2.1:10085: no connection: Network is unreachable (os error 101)"
    );
    let nowhere = ns.run(|| Client::of("nothing.invalid:10085").is(ApiState::Down));
    assert!(nowhere.contains("the name of the host leads to no address"), "{nowhere}");
    let file = Client::of("unix:/nonexistent/api.sock").is(ApiState::Down);
    assert!(file.contains("No such file"), "{file}");
}

#[test]
fn an_api_that_says_nothing_in_time_is_slow_and_forgiven_when_it_does() {
    for behaviour in [Behaviour::Silent, Behaviour::Hang] {
        let server = StatsServer::new(Kind::V2ray4);
        server.behave(behaviour);
        let mut client = Client::new(&server).hasty();
        let begin = Instant::now();
        let reason = client.is(ApiState::Slow);
        assert!(begin.elapsed() >= Duration::from_millis(150));
        assert!(reason.ends_with("did not answer within 150ms"), "{reason}");
        server.behave(Behaviour::Answer);
        client.meter = client.meter.with_deadline(wait::DEADLINE);
        client.read();
        assert_eq!(client.health().state, ApiState::Ok);
        assert_eq!(client.health().reason, None);
    }
}

#[test]
fn an_api_that_lets_nobody_in_is_denied_and_its_words_are_harmless() {
    let server = StatsServer::new(Kind::Xray);
    server.behave(Behaviour::Deny);
    let reason = Client::new(&server).is(ApiState::Denied);
    assert!(reason.ends_with(r"does not let us in: not you \u{1b}[31m"), "{reason}");
}

#[test]
fn what_is_no_api_is_garbage_and_told_by_what_it_is() {
    #[track_caller]
    fn check(behaviour: Behaviour, want: &str) {
        for kind in [Kind::V2ray4, Kind::Xray] {
            let server = StatsServer::new(kind);
            server.behave(behaviour);
            let reason = Client::new(&server).is(ApiState::Garbage);
            assert!(reason.contains(want), "{behaviour:?}: {reason}");
        }
    }
    check(Behaviour::Http1, "speaks HTTP/1");
    check(Behaviour::Tls, "speaks TLS");
    check(Behaviour::Web, "is a web server");
    check(Behaviour::Noise, "does not speak HTTP/2");
    check(Behaviour::Nonsense, "answers what makes no sense");
    check(Behaviour::Huge(100 << 20), "is larger than 64 MiB");
}

#[test]
fn an_api_that_becomes_garbage_on_an_open_connection_is_asked_once_more() {
    let server = StatsServer::new(Kind::V2ray4);
    let mut client = Client::new(&server);
    client.read();
    server.behave(Behaviour::Nonsense);
    client.is(ApiState::Garbage);
    assert_eq!(server.connections(), 2);
    server.behave(Behaviour::Answer);
    client.read();
    assert_eq!(server.connections(), 3);
}

#[test]
fn a_proxy_that_does_not_count_is_disabled_and_told_what_to_add() {
    let server = StatsServer::new(Kind::V2ray4);
    let mut client = Client::new(&server);
    server.behave(Behaviour::NoService);
    let reason = client.is(ApiState::Disabled);
    assert!(reason.ends_with("does not offer the StatsService"), "{reason}");
    assert!(client.health().remedy.as_ref().is_some_and(|text| text.contains("api.services")));
    server.behave(Behaviour::NoStats);
    let reason = client.is(ApiState::Disabled);
    assert!(reason.ends_with("its statistics are off"), "{reason}");
    assert!(client.health().remedy.as_ref().is_some_and(|text| text.contains("\"stats\": {}")));
}

#[test]
fn a_proxy_that_closes_the_connection_is_down() {
    let server = StatsServer::new(Kind::V2ray4);
    server.behave(Behaviour::Close);
    let reason = Client::new(&server).is(ApiState::Down);
    assert!(reason.ends_with("takes the connection and closes it without a word"), "{reason}");
    server.behave(Behaviour::BreakOff);
    let reason = Client::new(&server).is(ApiState::Down);
    assert!(reason.ends_with("closed the connection in the middle of an answer"), "{reason}");
}

#[test]
fn a_state_is_known_since_its_first_poll() {
    let server = StatsServer::new(Kind::V2ray4);
    let mut client = Client::new(&server);
    assert_eq!(client.meter.health(), None);
    client.read();
    let fine = client.health().since;
    client.read();
    assert_eq!(client.health().since, fine);
    server.behave(Behaviour::NoStats);
    client.is(ApiState::Disabled);
    let disabled = client.health().since;
    assert!(disabled > fine);
    // Another reason for the same state.
    server.behave(Behaviour::NoService);
    client.is(ApiState::Disabled);
    assert_eq!(client.health().since, disabled);
    server.behave(Behaviour::Answer);
    client.read();
    assert!(client.health().since > disabled);
}

#[test]
fn a_restart_between_two_polls_costs_no_poll_and_another_product_is_noticed() {
    let server = StatsServer::new(Kind::Xray);
    server.user("a@x", 1, 2);
    server.uptime(500);
    let mut client = Client::new(&server);
    assert_eq!(client.read().counters.len(), 2);
    server.restart();
    server.user("b@x", 3, 4);
    server.uptime(1);
    let snapshot = client.read();
    assert_eq!(snapshot.uptime, Some(1));
    check(
        &snapshot.counters,
        &[("user>>>b@x>>>traffic>>>uplink", 3), ("user>>>b@x>>>traffic>>>downlink", 4)],
    );
    assert_eq!(server.connections(), 2);
    // Recognised on both connections, and read twice.
    assert_eq!(asked(&server.questions(), "xray", "GetSysStats"), 4);

    server.become_another(Kind::V2ray5);
    assert_eq!(client.read().product, Some(Product::V2ray));
    assert_eq!(client.meter.identity().and_then(|identity| identity.generation), Some(5));
}

#[test]
fn a_program_that_changed_behind_an_open_connection_is_recognised() {
    let server = StatsServer::new(Kind::Xray);
    server.uptime(500);
    let mut client = Client::new(&server);
    client.read();
    server.uptime(3);
    let before = asked(&server.questions(), "xray", "GetSysStats");
    assert_eq!(client.read().uptime, Some(3));
    assert_eq!(asked(&server.questions(), "xray", "GetSysStats"), before + 2);
    assert_eq!(server.connections(), 1);
    // Or by the service that is not there any more.
    server.answer_as(Kind::V2ray4);
    assert_eq!(client.read().product, Some(Product::V2ray));
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_reset_by_somebody_else_is_passed_on_as_it_is() {
    let server = StatsServer::new(Kind::V2ray4);
    server.user("a@x", 10, 20);
    server.uptime(7);
    let mut client = Client::new(&server);
    client.read();
    server.foreign_reset();
    let snapshot = client.read();
    assert_eq!(snapshot.uptime, Some(7));
    check(
        &snapshot.counters,
        &[("user>>>a@x>>>traffic>>>uplink", 0), ("user>>>a@x>>>traffic>>>downlink", 0)],
    );
}

#[test]
fn emails_and_values_of_any_kind_are_read_and_take_no_others_away() {
    let server = StatsServer::new(Kind::V2ray4);
    server.set("user>>>a>>>b@x>>>traffic>>>uplink", i64::MAX);
    server.set("user>>>new\nline \x1b[2J>>>traffic>>>uplink", -5);
    server.set(b"user>>>\xff\xfe@x>>>traffic>>>uplink".as_slice(), i64::MIN);
    server.set("user>>>z@x>>>traffic>>>uplink", 1);
    server.set("user>>>z@x>>>online", 1);
    server.set("nonsense", 1);
    check(
        &Client::new(&server).read().counters,
        &[
            ("user>>>\\xff\\xfe@x>>>traffic>>>uplink", i64::MIN),
            ("user>>>a>>>b@x>>>traffic>>>uplink", i64::MAX),
            ("user>>>new\nline \x1b[2J>>>traffic>>>uplink", -5),
            ("user>>>z@x>>>traffic>>>uplink", 1),
        ],
    );
}

#[test]
fn fifty_thousand_counters_are_read_at_once() {
    let server = StatsServer::new(Kind::NewXray);
    for user in 0..25_000 {
        server.user(&format!("user-{user}@example.com"), user, 1000 * user);
    }
    let mut client = Client::new(&server);
    let snapshot = client.read();
    assert_eq!(snapshot.counters.len(), 50_000);
    assert!(snapshot.counters.is_sorted_by(|a, b| a.0 < b.0));
    let sum: i64 = snapshot.counters.iter().map(|(_, value)| value).sum();
    assert_eq!(sum, 1001 * (24_999 * 25_000 / 2));
}

#[test]
fn who_is_connected_is_told_where_the_proxy_tells_it() {
    for (kind, tells) in [
        (Kind::V2ray4, false),
        (Kind::V2ray5, false),
        (Kind::OldXray, false),
        (Kind::Xray, true),
        (Kind::NewXray, true),
    ] {
        let server = StatsServer::new(kind);
        server.connect("b>>>c@x", &[("10.0.0.1", 1_700_000_000), ("2001:db8::1", 1_700_000_001)]);
        server.connect("a@x", &[("10.0.0.2", 5), ("nonsense", 6)]);
        let online = client_online(&server);
        let user = |email: &str, addresses: &[(&str, i64)]| OnlineUser {
            email: email.into(),
            addresses: addresses
                .iter()
                .map(|(ip, seen)| (ip.parse().expect("an address"), *seen))
                .collect(),
        };
        let want = [
            user("a@x", &[("10.0.0.2", 5)]),
            user("b>>>c@x", &[("10.0.0.1", 1_700_000_000), ("2001:db8::1", 1_700_000_001)]),
        ];
        assert_eq!(online, tells.then(|| want.to_vec()), "{kind:?}");
        assert!(server.questions().iter().all(|asked| !asked.reset));
    }
}

fn client_online(server: &StatsServer) -> Option<Vec<OnlineUser>> {
    Client::new(server).online().expect("an API that answers")
}

#[test]
fn a_reset_is_made_only_of_what_was_named() {
    for kind in [Kind::V2ray4, Kind::V2ray5, Kind::OldXray, Kind::Xray, Kind::NewXray] {
        let server = StatsServer::new(kind);
        server.user("a@x", 1, 2);
        server.user("b@x", 3, 4);
        server.inbound("in", 5, 6);
        let mut client = Client::new(&server);
        let done = client.reset_matching("user>>>a@x>>>").expect("a reset");
        check(
            &done,
            &[("user>>>a@x>>>traffic>>>uplink", 1), ("user>>>a@x>>>traffic>>>downlink", 2)],
        );
        let names = [
            name("user>>>b@x>>>traffic>>>downlink"),
            name("user>>>nobody>>>traffic>>>uplink"),
            name("inbound>>>in>>>traffic>>>uplink"),
            name("user>>>a@x>>>traffic>>>uplink"),
        ];
        let resets = client.reset(&names);
        assert!(resets.failed.is_none(), "{:?}", resets.failed);
        assert_eq!(resets.absent, [name("user>>>nobody>>>traffic>>>uplink")]);
        check(
            &resets.done,
            &[
                ("user>>>b@x>>>traffic>>>downlink", 4),
                ("inbound>>>in>>>traffic>>>uplink", 5),
                ("user>>>a@x>>>traffic>>>uplink", 0),
            ],
        );
        check(
            &client.read().counters,
            &[
                ("user>>>a@x>>>traffic>>>uplink", 0),
                ("user>>>a@x>>>traffic>>>downlink", 0),
                ("user>>>b@x>>>traffic>>>uplink", 3),
                ("user>>>b@x>>>traffic>>>downlink", 0),
                ("inbound>>>in>>>traffic>>>uplink", 0),
                ("inbound>>>in>>>traffic>>>downlink", 6),
            ],
        );
        let resets = server.questions().iter().filter(|asked| asked.reset).count();
        assert_eq!(resets, 1 + names.len());
    }
}

#[test]
fn a_reset_that_gets_no_answer_is_an_error() {
    let server = StatsServer::new(Kind::V2ray4);
    server.behave(Behaviour::Hang);
    let mut client = Client::new(&server).hasty();
    assert!(matches!(client.reset_matching(""), Err(ProxyError::Late { .. })));
    let resets = client.reset(&[name("user>>>a>>>traffic>>>uplink")]);
    assert!(matches!(resets.failed, Some(ProxyError::Late { .. })));
    assert!(resets.done.is_empty() && resets.absent.is_empty());
}

#[test]
fn an_api_behind_a_socket_in_the_file_system_is_read() {
    let server = StatsServer::new(Kind::Xray);
    server.user("a@x", 1, 2);
    let site = Site::new();
    std::fs::create_dir(&site.state).expect("a folder");
    let path = site.state.join("api.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let target = server.address();
    let relay = thread::spawn(move || {
        let (mut near, _) = listener.accept().expect("a connection");
        let mut far = std::net::TcpStream::connect(target).expect("the fake API");
        let (mut near_again, mut far_again) =
            (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        let back = thread::spawn(move || copy(&mut far_again, &mut near_again));
        copy(&mut near, &mut far).expect("what the client says");
        far.shutdown(Shutdown::Write).ok();
        back.join().expect("the way back").ok();
    });
    let mut client = Client::of(&format!("unix:{}", path.display()));
    assert_eq!(client.read().counters.len(), 2);
    drop(client);
    relay.join().expect("the relay");
}

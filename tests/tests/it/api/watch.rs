//! Reading in the background.

use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use traffic_tests::{
    stats_server::{Behaviour, Kind, StatsServer},
    wait,
};
use traffic_user::{
    accounting::proxy::ApiState,
    meter::proxy::{Latest, ProxyMeter, Watch},
};

fn watch(server: &StatsServer, deadline: Duration, period: Duration) -> Watch {
    let address = server.address().to_string().parse().expect("an address");
    ProxyMeter::new(address).with_deadline(deadline).spawn(period).expect("a thread")
}

#[track_caller]
fn wait_for(watch: &Watch, state: ApiState) -> Latest {
    wait::until(state.name(), || {
        let latest = watch.latest();
        latest.health.as_ref().is_some_and(|health| health.state == state).then_some(latest)
    })
}

#[test]
fn the_latest_answer_is_at_hand_while_the_api_hangs() {
    let server = StatsServer::new(Kind::V2ray4);
    server.user("a@x", 1, 2);
    let watch = watch(&server, Duration::from_millis(100), Duration::from_millis(5));
    let fine = wait_for(&watch, ApiState::Ok);
    assert_eq!(fine.snapshot.map(|snapshot| snapshot.counters.len()), Some(2));

    server.behave(Behaviour::Hang);
    let slow = wait_for(&watch, ApiState::Slow);
    // It hangs again now and then; whoever looks is not held up by it.
    let begin = Instant::now();
    for _ in 0..1000 {
        assert_eq!(watch.latest().snapshot.map(|snapshot| snapshot.counters.len()), Some(2));
    }
    // A deadline for each would be 100 s.
    assert!(begin.elapsed() < wait::DEADLINE, "{:?}", begin.elapsed());
    wait::until("another try", || (watch.latest().polls > slow.polls).then_some(()));
    assert_eq!(watch.latest().health.map(|health| health.since), slow.health.map(|was| was.since));

    server.behave(Behaviour::Answer);
    server.user("a@x", 10, 20);
    let fine = wait_for(&watch, ApiState::Ok);
    let counters = fine.snapshot.map(|snapshot| snapshot.counters.clone()).unwrap_or_default();
    super::check(
        &counters,
        &[("user>>>a@x>>>traffic>>>uplink", 11), ("user>>>a@x>>>traffic>>>downlink", 22)],
    );
}

#[test]
fn it_can_be_asked_to_read_at_once_and_to_say_when_it_has() {
    let server = StatsServer::new(Kind::Xray);
    let mut watch = watch(&server, wait::DEADLINE, Duration::from_secs(3600));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let first = runtime.block_on(watch.changed());
    assert_eq!(first.polls, 1);
    server.user("a@x", 1, 2);
    watch.refresh();
    let second = runtime.block_on(watch.changed());
    assert_eq!(second.polls, 2);
    assert_eq!(second.snapshot.map(|snapshot| snapshot.counters.len()), Some(2));
    assert!(second.identity.is_some_and(|identity| identity.online));
}

#[test]
fn it_ends_with_the_last_who_looks_even_if_the_api_hangs() {
    let server = StatsServer::new(Kind::V2ray4);
    server.behave(Behaviour::Hang);
    let watch = watch(&server, Duration::from_secs(3600), Duration::from_millis(5));
    let again = watch.clone();
    wait::until("a connection", || (server.open() == 1).then_some(()));
    drop(watch);
    assert_eq!(again.latest().polls, 0);
    assert_eq!(server.open(), 1);
    drop(again);
    wait::until("the end of the connection", || (server.open() == 0).then_some(()));
}

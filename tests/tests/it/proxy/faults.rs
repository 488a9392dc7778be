//! What makes the proxy's numbers jump, while the kernel's go on.

use std::collections::BTreeMap;

use traffic_tests::{
    need,
    proxy::{Kind, Program},
    wait,
};

use super::{ALICE, BOB, Bench, both, two};

#[track_caller]
fn killed(program: Program) {
    let mut bench = Bench::start(program, Kind::VmessTcp, false);
    bench.proxy.fetch(ALICE, 1000, 300_000);
    let mut held = bench.proxy.open(BOB);
    held.exchange(100, 1000).expect("an answer");
    assert_eq!(bench.of_users(), two((1000, 300_000), (100, 1000)));

    bench.proxy.kill_server();
    let before = bench.kernel();
    drop(held);
    bench.proxy.start_server();
    // Absent, which is not zero.
    assert_eq!(bench.of_users(), BTreeMap::new());
    // More than before: a smaller value alone would not tell the restart.
    let second = bench.proxy.fetch(ALICE, 1000, 400_000);
    assert_eq!(bench.of_users(), BTreeMap::from(both(ALICE, second)));
    let all = bench.end();
    let after = all - before;
    assert!(before.output_bytes > 301_000 && after.output_bytes > 400_000, "{before:?}, {after:?}");
}

#[test]
fn counters_vanish_with_a_server_that_is_killed_and_the_kernels_go_on() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    killed(Program::V2ray);
}

#[track_caller]
fn reset(program: Program) {
    let mut bench = Bench::start(program, Kind::VmessTcp, false);
    bench.proxy.fetch(ALICE, 1000, 300_000);
    let mut held = bench.proxy.open(BOB);
    held.exchange(100, 1000).expect("an answer");
    assert_eq!(bench.of_users(), two((1000, 300_000), (100, 1000)));
    let before = bench.kernel();

    bench.proxy.reset_by_its_own_tool();
    // They stay, at zero.
    assert_eq!(bench.of_users(), two((0, 0), (0, 0)));
    // A connection goes on in the same counters.
    held.exchange(20, 30).expect("an answer");
    bench.proxy.fetch(ALICE, 2000, 5000);
    assert_eq!(bench.of_users(), two((2000, 5000), (20, 30)));
    drop(held);
    let all = bench.end();
    let after = all - before;
    assert!(before.output_bytes > 301_000 && after.output_bytes > 5030, "{before:?}, {after:?}");
}

#[test]
fn another_reader_that_resets_takes_the_users_payload_and_nothing_of_the_kernels() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    reset(Program::V2ray);
}

#[track_caller]
fn removed(program: Program, kind: Kind) {
    let bench = Bench::start(program, kind, false);
    let [mut alice, mut bob] = [ALICE, BOB].map(|user| bench.proxy.open(user));
    alice.exchange(100, 1000).expect("an answer");
    bob.exchange(200, 2000).expect("an answer");

    bench.proxy.remove(ALICE);
    assert_eq!(bench.of_users(), two((100, 1000), (200, 2000)));
    // Who is connected stays so, and is counted.
    alice.exchange(1000, 50_000).expect("an answer");
    bob.exchange(20, 30).expect("an answer");
    assert_eq!(bench.of_users(), two((1100, 51_000), (220, 2030)));
    // A new connection brings bytes to the inbound, and to no user.
    let before = bench.inbound("uplink");
    let mut refused = bench.proxy.open(ALICE);
    refused.send(100, 1000).expect("the client takes it");
    wait::until("the refused request", || (bench.inbound("uplink") > before).then_some(()));
    assert_eq!(bench.of_users(), two((1100, 51_000), (220, 2030)));
    drop((alice, bob, refused));
    if kind == Kind::VmessTcp {
        // Who comes back finds his counters as he left them.
        bench.proxy.add(ALICE);
        bench.proxy.fetch(ALICE, 50, 60);
        assert_eq!(bench.of_users(), two((1150, 51_060), (220, 2030)));
    }
    bench.end();
}

#[test]
fn a_removed_user_keeps_his_counters_and_the_connection_that_he_has() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"), Tool("v2ray"));
    removed(Program::V2ray, Kind::VmessTcp);
    removed(Program::V2ray, Kind::VlessTcp);
}

#[test]
fn xray_forgets_resets_and_removes_as_v2ray_does() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"), Tool("ethtool"));
    if need::optional(Program::Xray.name()) {
        killed(Program::Xray);
        reset(Program::Xray);
        removed(Program::Xray, Kind::VmessTcp);
        removed(Program::Xray, Kind::VlessTcp);
    }
}

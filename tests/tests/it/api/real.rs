//! The same questions to the real V2Ray: what the fake server imitates has to be so.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::{Value, json};
use traffic_tests::{daemon::Site, handler, need, need::tool, netns::NetNs, wait};
use traffic_user::{
    accounting::proxy::{ApiState, Product, ProxySnapshot},
    meter::proxy::Identity,
};

use super::{Client, name};

const API: &str = "127.0.0.1:10085";

/// A real proxy with its API inside a namespace.
struct Proxy {
    ns: NetNs,
    site: Site,
    child: Child,
}

impl Proxy {
    /// Starts it with the usual config, changed by the test.
    fn start(change: impl FnOnce(&mut Value)) -> Self {
        let mut config = config();
        change(&mut config);
        let (ns, site) = (NetNs::new(), Site::new());
        fs::create_dir(&site.state).expect("a folder");
        fs::write(site.state.join("config.json"), config.to_string()).expect("a config");
        let child = spawn(&ns, &site);
        Self { ns, site, child }
    }

    /// Waits until something listens at the port.
    fn listens(&mut self, port: u16) {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait::until("a proxy that listens", || {
            let ended = self.child.try_wait().expect("the state of a child");
            assert!(ended.is_none(), "the proxy ended: {}", self.log());
            self.ns.run(|| std::net::TcpStream::connect(address)).ok()
        });
    }

    /// Waits until the API answers. It takes connections, and closes them, before it can.
    fn answers(&mut self) {
        self.listens(10085);
        self.ns.run(|| {
            let mut client = Client::of(API);
            wait::until("an API that answers", || match client.poll() {
                Err(error) if error.state() == ApiState::Down => None,
                _ => Some(()),
            });
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.state.join("log")).unwrap_or_default()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// Stops it where it is: all its threads, when this returns.
    fn freeze(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("a signal");
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).expect("a child");
        assert_eq!(status, WaitStatus::Stopped(self.pid(), Signal::SIGSTOP));
    }

    /// Lets it go on.
    fn thaw(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("a signal");
    }

    /// Ends it like a crash, and starts it again.
    fn crash_and_restart(&mut self) {
        self.child.kill().expect("a signal");
        self.child.wait().expect("the end of a child");
        self.child = spawn(&self.ns, &self.site);
        self.answers();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(ns: &NetNs, site: &Site) -> Child {
    let log = fs::File::create(site.state.join("log")).expect("a log");
    let again = log.try_clone().expect("a handle");
    ns.command(tool("v2ray").expect("the proxy"))
        .arg("-config")
        .arg(site.state.join("config.json"))
        .current_dir(&site.state)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(again)
        .spawn()
        .expect("start the proxy")
}

/// The API, counters of all inbounds, and one inbound with two users.
fn config() -> Value {
    json!({
        "log": {"loglevel": "warning"},
        "stats": {},
        "api": {"tag": "api", "services": ["HandlerService", "StatsService"]},
        "policy": {
            "levels": {"0": {"statsUserUplink": true, "statsUserDownlink": true}},
            "system": {"statsInboundUplink": true, "statsInboundDownlink": true}
        },
        "inbounds": [
            {"tag": "api", "listen": "127.0.0.1", "port": 10085, "protocol": "dokodemo-door",
             "settings": {"address": "127.0.0.1"}},
            {"tag": "vmess-in", "listen": "127.0.0.1", "port": 10001, "protocol": "vmess",
             "settings": {"clients": [
                {"id": "11111111-1111-4111-8111-111111111111", "alterId": 0, "email": "a@x"},
                {"id": "22222222-2222-4222-8222-222222222222", "alterId": 0, "email": "b@x"}]}}
        ],
        "outbounds": [{"tag": "direct", "protocol": "freedom"}],
        "routing": {"rules": [{"type": "field", "inboundTag": ["api"], "outboundTag": "api"}]}
    })
}

macro_rules! need_proxy {
    () => {
        need!(Root, Netns, Tool("ip"), Tool("v2ray"));
    };
}
#[test]
fn the_real_proxy_is_recognised_read_and_not_reset() {
    need_proxy!();
    let mut proxy = Proxy::start(|_| {});
    proxy.answers();
    let ns = proxy.ns.again();
    ns.run(|| {
        let mut client = Client::of(API);
        let first = client.read();
        let v2ray4 = Identity { product: Some(Product::V2ray), generation: Some(4), online: false };
        assert_eq!(client.meter.identity(), Some(v2ray4));
        assert!(first.uptime.is_some_and(|seconds| seconds < 60), "{:?}", first.uptime);
        // The API's own inbound counts us: the numbers grow with each question and never fall.
        let uplink = name("inbound>>>api>>>traffic>>>uplink");
        let value = |snapshot: &ProxySnapshot| {
            let found = snapshot.counters.iter().find(|(name, _)| *name == uplink);
            found.map(|(_, value)| *value).expect("the counter of the API inbound")
        };
        let second = client.read();
        let third = client.read();
        assert!(value(&first) < value(&second) && value(&second) < value(&third));
        assert_eq!(client.online().expect("an answer"), None);
    });
}

#[test]
fn the_real_proxy_resets_what_is_named() {
    need_proxy!();
    let mut proxy = Proxy::start(|_| {});
    proxy.answers();
    let ns = proxy.ns.again();
    ns.run(|| {
        let mut client = Client::of(API);
        client.read();
        let before = client.reset_matching("inbound>>>api>>>").expect("a reset");
        let names: Vec<_> = before.iter().map(|(name, _)| name.clone()).collect();
        let (uplink, downlink) =
            (name("inbound>>>api>>>traffic>>>uplink"), name("inbound>>>api>>>traffic>>>downlink"));
        assert_eq!(names, [uplink, downlink.clone()]);
        assert!(before.iter().all(|(_, value)| *value > 0), "{before:?}");
        let nobody = name("user>>>nobody@x>>>traffic>>>uplink");
        let resets = client.reset(&[nobody.clone(), downlink.clone()]);
        assert!(resets.failed.is_none(), "{:?}", resets.failed);
        assert_eq!(resets.absent, [nobody]);
        assert_eq!(resets.done.len(), 1);
        assert_eq!(resets.done[0].0, downlink);
    });
}

#[test]
fn a_crash_of_the_real_proxy_is_seen_in_its_uptime_and_costs_no_poll() {
    need_proxy!();
    let mut proxy = Proxy::start(|_| {});
    proxy.answers();
    let ns = proxy.ns.again();
    ns.run(|| {
        let mut client = Client::of(API);
        // The latest moment at which it can have started, by what it says itself.
        let started = |snapshot: &ProxySnapshot| {
            let uptime = i128::from(snapshot.uptime.expect("an uptime"));
            snapshot.boot.end - uptime * 1_000_000_000
        };
        let before = wait::until("an uptime above zero", || {
            Some(client.read()).filter(|snapshot| snapshot.uptime > Some(0))
        });
        assert!(started(&before) < before.boot.begin);
        proxy.crash_and_restart();
        assert!(started(&client.read()) > before.boot.end);
        proxy.child.kill().expect("a signal");
        proxy.child.wait().expect("the end of a child");
        let reason = client.is(ApiState::Down);
        assert!(reason.contains("Connection refused"), "{reason}");
    });
}

#[test]
fn a_real_proxy_that_stands_still_is_slow() {
    need_proxy!();
    let mut proxy = Proxy::start(|_| {});
    proxy.answers();
    let ns = proxy.ns.again();
    ns.run(|| {
        let mut client = Client::of(API);
        client.read();
        proxy.freeze();
        let mut hasty = Client::of(API).hasty();
        hasty.is(ApiState::Slow);
        client = client.hasty();
        client.is(ApiState::Slow);
        proxy.thaw();
        wait::until("an answer", || client.poll().ok());
    });
}

#[test]
fn a_real_proxy_without_statistics_or_their_service_is_disabled() {
    need_proxy!();
    let mut proxy = Proxy::start(|config| {
        config.as_object_mut().expect("an object").remove("stats");
    });
    proxy.answers();
    let ns = proxy.ns.again();
    let reason = ns.run(|| Client::of(API).is(ApiState::Disabled));
    assert!(reason.ends_with("its statistics are off"), "{reason}");

    let mut proxy = Proxy::start(|config| config["api"]["services"] = json!(["HandlerService"]));
    proxy.answers();
    let ns = proxy.ns.again();
    let reason = ns.run(|| Client::of(API).is(ApiState::Disabled));
    assert!(reason.ends_with("does not offer the StatsService"), "{reason}");
}

#[test]
fn inbounds_of_the_real_proxy_that_are_no_api_are_told_from_one() {
    need_proxy!();
    need!(Tool("v2ctl"));
    let output = Command::new(tool("v2ctl").expect("the proxy's helper"))
        .args(["cert", "--domain=proxy.test"])
        .output()
        .expect("make a certificate");
    let certificate: Value = serde_json::from_slice(&output.stdout).expect("a certificate as JSON");
    let mut proxy = Proxy::start(|config| {
        let inbounds = config["inbounds"].as_array_mut().expect("inbounds");
        inbounds.push(json!({"tag": "http", "listen": "127.0.0.1", "port": 10002,
            "protocol": "http", "settings": {}}));
        inbounds.push(json!({"tag": "socks", "listen": "127.0.0.1", "port": 10003,
            "protocol": "socks", "settings": {}}));
        inbounds.push(json!({"tag": "tls", "listen": "127.0.0.1", "port": 10004,
            "protocol": "http", "settings": {},
            "streamSettings": {"security": "tls", "tlsSettings": {"certificates": [certificate]}}}));
        inbounds.push(json!({"tag": "ws", "listen": "127.0.0.1", "port": 10005,
            "protocol": "vmess", "settings": {"clients": []},
            "streamSettings": {"network": "ws"}}));
    });
    let ns = proxy.ns.again();
    // This one lets nobody know what it is, and reads on.
    proxy.listens(10001);
    let reason = ns.run(|| Client::of("127.0.0.1:10001").hasty().is(ApiState::Slow));
    assert!(reason.ends_with("did not answer within 150ms"), "{reason}");
    for (port, state, want) in [
        (10002, ApiState::Garbage, "speaks HTTP/1"),
        (10003, ApiState::Down, "closes it without a word"),
        (10004, ApiState::Down, "closes it without a word"),
        (10005, ApiState::Garbage, "speaks HTTP/1"),
    ] {
        proxy.listens(port);
        let reason = ns.run(|| Client::of(&format!("127.0.0.1:{port}")).is(state));
        assert!(reason.contains(want), "{port}: {reason}");
    }
}

#[test]
fn users_are_removed_and_added_while_the_real_proxy_runs() {
    need_proxy!();
    let mut proxy = Proxy::start(|_| {});
    proxy.answers();
    let ns = proxy.ns.again();
    ns.run(|| {
        let api = API.parse().expect("an address");
        handler::remove_user(api, "vmess-in", "a@x").expect("a user less");
        let twice = handler::remove_user(api, "vmess-in", "a@x").expect_err("nobody to remove");
        assert!(twice.message().contains("not found"), "{twice}");
        let other = handler::remove_user(api, "no-such-tag", "b@x").expect_err("no such inbound");
        assert!(other.message().contains("failed to get handler"), "{other}");
        let id = "11111111-1111-4111-8111-111111111111";
        handler::add_vmess_user(api, "vmess-in", "a@x", id).expect("a user more");
        handler::add_vmess_user(api, "vmess-in", "a@x", id).expect_err("he is there already");
        // What may go on all the time does not disturb the reading.
        Client::of(API).read();
    });
}

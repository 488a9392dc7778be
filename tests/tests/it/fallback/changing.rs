//! A change of the groups that the tools refuse while the daemon runs: those of before go on, and it is tried
//! again.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use nix::sys::signal::Signal;
use serde_json::json;
use traffic_tests::{
    daemon::{Daemon, Site},
    document::{Document, Traffic},
    need,
};

use super::{DATAGRAM4, DATAGRAM6, Lab, needs};

/// The system's tools, of which one can be broken and mended.
struct Tools(PathBuf);

impl Tools {
    fn new(site: &Site) -> Self {
        let folder = site.state.join("tools");
        fs::create_dir_all(&folder).expect("make a folder");
        let tools = Self(folder);
        for name in ["nft", "iptables"] {
            tools.works(name);
        }
        for family in ["iptables", "ip6tables"] {
            for kind in ["nft-save", "nft-restore", "legacy-save", "legacy-restore"] {
                tools.works(&format!("{family}-{kind}"));
            }
        }
        tools
    }

    /// Puts the system's tool in its place.
    fn works(&self, name: &str) {
        let fresh = self.0.join("fresh");
        std::os::unix::fs::symlink(need::tool(name).expect("a tool"), &fresh).expect("link a tool");
        fs::rename(fresh, self.0.join(name)).expect("put a tool in its place");
    }

    /// Puts something in its place that does nothing.
    fn breaks(&self, name: &str) {
        let fresh = self.0.join("fresh");
        fs::write(&fresh, "#!/bin/sh\ncat >/dev/null\necho 'out of luck' >&2\nexit 1\n")
            .expect("write a script");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("make it run");
        fs::rename(fresh, self.0.join(name)).expect("put a script in its place");
    }
}

/// The meter, and which of its tools breaks.
const CASES: [(&str, &str); 3] =
    [("nft", "nft"), ("iptables", "iptables-nft-restore"), ("iptables", "ip6tables-nft-restore")];

fn start(site: &Site, lab: &Lab, tools: &Tools, args: &[&str]) -> Daemon {
    let mut command = site.traffic(&lab.host, &["run", "--output", "json", "--interval", "20ms"]);
    command.args(args).env("TRAFFIC_TOOLS", &tools.0);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("the first document", |_| Some(()));
    daemon
}

/// A proxy that takes datagrams on one port.
fn proxy_config(port: u16) -> String {
    json!({"inbounds": [{"tag": "in", "port": port, "protocol": "shadowsocks",
        "settings": {"network": "udp", "method": "aes-128-gcm", "password": "x"}}]})
    .to_string()
}

fn watched(document: &Document, port: &str) -> Option<bool> {
    document.0["ports"].get(port).map(|port| port["watched"] != false)
}

/// What the change is refused with is over now: 5000 was watched all the time, and 6000 is from now on.
fn refused_then_made(lab: &Lab, tools: &Tools, broken: &str, mut daemon: Daemon, said: &str) {
    daemon.says(said);
    daemon.says("out of luck");
    lab.send(false, 5000, 3);
    lab.send(true, 5000, 4);
    let before = daemon.fresh();
    let counted = Traffic::input(3 * DATAGRAM4 + 4 * DATAGRAM6, 7);
    assert_eq!(before.group("5000"), counted, "{broken}: {}", daemon.messages());
    assert_eq!(
        (watched(&before, "5000"), watched(&before, "6000")),
        (Some(true), None),
        "{broken}"
    );
    assert_eq!(before.text("coverage"), "complete", "{broken}");

    tools.works(broken);
    daemon.wait_for("the change", |document| watched(document, "6000"));
    lab.send(false, 6000, 2);
    lab.send(true, 6000, 1);
    let after = daemon.fresh();
    assert_eq!(after.text("epoch"), before.text("epoch"), "{broken}");
    assert_eq!(after.text("coverage"), "complete", "{broken}");
    assert_eq!(after.group("5000"), counted, "{broken}");
    assert_eq!(after.group("6000"), Traffic::input(2 * DATAGRAM4 + DATAGRAM6, 3), "{broken}");
    assert_eq!(watched(&after, "5000"), Some(false), "{broken}");
    assert_eq!(daemon.messages().matches("out of luck").count(), 1, "{}", daemon.messages());
    daemon.stop();
}

#[test]
fn a_new_config_of_the_proxy_is_tried_again_until_its_ports_are_watched() {
    needs!();
    for (meter, broken) in CASES {
        let (site, lab) = (Site::new(), Lab::new());
        let tools = Tools::new(&site);
        let config = site.state.join("proxy.json");
        fs::write(&config, proxy_config(5000)).expect("write a config");
        let path = config.to_str().expect("a path of ours is text");
        let daemon = start(&site, &lab, &tools, &["--meter", meter, "--proxy-config", path]);
        tools.breaks(broken);
        fs::write(&config, proxy_config(6000)).expect("write a config");
        refused_then_made(&lab, &tools, broken, daemon, "the groups cannot be changed");
    }
}

#[test]
fn a_reload_is_tried_again_until_its_ports_are_watched() {
    needs!();
    for (meter, broken) in CASES {
        let (site, lab) = (Site::new(), Lab::new());
        let tools = Tools::new(&site);
        let config = site.state.join("traffic.toml");
        let says = |ports: &str| {
            let text = format!("ports = \"{ports}/udp\"\nproxy = false\nmeter = \"{meter}\"\n");
            fs::write(&config, text).expect("write a configuration");
        };
        says("5000");
        let path = config.to_str().expect("a path of ours is text");
        let daemon = start(&site, &lab, &tools, &["--persist", "--config", path]);
        tools.breaks(broken);
        says("6000");
        daemon.signal(Signal::SIGHUP);
        refused_then_made(&lab, &tools, broken, daemon, "the configuration is not used yet");
        site.run(&lab.host, &["clean"]);
    }
}

#[test]
fn a_broken_configuration_drops_no_change_that_waits() {
    needs!();
    let (meter, broken) = CASES[0];
    let (site, lab) = (Site::new(), Lab::new());
    let tools = Tools::new(&site);
    let (config, proxy) = (site.state.join("traffic.toml"), site.state.join("proxy.json"));
    fs::write(&proxy, proxy_config(5000)).expect("write a config");
    let text = format!("proxy_config = {:?}\nmeter = \"{meter}\"\n", proxy.display().to_string());
    fs::write(&config, text).expect("write a configuration");
    let path = config.to_str().expect("a path of ours is text");
    let daemon = start(&site, &lab, &tools, &["--persist", "--config", path]);
    tools.breaks(broken);
    fs::write(&proxy, proxy_config(6000)).expect("write a config");
    daemon.says("the groups cannot be changed");
    fs::write(&config, "ports = 'none'\n").expect("write a configuration");
    daemon.signal(Signal::SIGHUP);
    refused_then_made(&lab, &tools, broken, daemon, "the last good one stays");
    site.run(&lab.host, &["clean"]);
}

//! What is said, and what stays, where the programs are missing, may not, or fail half way.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use traffic_tests::{
    daemon::{Answer, Site as Folders},
    need,
    netns::NetNs,
};
use traffic_user::meter::iptables::{self, Backend};

use super::Site;

/// A folder with the system's programs of one back end, in which IPv6 cannot be changed.
struct Tools(PathBuf);

impl Tools {
    fn new(backend: Backend) -> Self {
        let folder = format!("traffic-tools-{}-{}", std::process::id(), backend.name());
        let folder = std::env::temp_dir().join(folder);
        fs::create_dir_all(&folder).expect("make a folder");
        for name in ["iptables", "ip6tables"] {
            for end in ["save", "restore"] {
                let name = format!("{name}-{}-{end}", backend.name());
                let tool = need::tool(&name).expect("a tool");
                std::os::unix::fs::symlink(tool, folder.join(name)).expect("link a tool");
            }
        }
        let broken = folder.join(format!("ip6tables-{}-restore", backend.name()));
        fs::remove_file(&broken).expect("remove a link");
        let script = "#!/bin/sh\ncat >/dev/null\necho 'out of luck' >&2\nexit 1\n";
        fs::write(&broken, script).expect("write a script");
        fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).expect("make it run");
        Self(folder)
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run_with(folders: &Folders, ns: &NetNs, tools: &str, args: &[&str]) -> Answer {
    let mut all = vec!["run", "--no-proxy", "--count", "1"];
    all.extend(args);
    Answer::of(folders.traffic(ns, &all).env("TRAFFIC_TOOLS", tools))
}

#[test]
fn a_failure_half_way_leaves_the_rules_as_they_were() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let (folders, tools) = (Folders::new(), Tools::new(site.backend));
        let tools = tools.0.to_str().expect("a plain path");
        let meter = ["--meter", "iptables", "--persist", "--ports"];

        // Nothing of ours before: nothing after.
        let before = site.rules();
        let args = [&meter[..], &["443/udp"]].concat();
        let failed = run_with(&folders, &site.here.ns, tools, &args);
        assert_eq!(failed.code, Some(2), "{}", failed.stderr);
        assert!(failed.stderr.contains("out of luck"), "{}", failed.stderr);
        assert_eq!(site.rules(), before);

        // Rules of ours before: they count on, with all that they had.
        let mut running = site.start("443/udp,80/udp", true).expect("start");
        site.exchange(false, 443, 4);
        site.exchange(true, 80, 5);
        let first = site.read(&mut running);
        site.drop(running);
        let before = site.listed();
        assert!(before.contains("[5:600]"), "{before}");
        for groups in ["443/udp,80/udp,5000", "443/udp,5000-6000"] {
            let args = [&meter[..], &[groups]].concat();
            let failed = run_with(&folders, &site.here.ns, tools, &args);
            assert_eq!(failed.code, Some(2), "{}", failed.stderr);
            assert!(failed.stderr.contains("out of luck"), "{}", failed.stderr);
            assert_eq!(without_notes(&site.listed()), without_notes(&before), "{groups}");
        }
        let mut running = site.start("443/udp,80/udp", true).expect("adopt");
        let second = site.read(&mut running);
        assert_eq!(second.epoch, first.epoch);
        assert_eq!(second.total(), first.total());
        site.drop(running);
        site.here.ns.run(|| iptables::clean(false)).expect("clean");
    }
}

/// What counts, without the notes. The jumps lose their numbers: every packet of the host passes them, also
/// those that the kernel sends by itself.
fn without_notes(listed: &str) -> Vec<&str> {
    let bare = |line| match line {
        line if str::ends_with(line, "-j TRAFFIC_IN") || str::ends_with(line, "-j TRAFFIC_OUT") => {
            line.split_once(' ').map_or(line, |(_, rule)| rule)
        }
        line => line,
    };
    let notes = |line: &&str| !line.contains("TRAFFIC_NOTE");
    let mut lines: Vec<_> = listed.lines().filter(notes).map(bare).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn without_a_program_it_is_said_which_one_and_what_helps() {
    need!(Root, Netns, Tool("ip"));
    let (ns, folders) = (NetNs::new(), Folders::new());
    for (meter, tools) in [("iptables", "iptables-save and iptables-restore"), ("nft", "nft")] {
        let answer = run_with(&folders, &ns, "/nonexistent", &["--meter", meter, "--ports", "443"]);
        assert_eq!(answer.code, Some(2), "{}", answer.stderr);
        let want = format!("the meter {meter} needs {tools}, and none is installed");
        assert!(answer.stderr.contains(&want), "{}", answer.stderr);
        assert!(answer.stderr.contains("install nftables or iptables"), "{}", answer.stderr);
    }
}

#[test]
fn without_the_right_to_change_rules_it_is_said_which_one_is_missing() {
    need!(Root, Netns, Tool("ip"), Tool("setpriv"), Tool("nft"), Tool("iptables-nft"));
    let (ns, folders) = (NetNs::new(), Folders::new());
    for meter in ["iptables", "nft"] {
        let args = ["run", "--no-proxy", "--count", "1", "--meter", meter, "--ports", "443"];
        let inner = folders.traffic(&ns, &args);
        let mut outer: Command = ns.command(need::tool("setpriv").expect("asked for"));
        outer.args(["--bounding-set", "-all,+dac_override"]);
        outer.arg(inner.get_program()).args(inner.get_args());
        let answer = Answer::of(&mut outer);
        assert_eq!(answer.code, Some(2), "{meter}: {}", answer.stderr);
        assert!(answer.stderr.contains("CAP_NET_ADMIN is missing"), "{meter}: {}", answer.stderr);
    }
    assert_eq!(ns.run(iptables::try_here), Ok(()));
}

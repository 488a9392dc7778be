//! What the programs do that nobody expects: two back ends at once, counters that are lost, answers
//! that are wrong, locks without an end.

use std::{env, fs, process::Command, thread};

use traffic_tests::{need, wait};
use traffic_user::{
    accounting::reading::{Coverage, Lane},
    meter::{
        MeterError,
        iptables::{Backend, Installed},
    },
};

use super::{Site, exchanged, lane, listed};

/// The back end of the program without a suffix.
fn usual(site: &Site) -> Backend {
    let version = site.here.ns.sh(&["iptables", "--version"]);
    if version.contains("nf_tables") { Backend::Nft } else { Backend::Legacy }
}

fn other(backend: Backend) -> Backend {
    if backend == Backend::Nft { Backend::Legacy } else { Backend::Nft }
}

/// Puts a rule into the back end in which the site has none.
fn fill_other(site: &Site) {
    for tool in ["iptables", "ip6tables"] {
        let name = format!("{tool}-{}", other(site.backend).name());
        site.here.ns.sh(&[&name, "-A", "INPUT", "-p", "tcp", "--dport", "25", "-j", "DROP"]);
    }
}

fn listed_other(site: &Site) -> String {
    let other = other(site.backend);
    ["iptables", "ip6tables"].map(|tool| listed(&site.here.ns, tool, other)).concat()
}

#[test]
fn with_both_back_ends_filled_the_hosts_own_is_used_and_the_other_is_not_touched() {
    need!(Root, Netns, Tool("ip"), Tool("iptables"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        fill_other(&site);
        // Listings now begin with a warning.
        let mut list = site.here.ns.command(need::tool("iptables-nft").expect("a tool"));
        let output = list.arg("-L").output().expect("list rules");
        let said = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&said).contains("# Warning: iptables-legacy tables"));

        let before = (site.listed(), listed_other(&site));
        let mut meter = site.start("443/udp", false).expect("start");
        assert_eq!(meter.backend(), usual(&site));
        site.exchange(false, 443, 4);
        site.exchange(true, 443, 5);
        let snapshot = site.read(&mut meter);
        assert_eq!(lane(&snapshot, "443/udp", Lane::Udp4), exchanged(false, 4));
        assert_eq!(lane(&snapshot, "443/udp", Lane::Udp6), exchanged(true, 5));
        assert_eq!(snapshot.coverage, Coverage::Complete);
        site.drop(meter);
        let clean = |text: &str| text.lines().filter(|l| !l.starts_with(':')).count();
        assert_eq!(clean(&site.listed()), clean(&before.0));
        assert_eq!(clean(&listed_other(&site)), clean(&before.1));
    }
}

#[test]
fn rules_that_are_in_one_back_end_stay_there_when_somebody_fills_the_other() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        let mut meter = site.start("443/udp", true).expect("start");
        site.exchange(false, 443, 4);
        let epoch = site.read(&mut meter).epoch;
        site.drop(meter);
        fill_other(&site);
        let theirs = listed_other(&site);
        let installed = site.here.ns.run(Installed::open).expect("open").expect("our rules");
        assert_eq!(site.here.ns.run(|| installed.read()).expect("read").epoch, epoch);
        let mut meter = site.start("443/udp", true).expect("adopt");
        assert_eq!(meter.backend(), site.backend);
        site.exchange(true, 443, 3);
        let snapshot = site.read(&mut meter);
        assert_eq!(snapshot.epoch, epoch);
        assert_eq!(lane(&snapshot, "443/udp", Lane::Udp4), exchanged(false, 4));
        assert_eq!(lane(&snapshot, "443/udp", Lane::Udp6), exchanged(true, 3));
        site.drop(meter);
        assert!(!listed_other(&site).contains("TRAFFIC") && !theirs.contains("TRAFFIC"));
    }
}

/// `ip6tables-nft` takes `restore -c` and forgets the numbers: whoever saves and restores loses them.
#[test]
fn no_change_of_ours_loses_a_counter_of_any_family() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        for tool in ["iptables", "ip6tables"] {
            site.sh(tool, "-A INPUT -p udp -m udp --dport 443");
        }
        let mut meter = site.start("443/udp", false).expect("start");
        for ipv6 in [false, true] {
            site.exchange(ipv6, 443, 6);
        }
        for groups in ["443/udp,80", "80,443/udp,5000-6000", "443/udp"] {
            site.watch(&mut meter, groups);
        }
        let snapshot = site.read(&mut meter);
        assert_eq!(lane(&snapshot, "443/udp", Lane::Udp4), exchanged(false, 6));
        assert_eq!(lane(&snapshot, "443/udp", Lane::Udp6), exchanged(true, 6));
        assert_eq!((snapshot.coverage, meter.losses()), (Coverage::Complete, Vec::new()));
        site.drop(meter);
        let listed = site.listed();
        for bytes in [6 * (72 + 28), 6 * (72 + 48)] {
            let rule = format!("[6:{bytes}] -A INPUT -p udp -m udp --dport 443\n");
            assert!(listed.contains(&rule), "{listed}");
        }
    }
}

/// `ip6tables-legacy -C` says yes to a rule that is not there, if there is one of the same shape.
#[test]
fn a_rule_of_the_same_shape_is_not_taken_for_ours() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    for site in Site::both() {
        for tool in ["iptables", "ip6tables"] {
            site.sh(tool, "-N TRAFFIC_AT");
            site.sh(tool, "-A INPUT -m comment --comment traffic -j TRAFFIC_AT");
            site.sh(tool, "-A TRAFFIC_AT -p udp -m udp --dport 444 -m comment --comment 443/udp");
        }
        let before = site.rules();
        let mut meter = site.start("443/udp", false).expect("start");
        site.exchange(true, 443, 2);
        let first = site.read(&mut meter);
        site.sh("ip6tables", "-D INPUT 1");
        let second = site.read(&mut meter);
        assert_ne!(first.epoch, second.epoch);
        assert_eq!(meter.losses(), ["IPv6: the jump from INPUT to TRAFFIC_IN was gone"]);
        site.exchange(true, 443, 3);
        let third = site.read(&mut meter);
        assert_eq!(lane(&third, "443/udp", Lane::Udp6), exchanged(true, 3));
        site.drop(meter);
        assert_eq!(site.rules(), before);
    }
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_and_no_longer() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"));
    // The lock's place is of a whole process: this test runs again in one with a lock of its own.
    let Some(path) = env::var_os("XTABLES_LOCKFILE") else {
        let folder = env::temp_dir().join(format!("traffic-xtables-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("make a folder");
        let name = "iptables::traps::a_lock_that_somebody_holds_is_waited_for_and_no_longer";
        let output = Command::new(env::current_exe().expect("our own path"))
            .args(["--exact", name, "--nocapture"])
            .env("XTABLES_LOCKFILE", folder.join("lock"))
            .output()
            .expect("run this test again");
        fs::remove_dir_all(&folder).expect("remove a folder");
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{error}");
        return;
    };
    let site = Site::new(Backend::Legacy);
    let before = site.rules();
    let file = fs::OpenOptions::new().read(true).open(path).expect("the lock");
    let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive);
    let held = held.map_err(|(_, error)| error).expect("take the lock");
    let error = site.start("443", false).err();
    assert!(matches!(error, Some(MeterError::Locked { seconds: 5, .. })), "{error:?}");
    assert_eq!(site.rules(), before);

    // One that is let go of in time costs nothing but the time.
    let inode = nix::sys::stat::fstat(&*held).expect("state of the lock").st_ino.to_string();
    let meter = thread::scope(|scope| {
        let starts = scope.spawn(|| site.start("443", false));
        wait::until("somebody who waits for the lock", || {
            let locks = fs::read_to_string("/proc/locks").expect("read the locks");
            let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
            locks.lines().any(waits).then_some(())
        });
        drop(held);
        starts.join().expect("the start")
    });
    site.drop(meter.expect("start once the lock is free"));
    assert_eq!(site.rules(), before);
}

//! Several network namespaces on one host, and one that gets the number of another that is gone.

use std::{fs, path::PathBuf};

use aya::maps::{Array, Map, MapData};
use traffic_tests::{
    daemon::Site,
    device::{Device, veth},
    leaks, need,
    netns::NetNs,
};

/// A device, and the other side of it, which has to live as long.
fn one_device() -> (Device, Device) {
    let (host, other) = (NetNs::new().without_ipv6(), NetNs::new().without_ipv6());
    veth((&host, "eth0"), (&other, "eth0"), 1)
}

#[test]
fn pins_of_a_daemon_in_another_namespace_are_left_to_it() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, (here, _there), (elsewhere, _far)) = (Site::new(), one_device(), one_device());
    let run = ["--iface", "eth0", "--ports", "5000", "--persist", "--meter", "tcx"];
    let mut daemon = site.start(&here.ns, &run);
    daemon.counts_on(&["eth0"]);
    let pins = leaks::pins(&site.pins);

    let refused = site.run(&elsewhere.ns, &["clean"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(refused.stderr.contains(&format!("pid {}", daemon.pid())), "{}", refused.stderr);
    // Its device has the number of one here, and is another.
    assert_eq!(here.index(), elsewhere.index());
    let dump = site.run(&elsewhere.ns, &["dump", "--json"]).json();
    assert_eq!(dump["devices"], serde_json::json!({}));
    // Nor does a run with rules take their place.
    let rules = ["run", "--persist", "--meter", "nft", "--ports", "5000", "--json", "--count", "2"];
    let rules = [&rules[..], &["--no-ledger", "--interval", "20ms"]].concat();
    if need::tool("nft").is_some() {
        let answer = site.run(&elsewhere.ns, &rules);
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    }
    assert_eq!(leaks::pins(&site.pins), pins);
    assert_eq!(daemon.stop().text("coverage"), "complete");

    // Without a daemon anybody with the rights may.
    assert_eq!(site.run(&elsewhere.ns, &["clean"]).code, Some(0));
    leaks::nothing(&here.ns, &site.pins);
}

#[test]
fn a_qdisc_in_a_namespace_with_the_number_of_one_that_is_gone_is_not_ours() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, (here, _there)) = (Site::new(), one_device());
    here.ns.sh(&["tc", "qdisc", "add", "dev", "eth0", "clsact"]);
    let note = PathBuf::from(format!("/run/traffic/clsact-{}-{}", here.ns.inode(), here.index()));
    fs::create_dir_all("/run/traffic").expect("the folder of notes");
    // As a killed run left it that had the same number; and as a version before cookies left it.
    for cookie in ["1", ""] {
        fs::write(&note, cookie).expect("write a note");
        let said = site.run(&here.ns, &["clean", "--dry-run"]);
        assert_eq!(said.stdout, "nothing of ours is here\n", "{cookie:?}");
        let run =
            ["run", "--iface", "eth0", "--ports", "1", "--meter", "tc", "--json", "--count", "1"];
        assert_eq!(site.run(&here.ns, &run).code, Some(0));
        assert_eq!(leaks::attached(&here.ns), ["eth0 clsact"], "{cookie:?}");
        assert_eq!(note.exists(), cookie.is_empty(), "a note of a namespace that is gone stays");
    }
    here.ns.ip("link del eth0");
    assert_eq!(site.run(&here.ns, &["clean"]).code, Some(0));
    assert!(!note.exists(), "a note of a device that is gone stays");
}

#[test]
fn pins_of_a_namespace_that_is_gone_are_not_taken_over_by_one_with_its_number() {
    need!(Root, Bpf, Object, Netns, Tool("ip"), Tool("tc"));
    let (site, (here, _there)) = (Site::new(), one_device());
    let run = ["run", "--iface", "eth0", "--ports", "1", "--persist", "--json", "--count", "1"];
    assert_eq!(site.run(&here.ns, &run).code, Some(0));
    let meta = MapData::from_pin(site.pins.join("maps/META")).expect("open META");
    let mut meta: Array<_, [u8; 80]> =
        Map::from_map_data(meta).and_then(Array::try_from).expect("META is an array");
    let mut value = meta.get(&0, 0).expect("read META");
    let netns = u64::from_ne_bytes(value[64..72].try_into().expect("eight bytes"));
    assert_eq!(netns & 0xffff_ffff, here.ns.inode());
    assert_ne!(netns >> 32, 0, "this kernel has cookies");
    let another = netns.wrapping_add(1 << 32);
    value[64..72].copy_from_slice(&another.to_ne_bytes());
    meta.set(0, value, 0).expect("write META");
    let refused = site.run(&here.ns, &run);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(refused.stderr.contains("count another network namespace"), "{}", refused.stderr);
    assert_eq!(site.run(&here.ns, &["clean"]).code, Some(0));
    leaks::nothing(&here.ns, &site.pins);
}

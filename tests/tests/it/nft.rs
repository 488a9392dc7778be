//! The fallback's meter with nftables, in namespaces of its own.

use std::collections::BTreeMap;

use traffic_tests::{need, netns::NetNs};
use traffic_user::{
    accounting::{
        ident::Groups,
        reading::{Coverage, Snapshot},
    },
    meter::nft::NftMeter,
};

fn groups(text: &str) -> Groups {
    Groups::parse(text, 60_000).expect("groups")
}

#[test]
fn rules_are_set_read_and_gone_again() {
    need!(Root, Netns, Tool("nft"));
    let ns = NetNs::new();
    ns.run(|| {
        let mut meter =
            NftMeter::start(&groups("443,8443/tcp,20000-20010/udp=hop"), false).unwrap();
        let snapshot = meter.read().unwrap();
        assert_eq!(snapshot.groups.len(), 3);
        assert_eq!(snapshot.coverage, Coverage::Complete);
        assert_eq!(meter.losses(), Vec::<String>::new());
    });
    assert_eq!(ns.sh(&["nft", "list", "ruleset"]), "");
}

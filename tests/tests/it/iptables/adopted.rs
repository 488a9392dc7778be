//! What happened to rules while nobody looked after them: the next start sees it.

use traffic_tests::need;
use traffic_user::{
    accounting::reading::{Coverage, Lane, Traffic},
    meter::iptables::{self, Backend},
};

use super::{Site, exchanged, lane};

#[test]
fn counters_that_were_set_back_are_missed_even_when_they_are_past_what_they_were() {
    need!(Root, Netns, Tool("ip"), Tool("iptables-legacy"), Tool("iptables-nft"));
    let sites = Site::both();
    let cases = sites.iter().flat_map(|site| [(site, "iptables", false), (site, "ip6tables", true)]);
    for (site, tool, ipv6) in cases {
        if ipv6 && site.backend == Backend::Nft {
            // `ip6tables-nft` 1.8.9 makes no rule that begins above zero.
            continue;
        }
        let mut meter = site.start("443/udp", true).expect("start");
        site.exchange(false, 443, 3);
        site.exchange(true, 443, 3);
        let first = site.read(&mut meter);
        site.drop(meter);
        site.sh(tool, "-Z");
        site.exchange(ipv6, 443, 9);
        let mut meter = site.start("443/udp", true).expect("adopt");
        let second = site.read(&mut meter);
        assert_ne!(second.epoch, first.epoch, "{tool}");
        assert_eq!(second.coverage, Coverage::Gap, "{tool}");
        let (set_back, other, family) =
            if ipv6 { (Lane::Udp6, Lane::Udp4, "IPv6") } else { (Lane::Udp4, Lane::Udp6, "IPv4") };
        assert_eq!(lane(&second, "443/udp", set_back), exchanged(ipv6, 9), "{tool}");
        // What the other family had was read before.
        assert_eq!(lane(&second, "443/udp", other), Traffic::default(), "{tool}");
        assert_eq!(meter.losses(), [format!("{family}: the counters were set back")]);
        site.drop(meter);

        // Once: the next start finds them as they were left.
        let mut meter = site.start("443/udp", true).expect("adopt again");
        let third = site.read(&mut meter);
        assert_eq!((third.epoch, third.total()), (second.epoch, second.total()), "{tool}");
        assert_eq!(meter.losses(), Vec::<String>::new(), "{tool}");
        site.drop(meter);
        site.here.ns.run(|| iptables::clean(false)).expect("clean");
    }
}

//! Two hosts with a cable between them, and `traffic` on one or both.

use traffic_tests::{
    daemon::{Daemon, Site},
    device::{self, Device},
    document::{Document, Traffic},
    netns::NetNs,
};

/// The port that is watched, as `--ports` and the documents write it.
pub(crate) const WATCHED: &str = "5001";
/// The same as a number.
pub(crate) const PORT: u16 = 5001;

/// The server, where the watched port is, and a client. Both call their device `eth0`.
pub(crate) struct Pair {
    /// Where `traffic` counts the watched port.
    pub(crate) server: Device,
    /// The other side.
    pub(crate) client: Device,
}

impl Pair {
    /// Fresh hosts. Their TCP acknowledges without selective options, so that every segment after
    /// the first has a header of the same size.
    pub(crate) fn new() -> Self {
        let hosts = [NetNs::new(), NetNs::new()];
        for host in &hosts {
            host.set("net/ipv4/tcp_sack", "0");
        }
        let [server, client] = &hosts;
        let (server, client) = device::veth((server, "eth0"), (client, "eth0"), 1);
        Self { server, client }
    }

    /// `traffic` on the server, counting, and at this hook.
    pub(crate) fn count(&self, site: &Site, hook: &str, more: &[&str]) -> Daemon {
        let mut args = vec!["--ports", WATCHED, "--meter", hook];
        let devices: &[&str] = if hook == "cgroup" { &[] } else { &["eth0"] };
        for device in devices {
            args.extend(["--iface", device]);
        }
        args.extend(more);
        let mut daemon = site.start(&self.server.ns, &args);
        daemon.counts_on(devices);
        daemon
    }
}

/// What was counted for the watched port, and nothing for any other.
#[track_caller]
pub(crate) fn assert_counted(document: &Document, hook: &str, lanes: &[(&str, Traffic)]) {
    assert_eq!(document.text("meter"), hook);
    assert_eq!(document.text("coverage"), "complete");
    let mut total = Traffic::default();
    for (lane, wanted) in lanes {
        assert_eq!(document.lane(WATCHED, lane), *wanted, "{lane} of {}", document.0);
        total += *wanted;
    }
    assert_eq!(document.total(), total, "{}", document.0);
    // Its sums hold.
    document.everything();
}

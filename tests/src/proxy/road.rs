//! The way from a user to what he fetches: client, router, server, origin, each in a namespace.

use crate::{
    device::{Device, veth},
    netns::NetNs,
};

/// What a TCP receiver lets be on its way, at most: fewer packets than any queue on the way holds, so
/// that none is lost and the wire carried what the server saw.
const WINDOW: u32 = 128 << 10;

/// Four namespaces in a row. The ends have their offloads on and send large buffers, which the router
/// cuts on their way out: captures of what leaves its two devices are the truth for what the server's
/// device counts.
#[derive(Debug)]
pub struct Road {
    /// Where the users are: its device `eth0` leads to the router.
    pub client: Device,
    /// The router's device towards the client.
    pub near: Device,
    /// The router's device towards the server.
    pub far: Device,
    /// The server's device `eth0`, towards its users.
    pub server: Device,
    /// The server's device `back`, towards the origin.
    pub back: Device,
    /// Where the origin is.
    pub origin: Device,
}

impl Road {
    /// All devices are up, with addresses and routes of both families.
    ///
    /// # Panics
    ///
    /// When `ip` or `ethtool` cannot make them.
    pub fn new() -> Self {
        let [client, router, server, origin] = [(); 4].map(|()| NetNs::new());
        router.forward();
        for ns in [&client, &server, &origin] {
            ns.set("net/ipv4/tcp_rmem", &format!("4096 {WINDOW} {WINDOW}"));
        }
        let (client, near) = veth((&client, "eth0"), (&router, "near"), 1);
        let (far, server) = veth((&router, "far"), (&server, "eth0"), 2);
        let (back, origin) = veth((&server.ns, "back"), (&origin, "eth0"), 3);
        client.default_route(&near);
        server.default_route(&far);
        near.cuts();
        far.cuts();
        Self { client, near, far, server, back, origin }
    }
}

impl Default for Road {
    fn default() -> Self {
        Self::new()
    }
}

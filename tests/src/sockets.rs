//! What the sockets of a namespace are doing, as `/proc` tells it.

use std::fs;

use crate::{netns::NetNs, wait};

/// `TIME_WAIT`: sends no more by itself.
const TIME_WAIT: &str = "06";
const LISTEN: &str = "0A";
/// What UDP sockets without a peer are in.
const CLOSE: &str = "07";

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    local: u16,
    remote: u16,
    state: String,
}

/// Sockets of both families.
fn table(ns: &NetNs, udp: bool) -> Vec<Line> {
    let names = if udp { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
    let texts = ns.run(|| {
        names.map(|name| {
            fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("read the sockets")
        })
    });
    texts.iter().flat_map(|text| text.lines().skip(1)).filter_map(line).collect()
}

/// `0: 0100007F:1F90 00000000:0000 0A …`
fn line(text: &str) -> Option<Line> {
    let mut words = text.split_whitespace().skip(1);
    let mut port = || u16::from_str_radix(words.next()?.rsplit_once(':')?.1, 16).ok();
    let (local, remote) = (port()?, port()?);
    Some(Line { local, remote, state: words.next()?.to_owned() })
}

/// Whether something takes what comes to this port, at whatever address.
pub fn takes(ns: &NetNs, udp: bool, port: u16) -> bool {
    let state = if udp { CLOSE } else { LISTEN };
    table(ns, udp).iter().any(|line| (line.local, line.remote) == (port, 0) && line.state == state)
}

/// Waits until no TCP connection with this port at either end can send anything any more: all are
/// closed, and the last acknowledgement has arrived.
///
/// # Panics
///
/// When one goes on.
#[track_caller]
pub fn settled(namespaces: &[&NetNs], port: u16) {
    let goes_on = |line: &Line| {
        (line.local == port || line.remote == port)
            && !matches!(line.state.as_str(), TIME_WAIT | LISTEN)
    };
    wait::until(&format!("the end of the connections of port {port}"), || {
        let open = namespaces.iter().any(|ns| table(ns, false).iter().any(goes_on));
        (!open).then_some(())
    });
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::{load, need};

    #[test]
    fn a_line_of_the_table_is_two_ports_and_a_state() {
        let text = "   1: 00000000000000000000000000000000:01BB \
                    0000000000000000FFFF00000201000A:C350 01 00000000:00000000";
        let wanted = Line { local: 443, remote: 50_000, state: "01".to_owned() };
        assert_eq!(line(text), Some(wanted));
        assert_eq!(line(""), None);
    }

    #[test]
    fn a_port_is_taken_by_the_socket_that_waits_there() {
        need!(Root, Netns, Tool("ip"));
        let ns = NetNs::new();
        let socket = load::udp_at(&ns, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let port = socket.local_addr().expect("its address").port();
        assert!(takes(&ns, true, port));
        assert!(!takes(&ns, false, port));
        drop(socket);
        // A child that another test starts right now has the socket too until it runs its program.
        wait::until("the end of the socket", || (!takes(&ns, true, port)).then_some(()));
    }
}

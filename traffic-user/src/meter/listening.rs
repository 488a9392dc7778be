//! The ports that something on this host listens on: what is watched when nothing was asked for.

use std::{collections::BTreeMap, net::SocketAddr};

use procfs::{
    ProcError,
    net::{TcpState, UdpState},
};

use super::error::{MeterError, cause};
use crate::accounting::ident::{Group, Transport};

/// Which transports are open on a port.
#[derive(Clone, Copy, Default)]
struct Open {
    tcp: bool,
    udp: bool,
}

/// One group for each port that is open to others, in ascending order.
///
/// TCP: sockets that listen. UDP: sockets without a peer, except in the range from which the kernel
/// hands out ports to clients (`ip_local_port_range`), where nobody can tell a server from a client.
/// Sockets on a loopback address are left out, since no device brings them traffic.
///
/// Source: `/proc/thread-self/net/{tcp,tcp6,udp,udp6}`, so the caller's network namespace.
///
/// # Errors
///
/// [`MeterError::Netlink`] when `/proc` cannot be read.
pub fn listening() -> Result<Vec<Group>, MeterError> {
    let failed = |error: ProcError| MeterError::Netlink {
        doing: "list the sockets that listen",
        cause: cause(error),
    };
    let mut tcp = procfs::net::tcp().map_err(failed)?;
    let mut udp = procfs::net::udp().map_err(failed)?;
    tcp.extend(or_absent(procfs::net::tcp6()).map_err(failed)?);
    udp.extend(or_absent(procfs::net::udp6()).map_err(failed)?);
    let listen = tcp.iter().filter(|socket| socket.state == TcpState::Listen);
    let wait = udp
        .iter()
        .filter(|socket| socket.state == UdpState::Close && socket.remote_address.port() == 0);
    Ok(groups(
        listen.map(|socket| socket.local_address),
        wait.map(|socket| socket.local_address),
        client_ports(),
    ))
}

/// A kernel without IPv6 has no such list.
fn or_absent<T>(listed: Result<Vec<T>, ProcError>) -> Result<Vec<T>, ProcError> {
    match listed {
        Err(ProcError::NotFound(_)) => Ok(Vec::new()),
        listed => listed,
    }
}

/// Groups of the TCP sockets that listen and the UDP sockets that wait.
fn groups(
    tcp: impl Iterator<Item = SocketAddr>,
    udp: impl Iterator<Item = SocketAddr>,
    clients: (u16, u16),
) -> Vec<Group> {
    let mut open: BTreeMap<u16, Open> = BTreeMap::new();
    for address in tcp.filter(|address| is_public(*address)) {
        open.entry(address.port()).or_default().tcp = true;
    }
    for address in udp.filter(|address| is_public(*address)) {
        if !(clients.0..=clients.1).contains(&address.port()) {
            open.entry(address.port()).or_default().udp = true;
        }
    }
    open.into_iter()
        .filter_map(|(port, open)| {
            let transport = match (open.tcp, open.udp) {
                (true, true) => Transport::Both,
                (true, false) => Transport::Tcp,
                (false, _) => Transport::Udp,
            };
            Group::single(port, transport)
        })
        .collect()
}

fn is_public(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

fn client_ports() -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = text.ok().and_then(|text| {
        let mut words = text.split_ascii_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    range.unwrap_or((32_768, 60_999))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_can_reach_is_watched() {
        let sockets = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>().into_iter()
        };
        let tcp = sockets(&["0.0.0.0:443", "[::]:8443", "127.0.0.1:10085", "[::1]:631"]);
        let udp = sockets(&["0.0.0.0:443", "0.0.0.0:53", "0.0.0.0:40000", "[::ffff:127.0.0.1]:69"]);
        let found: Vec<_> =
            groups(tcp, udp, (32_768, 60_999)).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["53/udp", "443", "8443/tcp"]);
    }
}

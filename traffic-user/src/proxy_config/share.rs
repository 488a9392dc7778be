//! Inbounds that can be counted together: each port of a transport in one of them, each name once.

use std::{collections::HashSet, sync::Arc};

use super::{findings::Findings, merge::Entry, shown};
use crate::accounting::{
    ident::{Group, GroupError, PortRange, Transport},
    proxy::{Inbound, Users},
};

const PORTS: usize = 1 << 16;

/// Nobody's.
const FREE: u32 = u32::MAX;

/// The inbounds so far, and whose each port is.
pub(super) struct Shared {
    inbounds: Vec<Inbound>,
    titles: Vec<String>,
    names: HashSet<Arc<str>>,
    tcp: Vec<u32>,
    udp: Vec<u32>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let free = || vec![FREE; PORTS];
        let (inbounds, titles) = (Vec::new(), Vec::new());
        Self { inbounds, titles, names: HashSet::new(), tcp: free(), udp: free() }
    }

    pub(super) fn inbounds(self) -> Vec<Inbound> {
        self.inbounds
    }

    /// Adds an inbound with those of its ports that no earlier one has.
    ///
    /// The kernel sees a port, not which inbound of a port a connection goes to. So where inbounds
    /// share ports, the first one is charged for them, and the users of one that has no port of its
    /// own are counted with the first one's.
    pub(super) fn add(
        &mut self,
        entry: &Entry<'_>,
        ranges: &[PortRange],
        transport: Transport,
        users: Users,
        findings: &mut Findings,
    ) {
        let (ranges, transport) = match self.left(ranges, transport) {
            Left::All => (ranges.to_vec(), transport),
            Left::Some { ranges, transport, owner } => {
                findings.problem(
                    entry.node,
                    format!(
                        "{} shares ports with {}, which is charged for them: give each inbound its \
                         own port",
                        entry.name(),
                        self.titles[owner]
                    ),
                );
                (ranges, transport)
            }
            Left::None { owner } => {
                findings.problem(
                    entry.node,
                    format!(
                        "{} shares its ports with {}: both are counted there, with the users of \
                         both; give each inbound its own port",
                        entry.name(),
                        self.titles[owner]
                    ),
                );
                join(&mut self.inbounds[owner].users, users);
                return;
            }
        };
        let Some(group) = self.group(entry, ranges, transport, findings) else { return };
        let number = u32::try_from(self.inbounds.len()).unwrap_or(FREE);
        for port in group.ports() {
            if transport.tcp() {
                self.tcp[usize::from(port)] = number;
            }
            if transport.udp() {
                self.udp[usize::from(port)] = number;
            }
        }
        let (tag, protocol) = (entry.tag.clone(), Arc::clone(&entry.protocol));
        self.titles.push(entry.name());
        self.inbounds.push(Inbound { group, tag, protocol, users });
    }

    /// Which ports nobody has yet.
    fn left(&self, ranges: &[PortRange], transport: Transport) -> Left {
        let owner = |port: u16| {
            let port = usize::from(port);
            let tcp = if transport.tcp() { self.tcp[port] } else { FREE };
            let udp = if transport.udp() { self.udp[port] } else { FREE };
            (tcp, udp)
        };
        let ports = || ranges.iter().flat_map(|range| range.ports());
        let Some(first) = ports().map(owner).find(|owners| *owners != (FREE, FREE)) else {
            return Left::All;
        };
        let first = if first.0 == FREE { first.1 } else { first.0 };
        let owners: Vec<_> = ports().map(|port| (port, owner(port))).collect();
        let owner = usize::try_from(first).unwrap_or_default();
        let all = |taken: fn(&(u32, u32)) -> bool| owners.iter().all(|(_, owners)| taken(owners));
        // One transport is taken as a whole and the other is free: that one is left.
        let one = match transport {
            Transport::Both if all(|(tcp, udp)| *tcp != FREE && *udp == FREE) => {
                Some(Transport::Udp)
            }
            Transport::Both if all(|(tcp, udp)| *tcp == FREE && *udp != FREE) => {
                Some(Transport::Tcp)
            }
            Transport::Both | Transport::Tcp | Transport::Udp => None,
        };
        if let Some(transport) = one {
            return Left::Some { ranges: ranges.to_vec(), transport, owner };
        }
        let free = owners.iter().filter(|(_, owners)| *owners == (FREE, FREE));
        let ranges: Vec<_> = free.filter_map(|(port, _)| PortRange::new(*port, *port)).collect();
        if ranges.is_empty() {
            Left::None { owner }
        } else {
            Left::Some { ranges, transport, owner }
        }
    }

    /// The group of an inbound, named by its tag where a group can have that name.
    fn group(
        &mut self,
        entry: &Entry<'_>,
        ranges: Vec<PortRange>,
        transport: Transport,
        findings: &mut Findings,
    ) -> Option<Group> {
        if let Some(tag) = &entry.tag {
            if !self.names.insert(Arc::clone(tag)) {
                findings.problem(
                    entry.node,
                    format!("the tag `{}` is used twice: give each inbound its own", shown(tag)),
                );
            } else if let Ok(group) = Group::new(ranges.clone(), transport, Some(tag.to_string())) {
                return Some(group);
            }
        }
        match Group::new(ranges, transport, None) {
            Ok(group) => Some(group),
            Err(GroupError::TooLong(_)) => {
                findings.problem(
                    entry.node,
                    format!(
                        "{} has too many separate ports, so it is not counted: use ranges, or \
                         several inbounds",
                        entry.name()
                    ),
                );
                None
            }
            Err(error) => {
                findings.problem(entry.node, error.to_string());
                None
            }
        }
    }
}

/// What of an inbound's ports is left for it.
enum Left {
    All,
    Some { ranges: Vec<PortRange>, transport: Transport, owner: usize },
    None { owner: usize },
}

/// Adds the users of an inbound to those of another on the same port.
fn join(users: &mut Users, more: Users) {
    let known: HashSet<Arc<str>> = users.emails.iter().cloned().collect();
    users.emails.extend(more.emails.into_iter().filter(|email| !known.contains(email)));
    users.nameless += more.nameless;
    users.unknown |= more.unknown;
}

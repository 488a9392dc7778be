//! Questions to nf_tables, over nfnetlink: one socket, one question at a time.
//!
//! `nft -j` takes tens of milliseconds for what the kernel says in two, and lists the rules of the
//! whole host each time. So nothing is read through it.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use netlink_packet_core::NetlinkBuffer;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::parse::{self, Count, Family, Found, Table};
use crate::meter::error::{MeterError, cause};

/// Name of our tables.
pub(super) const TABLE: &str = "traffic";

/// Of all families.
const NFPROTO_UNSPEC: u8 = 0;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;

const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_GETGEN: u16 = 16;
const NFT_MSG_GETOBJ: u16 = 19;
const NFT_MSG_GETFLOWTABLE: u16 = 23;

/// In all the messages about a thing of a table its table is the first attribute.
const OF_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// Of a removal: not with what is in it.
const NLM_F_NONREC: u16 = 0x100;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const NETLINK_HEADER: usize = 16;
/// `struct nfgenmsg`: family, version, resource.
const GENERIC_HEADER: usize = 4;
/// The kernel fills what it is given, up to this.
const BUFFER: usize = 32 << 10;
/// The kernel answers at once, or waits for another's transaction.
const DEADLINE_SECONDS: i64 = 10;
/// A dump that a change has cut in two is asked for again, at most so often.
const TRIES: u32 = 20;

/// A socket to nf_tables of the network namespace in which it was opened.
pub(super) struct Kernel {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Why there is no answer.
enum No {
    /// The kernel says so.
    Errno(Errno),
    /// The rules changed while they were listed.
    Changed,
}

impl From<Errno> for No {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Kernel {
    /// # Errors
    ///
    /// [`MeterError::Unsupported`] where the kernel has no nfnetlink.
    pub(super) fn open() -> Result<Self, MeterError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        );
        let socket = socket.and_then(|socket| {
            let deadline = TimeVal::seconds(DEADLINE_SECONDS);
            setsockopt(&socket, sockopt::ReceiveTimeout, &deadline)?;
            Ok(socket)
        });
        let socket = socket.map_err(|errno| MeterError::Unsupported {
            feature: "counting with nftables",
            reason: format!("no netlink socket to netfilter: {}", errno.desc()),
        })?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// A number that changes with every change of any rule in this network namespace.
    pub(super) fn generation(&mut self) -> Result<u32, MeterError> {
        let mut generation = None;
        self.ask(NFPROTO_UNSPEC, NFT_MSG_GETGEN, NLM_F_ACK, &[], |_, body| {
            generation = parse::generation(body);
        })
        .map_err(|no| failed("ask for the generation of the nft rules", no))?;
        Ok(generation.unwrap_or(0))
    }

    /// Whether the table `filter` of this version of IP, where `iptables-nft` has its rules, is there, or a
    /// chain of this name in it.
    pub(super) fn has_filter(
        &mut self,
        ipv6: bool,
        chain: Option<&str>,
    ) -> Result<bool, MeterError> {
        let name = chain.map(|chain| format!("{chain}\0"));
        let kind = if chain.is_some() { NFT_MSG_GETCHAIN } else { NFT_MSG_GETTABLE };
        let which = in_filter(name.as_deref());
        let mut found = false;
        match self.ask(version(ipv6), kind, NLM_F_ACK, &which, |_, _| found = true) {
            Ok(()) => Ok(found),
            Err(No::Errno(Errno::ENOENT)) => Ok(false),
            Err(no) => Err(failed("look for a chain", no)),
        }
    }

    /// Whether that table has any chain.
    pub(super) fn filter_has_chains(&mut self, ipv6: bool) -> Result<bool, MeterError> {
        let mut found = false;
        let which = in_filter(None);
        // Old kernels list the chains of all tables.
        let mut look = |_, body: &[u8]| found |= parse::is_of(body, "filter");
        match self.dump(version(ipv6), NFT_MSG_GETCHAIN, &which, &mut look) {
            Ok(()) => Ok(found),
            Err(No::Errno(Errno::ENOENT)) => Ok(false),
            Err(no) => Err(failed("look for chains", no)),
        }
    }

    /// Takes a chain of that table away, or all of it; only where nothing is in it.
    pub(super) fn remove_filter(
        &mut self,
        ipv6: bool,
        chain: Option<&str>,
    ) -> Result<(), MeterError> {
        let name = chain.map(|chain| format!("{chain}\0"));
        let kind = if chain.is_some() { NFT_MSG_DELCHAIN } else { NFT_MSG_DELTABLE };
        let which = in_filter(name.as_deref());
        match self.change(version(ipv6), kind, NLM_F_NONREC, &which) {
            Ok(()) | Err(No::Errno(Errno::ENOENT)) => Ok(()),
            Err(no) => Err(failed("remove an empty chain", no)),
        }
    }

    /// All counters of our tables, in one list; none of a table that is not there.
    pub(super) fn counters(
        &mut self,
        each: &mut impl FnMut(Family, &str, Count),
    ) -> Result<(), MeterError> {
        let of_kind = parse::COUNTER.to_be_bytes();
        let only = [(OF_TABLE, TABLE_Z), (NFTA_OBJ_TYPE, &of_kind[..])];
        let read = self.dump(NFPROTO_UNSPEC, NFT_MSG_GETOBJ, &only, &mut |family, body| {
            // Other families may have a table of this name, which is none of ours.
            let ours = Family::OURS.into_iter().find(|ours| ours.number() == family);
            if let (Some(family), Some((name, count))) = (ours, parse::counter(body, TABLE)) {
                each(family, name, count);
            }
        });
        match read {
            Err(No::Errno(Errno::ENOENT)) => Ok(()),
            other => other.map_err(|no| failed("read the nft counters", no)),
        }
    }

    /// All that is in the tables of our name of these families, at one time.
    pub(super) fn tables(&mut self, families: &[Family]) -> Result<Found, MeterError> {
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let mut found = Found { generation, ..Found::default() };
            match families.iter().try_for_each(|family| self.add_table(*family, &mut found)) {
                Ok(()) => {}
                Err(No::Changed | No::Errno(Errno::ENOENT)) => continue,
                Err(no) => return Err(failed("list the nft tables of our name", no)),
            }
            if self.generation()? == generation {
                return Ok(found);
            }
        }
        Err(failed("list the nft tables of our name", No::Changed))
    }

    fn add_table(&mut self, family: Family, found: &mut Found) -> Result<(), No> {
        let mut table = Table::default();
        let only = [(OF_TABLE, TABLE_Z)];
        let number = family.number();
        match self.ask(number, NFT_MSG_GETTABLE, NLM_F_ACK, &only, |_, body| table.add_table(body))
        {
            // Kernels that lack a family say either; whether they do is found out by setting one.
            Err(No::Errno(Errno::ENOENT | Errno::EAFNOSUPPORT)) => return Ok(()),
            other => other?,
        }
        let mut list = |kind, add: fn(&mut Table, &[u8], &str)| {
            self.dump(number, kind, &only, &mut |_, body| add(&mut table, body, TABLE))
        };
        list(NFT_MSG_GETCHAIN, Table::add_chain)?;
        list(NFT_MSG_GETRULE, Table::add_rule)?;
        list(NFT_MSG_GETSET, Table::add_map)?;
        list(NFT_MSG_GETOBJ, Table::add_object)?;
        list(NFT_MSG_GETFLOWTABLE, Table::add_flowtable)?;
        for map in &mut table.maps {
            let mut name = map.name.clone().into_bytes();
            name.push(0);
            let only = [(OF_TABLE, TABLE_Z), (NFTA_SET_ELEM_LIST_SET, &name[..])];
            map.elements.clear();
            self.dump(number, NFT_MSG_GETSETELEM, &only, &mut |_, body| map.add_elements(body))?;
        }
        found.tables.insert(family, table);
        Ok(())
    }

    /// A list of things, each with the number of its family.
    fn dump(
        &mut self,
        family: u8,
        kind: u16,
        only: &[(u16, &[u8])],
        each: &mut impl FnMut(u8, &[u8]),
    ) -> Result<(), No> {
        for _ in 0..TRIES {
            // A part of a list that has changed is not passed on, or things would be there twice.
            let mut bodies = Vec::new();
            let keep = |family, body: &[u8]| bodies.push((family, body.to_vec()));
            match self.ask(family, kind, NLM_F_DUMP, only, keep) {
                Err(No::Changed) => {}
                Err(no) => return Err(no),
                Ok(()) => {
                    bodies.iter().for_each(|(family, body)| each(*family, body));
                    return Ok(());
                }
            }
        }
        Err(No::Changed)
    }

    /// One change, in a batch of its own.
    fn change(
        &mut self,
        family: u8,
        kind: u16,
        flags: u16,
        attributes: &[(u16, &[u8])],
    ) -> Result<(), No> {
        self.sequence = self.sequence.wrapping_add(1);
        // All of one number: what is wrong with the batch is answered to its begin.
        let mut batch = batch_edge(NFNL_MSG_BATCH_BEGIN, self.sequence);
        batch.extend(request(
            family,
            of_nf_tables(kind),
            NLM_F_ACK | flags,
            self.sequence,
            attributes,
        ));
        batch.extend(batch_edge(NFNL_MSG_BATCH_END, self.sequence));
        self.exchange(&batch, |_, _| {})
    }

    /// One question, and each message of the answer with the number of its family.
    fn ask(
        &mut self,
        family: u8,
        kind: u16,
        flags: u16,
        attributes: &[(u16, &[u8])],
        each: impl FnMut(u8, &[u8]),
    ) -> Result<(), No> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = request(family, of_nf_tables(kind), flags, self.sequence, attributes);
        self.exchange(&message, each)
    }

    /// Sends messages of the last number, and takes the answer.
    fn exchange(&mut self, message: &[u8], mut each: impl FnMut(u8, &[u8])) -> Result<(), No> {
        let kernel = NetlinkAddr::new(0, 0);
        let socket = self.socket.as_raw_fd();
        sendto(socket, message, &kernel, MsgFlags::empty())?;
        let mut changed = false;
        loop {
            let length = match recv(socket, &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                other => other?,
            };
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Ok(message) = NetlinkBuffer::new_checked(rest) {
                let size = (message.length() as usize).next_multiple_of(4).min(rest.len());
                if size < NETLINK_HEADER {
                    break;
                }
                rest = rest.get(size..).unwrap_or_default();
                if message.sequence_number() != self.sequence {
                    // The rest of an answer that was given up.
                    continue;
                }
                changed |= message.flags() & NLM_F_DUMP_INTR != 0;
                let payload = message.payload();
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match code(payload) {
                            0 if changed => Err(No::Changed),
                            0 => Ok(()),
                            code => Err(Errno::from_raw(-code).into()),
                        };
                    }
                    _ => {
                        let family = payload.first().copied().unwrap_or(NFPROTO_UNSPEC);
                        each(family, payload.get(GENERIC_HEADER..).unwrap_or_default());
                    }
                }
            }
        }
    }
}

/// [`TABLE`] as the kernel wants it.
const TABLE_Z: &[u8] = b"traffic\0";

/// The number that an error and the end of a list begin with.
fn code(payload: &[u8]) -> i32 {
    payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes))
}

/// The table `filter`, or a chain in it, whose name ends with a zero.
fn in_filter(chain: Option<&str>) -> Vec<(u16, &[u8])> {
    let chain = chain.map(|chain| (NFTA_CHAIN_NAME, chain.as_bytes()));
    [(OF_TABLE, &b"filter\0"[..])].into_iter().chain(chain).collect()
}

const fn version(ipv6: bool) -> u8 {
    if ipv6 { Family::Ip6.number() } else { Family::Ip.number() }
}

const fn of_nf_tables(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// Begin or end of a change of nf_tables.
fn batch_edge(kind: u16, sequence: u32) -> Vec<u8> {
    let mut message = request(NFPROTO_UNSPEC, kind, 0, sequence, &[]);
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    message.splice(NETLINK_HEADER + 2..NETLINK_HEADER + GENERIC_HEADER, [high, low]);
    message
}

fn request(
    family: u8,
    kind: u16,
    flags: u16,
    sequence: u32,
    attributes: &[(u16, &[u8])],
) -> Vec<u8> {
    let mut message = vec![0; NETLINK_HEADER];
    message.extend([family, 0, 0, 0]);
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut header = NetlinkBuffer::new(&mut message);
    header.set_length(length);
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | flags);
    header.set_sequence_number(sequence);
    message
}

fn failed(doing: &'static str, no: No) -> MeterError {
    match no {
        No::Errno(Errno::EPERM | Errno::EACCES) => {
            MeterError::Denied { doing, capability: "CAP_NET_ADMIN".into() }
        }
        No::Errno(errno @ (Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT)) => {
            MeterError::Unsupported {
                feature: "counting with nftables",
                reason: format!("the kernel does not know nf_tables: {}", errno.desc()),
            }
        }
        No::Errno(errno) => MeterError::Netlink { doing, cause: cause(io::Error::from(errno)) },
        No::Changed => {
            let error = io::Error::other("the rules of this host change all the time");
            MeterError::Netlink { doing, cause: cause(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_its_length_and_its_attributes_are_aligned() {
        let attributes = [(OF_TABLE, &b"abcd\0"[..])];
        let family = Family::Ip6.number();
        let message = request(family, of_nf_tables(NFT_MSG_GETTABLE), NLM_F_ACK, 7, &attributes);
        assert_eq!(message.len(), 16 + 4 + 12);
        let buffer = NetlinkBuffer::new_checked(&message[..]).unwrap();
        assert_eq!((buffer.length(), buffer.message_type(), buffer.flags()), (32, 0x0a01, 5));
        assert_eq!(message[16..24], [10, 0, 0, 0, 9, 0, 1, 0]);
    }

    #[test]
    fn a_batch_says_at_both_ends_that_it_is_of_nf_tables() {
        for (kind, number) in [(NFNL_MSG_BATCH_BEGIN, 16), (NFNL_MSG_BATCH_END, 17)] {
            let message = batch_edge(kind, 7);
            let buffer = NetlinkBuffer::new_checked(&message[..]).unwrap();
            let header = (buffer.length(), buffer.message_type(), buffer.sequence_number());
            assert_eq!(header, (20, number, 7));
            assert_eq!(message[16..20], [0, 0, 0, 10]);
        }
    }
}

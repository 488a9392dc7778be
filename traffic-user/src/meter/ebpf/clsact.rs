//! Filters of the clsact qdisc: ours among those of others, found by the name of their program.

use futures_util::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcOption};
use traffic_ebpf::abi::programs;

use crate::meter::{error::MeterError, netlink};

const CLSACT: &str = "clsact";
/// Stands where clsact would, and has no side for what leaves.
const INGRESS: &str = "ingress";
const KIND_BPF: &str = "bpf";

/// Which side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Side {
    /// What enters.
    Input,
    /// What leaves.
    Output,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Input, Self::Output];

    const fn parent(self) -> TcHandle {
        match self {
            Self::Input => TcHandle { major: 0xffff, minor: 0xfff2 },
            Self::Output => TcHandle { major: 0xffff, minor: 0xfff3 },
        }
    }

    /// `in` or `out`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Input => "in",
            Self::Output => "out",
        }
    }
}

/// A filter on one side of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) side: Side,
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// Name of the eBPF program, where it is one.
    pub(super) program: Option<String>,
}

impl Filter {
    /// Whether it carries the name of a program of ours.
    pub(super) fn is_ours(&self) -> bool {
        let programs =
            [programs::ETHERNET_IN, programs::ETHERNET_OUT, programs::BARE_IN, programs::BARE_OUT];
        self.program.as_deref().is_some_and(|name| programs.contains(&name))
    }
}

/// All filters on both sides of a device. Empty without a clsact qdisc.
pub(super) fn filters(index: u32) -> Result<Vec<Filter>, MeterError> {
    netlink::ask("list the filters of a device", |handle| async move {
        let mut found = Vec::new();
        for side in Side::BOTH {
            let index = index.cast_signed();
            let request = match side {
                Side::Input => handle.traffic_filter(index).get().ingress(),
                Side::Output => handle.traffic_filter(index).get().egress(),
            };
            let mut messages = request.execute();
            while let Some(message) = messages.try_next().await.or_else(none_without_support)? {
                let header = &message.header;
                // Old kernels answer a question about one side with the filters of both.
                if header.index != index
                    || header.parent != side.parent()
                    || header.handle == TcHandle::default()
                {
                    continue;
                }
                let bpf = message
                    .attributes
                    .iter()
                    .any(|nla| matches!(nla, TcAttribute::Kind(kind) if kind == KIND_BPF));
                let program = message.attributes.iter().filter(|_| bpf).find_map(|nla| match nla {
                    TcAttribute::Options(options) => {
                        options.iter().find_map(|option| match option {
                            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
                            _ => None,
                        })
                    }
                    _ => None,
                });
                found.push(Filter {
                    side,
                    priority: u16::try_from(header.info >> 16).unwrap_or(u16::MAX),
                    handle: header.handle.into(),
                    program,
                });
            }
        }
        Ok::<_, rtnetlink::Error>(found)
    })
}

/// A kernel that was built without filters or queueing disciplines has none.
fn none_without_support<T>(error: rtnetlink::Error) -> Result<Option<T>, rtnetlink::Error> {
    match error {
        rtnetlink::Error::NetlinkError(error) if error.raw_code().abs() == libc::EOPNOTSUPP => {
            Ok(None)
        }
        error => Err(error),
    }
}

/// What is in the one place of a device where clsact can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing.
    Free,
    /// A clsact qdisc, of whomever: filters of many stand side by side on it.
    Clsact,
    /// An ingress qdisc of somebody else.
    Ingress,
}

/// What is where a clsact qdisc of the device would be.
pub(super) fn place(index: u32) -> Result<Place, MeterError> {
    netlink::ask("list the queueing disciplines of a device", |handle| async move {
        let mut qdiscs = handle.qdisc().get().index(index.cast_signed()).execute();
        let mut found = Place::Free;
        while let Some(message) = qdiscs.try_next().await.or_else(none_without_support)? {
            // Old kernels answer with the qdiscs of all devices.
            if message.header.index != index.cast_signed() {
                continue;
            }
            for nla in &message.attributes {
                match nla {
                    TcAttribute::Kind(kind) if kind == CLSACT => found = Place::Clsact,
                    TcAttribute::Kind(kind) if kind == INGRESS => found = Place::Ingress,
                    _ => {}
                }
            }
        }
        Ok::<_, rtnetlink::Error>(found)
    })
}

/// Takes the clsact qdisc off, with all that is on it: only for one that we made and that nobody
/// else uses.
pub(super) fn delete_clsact(index: u32) -> Result<(), MeterError> {
    netlink::ask("remove the clsact qdisc", |handle| async move {
        let mut request = handle.qdisc().del(index.cast_signed());
        let message = request.message_mut();
        message.header.parent = TcHandle { major: 0xffff, minor: 0xfff1 };
        message.header.handle = TcHandle { major: 0xffff, minor: 0 };
        request.execute().await
    })
}

/// Lowest priority, from 2 on, that no filter on this side has.
///
/// A program of others that ends the chain hides what comes after it, so we want to be early; 1 is
/// left to those who take it without looking.
pub(super) fn free_priority(filters: &[Filter], side: Side) -> u16 {
    (2..=u16::MAX)
        .find(|priority| !filters.iter().any(|f| f.side == side && f.priority == *priority))
        .unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::ErrorMessage;

    use super::*;

    #[test]
    fn a_free_priority_is_found_and_the_first_is_left_alone() {
        let filter = |priority| Filter { side: Side::Input, priority, handle: 1, program: None };
        let filters = [filter(1), filter(2), filter(4)];
        assert_eq!(free_priority(&filters, Side::Input), 3);
        assert_eq!(free_priority(&filters, Side::Output), 2);
    }

    #[test]
    fn a_kernel_without_filters_has_none() {
        let answer = |code: i32| {
            let mut message = ErrorMessage::default();
            message.code = std::num::NonZeroI32::new(-code);
            none_without_support::<()>(rtnetlink::Error::NetlinkError(message))
        };
        assert!(matches!(answer(libc::EOPNOTSUPP), Ok(None)));
        assert!(answer(libc::EPERM).is_err());
    }

    #[test]
    fn only_a_name_of_ours_is_ours() {
        let filter = |program: &str| Filter {
            side: Side::Input,
            priority: 2,
            handle: 1,
            program: Some(program.to_owned()),
        };
        assert!(filter("traffic_eth_in").is_ours());
        assert!(!filter("traffic_eth_in2").is_ours());
        assert!(!filter("traffic").is_ours());
    }
}

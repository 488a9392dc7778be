//! What really went over a device: a capture with an `AF_PACKET` socket, counted by a parser of its
//! own that shares nothing with the programs under test.
//!
//! It is the truth only where the stream is in segments, so a capture that sees a packet larger than
//! the device's MTU fails instead of counting it.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::device::Device;

const ETHERNET_HEADER: usize = 14;
/// Enough of each packet for all headers that the tests make.
const SNAP: usize = 256;
static BUFFER: libc::c_int = 256 << 20;
const LOOK_UP: u16 = 20;

/// One direction of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// It leaves the captured device.
    pub outgoing: bool,
    /// UDP instead of TCP.
    pub udp: bool,
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

/// Packets and their layer-3 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// A capture that is going on.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Captured>,
}

/// What was captured.
#[derive(Debug, Default)]
pub struct Captured {
    flows: BTreeMap<Flow, Amount>,
    /// Datagrams of which the first fragment has been seen.
    firsts: HashMap<Vec<u8>, Flow>,
    /// All frames, in and out.
    pub frames: [u64; 2],
    largest: usize,
    /// What the device receives is left out.
    outgoing: bool,
}

impl Capture {
    /// Captures from now on.
    ///
    /// # Panics
    ///
    /// Without the right to.
    pub fn start(device: &Device) -> Self {
        Self::of(device, false)
    }

    /// Captures from now on what leaves the device, and nothing of what it receives, which may be
    /// whole buffers of a sender at its other end.
    ///
    /// # Panics
    ///
    /// Without the right to.
    pub fn outgoing(device: &Device) -> Self {
        Self::of(device, true)
    }

    fn of(device: &Device, outgoing: bool) -> Self {
        let index = device.index();
        let socket = device.ns.run(|| open(index)).expect("open a capture");
        let largest =
            device.ns.sh(&["cat", &format!("/proc/sys/net/ipv6/conf/{}/mtu", device.name)]);
        let largest = largest.trim().parse::<usize>().expect("an MTU") + ETHERNET_HEADER;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = thread::spawn(move || {
            let mut captured = Captured { outgoing, ..Captured::default() };
            loop {
                // Packets that are there when the flag is up are still read.
                let last = stopped.load(SeqCst);
                let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                poll(&mut ready, PollTimeout::from(LOOK_UP)).expect("wait for packets");
                while captured.receive(&socket) {}
                if last {
                    break;
                }
            }
            assert_eq!(lost(&socket), 0, "packets that the capture missed");
            assert!(
                captured.largest <= largest,
                "{} bytes in one packet: this is not a capture of segments",
                captured.largest
            );
            captured
        });
        Self { stop, reader }
    }

    /// Ends it, and gives what was captured until now.
    ///
    /// # Panics
    ///
    /// When packets were missed or were not in segments.
    pub fn stop(self) -> Captured {
        self.stop.store(true, SeqCst);
        self.reader.join().expect("the capture")
    }
}

impl Captured {
    /// How much of this flow was seen.
    pub fn amount(&self, flow: Flow) -> Amount {
        self.flows.get(&flow).copied().unwrap_or_default()
    }

    /// Everything that `matches`, added up.
    pub fn sum(&self, matches: impl Fn(&Flow) -> bool) -> Amount {
        let found = self.flows.iter().filter(|(flow, _)| matches(flow));
        found.fold(Amount::default(), |sum, (_, amount)| Amount {
            bytes: sum.bytes + amount.bytes,
            packets: sum.packets + amount.packets,
        })
    }

    fn receive(&mut self, socket: &OwnedFd) -> bool {
        let mut frame = [0u8; SNAP];
        let mut from = blank_address();
        let mut size = address_size();
        // SAFETY: buffer and address live until the call returns, with their lengths.
        let length = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_TRUNC | libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut size,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            return false;
        };
        let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
        if self.outgoing && !outgoing {
            return true;
        }
        self.frames[usize::from(outgoing)] += 1;
        self.largest = self.largest.max(length);
        let frame = &frame[..length.min(SNAP)];
        if let Some((flow, bytes)) = self.flow(outgoing, frame) {
            let amount = self.flows.entry(flow).or_default();
            amount.bytes += bytes;
            amount.packets += 1;
        }
        true
    }

    /// The flow that a frame is of, and its layer-3 bytes. `None` for anything but TCP and UDP.
    fn flow(&mut self, outgoing: bool, frame: &[u8]) -> Option<(Flow, u64)> {
        let ip = frame.get(ETHERNET_HEADER..)?;
        let word = |at: usize| Some(u16::from_be_bytes([*ip.get(at)?, *ip.get(at + 1)?]));
        let (ipv6, bytes, protocol, ports, datagram, first, whole);
        match word(0)? >> 12 {
            4 => {
                let fragment = word(6)?;
                ipv6 = false;
                bytes = word(2)?;
                protocol = *ip.get(9)?;
                ports = usize::from(*ip.first()? & 15) * 4;
                datagram = [&ip[4..6], &ip[12..20]].concat();
                whole = fragment & 0x3fff == 0;
                first = fragment & 0x1fff == 0;
            }
            6 => {
                ipv6 = true;
                bytes = 40 + word(4)?;
                if *ip.get(6)? == 44 {
                    protocol = *ip.get(40)?;
                    ports = 48;
                    datagram = [&ip[8..40], &ip[44..48]].concat();
                    whole = false;
                    first = word(42)? & 0xfff8 == 0;
                } else {
                    protocol = *ip.get(6)?;
                    ports = 40;
                    datagram = Vec::new();
                    whole = true;
                    first = true;
                }
            }
            _ => return None,
        }
        if protocol != 6 && protocol != 17 {
            return None;
        }
        let flow = if first {
            Flow {
                outgoing,
                udp: protocol == 17,
                ipv6,
                source: word(ports)?,
                destination: word(ports + 2)?,
            }
        } else {
            *self.firsts.get(&datagram)?
        };
        if first && !whole {
            self.firsts.insert(datagram, flow);
        }
        Some((flow, bytes.into()))
    }
}

/// A packet socket on one device, or on none when `index` is 0: then it only sends.
pub(crate) fn open(index: u32) -> io::Result<OwnedFd> {
    // Protocol 0: nothing comes in before the socket is bound to its device.
    // SAFETY: takes three numbers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us and to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if index == 0 {
        return Ok(socket);
    }
    // SAFETY: the option is a number that lives until the call returns.
    let set = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const BUFFER).cast(), 4)
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    let address = address(index, libc::ETH_P_ALL);
    // SAFETY: the address lives until the call returns, with its length.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), address_size()) };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// The address of a device for packets of this kind.
pub(crate) fn address(index: u32, protocol: libc::c_int) -> libc::sockaddr_ll {
    let protocol = u16::try_from(protocol).unwrap_or_default();
    libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_protocol: protocol.to_be(),
        sll_ifindex: index.cast_signed(),
        ..blank_address()
    }
}

fn blank_address() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: 0,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Length of a packet socket's address.
pub(crate) fn address_size() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default()
}

/// Packets that did not fit in the socket's buffer.
fn lost(socket: &OwnedFd) -> u32 {
    // `struct tpacket_stats`: packets, drops.
    let mut statistics = [0u32; 2];
    let mut size: libc::socklen_t = 8;
    // SAFETY: the statistics and their length live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert_eq!(result, 0, "statistics of the capture");
    statistics[1]
}

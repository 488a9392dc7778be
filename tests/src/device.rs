//! Network devices of the tests: veth pairs between two namespaces, and tun devices whose packets
//! the test itself writes and reads.
//!
//! Addresses and neighbours are static, and link-local addresses are off, so that nothing is sent
//! that the test did not ask for, except reports of IPv6 multicast groups.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{netns::NetNs, wait};

/// A device in a namespace, with one address of each family.
#[derive(Clone, Debug)]
pub struct Device {
    /// Where it is.
    pub ns: NetNs,
    /// Its name there.
    pub name: String,
    /// Its IPv4 address, of a network of 24 bits.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, of a network of 64 bits.
    pub v6: Ipv6Addr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

/// What a device says it has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Buffers received.
    pub rx_packets: u64,
    /// Their bytes with the Ethernet header.
    pub rx_bytes: u64,
    /// Buffers sent.
    pub tx_packets: u64,
    /// Their bytes with the Ethernet header.
    pub tx_bytes: u64,
    /// Buffers lost, in both directions.
    pub dropped: u64,
}

/// A veth pair. Both devices are up and know each other's addresses: `10.0.NET.1` and `fd00:NET::1`
/// on the first, `.2` and `::2` on the second.
///
/// # Panics
///
/// When `ip` cannot make it.
pub fn veth(first: (&NetNs, &str), second: (&NetNs, &str), net: u8) -> (Device, Device) {
    let (a, b) = pair(first, second, net);
    connect(&a, &b);
    (a, b)
}

/// The same with both devices still down, so that nothing has passed them yet: see [`connect`].
///
/// # Panics
///
/// When `ip` cannot make it.
pub fn pair(first: (&NetNs, &str), second: (&NetNs, &str), net: u8) -> (Device, Device) {
    make(first, second, net, "")
}

/// The same; the first has this number, which no other device of its namespace has.
///
/// # Panics
///
/// When `ip` cannot.
pub fn numbered_pair(
    first: (&NetNs, &str),
    second: (&NetNs, &str),
    net: u8,
    index: u32,
) -> (Device, Device) {
    make(first, second, net, &format!("index {index}"))
}

fn make(first: (&NetNs, &str), second: (&NetNs, &str), net: u8, more: &str) -> (Device, Device) {
    let (a, b) = (Device::of(first, net, 1), Device::of(second, net, 2));
    a.ns.ip(&format!(
        "link add {} {more} address {} type veth peer name {} address {} netns {}",
        a.name,
        a.mac_text(),
        b.name,
        b.mac_text(),
        b.ns.path(),
    ));
    (a, b)
}

/// Brings both devices of a pair up and gives them their addresses.
///
/// # Panics
///
/// When `ip` cannot.
pub fn connect(a: &Device, b: &Device) {
    a.own_queue();
    b.own_queue();
    a.up();
    b.up();
    a.carries();
    b.carries();
    a.address(b);
    b.address(a);
}

impl Device {
    fn of((ns, name): (&NetNs, &str), net: u8, host: u8) -> Self {
        Self {
            ns: ns.clone(),
            name: name.to_owned(),
            v4: Ipv4Addr::new(10, 0, net, host),
            v6: Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)),
            mac: [2, 0, 0, 0, net, host],
        }
    }

    /// The address of this family.
    pub fn ip(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.v6.into() } else { self.v4.into() }
    }

    fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// Brings it up, without addresses that nobody asked for.
    pub fn up(&self) {
        let name = &self.name;
        self.ns.ip(&format!("link set {name} addrgenmode none\nlink set {name} up"));
    }

    /// Gives it a queue of its own for what it receives, which comes with GRO. Without it all devices
    /// of all namespaces share one queue of each processor, and a busy test costs another its packets.
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn own_queue(&self) {
        self.ns.run(|| switch_gro_on(&self.name)).expect("switch GRO on");
    }

    /// Waits until it takes packets. The kernel notices that the other side is up a little later, and
    /// drops what is sent before.
    ///
    /// # Panics
    ///
    /// When the other side is not up.
    #[track_caller]
    pub fn carries(&self) {
        wait::until("a device to have a carrier", || {
            let state = self.ns.sh(&["ip", "-o", "link", "show", "dev", &self.name]);
            state.contains("state UP").then_some(())
        });
    }

    /// Takes it down: its peer has no carrier then.
    pub fn down(&self) {
        self.ns.ip(&format!("link set {} down", self.name));
    }

    /// Gives it its addresses, and its peer's as neighbours.
    pub fn address(&self, peer: &Self) {
        let (name, mac) = (&self.name, peer.mac_text());
        self.ns.ip(&format!(
            "address add {}/24 dev {name}\nneigh replace {} lladdr {mac} dev {name} nud permanent",
            self.v4, peer.v4
        ));
        if self.ns.has_ipv6() {
            self.ns.ip(&format!(
                "address add {}/64 dev {name} nodad\n\
                 neigh replace {} lladdr {mac} dev {name} nud permanent",
                self.v6, peer.v6
            ));
        }
    }

    /// Default routes of both families through it, by way of `peer`.
    pub fn default_route(&self, peer: &Self) {
        let name = &self.name;
        self.ns.ip(&format!(
            "route replace default via {} dev {name}\nroute replace ::/0 via {} dev {name}",
            peer.v4, peer.v6
        ));
    }

    /// Segmentation and receive offloads on or off, all of them.
    pub fn offloads(&self, on: bool) {
        let state = if on { "on" } else { "off" };
        let words = [
            "ethtool",
            "-K",
            &self.name,
            "tso",
            state,
            "gso",
            state,
            "gro",
            state,
            "tx-udp-segmentation",
            state,
        ];
        self.ns.sh(&words);
    }

    /// Large buffers are cut into segments before they leave. What it receives stays as it comes, and
    /// its queue stays its own.
    pub fn cuts(&self) {
        let words =
            ["ethtool", "-K", &self.name, "tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
        self.ns.sh(&words);
    }

    /// The largest packet that it carries.
    pub fn mtu(&self, bytes: u32) {
        self.ns.ip(&format!("link set {} mtu {bytes}", self.name));
    }

    /// Its number.
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn index(&self) -> u32 {
        self.ns
            .run(|| nix::net::if_::if_nametoindex(self.name.as_str()))
            .unwrap_or_else(|err| panic!("index of {}: {err}", self.name))
    }

    /// What it has moved since it was made.
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn moved(&self) -> Moved {
        let text = self
            .ns
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))
            .expect("read the devices' counters");
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(&self.name)?.strip_prefix(':'))
            .unwrap_or_else(|| panic!("no device {} in\n{text}", self.name));
        let numbers: Vec<u64> =
            line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        Moved {
            rx_bytes: numbers[0],
            rx_packets: numbers[1],
            tx_bytes: numbers[8],
            tx_packets: numbers[9],
            dropped: numbers[3] + numbers[11],
        }
    }
}

/// A tun device: packets without link header, which this value puts in and takes out.
#[derive(Debug)]
pub struct Tun {
    /// The device that the kernel sees. It has the first address of its network.
    pub device: Device,
    file: File,
    offload: bool,
}

/// `struct virtio_net_hdr`: what is in front of each packet of a tun device with offloads.
const OFFLOAD_HEADER: usize = 10;

const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETLINK: u64 = 0x4004_54cd;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Checksums are left to the other side, and TCP segments as well, of both families.
const TUN_OFFLOADS: u64 = 0x01 | 0x02 | 0x04;

/// The part of `struct ifreq` that is used.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

impl Tun {
    /// A tun device that is up. With `offload` the kernel hands over TCP unsegmented, and takes it so.
    ///
    /// # Panics
    ///
    /// When `/dev/net/tun` does not work: ask for `Tun` with [`need!`](crate::need!) first.
    pub fn new(ns: &NetNs, name: &str, net: u8, offload: bool) -> Self {
        let device = Device::of((ns, name), net, 1);
        let file = ns.run(|| open_tun(name, offload)).expect("make a tun device");
        ns.ip(&format!(
            "link set {name} addrgenmode none\nlink set {name} up\n\
             address add {}/24 dev {name}\naddress add {}/64 dev {name} nodad",
            device.v4, device.v6
        ));
        Self { device, file, offload }
    }

    /// The other address of its network.
    pub fn peer(&self, ipv6: bool) -> IpAddr {
        let peer = Device::of((&self.device.ns, ""), self.device.mac[4], 2);
        peer.ip(ipv6)
    }

    /// Makes it a device of another link type, by its ARPHRD number.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn set_link_type(&self, arphrd: u16) {
        self.device.down();
        // SAFETY: takes a number.
        let set =
            unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETLINK, libc::c_ulong::from(arphrd)) };
        assert_eq!(set, 0, "set a link type: {}", io::Error::last_os_error());
        self.device.ns.ip(&format!("link set {} up", self.device.name));
    }

    /// One packet into the kernel, as if it had come over the wire.
    ///
    /// # Panics
    ///
    /// When the kernel does not take it.
    pub fn put(&self, packet: &[u8]) {
        self.put_segments(packet, Segments::default());
    }

    /// One buffer of several TCP segments into the kernel.
    ///
    /// # Panics
    ///
    /// When the kernel does not take it.
    pub fn put_segments(&self, packet: &[u8], segments: Segments) {
        let mut bytes = Vec::new();
        if self.offload {
            bytes.extend(segments.header());
        }
        bytes.extend(packet);
        let written = (&self.file).write(&bytes).expect("write to a tun device");
        assert_eq!(written, bytes.len(), "bytes taken by the tun device");
    }

    /// One packet into the kernel of which only the first bytes, so many, lie in the linear part of the buffer.
    /// The rest is in fragments: for that it must be larger than a page, and the device have offloads.
    ///
    /// # Panics
    ///
    /// When the kernel does not take it.
    pub fn put_scattered(&self, packet: &[u8], linear: u16) {
        assert!(self.offload && packet.len() > 4096, "the kernel would make one piece of it");
        // The length of the headers, which the kernel takes for that of the linear part.
        let mut bytes = vec![0; OFFLOAD_HEADER];
        bytes[2..4].copy_from_slice(&linear.to_ne_bytes());
        bytes.extend(packet);
        let written = (&self.file).write(&bytes).expect("write to a tun device");
        assert_eq!(written, bytes.len(), "bytes taken by the tun device");
    }

    /// The next packet that the kernel sends, which must come soon. With offloads also the payload of
    /// each segment, 0 for a packet of its own.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub fn take(&self) -> (Vec<u8>, u16) {
        let timeout = PollTimeout::try_from(wait::DEADLINE).expect("a short time");
        let mut ready = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        let events = poll(&mut ready, timeout).expect("wait for a packet");
        assert_eq!(events, 1, "no packet left {} in time", self.device.name);
        let mut buffer = vec![0; 70_000];
        let length = (&self.file).read(&mut buffer).expect("read a packet");
        buffer.truncate(length);
        if !self.offload {
            return (buffer, 0);
        }
        let packet = buffer.split_off(OFFLOAD_HEADER);
        (packet, u16::from_ne_bytes([buffer[4], buffer[5]]))
    }
}

/// How a buffer is to be cut into segments: `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segments {
    /// Payload of each segment but the last; 0 is no segmentation.
    pub size: u16,
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// Bytes in front of the TCP header, from the first byte of the buffer on.
    pub transport: u16,
    /// Bytes of all headers together.
    pub headers: u16,
}

impl Segments {
    /// The bytes in front of the packet.
    pub fn header(self) -> [u8; OFFLOAD_HEADER] {
        const NEEDS_CHECKSUM: u8 = 1;
        const TCP_CHECKSUM: u16 = 16;
        let mut header = [0; OFFLOAD_HEADER];
        if self.size == 0 {
            return header;
        }
        header[0] = NEEDS_CHECKSUM;
        header[1] = if self.ipv6 { 4 } else { 1 };
        let words = [self.headers, self.size, self.transport, TCP_CHECKSUM];
        for (place, word) in header[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        header
    }
}

const ETHTOOL_SGRO: u32 = 0x2c;
const SIOCETHTOOL: u64 = 0x8946;

/// `struct ifreq` with a pointer to what `ethtool` asks.
#[repr(C)]
struct EthtoolRequest {
    name: [u8; 16],
    value: *const [u32; 2],
    rest: [u8; 16],
}

fn switch_gro_on(name: &str) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let value = [ETHTOOL_SGRO, 1];
    let mut request = EthtoolRequest { name: [0; 16], value: &raw const value, rest: [0; 16] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: request and value live until the call returns and have the kernel's layout.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_tun(name: &str, offload: bool) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let vnet = if offload { IFF_VNET_HDR } else { 0 };
    let mut request = Request { name: [0; 16], flags: IFF_TUN | IFF_NO_PI | vnet, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request lives until the call returns and is as large as `struct ifreq`.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    if offload {
        // SAFETY: takes a number.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, TUN_OFFLOADS) };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

//! Traffic of which every packet and byte is known, without looking at a device or a counter of ours.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use traffic_tests::{device::Device, document::Traffic, wait};

use crate::pair::PORT;

const UDP_HEADER: usize = 8;
/// TCP header with its timestamps.
const TCP_HEADER: u64 = 20 + 12;
/// What the first segment of each side has besides: largest segment, scale of the window.
const TCP_FIRST_MORE: u64 = 8;
const FRAGMENT_HEADER: usize = 8;

/// Bytes of the IP header alone.
pub(crate) const fn ip_header(ipv6: bool) -> usize {
    if ipv6 { 40 } else { 20 }
}

/// Whether a hook stands where datagrams are cut into fragments, or where they are whole.
#[derive(Clone, Copy)]
pub(crate) enum Datagrams {
    /// As they are on a wire that carries so many bytes.
    Cut(usize),
    /// As sockets see them.
    Whole,
}

impl Datagrams {
    /// What one datagram of that payload is: bytes and packets.
    fn amount(self, ipv6: bool, payload: usize) -> (u64, u64) {
        let (header, datagram) = (ip_header(ipv6), UDP_HEADER + payload);
        let (bytes, packets) = match self {
            Self::Cut(mtu) if header + datagram > mtu => {
                let header = if ipv6 { header + FRAGMENT_HEADER } else { header };
                // All fragments but the last carry a multiple of 8.
                let packets = datagram.div_ceil((mtu - header) / 8 * 8);
                (datagram + packets * header, packets)
            }
            Self::Cut(_) | Self::Whole => (header + datagram, 1),
        };
        (bytes as u64, packets as u64)
    }
}

/// A socket of the server at the watched port, and one of the client that sends to it.
struct Sockets {
    server: UdpSocket,
    client: UdpSocket,
}

impl Sockets {
    fn new(server: &Device, client: &Device, ipv6: bool) -> Self {
        let bind = |device: &Device, port| {
            let address = SocketAddr::new(device.ip(ipv6), port);
            let socket = device.ns.run(|| UdpSocket::bind(address)).expect("bind a UDP socket");
            socket.set_read_timeout(Some(wait::DEADLINE)).expect("set a timeout");
            socket
        };
        let sockets = Self { server: bind(server, PORT), client: bind(client, 0) };
        sockets.client.connect((server.ip(ipv6), PORT)).expect("connect a UDP socket");
        sockets
    }

    /// The next datagram at the server: its payload, and who sent it.
    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 70_000];
        let (length, from) = self.server.recv_from(&mut buffer).expect("receive a datagram");
        buffer.truncate(length);
        (buffer, from)
    }
}

/// Sends datagrams with payloads of these sizes, each answered by one that is a byte longer. Gives
/// what that is at the server.
pub(crate) fn udp(
    (server, client): (&Device, &Device),
    ipv6: bool,
    sizes: &[usize],
    datagrams: Datagrams,
) -> Traffic {
    let sockets = Sockets::new(server, client, ipv6);
    let mut sum = Traffic::default();
    for size in sizes {
        sockets.client.send(&vec![0x55; *size]).expect("send a datagram");
        let (payload, from) = sockets.receive();
        assert_eq!(payload.len(), *size, "payload at the server");
        sockets.server.send_to(&vec![0xaa; size + 1], from).expect("answer a datagram");
        let mut buffer = vec![0; 70_000];
        let length = sockets.client.recv(&mut buffer).expect("receive an answer");
        assert_eq!(length, size + 1, "payload at the client");

        let (bytes, packets) = datagrams.amount(ipv6, *size);
        sum += Traffic::input(bytes, packets);
        let (bytes, packets) = datagrams.amount(ipv6, size + 1);
        sum += Traffic::output(bytes, packets);
    }
    sum
}

/// Sends `count` datagrams in one buffer, which the kernel cuts as late as it can.
pub(crate) fn udp_segments(
    (server, client): (&Device, &Device),
    ipv6: bool,
    size: u16,
    count: usize,
) -> Traffic {
    let sockets = Sockets::new(server, client, ipv6);
    setsockopt(&sockets.client, UdpGsoSegment, &i32::from(size)).expect("ask for segmentation");
    let payload = usize::from(size);
    // The last one is shorter.
    let length = payload * count - payload / 2;
    sockets.client.send(&vec![0x55; length]).expect("send a buffer of datagrams");
    let mut arrived = 0;
    for _ in 0..count {
        arrived += sockets.receive().0.len();
    }
    assert_eq!(arrived, length, "payload at the server");
    Traffic::input((length + count * (ip_header(ipv6) + UDP_HEADER)) as u64, count as u64)
}

/// What a socket says of its own segments, as `struct tcp_info` has it.
struct TcpInfo {
    state: u8,
    segments_out: u32,
    segments_in: u32,
    /// Payload with what was sent again.
    bytes_out: u64,
}

/// No packet is on its way any more, and none will be sent.
const TCP_CLOSE: u8 = 7;

impl TcpInfo {
    fn of(stream: &TcpStream) -> io::Result<Self> {
        let mut bytes = [0_u8; 208];
        let mut length: libc::socklen_t = 208;
        // SAFETY: the kernel writes at most `length` bytes, which is what the array has.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        assert_eq!(length, 208, "the kernel tells less of a connection than since 4.19");
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Ok(Self {
            state: bytes[0],
            segments_out: word(136),
            segments_in: word(140),
            bytes_out: u64::from_ne_bytes(bytes[200..208].try_into().expect("8 bytes")),
        })
    }
}

/// A connection that carries so many bytes up and down, from its first segment to its last. Gives what
/// that is at the server, as the client's own TCP has counted it.
pub(crate) fn tcp(
    (server, client): (&Device, &Device),
    ipv6: bool,
    up: usize,
    down: usize,
) -> Traffic {
    let listener = server.ns.run(|| TcpListener::bind((server.ip(ipv6), PORT)));
    let listener = listener.expect("listen");
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("accept a connection");
            stream.read_exact(&mut vec![0; up]).expect("read all");
            stream.write_all(&vec![0xaa; down]).expect("write all");
            // The server ends first: its last segment is then one that the client counts.
            stream.shutdown(Shutdown::Write).expect("end one half");
            let rest = stream.read(&mut [0]).expect("read the end");
            assert_eq!(rest, 0, "bytes after the end");
            stream
        });
        let address: (IpAddr, u16) = (server.ip(ipv6), PORT);
        let mut stream = client.ns.run(|| TcpStream::connect(address)).expect("connect");
        stream.write_all(&vec![0x55; up]).expect("write all");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read all");
        assert_eq!(all.len(), down, "payload at the client");
        stream.shutdown(Shutdown::Write).expect("end the other half");
        let other = serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));

        let mine = wait::until("the last acknowledgement", || {
            let info = TcpInfo::of(&stream).expect("ask for the client's numbers");
            (info.state == TCP_CLOSE).then_some(info)
        });
        let theirs = TcpInfo::of(&other).expect("ask for the server's numbers");
        let bytes = |segments: u32, payload: u64| {
            u64::from(segments) * (ip_header(ipv6) as u64 + TCP_HEADER) + TCP_FIRST_MORE + payload
        };
        Traffic {
            input_bytes: bytes(mine.segments_out, mine.bytes_out),
            input_packets: mine.segments_out.into(),
            output_bytes: bytes(mine.segments_in, theirs.bytes_out),
            output_packets: mine.segments_in.into(),
        }
    })
}

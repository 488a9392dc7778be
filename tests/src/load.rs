//! Traffic of which it is known beforehand, or counted while it is sent, how much it is.
//!
//! A socket belongs to the namespace in which it was made, so any thread may use it afterwards.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    capture,
    device::{Device, Segments},
    netns::NetNs,
    wait::{self, DEADLINE},
};

/// Devices without a queue of their own (GRO off) share one of each processor, and what does not fit
/// into it is lost: a stream of one test could cost another test a datagram.
static QUEUE: RwLock<()> = RwLock::new(());

/// Held while a stream goes on that might fill the queue. No datagram of [`datagram`] is on its way
/// then, and no other stream.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    QUEUE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Held while something is on its way that must not be lost to a stream of another test.
pub(crate) fn among_others() -> RwLockReadGuard<'static, ()> {
    QUEUE.read().unwrap_or_else(PoisonError::into_inner)
}

/// What a TCP receiver lets be on its way: fewer packets than the queue holds, so that none has to be
/// sent again.
const WINDOW: usize = 128 << 10;

fn socket(ns: &NetNs, address: SocketAddr, kind: Type) -> Socket {
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(address))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        if kind == Type::STREAM {
            socket.set_recv_buffer_size(WINDOW)?;
        }
        Ok::<_, io::Error>(socket)
    })
    .unwrap_or_else(|err| panic!("a socket on {address}: {err}"))
}

/// A UDP socket on a device's address.
///
/// # Panics
///
/// When the port is taken.
pub fn udp(device: &Device, ipv6: bool, port: u16) -> UdpSocket {
    udp_at(&device.ns, (device.ip(ipv6), port).into())
}

/// A UDP socket on an address of a namespace.
///
/// # Panics
///
/// When the address is taken or is not there.
pub fn udp_at(ns: &NetNs, address: SocketAddr) -> UdpSocket {
    socket(ns, address, Type::DGRAM).into()
}

/// Sends one datagram with so many bytes of payload and waits until it is there.
///
/// # Panics
///
/// When another arrives, or none.
#[track_caller]
pub fn datagram(from: &UdpSocket, to: &UdpSocket, bytes: usize) {
    let address = to.local_addr().expect("the address of a socket");
    datagram_to(from, to, address, bytes);
}

/// [`datagram`] to an address that leads to the socket in another way.
///
/// # Panics
///
/// When another arrives, or none.
#[track_caller]
pub fn datagram_to(from: &UdpSocket, to: &UdpSocket, address: SocketAddr, bytes: usize) {
    let payload = vec![0x5a; bytes];
    let _queue = among_others();
    from.send_to(&payload, address).expect("send a datagram");
    let mut buffer = vec![0; 65_536];
    let length = to.recv(&mut buffer).expect("receive the datagram");
    assert_eq!(length, bytes, "bytes of the datagram that arrived");
}

/// Sends all of `bytes` in datagrams of `size` with one system call, and waits until they are there.
///
/// # Panics
///
/// When the kernel cannot cut them (`UDP_SEGMENT`), or one does not arrive.
#[track_caller]
pub fn segmented(from: &UdpSocket, to: &UdpSocket, bytes: usize, size: u16) {
    const UDP_SEGMENT: libc::c_int = 103;
    let set = |size: libc::c_int| {
        // SAFETY: the option is a number that lives until the call returns.
        let result = unsafe {
            libc::setsockopt(
                from.as_raw_fd(),
                libc::SOL_UDP,
                UDP_SEGMENT,
                (&raw const size).cast(),
                4,
            )
        };
        assert_eq!(result, 0, "UDP_SEGMENT: {}", io::Error::last_os_error());
    };
    set(size.into());
    let _queue = alone();
    let address = to.local_addr().expect("the address of a socket");
    from.send_to(&vec![0x5a; bytes], address).expect("send several datagrams");
    set(0);
    let mut arrived = 0;
    let mut buffer = vec![0; 65_536];
    while arrived < bytes {
        arrived += to.recv(&mut buffer).expect("receive a datagram");
    }
    assert_eq!(arrived, bytes);
}

/// One TCP connection from `from` to `to`, on the same port at both ends, that carries so many bytes
/// that way and ends in good order. Returns when its last packet has been received.
///
/// # Panics
///
/// When anything else arrives.
#[track_caller]
pub fn tcp(from: &Device, to: &Device, ipv6: bool, port: u16, bytes: u64) {
    transfer(&tcp_socket(from, ipv6, port), &tcp_socket(to, ipv6, port), bytes);
    settled(&[&from.ns, &to.ns]);
}

/// A TCP socket on a device's address, for [`transfer`].
///
/// # Panics
///
/// When the port is taken.
pub fn tcp_socket(device: &Device, ipv6: bool, port: u16) -> Socket {
    socket(&device.ns, (device.ip(ipv6), port).into(), Type::STREAM)
}

/// Connects the first socket to the second, sends so many bytes and ends the connection.
///
/// # Panics
///
/// When anything else arrives.
#[track_caller]
pub fn transfer(from: &Socket, to: &Socket, bytes: u64) {
    to.listen(1).expect("listen");
    let _queue = alone();
    let address = to.local_addr().expect("the address of a socket");
    let (sent, arrived) = thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (socket, _) = to.accept().expect("accept a connection");
            // An accepted socket does not inherit the deadline.
            socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
            io::copy(&mut TcpStream::from(socket), &mut io::sink()).expect("receive a stream")
        });
        from.connect(&address).expect("connect");
        let mut from = from;
        // Much at once, so that the kernel makes buffers as large as it can.
        let mut all = io::BufReader::with_capacity(1 << 20, io::repeat(0x5a).take(bytes));
        let sent = io::copy(&mut all, &mut from).expect("send a stream");
        from.shutdown(std::net::Shutdown::Write).expect("end the stream");
        // The other end closes when it has read all, and this one leaves the connection first.
        // By `copy`, because a read with a deadline may be interrupted.
        let rest = io::copy(&mut from, &mut io::sink()).expect("wait for the other end");
        assert_eq!(rest, 0);
        (sent, server.join().expect("the receiver"))
    });
    assert_eq!((sent, arrived), (bytes, bytes));
}

/// Waits until no TCP connection of these namespaces can send anything any more: all are closed, and
/// the last acknowledgement has arrived.
///
/// # Panics
///
/// When one goes on.
#[track_caller]
pub fn settled(namespaces: &[&NetNs]) {
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    for ns in namespaces {
        wait::until("the end of all TCP connections", || {
            let open = ns.run(|| {
                ["tcp", "tcp6"].iter().any(|name| {
                    let file = format!("/proc/thread-self/net/{name}");
                    let table = std::fs::read_to_string(file).expect("read the sockets");
                    table.lines().skip(1).any(|line| {
                        let state = line.split_whitespace().nth(3);
                        !matches!(state, Some(TIME_WAIT | LISTEN))
                    })
                })
            });
            (!open).then_some(())
        });
    }
}

/// Puts frames onto a device as they are, one after the other.
#[derive(Debug)]
pub struct Injector {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
    offload: bool,
}

impl Injector {
    /// Sends from this device.
    ///
    /// # Panics
    ///
    /// Without the right to.
    pub fn new(device: &Device) -> Self {
        let socket = device.ns.run(|| capture::open(0)).expect("a packet socket");
        Self { socket, address: capture::address(device.index(), 0), offload: false }
    }

    /// Sends from this device, also frames that are to be cut into segments.
    ///
    /// # Panics
    ///
    /// Without the right to.
    pub fn with_offload(device: &Device) -> Self {
        let injector = Self::new(device);
        let on: libc::c_int = 1;
        // SAFETY: the option is a number that lives until the call returns.
        let set = unsafe {
            libc::setsockopt(
                injector.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(set, 0, "PACKET_VNET_HDR: {}", io::Error::last_os_error());
        Self { offload: true, ..injector }
    }

    /// Sends one frame.
    ///
    /// # Panics
    ///
    /// When the kernel refuses it.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        self.send_segments(frame, Segments::default());
    }

    /// Sends one frame that is to be cut.
    ///
    /// # Panics
    ///
    /// When the kernel refuses it.
    #[track_caller]
    pub fn send_segments(&self, frame: &[u8], segments: Segments) {
        let mut bytes = Vec::new();
        if self.offload {
            bytes.extend(segments.header());
        }
        bytes.extend(frame);
        // SAFETY: buffer and address live until the call returns, with their lengths.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const self.address).cast(),
                capture::address_size(),
            )
        };
        assert_eq!(
            usize::try_from(sent).ok(),
            Some(bytes.len()),
            "inject {} bytes: {}",
            frame.len(),
            io::Error::last_os_error()
        );
    }
}

/// Layer-3 bytes of each datagram of a [`Sender`]: payload and headers of UDP and IPv4.
pub const DATAGRAM: u64 = 128;
/// Its payload.
const PAYLOAD: usize = 100;

/// Sends UDP/IPv4 datagrams without a break until it is stopped, and counts those that the other
/// side's device has taken.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Instant>>,
    /// Takes what arrives, so that nothing is answered. Nobody reads it.
    _sink: Option<UdpSocket>,
}

impl Sender {
    /// From a free port of `from` to a port of `to`.
    ///
    /// # Panics
    ///
    /// When the port is taken.
    pub fn start(from: &Device, to: &Device, port: u16) -> Self {
        let sink = udp(to, false, port);
        let mut sender = Self::start_to(from, (to.v4.into(), port));
        sender._sink = Some(sink);
        sender
    }

    /// From a free port of `from` to any address; somebody must take what arrives.
    ///
    /// # Panics
    ///
    /// When no socket can be made.
    pub fn start_to(from: &Device, to: (IpAddr, u16)) -> Self {
        let socket = udp(from, false, 0);
        report_losses(&socket);
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let thread = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || send_until(&socket, to.into(), &stop, &sent))
        };
        Self { stop, sent, thread, _sink: None }
    }

    /// Datagrams sent until now.
    pub fn sent(&self) -> u64 {
        self.sent.load(SeqCst)
    }

    /// Waits until so many more have been sent.
    ///
    /// # Panics
    ///
    /// When they are not.
    #[track_caller]
    pub fn goes_on(&self, more: u64) {
        let enough = self.sent() + more;
        wait::until("datagrams to be sent", || (self.sent() >= enough).then_some(()));
    }

    /// Stops, and gives the time before which each datagram was sent.
    ///
    /// # Panics
    ///
    /// When the sender did.
    pub fn stop(self) -> Vec<Instant> {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("the sender")
    }
}

/// A few at a time: a receiving device drops what is more than its queue, and a busy machine may not
/// empty it for a while.
const BURST: u32 = 16;
const PAUSE: Duration = Duration::from_millis(1);

fn send_until(
    socket: &UdpSocket,
    to: SocketAddr,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Vec<Instant> {
    let payload = [0x5a; PAYLOAD];
    let mut times = Vec::new();
    while !stop.load(SeqCst) {
        for _ in 0..BURST {
            // One that the other side's queue has no place for is an error, and was never there.
            if socket.send_to(&payload, to).is_ok() {
                times.push(Instant::now());
                sent.fetch_add(1, SeqCst);
            }
        }
        thread::sleep(PAUSE);
    }
    times
}

/// Makes a send fail where the packet is lost on this host.
fn report_losses(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the option is a number that lives until the call returns.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            4,
        )
    };
    assert_eq!(set, 0, "IP_RECVERR: {}", io::Error::last_os_error());
}

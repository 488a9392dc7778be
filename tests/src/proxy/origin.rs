//! Where the users' requests end: a server that answers exactly as many bytes as it is asked for, over
//! TCP and UDP on one port.
//!
//! A request begins with two numbers of 64 bits, most significant byte first: its own length with
//! them, and that of the answer. A TCP connection carries any number of exchanges, one after the
//! other; in UDP each request and each answer is one datagram.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use traffic_user::accounting::proxy::Payload;

use crate::{device::Device, wait::DEADLINE};

/// Bytes of the two numbers: no request is shorter.
pub const HEAD: u64 = 16;
const HEAD_LENGTH: usize = 16;
/// Between two looks at the flag that ends it.
const LOOK_UP: u16 = 20;
const FILL: u8 = 0x5a;

/// Both numbers, and as many bytes more as the first one says.
fn request(request: u64, response: u64) -> Vec<u8> {
    let length = usize::try_from(request).expect("a request that fits in memory");
    let head = u128::from(request) << 64 | u128::from(response);
    let mut bytes = vec![FILL; length];
    let start = bytes.first_chunk_mut().expect("a request holds two numbers");
    *start = head.to_be_bytes();
    bytes
}

fn numbers(head: [u8; HEAD_LENGTH]) -> (u64, u64) {
    let number = |at: usize| u64::from_be_bytes(*head[at..].first_chunk().expect("eight bytes"));
    (number(0), number(8))
}

/// The server, until it is dropped.
#[derive(Debug)]
pub(super) struct Origin {
    /// Where it answers, over TCP and UDP.
    pub(super) address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Origin {
    /// Starts on a port of the device's address.
    ///
    /// # Panics
    ///
    /// When the port is taken.
    pub(super) fn start(device: &Device, ipv6: bool, port: u16) -> Self {
        let address = SocketAddr::from((device.ip(ipv6), port));
        let (listener, socket) =
            device.ns.run(|| (TcpListener::bind(address), UdpSocket::bind(address)));
        let listener = listener.unwrap_or_else(|err| panic!("listen on {address}: {err}"));
        let socket = socket.unwrap_or_else(|err| panic!("a UDP socket on {address}: {err}"));
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads = vec![
            thread::spawn(move || streams(&listener, &tcp)),
            thread::spawn(move || datagrams(&socket, &udp)),
        ];
        Self { address, stop, threads }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("the origin server did not end well");
            }
        }
    }
}

/// Waits until there is something to take, or the end.
fn ready(fd: BorrowedFd<'_>, stop: &AtomicBool) -> bool {
    while !stop.load(SeqCst) {
        let mut ready = [PollFd::new(fd, PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(LOOK_UP)).is_ok_and(|count| count > 0) {
            return true;
        }
    }
    false
}

fn streams(listener: &TcpListener, stop: &AtomicBool) {
    while ready(listener.as_fd(), stop) {
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        // Ends with its connection, in whatever way: who asked sees whether the answer is whole.
        thread::spawn(move || answer(&stream));
    }
}

/// Answers until the other end says that it is done.
fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut head = [0; HEAD_LENGTH];
        if stream.read(&mut head[..1])? == 0 {
            return Ok(());
        }
        stream.read_exact(&mut head[1..])?;
        let (request, response) = numbers(head);
        let rest = request.saturating_sub(HEAD);
        let read = io::copy(&mut stream.take(rest), &mut io::sink())?;
        if read < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        io::copy(&mut io::repeat(FILL).take(response), &mut stream)?;
    }
}

fn datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while ready(socket.as_fd(), stop) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(head) = buffer[..length].first_chunk() else {
            continue;
        };
        let (request, response) = numbers(*head);
        // One that was cut on its way is not answered.
        if usize::try_from(request) == Ok(length) {
            let answer = vec![FILL; usize::try_from(response).unwrap_or_default()];
            if let Err(err) = socket.send_to(&answer, from) {
                eprintln!("the origin server cannot answer {from}: {err}");
            }
        }
    }
}

/// One TCP connection of a user through the proxy to the origin.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    moved: Payload,
}

impl Conversation {
    /// Over a connection that leads there.
    ///
    /// # Errors
    ///
    /// When the socket refuses a deadline.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, moved: Payload::default() })
    }

    /// Sends a request of so many bytes, at least [`HEAD`], for an answer of so many.
    ///
    /// # Errors
    ///
    /// When the connection does not take it.
    ///
    /// # Panics
    ///
    /// When the request is too short for its numbers.
    pub fn send(&mut self, bytes: u64, response: u64) -> io::Result<()> {
        self.stream.write_all(&request(bytes, response))?;
        self.moved.uplink += bytes;
        Ok(())
    }

    /// [`send`](Self::send), and reads the answer.
    ///
    /// # Errors
    ///
    /// When the connection ends before, or nothing comes.
    ///
    /// # Panics
    ///
    /// When the request is too short for its numbers.
    pub fn exchange(&mut self, bytes: u64, response: u64) -> io::Result<()> {
        self.send(bytes, response)?;
        let read = io::copy(&mut (&self.stream).take(response), &mut io::sink())?;
        if read < response {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.moved.downlink += response;
        Ok(())
    }

    /// Closes it, and gives all that it has moved. A proxy passes on that one end is done, but only when
    /// the other has said nothing for a second: this does not wait for it.
    pub fn end(self) -> Payload {
        self.moved
    }
}

/// Sends one datagram of so many bytes, at least [`HEAD`], to the socket's peer, and takes the answer of so many.
///
/// # Errors
///
/// When none comes, or another.
///
/// # Panics
///
/// When the request is too short for its numbers.
pub(super) fn ask(socket: &UdpSocket, bytes: u64, response: u64) -> io::Result<Payload> {
    socket.send(&request(bytes, response))?;
    let length = socket.recv(&mut vec![0; 65_536])?;
    if u64::try_from(length) != Ok(response) {
        let what = format!("{length} bytes came, and {response} were asked for");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(Payload { uplink: bytes, downlink: response })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{load, need, netns::NetNs};

    #[test]
    fn an_origin_answers_as_many_bytes_as_it_is_asked_for() {
        need!(Root, Netns, Tool("ip"));
        let (a, b) = (NetNs::new(), NetNs::new());
        let (here, there) = crate::device::veth((&a, "eth0"), (&b, "eth0"), 1);
        for ipv6 in [false, true] {
            let origin = Origin::start(&here, ipv6, 8080);
            let stream = there.ns.run(|| TcpStream::connect(origin.address)).expect("connect");
            let mut conversation = Conversation::new(stream).expect("deadlines");
            for (request, response) in [(HEAD, 0), (17, 1), (100_000, 3)] {
                conversation.exchange(request, response).expect("an answer");
            }
            let moved = conversation.end();
            assert_eq!(moved, Payload { uplink: 100_033, downlink: 4 });

            let socket = load::udp(&there, ipv6, 0);
            socket.connect(origin.address).expect("a peer");
            let moved = ask(&socket, 20, 1200).expect("an answer");
            assert_eq!(moved, Payload { uplink: 20, downlink: 1200 });
        }
    }
}

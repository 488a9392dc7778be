//! A real proxy between users and an origin, and what they move through it.
//!
//! ```text
//! users > client > eth0 ── near, far ── eth0 > server > back ── eth0 > origin
//! ```
//!
//! Client and server are the same program in two namespaces. The server's port under test is on its
//! `eth0`, its API on the loopback there. Each user has a door of his own at the client: what enters
//! it goes out at the server as that user's, and to the origin.

mod api;
mod config;
mod origin;
mod process;
mod road;

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process as this,
    sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed},
};

use traffic_user::accounting::proxy::{Payload, ProxySnapshot};

pub use self::{
    config::{Kind, TAG},
    origin::{Conversation, HEAD},
    process::Program,
    road::Road,
};
use self::{
    origin::Origin,
    process::{Door, Process},
};
use crate::{handler, load, netns::NetNs, sockets};

/// Client and server of one proxy with their users.
#[derive(Debug)]
pub struct Proxy {
    program: Program,
    kind: Kind,
    emails: Vec<String>,
    /// The server's port.
    pub port: u16,
    /// The server's API, on the loopback of its namespace.
    pub api: SocketAddr,
    /// One for each user.
    doors: Vec<u16>,
    client: Process,
    server: Process,
    _origin: Origin,
    folder: Folder,
    /// The namespaces.
    pub road: Road,
}

impl Proxy {
    /// Starts everything, and returns when all of it listens. The leg between client and server, and
    /// the one to the origin, are of the family asked for.
    ///
    /// # Panics
    ///
    /// With what the program said, when it does not run.
    #[track_caller]
    pub fn start(program: Program, kind: Kind, ipv6: bool, emails: &[&str]) -> Self {
        let road = Road::new();
        let port = free_port(&road.server.ns);
        let api = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(&road.server.ns)));
        let doors: Vec<u16> = emails.iter().map(|_| free_port(&road.client.ns)).collect();
        let origin = Origin::start(&road.origin, ipv6, free_port(&road.origin.ns));
        let folder = Folder::new();
        let server = start_server(program, kind, &road, port, api.port(), emails, &folder);
        let access = SocketAddr::from((road.server.ip(ipv6), port));
        let client = Process::start(
            program,
            &road.client.ns,
            &folder.0.join("client.json"),
            &config::client(kind, access, origin.address, &doors),
            &doors
                .iter()
                .flat_map(|port| [false, true].map(|udp| Door { udp, port: *port }))
                .collect::<Vec<_>>(),
        );
        Self {
            program,
            kind,
            emails: emails.iter().map(|email| (*email).to_owned()).collect(),
            port,
            api,
            doors,
            client,
            server,
            _origin: origin,
            folder,
            road,
        }
    }

    /// The server's group, as `--ports` takes it.
    pub fn group(&self) -> String {
        self.kind.group(self.port)
    }

    /// The server's config.
    pub fn config(&self) -> PathBuf {
        self.folder.0.join("server.json")
    }

    /// Kills the server, as `kill -9` does.
    pub fn kill_server(&mut self) {
        self.server.kill();
    }

    /// Starts the server again, with the same config.
    ///
    /// # Panics
    ///
    /// With what the program said, when it does not run.
    #[track_caller]
    pub fn start_server(&mut self) {
        self.server.kill();
        let emails: Vec<&str> = self.emails.iter().map(String::as_str).collect();
        let (port, api) = (self.port, self.api.port());
        self.server =
            start_server(self.program, self.kind, &self.road, port, api, &emails, &self.folder);
    }

    /// All that the server's StatsService says, as our client reads it.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    #[track_caller]
    pub fn snapshot(&self) -> ProxySnapshot {
        api::snapshot(&self.road.server.ns, self.api)
    }

    /// Its counters by their names, without those of the API's own inbound, which counts each question.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    #[track_caller]
    pub fn counters(&self) -> BTreeMap<String, i64> {
        api::counters(&self.snapshot())
    }

    /// Takes a user out of the server's inbound, while it runs.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    #[track_caller]
    pub fn remove(&self, user: &str) {
        let removed = self.road.server.ns.run(|| handler::remove_user(self.api, TAG, user));
        removed.unwrap_or_else(|err| panic!("remove {user}: {err}\n{}", self.messages()));
    }

    /// Lets a user whom [`remove`](Self::remove) took out into the server's vmess inbound again.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    #[track_caller]
    pub fn add(&self, user: &str) {
        let id = config::id(self.number(user));
        let added = self.road.server.ns.run(|| handler::add_vmess_user(self.api, TAG, user, &id));
        added.unwrap_or_else(|err| panic!("add {user}: {err}\n{}", self.messages()));
    }

    /// Sets all counters to zero by the tool that comes with the program: a reader that is not ours.
    ///
    /// # Panics
    ///
    /// When the API refuses it.
    #[track_caller]
    pub fn reset_by_its_own_tool(&self) {
        self.program.reset(&self.road.server.ns, self.api);
    }

    /// Ends client and server, so that nothing moves any more. Returns when the last packet of their
    /// connections has arrived.
    ///
    /// # Panics
    ///
    /// When a connection goes on without them.
    #[track_caller]
    pub fn end(&mut self) {
        self.client.kill();
        self.server.kill();
        sockets::settled(&[&self.road.client.ns, &self.road.server.ns], self.port);
    }

    /// What client and server have said, for the message of a test that fails.
    pub fn messages(&self) -> String {
        format!("client: {}\nserver: {}", self.client.messages(), self.server.messages())
    }

    fn number(&self, user: &str) -> usize {
        let number = self.emails.iter().position(|email| email == user);
        number.unwrap_or_else(|| panic!("no user {user}"))
    }

    fn door(&self, user: &str) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.doors[self.number(user)]).into()
    }

    /// A connection of this user to the origin. The client takes it whatever the server says.
    ///
    /// # Panics
    ///
    /// When the client is gone.
    #[track_caller]
    pub fn open(&self, user: &str) -> Conversation {
        let door = self.door(user);
        self.road
            .client
            .ns
            .run(|| TcpStream::connect(door))
            .and_then(Conversation::new)
            .unwrap_or_else(|err| panic!("enter {door}: {err}\n{}", self.messages()))
    }

    /// One request of this user over a connection of its own, and its answer. Gives the payload that
    /// this moved, which is what was asked for.
    ///
    /// # Panics
    ///
    /// When the answer does not come.
    #[track_caller]
    pub fn fetch(&self, user: &str, request: u64, response: u64) -> Payload {
        let _queue = load::alone();
        let mut conversation = self.open(user);
        conversation.exchange(request, response).unwrap_or_else(|err| {
            panic!("{request} bytes for {response}: {err}\n{}", self.messages())
        });
        conversation.end()
    }

    /// A socket for datagrams of this user: what it sends to its peer goes to the origin.
    ///
    /// # Panics
    ///
    /// When no socket can be made.
    pub fn datagrams(&self, user: &str) -> UdpSocket {
        let socket = load::udp_at(&self.road.client.ns, (Ipv4Addr::LOCALHOST, 0).into());
        socket.connect(self.door(user)).expect("the address of a door");
        socket
    }

    /// One datagram of so many bytes, at least [`HEAD`], and its answer of so many.
    ///
    /// # Panics
    ///
    /// When the answer does not come.
    #[track_caller]
    pub fn ask(&self, socket: &UdpSocket, request: u64, response: u64) -> Payload {
        let _queue = load::among_others();
        origin::ask(socket, request, response).unwrap_or_else(|err| {
            panic!("a datagram of {request} bytes for {response}: {err}\n{}", self.messages())
        })
    }
}

#[track_caller]
fn start_server(
    program: Program,
    kind: Kind,
    road: &Road,
    port: u16,
    api: u16,
    emails: &[&str],
    folder: &Folder,
) -> Process {
    let mut doors = vec![Door { udp: false, port: api }];
    if kind.on_tcp() {
        doors.push(Door { udp: false, port });
    }
    if kind.on_udp() {
        doors.push(Door { udp: true, port });
    }
    let config = config::server(kind, port, api, emails);
    Process::start(program, &road.server.ns, &folder.0.join("server.json"), &config, &doors)
}

/// A port that nothing in the namespace has, below those that the kernel hands out: a connection that
/// goes out cannot take it while a server is away.
fn free_port(ns: &NetNs) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const MANY: u16 = 20_000;
    loop {
        let port = FIRST + NEXT.fetch_add(1, Relaxed) % MANY;
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let free =
            ns.run(|| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok());
        if free {
            return port;
        }
    }
}

/// A folder of one test.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tt-proxy-{}-{}", this::id(), NEXT.fetch_add(1, Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).expect("make a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(folder: &Path) {
    if let Err(err) = fs::remove_dir_all(folder) {
        eprintln!("left behind: {}: {err}", folder.display());
    }
}

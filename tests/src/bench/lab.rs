//! What the measurements of the receive path stand on: a device in a network namespace, a processor
//! to measure on, a cgroup, and programs that are run.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{setsockopt, sockopt::RcvBuf},
    },
    unistd::Pid,
};
use traffic_user::meter::devices::{Choice, Device, Facts, Wanted, choose};

use crate::{need, netns::NetNs};

/// The address of the host that counts, in every lab.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// Name of the device that is counted on.
pub(super) const DEVICE: &str = "in0";

/// A network namespace with both ends of a veth pair; packets enter at [`DEVICE`].
#[derive(Debug)]
pub(super) struct Lab {
    /// Everything below is meant to run in it.
    pub(super) ns: NetNs,
    /// [`DEVICE`].
    pub(super) device: Device,
}

impl Lab {
    /// A fresh one, without IPv6, whose discovery would send packets of its own.
    pub(super) fn new() -> Result<Self> {
        let ns = NetNs::new();
        ns.set("net/ipv6/conf/all/disable_ipv6", "1");
        ns.set("net/ipv6/conf/default/disable_ipv6", "1");
        ns.ip(&format!(
            "link add {DEVICE} address 02:00:00:00:00:01 type veth \
             peer name out0 address 02:00:00:00:00:02\n\
             addr add {ADDRESS}/24 dev {DEVICE}\n\
             link set {DEVICE} up\n\
             link set out0 up\n"
        ));
        let device = device(&ns)?;
        Ok(Self { ns, device })
    }
}

/// The device named [`DEVICE`] of a namespace.
pub(super) fn device(ns: &NetNs) -> Result<Device> {
    let facts = ns.run(Facts::gather)?;
    let mut choice = choose(&facts, &Wanted::new(&[DEVICE.to_owned()])?);
    let device = choice.devices.pop();
    device.with_context(|| format!("{DEVICE} is not there"))
}

/// A choice of this device alone.
pub(super) fn only(device: &Device) -> Choice {
    Choice { devices: vec![device.clone()], ..Choice::default() }
}

/// UDP sockets that nobody reads, one for each port: once its buffer is full, each drops what comes
/// after the whole way through the stack.
///
/// A thread of its own holds them, with a table of open files of its own: two sets of 10,000 are more
/// than one table may have, and the limit cannot always be raised.
pub(super) struct Deaf {
    /// Ends the thread when it is dropped.
    end: Option<mpsc::Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl Deaf {
    /// Binds them in the network namespace of this thread.
    pub(super) fn bind(ports: &[u16]) -> Result<Self> {
        let wanted = u64::try_from(ports.len()).unwrap_or(u64::MAX) + 200;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))
                .with_context(|| format!("{wanted} open files"))?;
        }
        let (end, ended) = mpsc::channel();
        let (said, heard) = mpsc::channel();
        let ports = ports.to_vec();
        let holder = thread::spawn(move || {
            let bound = unshare(CloneFlags::CLONE_FILES)
                .context("a table of open files of its own")
                .and_then(|()| sockets(&ports));
            let (sockets, answer) = match bound {
                Ok(sockets) => (sockets, Ok(())),
                Err(error) => (Vec::new(), Err(error)),
            };
            // Whoever asked has gone when this fails, and then nothing has to be held.
            if said.send(answer).is_ok() {
                let _end = ended.recv();
            }
            drop(sockets);
        });
        let answer = heard.recv().context("the holder of the sockets has ended")?;
        let deaf = Self { end: Some(end), holder: Some(holder) };
        answer.map(|()| deaf)
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(holder) = self.holder.take() {
            let _joined = holder.join();
        }
    }
}

fn sockets(ports: &[u16]) -> Result<Vec<UdpSocket>> {
    let bind = |port: &u16| {
        let socket = UdpSocket::bind((ADDRESS, *port))
            .with_context(|| format!("listen on {ADDRESS}:{port}"))?;
        // The kernel's least.
        setsockopt(&socket, RcvBuf, &1)?;
        Ok(socket)
    };
    ports.iter().map(bind).collect()
}

/// The processors: one to measure on, and another for everything else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processors {
    measuring: usize,
    other: usize,
}

impl Processors {
    /// The last that this process may use is measured on, because interrupts prefer the first.
    pub(super) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let other = usable.next().context("no processor may be used")?;
        let measuring = usable.next_back().unwrap_or(other);
        Ok(Self { measuring, other })
    }

    /// Binds this thread to the one that is measured on.
    pub(super) fn measure(self) -> Result<()> {
        pin(self.measuring)
    }

    /// Has what a device of a namespace receives worked off on the one that is measured on.
    pub(super) fn receive_from(self, ns: &NetNs, device: &str) {
        // A word for 32 processors, the highest first.
        let mask =
            format!("{:x}{}", 1u32 << (self.measuring % 32), ",0".repeat(self.measuring / 32));
        let file = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
        // The files of a namespace are in a mount of its own.
        let script = format!("mount -t sysfs sysfs /sys && echo {mask} > {file}");
        ns.sh(&["unshare", "--mount", "sh", "-c", &script]);
    }

    /// Binds this thread to the other, and with it what it starts: what a removed rule leaves for a
    /// kernel thread to do is done there too.
    pub(super) fn step_aside(self) -> Result<()> {
        pin(self.other)
    }
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("bind to processor {cpu}"))
}

/// A cgroup of our own below the one that we are in, with this process inside it.
#[derive(Debug)]
pub(super) struct OwnCgroup {
    path: PathBuf,
    before: PathBuf,
}

impl OwnCgroup {
    /// Makes it and moves in. Sockets made from now on belong to it.
    pub(super) fn enter() -> Result<Self> {
        let root = need::cgroup2().context("no cgroup2 hierarchy is mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(own.unwrap_or_default());
        let path = before.join(format!("traffic-bench-{}", process::id()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let entered = Self { path, before };
        move_to(&entered.path)?;
        Ok(entered)
    }

    /// Its folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let left = move_to(&self.before).and_then(|()| Ok(fs::remove_dir(&self.path)?));
        if let Err(error) = left {
            eprintln!("left behind: {}: {error:#}", self.path.display());
        }
    }
}

fn move_to(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, process::id().to_string()).with_context(|| format!("write {}", file.display()))
}

/// Runs a program in this thread's network namespace and gives what it wrote.
pub(super) fn run(words: &[&str], input: &str) -> Result<String> {
    let [name, args @ ..] = words else {
        bail!("no program to run");
    };
    let program = need::tool(name).with_context(|| format!("no program {name} is installed"))?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that stops reading fails by its exit code.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{}: {}: {}",
        words.join(" "),
        output.status,
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

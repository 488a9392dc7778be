//! A tc program of somebody else: it counts what it sees and returns what it is told to.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::device::Device;

/// Its name in the kernel.
pub const NAME: &str = "neighbour";

/// What a tc program may say.
pub mod verdict {
    /// Goes on with the next program.
    pub const UNSPEC: i32 = -1;
    /// Passes, and no later program sees it.
    pub const OK: i32 = 0;
    /// Drops.
    pub const SHOT: i32 = 2;
}

/// Which side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What enters.
    Input,
    /// What leaves.
    Output,
}

/// Where among the programs of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In front of all that are there.
    First,
    /// Behind all that are there.
    Last,
}

/// A loaded program with its counter.
#[derive(Debug)]
pub struct Neighbour {
    program: OwnedFd,
    counter: OwnedFd,
    pin: Option<PathBuf>,
}

impl Neighbour {
    /// Loads one.
    ///
    /// # Panics
    ///
    /// Without the right to.
    pub fn new(verdict: i32) -> Self {
        Self::of_more_than(0, verdict)
    }

    /// One that counts the buffers of more than so many bytes alone.
    ///
    /// # Panics
    ///
    /// Without the right to.
    pub fn of_more_than(bytes: i32, verdict: i32) -> Self {
        let counter = create_counter().expect("a map for another program");
        let program = load(&counter, bytes, verdict).expect("load another program");
        Self { program, counter, pin: None }
    }

    /// Attaches it by a tcx link, which ends with the value that is given.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn tcx(&self, device: &Device, side: Side, order: Order) -> OwnedFd {
        let attr = LinkAttr {
            program: self.program.as_raw_fd().cast_unsigned(),
            device: device.index(),
            kind: match side {
                Side::Input => 46,
                Side::Output => 47,
            },
            flags: match order {
                Order::First => 1 << 3,
                Order::Last => 1 << 4,
            },
            ..LinkAttr::default()
        };
        device.ns.run(|| bpf(BPF_LINK_CREATE, &attr)).expect("attach another program")
    }

    /// Attaches it as a filter of the clsact qdisc, which must be there.
    ///
    /// # Panics
    ///
    /// When `tc` fails.
    pub fn filter(&mut self, device: &Device, side: Side, priority: u16) {
        self.set_filter("add", device, side, &["pref", &priority.to_string()]);
    }

    /// Puts it in the place of the filter with this priority and handle.
    ///
    /// # Panics
    ///
    /// When `tc` fails.
    pub fn replace_filter(&mut self, device: &Device, side: Side, priority: u16, handle: u32) {
        let place = ["pref", &priority.to_string(), "handle", &handle.to_string()];
        self.set_filter("replace", device, side, &place);
    }

    fn set_filter(&mut self, verb: &str, device: &Device, side: Side, place: &[&str]) {
        let side = match side {
            Side::Input => "ingress",
            Side::Output => "egress",
        };
        let path = self.pin().display().to_string();
        let begin = ["tc", "filter", verb, "dev", &device.name, side];
        let end = ["bpf", "direct-action", "pinned", &path];
        device.ns.sh(&[&begin[..], place, &end].concat());
    }

    /// `tc` finds a program by a file.
    fn pin(&mut self) -> &PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let program = &self.program;
        self.pin.get_or_insert_with(|| {
            let n = NEXT.fetch_add(1, Relaxed);
            let path = PathBuf::from(format!("/sys/fs/bpf/tt-neighbour-{}-{n}", process::id()));
            let text = format!("{}\0", path.display());
            let attr = PinAttr {
                path: text.as_ptr().addr() as u64,
                fd: program.as_raw_fd().cast_unsigned(),
                flags: 0,
            };
            command(BPF_OBJ_PIN, &attr).expect("pin another program");
            path
        })
    }

    /// How many packets it has seen.
    ///
    /// # Panics
    ///
    /// Never: the map is open.
    pub fn seen(&self) -> u64 {
        let (key, mut value) = (0u32, 0u64);
        let attr = ElementAttr {
            map: self.counter.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: (&raw const key).addr() as u64,
            value: (&raw mut value).addr() as u64,
            flags: 0,
        };
        command(BPF_MAP_LOOKUP_ELEM, &attr).expect("read the counter of another program");
        value
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if let Some(path) = &self.pin
            && let Err(err) = std::fs::remove_file(path)
        {
            eprintln!("left behind: {}: {err}", path.display());
        }
    }
}

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PSEUDO_MAP_VALUE: u8 = 2;

/// `union bpf_attr`, the part that each command reads first.
#[repr(C)]
struct MapAttr {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    device: u32,
    kind: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn create_counter() -> io::Result<OwnedFd> {
    let attr = MapAttr { kind: BPF_MAP_TYPE_ARRAY, key: 4, value: 8, entries: 1 };
    bpf(BPF_MAP_CREATE, &attr)
}

fn load(counter: &OwnedFd, bytes: i32, verdict: i32) -> io::Result<OwnedFd> {
    let jump =
        |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let instruction = |code, registers, immediate| jump(code, registers, 0, immediate);
    let program = [
        // r3 = length of the buffer; not counted when it is not more
        instruction(0x61, 3 | 1 << 4, 0),
        jump(0xb5, 3, 4, bytes),
        // r1 = address of the counter; two instructions.
        instruction(0x18, 1 | BPF_PSEUDO_MAP_VALUE << 4, counter.as_raw_fd()),
        instruction(0, 0, 0),
        // r2 = 1
        instruction(0xb7, 2, 1),
        // lock *(u64 *)r1 += r2
        instruction(0xdb, 1 | 2 << 4, 0),
        // return verdict
        instruction(0xb7, 0, verdict),
        instruction(0x95, 0, 0),
    ];
    let mut name = [0; 16];
    name[..NAME.len()].copy_from_slice(NAME.as_bytes());
    let attr = LoadAttr {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: 8,
        instructions: program.as_ptr().addr() as u64,
        license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        log: [0; 4],
        version: 0,
        flags: 0,
        name,
    };
    bpf(BPF_PROG_LOAD, &attr)
}

/// A command that gives a descriptor.
fn bpf<T>(number: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    let fd = command(number, attr)?;
    // SAFETY: the kernel has just given this descriptor to us and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn command<T>(number: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is the part of `bpf_attr` that the command reads, with its size, and all that it
    // points to lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, attr, size_of::<T>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

//! `BPF_PROG_LOAD` and `BPF_PROG_TEST_RUN` without a loader: aya has no wrapper for the second, and
//! the first is needed for programs of two instructions that no object file holds.
//!
//! What the kernel makes of a packet that is given to a test run (`net/bpf/test_run.c`):
//!
//! * It always takes the first 14 bytes for an Ethernet header. A tc program sees them in front of
//!   its packet; so a program for bare devices is given its IP packet as it is, provided that it has
//!   14 bytes. A cgroup program does not see them: [`Input::packet`] needs them nevertheless.
//! * The packet must fit in one page together with the kernel's own needs: see [`is_taken`].
//! * `__sk_buff` must be zero outside the fields that [`Input`] offers. A device is looked up in the
//!   caller's network namespace; without one the packet comes from loopback.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// One instruction, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `r0 = immediate`
const fn mov(immediate: i32) -> Instruction {
    Instruction { code: 0xb7, registers: 0, offset: 0, immediate }
}

/// `exit`
const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads first; a shorter one than the kernel's
/// means zeros in the rest.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// Frames of this size fit in a test run on every kernel: a page, less head room, less
/// `skb_shared_info`.
const MOST_BYTES: usize = 3500;

/// Whether a test run takes this frame: it needs an Ethernet header, newer kernels want the whole IP
/// header that its type promises, and all must fit in a page.
pub fn is_taken(frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        None => return false,
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        Some(_) => 14,
    };
    (least..=MOST_BYTES).contains(&frame.len())
}

/// Takes the program of a pinned link off its place, as any administrator can. The pin stays.
///
/// # Errors
///
/// The kernel's.
pub fn detach_pinned(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name: [u64; 2] = [path.as_ptr().addr() as u64, 0];
    // SAFETY: the path lives until the call returns; the rest of the attribute is zero.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const name, size_of_val(&name)) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given this descriptor to us and to nobody else.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let number = link.as_raw_fd();
    // SAFETY: the attribute is the number of the link, and lives until the call returns.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const number, size_of_val(&number))
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The part of `struct __sk_buff` that a test run may be told, at the places where the kernel's
/// header has it.
#[repr(C)]
#[derive(Default)]
struct SkBuff {
    before_ifindex: [u32; 10],
    ifindex: u32,
    before_data_end: [u32; 9],
    data_end: u32,
    before_wire_len: [u32; 19],
    wire_len: u32,
    gso_segs: u32,
    socket: [u32; 2],
    gso_size: u32,
    after: [u32; 3],
}

const _: () = {
    assert!(std::mem::offset_of!(SkBuff, ifindex) == 40);
    assert!(std::mem::offset_of!(SkBuff, data_end) == 80);
    assert!(std::mem::offset_of!(SkBuff, wire_len) == 160);
    assert!(std::mem::offset_of!(SkBuff, gso_segs) == 164);
    assert!(std::mem::offset_of!(SkBuff, gso_size) == 176);
    assert!(size_of::<SkBuff>() == 192);
};

/// The part of `union bpf_attr` that `BPF_PROG_TEST_RUN` reads first.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "192")]
const CONTEXT_BYTES: u32 = size_of::<SkBuff>() as u32;

/// One packet for a test run, and what the kernel is to say of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input<'a> {
    /// From the Ethernet header on.
    pub packet: &'a [u8],
    /// `gso_segs`, at most 65,535.
    pub gso_segs: u32,
    /// `gso_size`; the kernel keeps 16 bits.
    pub gso_size: u32,
    /// Device that it comes from; 0 is loopback, which has index 1.
    pub ifindex: u32,
    /// Bytes of the linear part when the rest is to lie in fragments; 0 is all. Kernels before 6.19
    /// refuse another with `EINVAL`.
    pub linear: u32,
    /// How often to run; 0 is once.
    pub repeat: u32,
}

/// What a test run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// What the program returned.
    pub retval: i32,
    /// How long one run took, in nanoseconds, the mean of all.
    pub nanoseconds: u32,
}

/// Runs a loaded tc or cgroup program on one packet.
///
/// # Errors
///
/// The kernel's: `EINVAL` for a packet that is too short or too long, or a context that it refuses;
/// `ENODEV` for an unknown device.
pub fn test_run(program: BorrowedFd<'_>, input: Input<'_>) -> io::Result<Output> {
    let context = SkBuff {
        ifindex: input.ifindex,
        data_end: input.linear,
        gso_segs: input.gso_segs,
        gso_size: input.gso_size,
        ..SkBuff::default()
    };
    let mut attr = RunAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(input.packet.len()).map_err(io::Error::other)?,
        data_in: input.packet.as_ptr().addr() as u64,
        repeat: input.repeat,
        ctx_size_in: CONTEXT_BYTES,
        ctx_in: (&raw const context).addr() as u64,
        ..RunAttr::default()
    };
    // SAFETY: the attribute, the packet and the context live until the call returns; the kernel reads
    // as many bytes of each as it is told, and writes to the attribute alone.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<RunAttr>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Output { retval: attr.retval.cast_signed(), nanoseconds: attr.duration })
}

/// The part of `union bpf_attr` that `BPF_MAP_CREATE` reads first.
#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// An array of all zeros that no object file holds.
///
/// # Errors
///
/// The kernel's: without the right to make maps, `EPERM`.
pub fn array(value_size: u32, entries: u32, mmapable: bool) -> io::Result<OwnedFd> {
    let attr = MapAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: entries,
        map_flags: if mmapable { BPF_F_MMAPABLE } else { 0 },
    };
    // SAFETY: the attribute lives until the call returns, and the kernel only reads it.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attr, size_of::<MapAttr>())
    };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given this descriptor to us and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A loaded program that belongs to nobody else and goes away with this value.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// A tc program of two instructions that returns `TC_ACT_UNSPEC`: the floor to measure from.
    ///
    /// # Errors
    ///
    /// The kernel's: without the right to load programs, `EPERM`.
    pub fn empty() -> io::Result<Self> {
        let instructions = [mov(-1), EXIT];
        let attr = LoadAttr {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            insn_cnt: 2,
            insns: instructions.as_ptr().addr() as u64,
            license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        };
        // SAFETY: the attribute and all that it points at live until the call returns, and lengths
        // are those of the arrays.
        let fd = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>())
        };
        owned(fd).map(Self)
    }

    /// Its descriptor, to run it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

//! The parts of the `bpf` system call that only measuring needs: programs of a few instructions,
//! links of such programs, and packets that enter a device's receive path.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use super::clock;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
const XDP_PASS: i32 = 2;
/// The most that the kernel takes; what a busy driver hands over at once is not much less.
const BATCH: u32 = 64;
const GET_PRANDOM_U32: i32 = 7;
/// From the beginning of the frame to the UDP destination port: Ethernet, IPv4, source port.
const DESTINATION_PORT: i16 = 14 + 20 + 2;

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// tc and tcx.
    Classifier,
    /// `cgroup_skb`.
    CgroupSkb,
    /// XDP.
    Xdp,
}

impl Kind {
    const fn number(self) -> u32 {
        match self {
            Self::Classifier => 3,
            Self::CgroupSkb => 8,
            Self::Xdp => 6,
        }
    }

    /// The answer that changes nothing.
    const fn neutral(self) -> i32 {
        match self {
            Self::Classifier => -1,
            Self::CgroupSkb => 1,
            Self::Xdp => XDP_PASS,
        }
    }
}

/// One instruction, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

const fn mov(to: u8, immediate: i32) -> Instruction {
    op(0xb7, to, 0, 0, immediate)
}

const EXIT: Instruction = op(0x95, 0, 0, 0, 0);

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u32; 4],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u64,
    expected_revision: u64,
}

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
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct xdp_md`
#[repr(C)]
#[derive(Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

const _: () = {
    assert!(size_of::<Instruction>() == 8);
    assert!(std::mem::offset_of!(LoadAttr, expected_attach_type) == 68);
    assert!(std::mem::offset_of!(LinkAttr, expected_revision) == 24);
    assert!(std::mem::offset_of!(RunAttr, batch_size) == 72);
    assert!(size_of::<XdpContext>() == 24);
};

/// Makes one `bpf` call; the kernel may write to `attr`.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is as long as is said, and the callers keep alive what it points at.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given this descriptor to us and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A loaded program that goes away with this value.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Program {
    fn load(kind: Kind, instructions: &[Instruction]) -> io::Result<Self> {
        let mut attr = LoadAttr {
            prog_type: kind.number(),
            insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            insns: instructions.as_ptr().addr() as u64,
            license: c"Dual MIT/GPL".as_ptr().addr() as u64,
            ..LoadAttr::default()
        };
        bpf(BPF_PROG_LOAD, &mut attr).and_then(owned).map(Self)
    }

    /// Does nothing at all: the floor to measure from.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn empty(kind: Kind) -> io::Result<Self> {
        Self::load(kind, &[mov(0, kind.neutral()), EXIT])
    }

    /// XDP: passes each frame on after it was given a random UDP destination port, one of `ports`
    /// ports from `first` on.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn spread(first: u16, ports: u16) -> io::Result<Self> {
        Self::load(
            Kind::Xdp,
            &[
                op(0x61, 7, 1, 0, 0),                               // r7 = ctx->data
                op(0x61, 3, 1, 4, 0),                               // r3 = ctx->data_end
                op(0xbf, 4, 7, 0, 0),                               // r4 = r7
                op(0x07, 4, 0, 0, i32::from(DESTINATION_PORT) + 2), // r4 += end of the port
                op(0x2d, 4, 3, 5, 0),                               // if r4 > r3: pass it as it is
                op(0x85, 0, 0, 0, GET_PRANDOM_U32),                 // r0 = random
                op(0x97, 0, 0, 0, i32::from(ports)),                // r0 %= ports
                op(0x07, 0, 0, 0, i32::from(first)),                // r0 += first
                op(0xdc, 0, 0, 0, 16),                              // r0 = htobe16(r0)
                op(0x6b, 7, 0, DESTINATION_PORT, 0),                // the port = r0
                mov(0, XDP_PASS),
                EXIT,
            ],
        )
    }

    /// Attaches a classifier to both sides of a device over tcx, for as long as the links live.
    ///
    /// # Errors
    ///
    /// The kernel's: `EINVAL` before 6.6.
    pub fn attach_tcx(&self, ifindex: u32) -> io::Result<[OwnedFd; 2]> {
        let link = |attach_type| {
            let mut attr = LinkAttr {
                prog_fd: self.0.as_raw_fd().cast_unsigned(),
                target_ifindex: ifindex,
                attach_type,
                ..LinkAttr::default()
            };
            bpf(BPF_LINK_CREATE, &mut attr).and_then(owned)
        };
        Ok([link(BPF_TCX_INGRESS)?, link(BPF_TCX_EGRESS)?])
    }

    /// Attaches an XDP program to a device, in its driver, for as long as the link lives.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn attach_xdp(&self, ifindex: u32) -> io::Result<OwnedFd> {
        let mut attr = LinkAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            target_ifindex: ifindex,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
            ..LinkAttr::default()
        };
        bpf(BPF_LINK_CREATE, &mut attr).and_then(owned)
    }

    /// Lets so many copies of a frame enter the receive path of a device of this network namespace,
    /// through this XDP program, and says how long they took: the stack runs before the call returns,
    /// on this thread's account.
    ///
    /// # Errors
    ///
    /// The kernel's: `EINVAL` before 5.18, or for a frame that does not fit in a page.
    pub fn inject(&self, frame: &[u8], ifindex: u32, packets: u32) -> io::Result<Duration> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let mut context =
            XdpContext { data_end: length, ingress_ifindex: ifindex, ..XdpContext::default() };
        let mut attr = RunAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            data_size_in: length,
            data_in: frame.as_ptr().addr() as u64,
            repeat: packets,
            ctx_size_in: 24,
            ctx_in: (&raw mut context).addr() as u64,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size: BATCH,
            ..RunAttr::default()
        };
        clock::time(|| bpf(BPF_PROG_TEST_RUN, &mut attr).map(drop))
    }
}

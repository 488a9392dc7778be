//! `BPF_PROG_LOAD` and `BPF_PROG_TEST_RUN` without a loader: aya has no wrapper for the second, and
//! the first is needed for programs of two instructions that no object file holds.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

const BPF_PROG_LOAD: libc::c_long = 5;
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
    Instruction {
        code: 0xb7,
        registers: 0,
        offset: 0,
        immediate,
    }
}

/// `exit`
const EXIT: Instruction = Instruction {
    code: 0x95,
    registers: 0,
    offset: 0,
    immediate: 0,
};

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads first; a shorter one than the kernel's
/// means zeros in the rest.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
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
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_LOAD,
                &raw const attr,
                size_of::<LoadAttr>(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just given this descriptor to us and to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Its descriptor, to run it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

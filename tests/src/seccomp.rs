//! Kernels without a part of this one: a program that is told that a system call does not exist.

use std::{io, os::unix::process::CommandExt as _, process::Command};

/// Makes the program find a kernel without `bpf()`, as one that was built without it.
pub fn without_bpf(command: &mut Command) {
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(hide_bpf) };
}

fn hide_bpf() -> io::Result<()> {
    const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let code = |code: u32| u16::try_from(code).unwrap_or_default();
    let step = |of, jt, k| libc::sock_filter { code: code(of), jt, jf: 0, k };
    let number = u32::try_from(libc::SYS_bpf).unwrap_or_default();
    let mut filter = [
        // The number of the call comes first in what is looked at.
        step(LOAD_WORD, 0, 0),
        step(JUMP_EQUAL, 1, number),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: only numbers are passed.
    let answer = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program and its steps live until the call returns.
    match unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

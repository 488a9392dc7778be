//! The few system calls that no library we use wraps, or not with a descriptor that we can ask later:
//! what a link needs, and waiting for running programs.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_PIN: libc::c_int = 6;
/// None of those that there are or will be.
const NO_COMMAND: libc::c_int = -1;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `bpf_attr` of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `bpf_attr` of `BPF_LINK_CREATE`, as far as all that we attach to reads it: zeros follow.
#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    /// Number of a device, or descriptor of a cgroup.
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `bpf_attr` of `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetachAttr {
    link: u32,
}

/// `bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The part of `bpf_link_info` that links at a device and at a cgroup have. The kernel fills as much of
/// it as it is given room for.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// Number of the cgroup; or number of the device, and how it is attached.
    target: [u32; 2],
    rest: [u32; 4],
}

const _: () = assert!(std::mem::offset_of!(LinkInfo, target) == 16);

/// `bpf_attr` of `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// `bpf_link_type` of a link at a cgroup, and of one at tcx.
const AT_CGROUP: u32 = 3;
const AT_TCX: u32 = 11;

/// Makes a link of `program` at a device (its number) or a cgroup (its descriptor).
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd().cast_unsigned();
    let mut attr = LinkCreateAttr { program, target, attach_type, flags };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel made this descriptor for this call; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins the object at `path`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().cast_unsigned();
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd, flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// `bpf_attr` of `BPF_PROG_QUERY` at a device.
#[repr(C)]
struct QueryAttr {
    device: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// So many programs can be on one side of a device.
const MOST_AT_TCX: usize = 64;

fn info_of(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        fd: link.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
        info: (&raw mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Whether a descriptor is that of a link. What [`info_of`] says of a map looks the same.
pub(super) fn is_link(object: BorrowedFd<'_>) -> bool {
    let file = format!("/proc/self/fdinfo/{}", object.as_raw_fd());
    std::fs::read_to_string(file).is_ok_and(|text| text.contains("link_type:"))
}

/// Whether a tcx link is at the device that has this number in this network namespace. The link itself tells the
/// number alone, which a device of another namespace may have.
pub(super) fn is_at_device(link: BorrowedFd<'_>, device: u32) -> io::Result<bool> {
    let LinkInfo { kind, id, target: [number, attach_type], .. } = info_of(link)?;
    if kind != AT_TCX || number != device {
        return Ok(false);
    }
    let (mut programs, mut links) = ([0_u32; MOST_AT_TCX], [0_u32; MOST_AT_TCX]);
    let mut attr = QueryAttr {
        device,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(MOST_AT_TCX).unwrap_or(0),
        padding: 0,
        program_flags: 0,
        links: links.as_mut_ptr().expose_provenance() as u64,
        link_flags: 0,
        revision: 0,
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => Ok(links.contains(&id)),
        // There is no such device, or nothing at it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Number of the device or cgroup that a link is at; 0 when it is at none any more.
pub(super) fn target_of(link: BorrowedFd<'_>) -> io::Result<u64> {
    let info = info_of(link)?;
    let [low, high] = info.target;
    match info.kind {
        AT_TCX => Ok(low.into()),
        AT_CGROUP => {
            let [a, b, c, d] = low.to_ne_bytes();
            let [e, f, g, h] = high.to_ne_bytes();
            Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
        }
        kind => Err(io::Error::other(format!("a link of kind {kind}"))),
    }
}

/// Takes the program of a link off its place at once, whoever else holds the link. A kernel before 5.9
/// does not know how.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link: link.as_raw_fd().cast_unsigned() };
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel made this descriptor for this call; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `program` in the place of the one that `link` runs. Every packet is seen by exactly one of
/// the two.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// The cookie of this thread's network namespace, which no other one gets before the next boot.
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let (mut cookie, mut length) =
        (0_u64, libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(0));
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Returns when every program that ran before the call has ended: an RCU grace period.
///
/// A kernel without the call gets a pause that is far longer than any packet takes.
pub(super) fn wait_for_running_programs() {
    // SAFETY: takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Whether this kernel has `bpf()` at all. One that has it may still refuse all that is asked.
pub(super) fn has_bpf() -> bool {
    !bpf(NO_COMMAND, &mut 0_u32).is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is the part of `bpf_attr` that the command reads and writes, with its size; what it
    // points to outlives the call, and is ours to be written where the kernel does.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}

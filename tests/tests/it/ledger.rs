//! The ledger beside other processes and other users.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use traffic_tests::need;
use traffic_user::{
    accounting::{
        reading::{Coverage, Layer, Traffic},
        subject::Subject,
        tick::Plan,
        usage::{Entry, Usage},
    },
    ledger::{Ledger, LedgerError, Options, Reader},
};

/// Neither a user nor a group that anybody is.
const NOBODY: libc::uid_t = 54_321;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn plan() -> Plan {
    let traffic = Traffic { input_bytes: 1, ..Traffic::default() };
    let usage = Usage { layer: Layer::L3, traffic, coverage: Coverage::Complete };
    Plan { entries: vec![Entry { subject: Subject::Host, name: None, usage }], ..Plan::default() }
}

/// Reads as a user who is in this group and no other.
fn read_as(folder: &Path, group: libc::gid_t) -> Result<Option<u64>, LedgerError> {
    let folder = folder.to_path_buf();
    let reading = std::thread::spawn(move || {
        // SAFETY: plain system calls without pointers, which change this thread alone.
        let changed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, 0)
                | libc::syscall(libc::SYS_setresgid, group, group, group)
                | libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY)
        };
        assert_eq!(changed, 0);
        let Some(reader) = Reader::open(&folder)? else { return Ok(None) };
        let totals = reader.totals(&Subject::Host)?;
        Ok(totals.first().map(|usage| usage.traffic.input_bytes))
    });
    reading.join().unwrap()
}

#[test]
fn members_of_the_folders_group_read_beside_the_daemon_and_without_it_and_others_never() {
    need!(Root);
    let place = std::env::temp_dir().join(format!("traffic-it-ledger-{}", std::process::id()));
    fs::create_dir(&place).unwrap();
    let folder = Folder(place);
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o750)).unwrap();
    chown(&folder.0, None, Some(NOBODY)).unwrap();

    let (mut ledger, _) = Ledger::open(&folder.0, Options::default()).unwrap();
    ledger.commit(&plan()).unwrap();
    assert_eq!(read_as(&folder.0, NOBODY).unwrap(), Some(1));
    ledger.commit(&plan()).unwrap();
    assert_eq!(read_as(&folder.0, NOBODY).unwrap(), Some(2));
    assert!(matches!(read_as(&folder.0, NOBODY + 1), Err(LedgerError::Denied { .. })));

    // It ended well: nothing is left beside the file. Then it was killed: everything is.
    drop(ledger);
    assert!(!folder.0.join("ledger.db-wal").exists());
    assert_eq!(read_as(&folder.0, NOBODY).unwrap(), Some(2));
    let (mut ledger, _) = Ledger::open(&folder.0, Options::default()).unwrap();
    ledger.commit(&plan()).unwrap();
    let copy = Folder(folder.0.with_extension("killed"));
    fs::create_dir(&copy.0).unwrap();
    fs::set_permissions(&copy.0, fs::Permissions::from_mode(0o750)).unwrap();
    chown(&copy.0, None, Some(NOBODY)).unwrap();
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        let file = copy.0.join(name);
        fs::copy(folder.0.join(name), &file).unwrap();
        chown(&file, None, Some(NOBODY)).unwrap();
    }
    assert_eq!(read_as(&copy.0, NOBODY).unwrap(), Some(3));
}

//! A terminal for a program that asks whether somebody looks.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    process::Stdio,
    thread::{self, JoinHandle},
};

use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
};

/// The end where programs write, and what they wrote.
#[derive(Debug)]
pub struct Terminal {
    inside: File,
    shown: JoinHandle<Vec<u8>>,
}

impl Terminal {
    /// One with so many columns.
    ///
    /// # Panics
    ///
    /// Without terminals.
    pub fn new(columns: u16) -> Self {
        // Not inherited by what other tests start meanwhile: the text ends when the last end is closed.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mut outside = posix_openpt(flags).expect("a terminal");
        grantpt(&outside).expect("a terminal for us");
        unlockpt(&outside).expect("a terminal to open");
        let name = ptsname_r(&outside).expect("the name of the terminal");
        let inside = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name)
            .expect("open the terminal");
        let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size lives until the call returns, and is what the request reads.
        let set = unsafe { libc::ioctl(inside.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0, "set the size of the terminal");
        let shown = thread::spawn(move || {
            let (mut text, mut piece) = (Vec::new(), [0; 4096]);
            // An error is how a terminal says that nobody has it open any more.
            while let Ok(length @ 1..) = outside.read(&mut piece) {
                text.extend_from_slice(&piece[..length]);
            }
            text
        });
        Self { inside, shown }
    }

    /// The end for a program: its stdout, say.
    ///
    /// # Panics
    ///
    /// Without a free file descriptor.
    pub fn end(&self) -> Stdio {
        self.inside.try_clone().expect("another descriptor").into()
    }

    /// All that was shown, when every program at it has ended.
    ///
    /// # Panics
    ///
    /// Never.
    pub fn shown(self) -> String {
        drop(self.inside);
        let text = self.shown.join().expect("read the terminal");
        String::from_utf8_lossy(&text).into_owned()
    }
}

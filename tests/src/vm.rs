//! Virtual machines with other kernels: an initial file system with a few programs in it, and what
//! the machine writes to its console.
//!
//! The machine is emulated: nested virtualization may be offered and not work. It has no disk and no
//! network, so nothing of a test leaves it.

mod archive;

use std::{
    env, fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Condvar, Mutex, mpsc},
    thread,
    time::Duration,
};

pub use archive::Archive;

use crate::need;

/// Where `cargo xtask test` says that the kernels are.
const KERNELS: &str = "TRAFFIC_KERNELS";

/// How long a machine may say nothing. Emulation is slow, and other tests run at the same time.
const SILENCE: Duration = Duration::from_secs(240);

/// So many machines run at once; each wants two processors.
const MOST: u32 = 2;

/// A kernel, with the modules that were collected for it.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The kernel of this label.
    ///
    /// # Errors
    ///
    /// Says why there is none.
    pub fn find(label: &str) -> Result<Self, String> {
        let all = env::var_os(KERNELS).ok_or_else(|| {
            format!("no kernel {label}: {KERNELS} is not set (`cargo xtask test` fetches them)")
        })?;
        let folder = Path::new(&all).join(label);
        if folder.join("vmlinuz").is_file() {
            Ok(Self { folder })
        } else {
            Err(format!("no kernel {label} in {}", folder.display()))
        }
    }

    /// What `uname -r` says when it runs.
    ///
    /// # Panics
    ///
    /// When the folder is not whole.
    pub fn release(&self) -> String {
        let path = self.folder.join("release");
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|err| panic!("read {}: {err}", path.display()));
        text.trim().to_owned()
    }

    /// The folder of its modules, numbered in the order to load them.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }

    /// Starts a machine with this kernel, whose first program is the archive's `/init`, and waits until
    /// it is off. `words` go to the kernel, which makes variables of `NAME=VALUE`. Gives what it wrote
    /// to its console.
    ///
    /// # Panics
    ///
    /// When it says nothing for too long, with what it wrote.
    #[track_caller]
    pub fn boot(&self, files: &Archive, words: &str) -> String {
        let _place = Place::take();
        let initrd = Scratch::new(files);
        let qemu = need::tool("qemu-system-x86_64").expect("a test that needs qemu asks for it");
        let mut machine = Machine(
            Command::new(qemu)
                // Where the emulator of QEMU 7.2 offers cmpxchg16b, which newer kernels' allocator uses,
                // the flags register gets a wrong value now and then and the kernel dies. And where
                // each processor has a thread of its own, it may hang before its first word.
                .args(["-accel", "tcg,thread=single", "-cpu", "qemu64,cx16=off"])
                .args(["-m", "768", "-smp", "2"])
                .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
                .args(["-serial", "stdio", "-kernel"])
                .arg(self.folder.join("vmlinuz"))
                .arg("-initrd")
                .arg(&initrd.0)
                .arg("-append")
                .arg(format!("console=ttyS0 quiet panic=-1 {words}"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .expect("start qemu"),
        );
        let mut console = machine.0.stdout.take().expect("a pipe was asked for");
        let (pieces, written) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = console.read(&mut buffer) {
                if pieces.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut text = Vec::new();
        loop {
            match written.recv_timeout(SILENCE) {
                Ok(piece) => text.extend(piece),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let text = String::from_utf8_lossy(&text);
                    panic!("the machine says nothing for {} s after:\n{text}", SILENCE.as_secs());
                }
            }
        }
        reader.join().expect("the reader of the console");
        machine.0.wait().expect("the end of qemu");
        String::from_utf8_lossy(&text).replace('\r', "")
    }
}

/// A running qemu, which does not outlive its test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The initial file system as a file, for qemu to read.
struct Scratch(PathBuf);

impl Scratch {
    fn new(files: &Archive) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tt-{}-{}.cpio", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let scratch = Self(env::temp_dir().join(name));
        fs::File::create_new(&scratch.0)
            .and_then(|mut file| file.write_all(&files.to_bytes()))
            .unwrap_or_else(|err| panic!("write {}: {err}", scratch.0.display()));
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.0) {
            eprintln!("left behind: {}: {err}", self.0.display());
        }
    }
}

static RUNNING: Mutex<u32> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// One of the places for machines.
struct Place;

impl Place {
    fn take() -> Self {
        let mut running = RUNNING.lock().expect("nobody panics with it");
        while *running == MOST {
            running = FREED.wait(running).expect("nobody panics with it");
        }
        *running += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(mut running) = RUNNING.lock() {
            *running -= 1;
        }
        FREED.notify_one();
    }
}

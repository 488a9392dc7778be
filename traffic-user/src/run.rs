//! Processes: our own end, where nothing else ends it; and children, found in known folders, started with a
//! clean environment, ended at a deadline.
//!
//! A tool that hangs must not make us hang, and a tool that another user put on the path must not be run
//! as root.

use std::{
    env, fs,
    io::{self, Read, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Ends this process without another look at anything: what is attached by links goes with it, and all else stays.
pub(crate) fn exit_at_once(code: i32) -> ! {
    std::process::exit(code)
}

/// Where the system's own tools are, in the order in which they are looked for.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Replaces [`FOLDERS`]: for hosts that keep their tools elsewhere, and for tests.
const VARIABLE: &str = "TRAFFIC_TOOLS";

/// Variables that a tool may see. The lock file is the host's choice, and its tools must agree on it.
const PASSED_ON: [&str; 1] = ["XTABLES_LOCKFILE"];

/// Most that a tool may write: the rules of a very busy host are a few MB.
const LONGEST_OUTPUT: u64 = 256 << 20;

/// Why a tool gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// It could not be started.
    #[error("cannot start {}", .tool.display())]
    Start {
        /// Which.
        tool: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// It did not end in time, and was ended.
    #[error("{} did not end within {} s and was ended", .tool.display(), .deadline.as_secs_f32())]
    Late {
        /// Which.
        tool: PathBuf,
        /// How long it had.
        deadline: Duration,
    },
    /// It wrote more than can be meant.
    #[error("{} wrote more than {LONGEST_OUTPUT} bytes", .tool.display())]
    TooMuch {
        /// Which.
        tool: PathBuf,
    },
}

/// What a tool said when it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// Its exit code; `None` after a signal.
    pub(crate) code: Option<i32>,
    /// What it wrote as its result. Bytes that are no UTF-8 are replaced.
    pub(crate) stdout: String,
    /// What it wrote besides, trimmed.
    pub(crate) stderr: String,
}

impl Said {
    /// Whether it did what it was asked.
    pub(crate) fn done(&self) -> bool {
        self.code == Some(0)
    }
}

/// The first of these tools that is installed, as an absolute path.
pub(crate) fn find(names: &[&str]) -> Option<PathBuf> {
    let set = env::var_os(VARIABLE);
    let folders: Vec<PathBuf> = match &set {
        Some(folders) => env::split_paths(folders).collect(),
        None => FOLDERS.iter().map(PathBuf::from).collect(),
    };
    names.iter().find_map(|name| {
        folders.iter().map(|folder| folder.join(name)).find(|path| is_executable(path))
    })
}

fn is_executable(path: &Path) -> bool {
    path.is_absolute()
        && fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a tool to its end with this text as its input.
///
/// # Errors
///
/// [`RunError`]; that it says no is not an error here but its exit code.
pub(crate) fn run(
    tool: &Path,
    args: &[&str],
    input: &str,
    deadline: Duration,
) -> Result<Said, RunError> {
    let end = Instant::now() + deadline;
    let mut command = Command::new(tool);
    command
        .args(args)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", FOLDERS.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: Ctrl-C is for us, and what a tool starts ends with it.
        .process_group(0);
    for name in PASSED_ON {
        if let Some(value) = env::var_os(name) {
            command.env(name, value);
        }
    }
    let start = |cause| RunError::Start { tool: tool.into(), cause };
    let mut child = Running(command.spawn().map_err(start)?);
    let stdin = child.0.stdin.take();
    let stdout = child.0.stdout.take();
    let stderr = child.0.stderr.take();
    let (send, pieces) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A tool that ends without reading all has said why.
            let _ = stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
        });
        let also = send.clone();
        scope.spawn(move || also.send((true, stdout.map(read).unwrap_or_default())));
        scope.spawn(move || send.send((false, stderr.map(read).unwrap_or_default())));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let left = end.saturating_duration_since(Instant::now());
            match pieces.recv_timeout(left) {
                Ok((true, bytes)) => out = bytes,
                Ok((false, bytes)) => err = bytes,
                Err(_) => {
                    // The threads end when the pipes do.
                    child.end();
                    return Err(RunError::Late { tool: tool.into(), deadline });
                }
            }
        }
        if out.len() as u64 > LONGEST_OUTPUT {
            child.end();
            return Err(RunError::TooMuch { tool: tool.into() });
        }
        let status = child.wait_until(end).map_err(start)?;
        let Some(status) = status else {
            return Err(RunError::Late { tool: tool.into(), deadline });
        };
        Ok(Said {
            code: status.code(),
            stdout: String::from_utf8_lossy(&out).into_owned(),
            stderr: String::from_utf8_lossy(&err).trim().to_owned(),
        })
    })
}

/// All that a pipe gives, up to just above the longest output that is taken.
fn read(pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error is what there is.
    let _ = pipe.take(LONGEST_OUTPUT + 1).read_to_end(&mut bytes);
    bytes
}

/// A child that does not outlive the call.
struct Running(Child);

impl Running {
    fn end(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// A tool that closed its output ends at once, or has gone astray.
    fn wait_until(&mut self, end: Instant) -> io::Result<Option<std::process::ExitStatus>> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                self.end();
                return Ok(None);
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, input: &str, deadline: Duration) -> Result<Said, RunError> {
        run(&find(&["sh"]).unwrap(), &["-c", script], input, deadline)
    }

    #[test]
    fn a_tool_gets_its_input_and_says_how_it_ended() {
        let said = sh("cat; echo no >&2; exit 3", "text\n", LONG).unwrap();
        let want = Said { code: Some(3), stdout: "text\n".into(), stderr: "no".into() };
        assert_eq!(said, want);
    }

    #[test]
    fn more_than_a_pipe_holds_goes_both_ways() {
        let text = "0123456789abcdef".repeat(100_000);
        let said = sh("cat", &text, LONG).unwrap();
        assert!(said.stdout == text && said.done());
    }

    #[test]
    fn a_tool_that_hangs_is_ended() {
        for script in ["exec sleep 1000", "exec sleep 1000 >&- 2>&-", "sleep 1000; :"] {
            let late = sh(script, "", Duration::from_millis(50));
            assert!(matches!(late, Err(RunError::Late { .. })), "{late:?}");
        }
    }

    #[test]
    fn a_tool_does_not_see_our_environment() {
        let said = sh("echo ${CARGO_MANIFEST_DIR:-none} $LC_ALL", "", LONG).unwrap();
        assert_eq!(said.stdout, "none C\n");
    }

    #[test]
    fn a_tool_that_is_not_installed_is_not_found() {
        assert_eq!(find(&["no-such-tool-anywhere"]), None);
        assert!(find(&["no-such-tool-anywhere", "sh"]).unwrap().is_absolute());
    }
}

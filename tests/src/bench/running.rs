//! The real `traffic run` while something about it is measured.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use serde_json::Value;

/// `traffic`, as `cargo xtask bench` says or as cargo put it beside this program.
pub(super) fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("TRAFFIC_BIN") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("traffic"),
    };
    ensure!(path.is_file(), "no program {}: build it with `cargo xtask build`", path.display());
    Ok(path)
}

/// A `traffic run` that is ended when this value goes.
pub(super) struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it with these arguments in this thread's network namespace, where one device has a
    /// default route. It writes documents and books nothing.
    pub(super) fn start(binary: &Path, arguments: &[&str]) -> Result<Self> {
        Self::spawn(binary, &[&["--output", "json", "--no-ledger"], arguments].concat())
    }

    /// The same with none but these arguments.
    pub(super) fn spawn(binary: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(binary)
            .arg("run")
            .args(arguments)
            // An API that hangs is meant to, and no news.
            .env("TRAFFIC_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        Ok(Self { child, lines: BufReader::new(stdout) })
    }

    /// Its next document as it came.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "it ended in the middle: {line}");
        Ok(line)
    }

    /// Its next document.
    pub(super) fn document(&mut self) -> Result<Value> {
        parse(&self.line()?)
    }

    /// Processor time of all its threads so far.
    pub(super) fn work(&self) -> Result<Duration> {
        work(self.pid()?)
    }

    /// What it takes now.
    pub(super) fn memory(&self) -> Result<Memory> {
        Memory::of(self.pid()?)
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn stop(mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM)?;
        io::copy(&mut self.lines, &mut io::sink())?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended by itself has no number any more.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), self.pid()) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        // What it still writes may be more than a pipe holds, and then it would wait for a reader.
        let _ = io::copy(&mut self.lines, &mut io::sink());
        if let Err(error) = self.child.wait() {
            eprintln!("left behind: a running traffic: {error}");
        }
    }
}

/// Processor time of all threads of a process so far.
pub(super) fn work(pid: Pid) -> Result<Duration> {
    Ok(clock_gettime(clock_getcpuclockid(pid)?)?.into())
}

/// A document that was read as a line.
pub(super) fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line).with_context(|| format!("understand what it wrote: {line}"))
}

/// KiB of a running process.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) most: u64,
    /// By name, as the kernel charges them.
    pub(super) maps: BTreeMap<String, u64>,
}

impl Memory {
    fn of(pid: Pid) -> Result<Self> {
        let (resident, most) = resident(pid)?;
        let maps = maps(&PathBuf::from("/proc").join(pid.to_string()).join("fdinfo"))?;
        Ok(Self { resident, most, maps })
    }

    /// KiB of all maps.
    pub(super) fn map_total(&self) -> u64 {
        self.maps.values().sum()
    }
}

/// KiB of memory that a process has now, and had at most.
pub(super) fn resident(pid: Pid) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.trim().strip_suffix(" kB"));
        value
            .and_then(|value| value.trim().parse().ok())
            .with_context(|| format!("{name} of the process"))
    };
    Ok((of("VmRSS:")?, of("VmHWM:")?))
}

/// The BPF maps that a process has open: their size, by their kind and dimensions.
fn maps(fdinfo: &Path) -> Result<BTreeMap<String, u64>> {
    let mut by_id = BTreeMap::new();
    for entry in fs::read_dir(fdinfo)? {
        // One that is closed meanwhile does not count.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        if let (Some(id), Some(bytes)) = (fields.get("map_id"), fields.get("memlock")) {
            let field = |name: &str| fields.get(name).copied().unwrap_or("?");
            let name = format!(
                "type {}, {} x {} bytes",
                field("map_type"),
                field("max_entries"),
                field("value_size")
            );
            by_id.insert((*id).to_owned(), (name, bytes.parse::<u64>()? / 1024));
        }
    }
    ensure!(!by_id.is_empty(), "no BPF map is open");
    let mut maps = BTreeMap::new();
    for (name, kib) in by_id.into_values() {
        *maps.entry(name).or_insert(0) += kib;
    }
    Ok(maps)
}

/// KiB for people.
pub(super) fn mib(kib: u64) -> String {
    let kib = u32::try_from(kib).unwrap_or(u32::MAX);
    format!("{:.1}", f64::from(kib) / 1024.0)
}

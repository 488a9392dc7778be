//! The command line: one file a verb. Wires meters to views; holds no rules of its own.

mod books;
mod clean;
mod completions;
mod config;
mod doctor;
mod dump;
mod export;
mod file;
mod history;
mod iptables;
mod ports;
mod proxy;
mod reset;
mod run;
mod stats;
mod summary;
mod top;

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    accounting::ident::{GroupError, Groups, escaped},
    config::{Checks, Config, ConfigError},
    daemon::Messages,
    ledger::LedgerError,
    meter::{MeterError, devices::Wanted, ebpf::DEFAULT_PINS, proxy::Address},
    state,
};

/// Most groups that can be watched at once.
const MOST_GROUPS: usize = traffic_ebpf::abi::MAX_SLOTS as usize;

/// What the configuration cannot know by itself.
const CHECKS: Checks = Checks {
    most_groups: MOST_GROUPS,
    iface: |globs| Wanted::new(globs).map(drop).map_err(|error| error.to_string()),
    api: |place| place.parse::<Address>().map(drop).map_err(|error| error.to_string()),
};

/// Counts the traffic of V2Ray and Xray servers in the kernel, per port, exactly and at almost no cost.
///
/// Without a verb: the short report of today.
///
/// Exit codes: 0 done; 1 done, and a limit or check is over; 2 could not.
#[derive(Debug, Parser)]
#[command(name = "traffic", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Write JSON: stable, for scripts
    #[arg(long, global = true)]
    json: bool,
    /// Configuration. Without it: /etc/traffic/traffic.toml where it is there
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where totals and locks are kept. Without it: /var/lib/traffic; for a user without root
    /// $XDG_STATE_HOME/traffic, else ~/.local/state/traffic
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Folder on bpffs in which counters outlive the daemon. Without it: /sys/fs/bpf/traffic
    #[arg(long, global = true, value_name = "DIR")]
    pins: Option<PathBuf>,
    /// Colour messages
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
    /// Say more on stderr; twice for details
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach, count and show until stopped
    Run(run::Args),
    /// Show the counters as they stand, once
    Dump,
    /// Show what kernel and proxy say of groups and users, merged
    Stats(stats::Args),
    /// Show what rules of nftables or iptables counted, where eBPF cannot run, and clean up after them
    Iptables(iptables::Args),
    /// Show all configured ports with their traffic
    Ports(ports::Args),
    /// Show what was moved period by period, from the ledger
    History(history::Args),
    /// Show who moved most, from the ledger
    Top(top::Args),
    /// Write reports or the ledger's own lines for other programs
    Export(export::Args),
    /// Begin anew: set counters of the proxy to zero, and our own numbers with them
    Reset(reset::Args),
    /// Take off all of ours and nothing else
    Clean(clean::Args),
    /// Show what this host can do, which meter would be used, and why
    Doctor(doctor::Args),
    /// Look at a configuration
    Config(config::Args),
    /// Write a completion script for a shell
    Completions(completions::Args),
}

/// What all verbs share: the command line, else the configuration, else the default.
struct Common {
    json: bool,
    state: PathBuf,
    pins: PathBuf,
    config: Config,
    /// The file that `config` was read from; `None` is the usual place.
    config_file: Option<PathBuf>,
}

impl Common {
    fn new(global: Global) -> Result<Self> {
        let config = Config::load(global.config.as_deref(), CHECKS)?;
        Ok(Self {
            json: global.json,
            state: global.state.or_else(|| config.state.clone()).unwrap_or_else(default_state),
            pins: global
                .pins
                .or_else(|| config.pins.clone())
                .unwrap_or_else(|| DEFAULT_PINS.into()),
            config,
            config_file: global.config,
        })
    }
}

/// Reads the command line and does what it says.
///
/// # Errors
///
/// Whatever could not be done; the exit code is 2 then.
pub fn run() -> Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results and go to stdout; the rest are messages, which repeat what was
            // typed.
            if !error.use_stderr() {
                error.print().context("cannot write to stdout")?;
                return Ok(ExitCode::SUCCESS);
            }
            let _ = io::stderr().write_all(printable(&error.render().to_string()).as_bytes());
            return Ok(ExitCode::from(2));
        }
    };
    let run = match &cli.verb {
        Some(Verb::Run(args)) => Some(args),
        _ => None,
    };
    let messages = log_to_stderr(&cli.global, run);
    // These two do not stand on the configuration.
    let verb = match cli.verb {
        None => return summary::run(&Common::new(cli.global)?),
        Some(Verb::Completions(args)) => return completions::run(&args),
        Some(Verb::Config(args)) => return config::run(&cli.global, args),
        Some(verb) => verb,
    };
    let common = Common::new(cli.global)?;
    match verb {
        Verb::Run(args) => run::run(&common, args, messages),
        Verb::Dump => dump::run(&common),
        Verb::Stats(args) => stats::run(&common, &args),
        Verb::Iptables(args) => iptables::run(&common, &args),
        Verb::Ports(args) => ports::run(&common, &args),
        Verb::History(args) => history::run(&common, &args),
        Verb::Top(args) => top::run(&common, &args),
        Verb::Export(args) => export::run(&common, &args),
        Verb::Reset(args) => reset::run(&common, &args),
        Verb::Clean(args) => clean::run(&common, &args),
        Verb::Doctor(args) => doctor::run(&common, &args),
        Verb::Completions(_) | Verb::Config(_) => Ok(ExitCode::SUCCESS),
    }
}

/// What to do about an error, where something of it says so.
pub fn remedy(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(ledger) = cause.downcast_ref::<LedgerError>() {
            return Some(ledger.remedy());
        }
        if let Some(config) = cause.downcast_ref::<ConfigError>() {
            return config.remedy().map(str::to_owned);
        }
        cause.downcast_ref::<MeterError>()?.remedy()
    })
}

/// A message of several lines, with nothing in it that a terminal obeys.
pub fn printable(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

/// Where totals are kept when nobody says so.
fn default_state() -> PathBuf {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    state_of(nix::unistd::geteuid().is_root(), folder("XDG_STATE_HOME"), folder("HOME"))
}

/// A user without root has a place of his own, as the XDG base directories name it.
fn state_of(root: bool, state_home: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    let own = || state_home.or_else(|| Some(home?.join(".local/state")));
    match (!root).then(own).flatten() {
        Some(own) => own.join("traffic"),
        None => state::DEFAULT.into(),
    }
}

/// Messages of the programs themselves, one a packet, come under the name of their crate.
fn log_to_stderr(global: &Global, run: Option<&run::Args>) -> Messages {
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let packets = run.is_some_and(run::Args::logs_packets);
    let packets = if packets { ",traffic_ebpf=debug" } else { "" };
    let filter = EnvFilter::try_from_env("TRAFFIC_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},netlink_proto=off{packets}")));
    let ansi = match global.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                && io::stderr().is_terminal()
        }
    };
    let messages = Messages::default();
    let writer = messages.clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone())
        .log_internal_errors(false)
        .with_ansi(ansi)
        .with_target(false)
        .without_time()
        .init();
    messages
}

/// Reads `--ports`.
fn groups(text: &str) -> Result<Groups, GroupError> {
    Groups::parse(text, MOST_GROUPS)
}

/// Name of this host, as the outputs give it.
fn host() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".to_owned())
}

/// Asks on the terminal. Anything but a yes is a no.
fn agreed(question: &str) -> Result<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        bail!("this is asked about on a terminal\n  remedy: give --yes in scripts");
    }
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).context("cannot ask")?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}

/// Writes a result to stdout.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_root_keeps_totals_in_a_folder_of_his_own() {
        let path = |text: &str| Some(PathBuf::from(text));
        let own = |state, home| state_of(false, state, home);
        assert_eq!(own(path("/x"), path("/home/a")), PathBuf::from("/x/traffic"));
        assert_eq!(own(None, path("/home/a")), PathBuf::from("/home/a/.local/state/traffic"));
        assert_eq!(own(None, None), PathBuf::from(state::DEFAULT));
        assert_eq!(state_of(true, path("/x"), path("/root")), PathBuf::from(state::DEFAULT));
    }
}

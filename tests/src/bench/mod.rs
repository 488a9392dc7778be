//! Measuring: what counting costs, beside nothing and beside what others count with.
//!
//! One run measures everything in rounds; see [`stats`] for why. Nothing here asserts on time: a run
//! on a busy machine gives wide intervals, not a failure. What is asserted is that every way of
//! counting did count the packets that it was timed with.

pub mod chart;
mod clock;
mod folder;
pub mod kernel;
mod lab;
mod ledger;
pub mod machine;
pub mod packets;
mod path;
mod programs;
mod proxy;
mod reading;
pub mod report;
pub mod rules;
mod running;
mod start;
pub mod stats;
mod stream;
mod ways;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use self::{
    machine::Machine,
    path::Load,
    report::{Report, Section},
    ways::Way,
};

/// What `traffic-bench` is told.
#[derive(Debug, Parser)]
#[command(name = "traffic-bench", about = "Measures what counting costs")]
pub struct Args {
    /// A minute instead of ten: shows that everything works, not what it costs
    #[arg(long)]
    pub quick: bool,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    pub only: Vec<Part>,
    /// Rounds of each part, in the place of its own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// In the receive path only ways with these words in their names, beside nothing
    #[arg(long, value_delimiter = ',', value_name = "WORDS")]
    pub ways: Vec<String>,
    /// Where the report goes
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Each program against an empty one
    #[value(name = "a")]
    Programs,
    /// A packet's way to its socket
    #[value(name = "b")]
    Path,
    /// One TCP stream
    #[value(name = "s")]
    Stream,
    /// Reading all counters
    #[value(name = "c")]
    Reading,
    /// Start and memory
    #[value(name = "d")]
    Start,
    /// Many users of a proxy
    #[value(name = "e")]
    Proxy,
    /// Their history in the ledger
    #[value(name = "f")]
    Ledger,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Programs,
        Self::Path,
        Self::Stream,
        Self::Reading,
        Self::Start,
        Self::Proxy,
        Self::Ledger,
    ];

    fn measure(self, plan: &Plan, ways: &[String]) -> Result<Vec<Section>> {
        Ok(match self {
            Self::Programs => vec![programs::measure(plan)?],
            Self::Path => vec![path::measure(plan, ways)?],
            Self::Stream => vec![stream::measure(plan)?],
            Self::Reading => vec![reading::measure(plan)?],
            Self::Start => vec![start::measure(plan)?],
            Self::Proxy => proxy::measure(plan)?,
            Self::Ledger => ledger::measure(plan)?,
        })
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Plan {
    program_rounds: u32,
    /// Runs of one program on one packet in one round.
    program_runs: u32,
    loads: &'static [Load],
    path_rounds: u32,
    /// Turns with a way, and as many without it, in one round.
    path_turns: u32,
    /// A turn has several calls.
    path_call: Duration,
    /// Of ways that take seconds to put in place, and differ by more than any noise.
    slow_rounds: u32,
    stream_rounds: u32,
    stream_time: Duration,
    reading_rounds: u32,
    reading_time: Duration,
    listing_rounds: u32,
    start_rounds: u32,
    poll_rounds: u32,
    /// Ticks of a `traffic run` with all users.
    daemon_ticks: u32,
    /// Of processes that are started one after the other.
    asking_rounds: u32,
    /// Users whom each of these rounds asks about.
    asked_users: u16,
    spacing_rounds: u32,
    /// Ticks of one `traffic run` in one round.
    spacing_ticks: u32,
    ledger: ledger::Extent,
}

impl Plan {
    const WHOLE: Self = Self {
        program_rounds: 31,
        program_runs: 150_000,
        loads: Load::WHOLE,
        path_rounds: 15,
        path_turns: 4,
        path_call: Duration::from_millis(1),
        slow_rounds: 5,
        stream_rounds: 21,
        stream_time: Duration::from_millis(700),
        reading_rounds: 21,
        reading_time: Duration::from_millis(20),
        listing_rounds: 7,
        start_rounds: 20,
        poll_rounds: 21,
        daemon_ticks: 20,
        asking_rounds: 7,
        asked_users: 20,
        spacing_rounds: 5,
        spacing_ticks: 22,
        ledger: ledger::Extent::WHOLE,
    };

    const QUICK: Self = Self {
        program_rounds: 3,
        program_runs: 10_000,
        loads: Load::QUICK,
        path_rounds: 3,
        path_turns: 2,
        path_call: Duration::from_millis(1),
        slow_rounds: 1,
        stream_rounds: 1,
        stream_time: Duration::from_millis(200),
        reading_rounds: 3,
        reading_time: Duration::from_millis(2),
        listing_rounds: 1,
        start_rounds: 3,
        poll_rounds: 3,
        daemon_ticks: 3,
        asking_rounds: 1,
        asked_users: 4,
        spacing_rounds: 1,
        spacing_ticks: 6,
        ledger: ledger::Extent::QUICK,
    };

    fn new(args: &Args) -> Self {
        let plan = if args.quick { Self::QUICK } else { Self::WHOLE };
        let Some(rounds) = args.rounds else {
            return plan;
        };
        Self {
            program_rounds: rounds,
            path_rounds: rounds,
            slow_rounds: plan.slow_rounds.min(rounds),
            stream_rounds: rounds,
            reading_rounds: rounds,
            listing_rounds: plan.listing_rounds.min(rounds),
            start_rounds: rounds,
            poll_rounds: rounds,
            asking_rounds: plan.asking_rounds.min(rounds),
            spacing_rounds: plan.spacing_rounds.min(rounds),
            ledger: plan.ledger.in_rounds(rounds),
            ..plan
        }
    }

    /// Rounds of a way under a load.
    fn rounds_of(&self, way: Way, load: Load) -> u32 {
        let slow = match way {
            Way::IptablesNft | Way::IptablesLegacy | Way::IptablesMeter => load.ports > 100,
            Way::NftMeter => load.ports > 1000,
            _ => false,
        };
        if slow { self.slow_rounds.min(self.path_rounds) } else { self.path_rounds }
    }
}

/// Measures, writes the report, and says whether the targets were reached.
///
/// # Errors
///
/// When something cannot be measured: a right, a tool or a kernel feature is missing, or a way of
/// counting did not count.
pub fn run(args: &Args) -> Result<()> {
    let plan = Plan::new(args);
    let mut report = Report { machine: Machine::look(), quick: args.quick, sections: Vec::new() };
    let folder = args.out.clone().unwrap_or_else(default_folder);
    let mut failed = Vec::new();
    for part in Part::ALL {
        if !args.only.is_empty() && !args.only.contains(&part) {
            continue;
        }
        let begin = Instant::now();
        match part.measure(&plan, &args.ways) {
            Ok(sections) => report.sections.extend(sections),
            Err(error) => {
                eprintln!("{part:?} failed: {error:#}");
                failed.push(format!("{part:?}"));
            }
        }
        eprintln!("{part:?}: {:.0} s", begin.elapsed().as_secs_f64());
        // After each part: what took minutes does not go with one that fails later.
        report.write(&folder)?;
    }
    println!("{}", report.summary());
    println!("report: {}", folder.join("bench.md").display());
    ensure!(failed.is_empty(), "could not be measured: {}", failed.join(", "));
    Ok(())
}

/// Beside what cargo built.
fn default_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")))
        .join("bench")
}

//! Part (f): a ledger with the history of many users. What it takes to book a tick, to answer, to keep the
//! whole daemon going, and how much the file grows; and vnStat beside it, where it does the same.

mod asking;
mod booking;
mod growing;
mod living;
mod vnstat;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use traffic_user::ledger::{FILE, Sample, generate};

use self::{asking::Questions, vnstat::VnStat};
use super::{
    Plan,
    folder::Folder,
    lab::{self, DEVICE, Lab},
    proxy::{PROMISED, Proxy},
    report::Section,
};

const MINUTES: i64 = 300;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Hours of a day in which each user moves something.
const HOURS: u32 = 8;
/// Rounds in which a ledger is asked that is being written.
const MOST_BUSY: u32 = 7;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    users: u16,
    days: u32,
    /// Ticks that are booked one after the other, 10 s of the ledger's time apart.
    ticks: u32,
    /// Rounds of what is measured in rounds.
    rounds: u32,
    /// Time between two ticks of a `traffic run`.
    interval: Duration,
    /// Ticks of it that are looked at.
    daemon_ticks: u32,
}

impl Extent {
    pub(super) const WHOLE: Self = Self {
        users: PROMISED,
        days: 400,
        ticks: 360,
        rounds: 21,
        interval: Duration::from_secs(10),
        daemon_ticks: 6,
    };

    pub(super) const QUICK: Self = Self {
        users: 1000,
        days: 70,
        ticks: 40,
        rounds: 3,
        interval: Duration::from_secs(1),
        daemon_ticks: 3,
    };

    pub(super) const fn in_rounds(self, rounds: u32) -> Self {
        Self { rounds, ..self }
    }
}

/// Measures and reports.
pub(super) fn measure(plan: &Plan) -> Result<Vec<Section>> {
    let extent = plan.ledger;
    let lab = Lab::new()?;
    lab.ns.ip(&format!("route add default via 10.9.0.2 dev {DEVICE}\n"));
    lab.ns.run(|| {
        let books = Books::make(extent).context("make a ledger")?;
        eprintln!("  a ledger of {} in {:.0} s", books.size(), books.made.as_secs_f64());
        let asked = asking::measure(extent, &books).context("ask the ledger")?;
        let proxy = Proxy::new(extent.users)?;
        let copy = books.copy().context("copy the ledger")?;
        let mut booked = booking::measure(extent, &books, &copy, &proxy).context("book ticks")?;
        let busy = Questions::new(&copy, extent, books.sample.end + DAY)
            .and_then(|questions| questions.measure(extent.rounds.min(MOST_BUSY)))
            .context("ask the ledger of a busy hour")?;
        booking::catch_up(&books, &copy, &mut booked).context("sum up and let go")?;
        let vnstat = VnStat::start(extent);
        let beside = vnstat.as_ref().ok().map(VnStat::pid).transpose()?;
        let lived = living::measure(extent, &lab, &copy, &proxy, beside)
            .context("a daemon with a ledger")?;
        drop(copy);
        let vnstat = vnstat.and_then(|vnstat| vnstat.measure(extent));
        if let Err(why) = &vnstat {
            eprintln!("  vnStat is not measured: {why:#}");
        }
        let grown = growing::measure(&books).context("the file's growth")?;
        Ok(vec![
            booking::report(extent, &booked),
            asking::report(extent, &books, &asked, &busy),
            growing::report(extent, &grown),
            living::report(extent, &lived),
            vnstat::report(extent, &vnstat, &asked, &lived, &grown),
        ])
    })
}

/// A ledger with a history.
struct Books {
    folder: Folder,
    sample: Sample,
    /// Payload bytes in it.
    payload: u64,
    /// How long it took to make it.
    made: Duration,
    /// What the file system calls itself.
    disk: String,
}

impl Books {
    /// One that ended at the last midnight of UTC that is more than some hours ago: what is booked by hand
    /// lies between that time and now.
    fn make(extent: Extent) -> Result<Self> {
        let end = (now()? - 3 * HOUR).div_euclid(DAY) * DAY;
        let sample =
            Sample { users: extent.users.into(), groups: 0, days: extent.days, hours: HOURS, end };
        let folder = Folder::new("ledger")?;
        let begin = Instant::now();
        let payload = generate(&folder.0, sample)?.bytes();
        let made = begin.elapsed();
        let disk = lab::run(&["stat", "--file-system", "--format", "%T", folder.text()?], "")?;
        Ok(Self { folder, sample, payload, made, disk: disk.trim().to_owned() })
    }

    /// Another folder with the same ledger.
    fn copy(&self) -> Result<Folder> {
        let copy = Folder::new("copy")?;
        // Nobody has it open, so that all of it is in this file.
        fs::copy(self.folder.0.join(FILE), copy.0.join(FILE))?;
        Ok(copy)
    }

    fn size(&self) -> String {
        let bytes = Pages::of(&self.folder.0).map_or(0, Pages::in_use);
        let Sample { users, days, .. } = self.sample;
        format!("{users} users and {days} days, {} MiB,", bytes >> 20)
    }
}

/// What the head of the ledger's file says of its size.
#[derive(Clone, Copy, Debug)]
struct Pages {
    size: u64,
    all: u64,
    free: u64,
}

impl Pages {
    /// Of a ledger that nobody has open.
    fn of(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = read_head(&path).with_context(|| format!("read {}", path.display()))?;
        let word = |at: usize| u64::from(u32::from_be_bytes([0, 1, 2, 3].map(|i| bytes[at + i])));
        let size = u64::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        let pages = Self { size, all: word(28), free: word(36) };
        let length = fs::metadata(&path)?.len();
        ensure!(
            bytes.starts_with(b"SQLite format 3\0") && size * pages.all == length,
            "{pages:?} do not make up {length} bytes"
        );
        Ok(pages)
    }

    /// Bytes that hold something.
    const fn in_use(self) -> u64 {
        (self.all - self.free) * self.size
    }
}

fn read_head(path: &Path) -> std::io::Result<[u8; 100]> {
    use std::io::Read as _;
    let mut head = [0; 100];
    fs::File::open(path)?.read_exact(&mut head)?;
    Ok(head)
}

/// Seconds of Unix time.
fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

//! vnStat, for what it does as well: the history of one device. It runs on a database of its own, in the
//! network namespace of the measurement.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::{
    super::{
        lab::DEVICE,
        report::{Section, Table},
        running::{mib, parse},
        stats::{Rounds, number},
    },
    Extent, Folder,
    asking::{Answers, Asked},
    growing::Grown,
    living::{Lived, Took},
    ms,
};
use crate::need;

/// Where its files are, if it is not installed.
const PLACE: &str = "TRAFFIC_VNSTAT";
/// Name of its database.
const DATABASE: &str = "vnstat.db";
const CONFIG: &str = "vnstat.conf";
/// Days that are asked about.
const MONTH: usize = 30;
/// Days of which it keeps the hours.
const HOURS_KEPT: i64 = 60;
/// Hours of which it keeps the five minutes.
const MINUTES_KEPT: i64 = 48;

/// Its two programs.
struct Programs {
    verb: PathBuf,
    daemon: PathBuf,
    /// Where its libraries are.
    libraries: Option<PathBuf>,
}

impl Programs {
    fn find() -> Result<Self> {
        let Some(root) = std::env::var_os(PLACE).map(PathBuf::from) else {
            let tool =
                |name| need::tool(name).with_context(|| format!("no program {name} is installed"));
            return Ok(Self { verb: tool("vnstat")?, daemon: tool("vnstatd")?, libraries: None });
        };
        let mut libraries = None;
        for entry in fs::read_dir(root.join("usr/lib"))? {
            let path = entry?.path();
            if path.join("libsqlite3.so.0").exists() {
                libraries = Some(path);
            }
        }
        let (verb, daemon) = (root.join("usr/bin/vnstat"), root.join("usr/sbin/vnstatd"));
        ensure!(verb.is_file() && daemon.is_file(), "{} has no vnStat", root.display());
        Ok(Self { verb, daemon, libraries })
    }

    fn verb(&self, folder: &Folder) -> Command {
        self.command(&self.verb, folder)
    }

    fn daemon(&self, folder: &Folder) -> Command {
        self.command(&self.daemon, folder)
    }

    /// With a configuration of ours. It counts days in UTC as the ledger does.
    fn command(&self, program: &Path, folder: &Folder) -> Command {
        let mut command = Command::new(program);
        command.arg("--config").arg(folder.0.join(CONFIG));
        command.env("TZ", "UTC").env("LC_ALL", "C").stdin(Stdio::null());
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }
}

/// A folder with its configuration and database, and its running daemon.
pub(super) struct VnStat {
    programs: Programs,
    /// Ends before its folder goes.
    daemon: Daemon,
    folder: Folder,
    /// Bytes of each day in the database, the oldest first.
    days: Vec<i64>,
}

/// What it took.
pub(super) struct Beside {
    version: String,
    ways: Rounds<Way>,
    /// Bytes of its database.
    database: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Json,
    Table,
    Nothing,
}

impl VnStat {
    /// Fills a database with a history as long as the ledger's, and lets its daemon go on with it.
    pub(super) fn start(extent: Extent) -> Result<Self> {
        let programs = Programs::find()?;
        let folder = Folder::new("vnstat")?;
        let text = format!(
            "Interface \"{DEVICE}\"\nDatabaseDir \"{}\"\nAlwaysAddNewInterfaces 0\nUseLogging 0\n\
             5MinuteHours {MINUTES_KEPT}\nHourlyDays {HOURS_KEPT}\nDailyDays {}\nMonthlyMonths -1\n\
             YearlyYears -1\nDaemonUser \"\"\nDaemonGroup \"\"\nPidFile \"{}\"\n",
            folder.text()?,
            extent.days,
            folder.0.join("pid").display()
        );
        fs::write(folder.0.join(CONFIG), text)?;
        // Its own database, that knows this device and no other.
        run(programs.daemon(&folder).arg("--initdb"))?;
        run(programs.verb(&folder).args(["--add", "--iface", DEVICE]))?;
        let days = fill(&folder, extent.days).context("fill its database")?;
        let daemon = Daemon::start(programs.daemon(&folder).arg("--nodaemon"))?;
        Ok(Self { programs, daemon, folder, days })
    }

    /// Its daemon.
    pub(super) fn pid(&self) -> Result<Pid> {
        self.daemon.pid()
    }

    /// Ends the daemon and asks for the last days.
    pub(super) fn measure(self, extent: Extent) -> Result<Beside> {
        let Self { programs, daemon, folder, days } = self;
        drop(daemon);
        let mut ways = Rounds::default();
        let month = MONTH.to_string();
        // The last of them may have got more since it was filled.
        let old = &days[days.len().saturating_sub(MONTH)..days.len() - 1];
        for round in 0..extent.rounds {
            let mut ask = |way, words: &[&str]| {
                let begin = Instant::now();
                let answer = run(programs.verb(&folder).args(words))?;
                ways.record(way, round, ms(begin.elapsed()));
                anyhow::Ok(answer)
            };
            let answer = ask(Way::Json, &["--json", "d", &month])?;
            let found = bytes_of_days(&parse(&answer)?).context(answer)?;
            ensure!(
                found.len() == MONTH.min(days.len()) && found.starts_with(old),
                "{found:?} does not begin with {old:?}"
            );
            let answer = ask(Way::Table, &["--days", &month])?;
            ensure!(answer.lines().count() > MONTH, "a short answer: {answer}");
            ask(Way::Nothing, &["--version"])?;
        }
        let version = run(programs.verb(&folder).arg("--version"))?;
        let version = version.split(" by ").next().unwrap_or_default().to_owned();
        let database = fs::metadata(folder.0.join(DATABASE))?.len();
        Ok(Beside { version, ways, database })
    }
}

/// `vnstatd`, which is ended when this value goes.
struct Daemon(Child);

impl Daemon {
    /// Starts it and waits until it says that it watches the one device.
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdout(Stdio::piped()).spawn().context("start vnstatd")?;
        let mut daemon = Self(child);
        let stdout = daemon.0.stdout.take().context("a pipe was asked for")?;
        let wanted = format!("Monitoring (1): {DEVICE} ");
        let mut said = String::new();
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if line.contains(&wanted) {
                return Ok(daemon);
            }
            said.push_str(&line);
            said.push('\n');
        }
        bail!("it ended, and said {said}")
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.0.id())?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.0.try_wait(), self.pid()) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        if let Err(error) = self.0.wait() {
            eprintln!("left behind: a running vnstatd: {error}");
        }
    }
}

/// Runs a program to its end and gives what it wrote.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    Ok(stdout)
}

/// Writes days, hours and buckets of five minutes until now, each with other bytes. Gives those of the
/// days.
fn fill(folder: &Folder, days: u32) -> Result<Vec<i64>> {
    let db = Connection::open(folder.0.join(DATABASE))?;
    let tables = [
        ("day", i64::from(days), "date('now', '-' || n || ' days')"),
        ("hour", HOURS_KEPT * 24, "strftime('%Y-%m-%d %H:00:00', 'now', '-' || n || ' hours')"),
        (
            "fiveminute",
            MINUTES_KEPT * 12,
            "datetime((strftime('%s', 'now') / 300 - n) * 300, 'unixepoch')",
        ),
    ];
    for (table, count, date) in tables {
        db.execute(
            &format!(
                "WITH RECURSIVE ago (n) AS (SELECT ?1 - 1 UNION ALL SELECT n - 1 FROM ago WHERE n > 0)
                 INSERT INTO {table} (interface, date, rx, tx)
                 SELECT interface.id, {date}, 1000000000 + n * 7919, 9000000000 + n * 104729
                 FROM ago, interface"
            ),
            [count],
        )?;
    }
    // Without a total it shows no table.
    db.execute(
        "UPDATE interface SET created = (SELECT min(date) FROM day),
                rxtotal = (SELECT sum(rx) FROM day), txtotal = (SELECT sum(tx) FROM day)",
        [],
    )?;
    let mut statement = db.prepare("SELECT rx + tx FROM day ORDER BY date")?;
    let found = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    ensure!(found.len() == usize::try_from(days)?, "{} days are filled", found.len());
    Ok(found)
}

/// Bytes of each day of its JSON, the oldest first.
fn bytes_of_days(document: &Value) -> Option<Vec<i64>> {
    let days = document["interfaces"][0]["traffic"]["day"].as_array()?;
    days.iter().map(|day| Some(day["rx"].as_i64()? + day["tx"].as_i64()?)).collect()
}

/// What it says.
pub(super) fn report(
    extent: Extent,
    beside: &Result<Beside>,
    answers: &Answers,
    lived: &Lived,
    grown: &Grown,
) -> Section {
    let title = "vnStat beside it".to_owned();
    let beside = match beside {
        Ok(beside) => beside,
        Err(why) => {
            let method = format!("It was not measured: {why:#}.");
            let json = json!({ "not_measured": format!("{why:#}") });
            return Section { name: "ledger-vnstat", title, method, json, ..Section::default() };
        }
    };
    let theirs = |way| beside.ways.of(&way).map(|ms| ms.text()).unwrap_or_default();
    let ours = |asked| answers.of(&asked).map(|ms| ms.text()).unwrap_or_default();
    let took = lived.beside.as_ref();
    let percent = |took: &Took| number(took.percent(lived.wall));
    let text = |of: &dyn Fn(&Took) -> String| took.map(of).unwrap_or_default();
    let kib = |bytes: f64| number(bytes / 1024.0);
    let rows = [
        [
            "a month by days as JSON, exec to end, ms".to_owned(),
            ours(Asked::HistoryVerb),
            theirs(Way::Json),
        ],
        ["the same as a table, ms".to_owned(), String::new(), theirs(Way::Table)],
        ["a process that asks nothing, ms".to_owned(), ours(Asked::Nothing), theirs(Way::Nothing)],
        [
            "daemon: processor time, % of one core".to_owned(),
            percent(&lived.daemon),
            text(&|took| percent(took)),
        ],
        [
            "daemon: resident at most, MiB".to_owned(),
            mib(lived.daemon.most),
            text(&|took| mib(took.most)),
        ],
        [
            "file for a user, or a device, KiB".to_owned(),
            kib(grown.of_a_user()),
            kib(f64::from(u32::try_from(beside.database).unwrap_or(u32::MAX))),
        ],
        ["top of a month, ms".to_owned(), ours(Asked::TopVerb), "knows no users".to_owned()],
    ];
    let users = number(extent.users.into());
    Section {
        name: "ledger-vnstat",
        title,
        method: format!(
            "{} counts whole devices: no ports, no users. It has one device with {} days, hours of \
             {HOURS_KEPT} days and five minutes of {MINUTES_KEPT} hours, as long as the ledger keeps its \
             own; its daemon looks every 20 s and writes every 5 min, in the same time as ours with \
             {users} users books every {} s. Its answers are compared with what it was filled with.",
            beside.version,
            extent.days,
            extent.interval.as_secs_f64()
        ),
        tables: vec![Table {
            title: "Beside one another".to_owned(),
            head: vec![
                String::new(),
                format!("traffic, {users} users"),
                format!("{}, one device", beside.version),
            ],
            rows: rows.map(Vec::from).to_vec(),
        }],
        charts: Vec::new(),
        json: json!({
            "version": beside.version,
            "json_ms": beside.ways.of(&Way::Json).map(|ms| ms.json()),
            "table_ms": beside.ways.of(&Way::Table).map(|ms| ms.json()),
            "nothing_ms": beside.ways.of(&Way::Nothing).map(|ms| ms.json()),
            "database_bytes": beside.database,
            "cpu_percent": took.map(|took| took.percent(lived.wall)),
            "resident_kib": took.map(|took| took.resident),
            "most_kib": took.map(|took| took.most),
        }),
        targets: Vec::new(),
    }
}

//! The programs that list and change rules, the two back ends that they have, and which one is used.

use std::{fs, path::PathBuf, time::Duration};

use super::{
    base,
    parse::{self, Table},
    rules::{self, Family, NOTE, Ours},
};
use crate::{
    accounting::ident::shown,
    meter::{MeterError, host, nft},
    run::{self, RunError, Said},
};

/// How long a change waits for the lock of the rules.
const WAIT_SECONDS: u64 = 5;

/// How long a program may take once it has the lock. A very busy host has many rules.
const DEADLINE: Duration = Duration::from_secs(30);

const CHANGE: &str = "change the iptables rules";
const LIST: &str = "list the iptables rules";

/// Where iptables keeps its rules: both may be filled at once, and each sees its own alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// The tables of the kernel's `ip_tables`.
    Legacy,
    /// Chains of nftables.
    Nft,
}

impl Backend {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Nft];

    /// `legacy` or `nft`, as in the names of the programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }
}

/// What lists and changes the rules of one family in one back end.
#[derive(Clone, Debug)]
pub(super) struct Tool {
    pub(super) family: Family,
    pub(super) backend: Backend,
    save: PathBuf,
    restore: PathBuf,
}

impl Tool {
    /// The programs of a back end, if they are installed.
    fn find(family: Family, backend: Backend) -> Option<Self> {
        let prefix = prefix(family);
        let of = |kind: &str, end: &str| run::find(&[&format!("{prefix}{kind}-{end}")]);
        let kind = format!("-{}", backend.name());
        let pair = match (of(&kind, "save"), of(&kind, "restore")) {
            (Some(save), Some(restore)) => Some((save, restore)),
            _ if plain(family) == Some(backend) => of("", "save").zip(of("", "restore")),
            _ => None,
        };
        pair.map(|(save, restore)| Self { family, backend, save, restore })
    }

    /// For messages.
    pub(super) fn place(&self, chain: &str) -> String {
        let backend = self.backend.name();
        format!("the chain {chain} in the {} table filter ({backend})", self.family.name())
    }

    /// Whether the kernel has tables of this back end; to ask the tools would make them.
    pub(super) fn has_tables(&self, table: Option<&str>) -> bool {
        if self.backend == Backend::Nft {
            return true;
        }
        let names = fs::read_to_string(self.table_names()).unwrap_or_default();
        names.lines().any(|name| table.is_none_or(|table| table == name))
    }

    /// Where the kernel names the tables of the older back end.
    const fn table_names(&self) -> &'static str {
        match self.family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    /// Whether the kernel knows tables of the older back end, of which there are none yet.
    ///
    /// # Errors
    ///
    /// Why that cannot be told.
    pub(super) fn could_have_tables(&self) -> Result<(), String> {
        if fs::exists(self.table_names()).unwrap_or(false) {
            return Ok(());
        }
        let family = self.family.name();
        Err(format!(
            "not tried: {family} tables of the older back end are not loaded, and to try would load them"
        ))
    }

    /// The table `filter`; empty when the kernel has none.
    pub(super) fn filter(&self) -> Result<Table, MeterError> {
        if !self.has_tables(Some("filter")) {
            return Ok(Table::default());
        }
        let tables = self.list(&["-c", "-t", "filter"])?;
        let Some(table) = tables.into_iter().find(|table| table.name == "filter") else {
            return self.not_listed();
        };
        Ok(table)
    }

    /// Whether there is something of ours, as the kernel says it: whatever the program lists, and faster.
    ///
    /// # Errors
    ///
    /// When that cannot be told.
    pub(super) fn may_have_ours(&self) -> Result<bool, MeterError> {
        match self.backend {
            Backend::Legacy => self.ours().map(|ours| !ours.is_empty()),
            Backend::Nft => nft::has_filter(self.family == Family::V6, Some(NOTE)),
        }
    }

    /// A table that is not in the list: there is none, or nothing in it, or there is something in it that the program does not
    /// understand, so that it says nothing of it. That must not be taken for a table without rules of ours.
    fn not_listed(&self) -> Result<Table, MeterError> {
        let is_there = self.backend == Backend::Nft
            && nft::filter_has_chains(self.family == Family::V6).unwrap_or(true);
        if !is_there {
            return Ok(Table::default());
        }
        let said = format!(
            "nothing of the {} table filter: it has rules that this program does not understand",
            self.family.name()
        );
        Err(MeterError::Tool { doing: LIST, tool: self.save.display().to_string(), said })
    }

    /// Whether somebody else has rules in any table of this back end.
    fn is_filled(&self) -> bool {
        self.has_tables(None)
            && self.list(&[]).is_ok_and(|tables| tables.iter().any(Table::is_filled))
    }

    fn list(&self, args: &[&str]) -> Result<Vec<Table>, MeterError> {
        let said = self.start(&self.save, LIST, args, "")?;
        if !said.done() {
            return Err(self.refused(&self.save, LIST, &said));
        }
        parse::tables(&said.stdout).map_err(|unread| MeterError::Tool {
            doing: LIST,
            tool: self.save.display().to_string(),
            said: format!("line {}, which is no rule: {}", unread.line, shown(&unread.text)),
        })
    }

    /// What is there of ours.
    pub(super) fn ours(&self) -> Result<Ours, MeterError> {
        Ours::in_table(&self.filter()?).map_err(|not_ours| MeterError::ForeignRules {
            what: self.place(not_ours.chain),
            reason: shown_long(&not_ours.reason),
        })
    }

    /// The same, where a table that cannot be listed, and has no notes of ours, has nothing of ours: what others
    /// have there is then no reason to do nothing elsewhere.
    pub(super) fn ours_if_any(&self) -> Result<Ours, MeterError> {
        match self.ours() {
            Err(MeterError::Tool { .. }) if self.may_have_ours().is_ok_and(|may| !may) => {
                Ok(Ours::default())
            }
            ours => ours,
        }
    }

    /// Does all of it or nothing.
    pub(super) fn change(&self, lines: &[String]) -> Result<(), MeterError> {
        self.restore(lines, &["--noflush"])
    }

    /// Takes all of ours off, and what came with them.
    pub(super) fn remove(&self, ours: &Ours) -> Result<(), MeterError> {
        self.change(&ours.removal())?;
        base::remove(self, ours.made(), ours.spare);
        Ok(())
    }

    /// Whether the program would do it. Nothing is done.
    pub(super) fn rehearse(&self, lines: &[String]) -> Result<(), MeterError> {
        self.restore(lines, &["--noflush", "--test"])
    }

    fn restore(&self, lines: &[String], args: &[&str]) -> Result<(), MeterError> {
        if lines.is_empty() {
            return Ok(());
        }
        let input = rules::restore(lines);
        let wait = WAIT_SECONDS.to_string();
        let waiting = [args, &["-w", &wait]].concat();
        let mut said = self.start(&self.restore, CHANGE, &waiting, &input)?;
        if !said.done() && is_old(&said) {
            // Before 1.6.2 it knew no waiting and may hang: the deadline ends it.
            said = self.start(&self.restore, CHANGE, args, &input)?;
        }
        if said.done() { Ok(()) } else { Err(self.refused(&self.restore, CHANGE, &said)) }
    }

    fn start(
        &self,
        tool: &std::path::Path,
        doing: &'static str,
        args: &[&str],
        input: &str,
    ) -> Result<Said, MeterError> {
        let deadline = DEADLINE + Duration::from_secs(WAIT_SECONDS);
        run::run(tool, args, input, deadline).map_err(|error| {
            let said = match error {
                RunError::Start { cause, .. } => format!("it cannot be started ({cause})"),
                late @ (RunError::Late { .. } | RunError::TooMuch { .. }) => late.to_string(),
            };
            MeterError::Tool { doing, tool: tool.display().to_string(), said }
        })
    }

    /// Why it said no.
    fn refused(&self, tool: &std::path::Path, doing: &'static str, said: &Said) -> MeterError {
        let words = &said.stderr;
        let has = |what: &str| words.contains(what);
        let denied = host::missing_capabilities().contains(&"CAP_NET_ADMIN");
        if has("xtables lock") || has("Can't lock") {
            let tool = format!("iptables ({})", self.backend.name());
            MeterError::Locked { doing, tool, seconds: WAIT_SECONDS }
        } else if denied || has("Permission denied") || has("you must be root") {
            // The programs of the older back end open a raw socket besides.
            let raw = !denied && self.backend == Backend::Legacy;
            let capability = if raw { "CAP_NET_RAW" } else { "CAP_NET_ADMIN" };
            MeterError::Denied { doing, capability: capability.to_owned() }
        } else if has("load match") || has("missing kernel module") || has("No chain/target/match")
        {
            MeterError::Unsupported { feature: "the meter iptables", reason: shown_long(words) }
        } else {
            let said = match (words.is_empty(), said.code) {
                (false, _) => shown_long(words),
                (true, Some(code)) => format!("nothing, and ended with {code}"),
                (true, None) => "nothing, and was ended by a signal".to_owned(),
            };
            MeterError::Tool { doing, tool: tool.display().to_string(), said }
        }
    }
}

/// Whether a program did not understand that it shall wait.
fn is_old(said: &Said) -> bool {
    let words = &said.stderr;
    words.contains("unrecognized option") || words.contains("invalid option")
}

/// Words of a tool or a rule on one line, safe to print.
fn shown_long(text: &str) -> String {
    let text = text.split('\n').map(str::trim).filter(|line| !line.is_empty());
    let text: String = text.collect::<Vec<_>>().join("; ");
    text.chars().take(400).flat_map(char::escape_debug).collect::<String>().replace("\\\"", "\"")
}

const fn prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The back end of the program without a suffix. Versions before 1.8 have one and do not say which.
fn plain(family: Family) -> Option<Backend> {
    let tool = run::find(&[prefix(family)])?;
    let said = run::run(&tool, &["--version"], "", DEADLINE).ok()?;
    Some(if said.stdout.contains("nf_tables") { Backend::Nft } else { Backend::Legacy })
}

/// The families that the kernel has.
fn families() -> impl Iterator<Item = Family> {
    let ipv6 = fs::exists("/proc/thread-self/net/if_inet6").unwrap_or(false);
    [Family::V4, Family::V6].into_iter().filter(move |family| ipv6 || *family == Family::V4)
}

/// All programs that are installed, of both back ends and families.
pub(super) fn all() -> Vec<Tool> {
    let families: Vec<Family> = families().collect();
    let of = |backend| {
        let families = families.clone();
        families.into_iter().filter_map(move |family| Tool::find(family, backend))
    };
    Backend::ALL.into_iter().flat_map(of).collect()
}

/// What is known of a back end before one is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    installed: bool,
    ours: bool,
    filled: bool,
}

/// The back end to use: where ours are, else where the host's rules are, else the host's own choice.
fn pick(legacy: Seen, nft: Seen, usual: Option<Backend>) -> Option<Backend> {
    let usual = match (legacy.installed, nft.installed) {
        (true, true) => usual.unwrap_or(Backend::Nft),
        (true, false) => Backend::Legacy,
        (false, true) => Backend::Nft,
        (false, false) => return None,
    };
    let only = |a: bool, b: bool| match (a, b) {
        (true, false) => Some(Backend::Legacy),
        (false, true) => Some(Backend::Nft),
        (true, true) | (false, false) => None,
    };
    Some(only(legacy.ours, nft.ours).or(only(legacy.filled, nft.filled)).unwrap_or(usual))
}

/// The programs to use, one for each family that the kernel has.
///
/// # Errors
///
/// [`MeterError::NoTool`] when one is not installed; [`MeterError::Denied`] when a back end has tables that
/// may not be listed.
pub(super) fn choose() -> Result<Vec<Tool>, MeterError> {
    let all = all();
    let seen = |backend| {
        let mut seen = Seen::default();
        for tool in all.iter().filter(|tool| tool.backend == backend) {
            seen.installed = true;
            seen.ours |= match tool.ours() {
                // What nobody may look at may be ours, and others beside it would count the same.
                Err(error @ MeterError::Denied { .. }) => return Err(error),
                Err(error) if tool.may_have_ours().is_ok_and(|may| may) => return Err(error),
                ours => ours.is_ok_and(|ours| !ours.is_empty()),
            };
            seen.filled |= tool.is_filled();
        }
        Ok(seen)
    };
    let chosen = pick(seen(Backend::Legacy)?, seen(Backend::Nft)?, plain(Family::V4));
    let wanted = families().map(|family| {
        let tool = all.iter().find(|tool| tool.family == family && Some(tool.backend) == chosen);
        let tools = match family {
            Family::V4 => "iptables-save and iptables-restore",
            Family::V6 => "ip6tables-save and ip6tables-restore",
        };
        tool.cloned().ok_or(MeterError::NoTool { meter: "iptables", tools })
    });
    wanted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_end_is_where_ours_are_then_where_the_hosts_are() {
        let none = Seen { installed: true, ..Seen::default() };
        let filled = Seen { filled: true, ..none };
        let ours = Seen { ours: true, ..filled };
        let absent = Seen::default();
        let (legacy, nft) = (Some(Backend::Legacy), Some(Backend::Nft));
        for (of_legacy, of_nft, usual, want) in [
            (absent, absent, nft, None),
            (none, absent, nft, legacy),
            (absent, none, legacy, nft),
            (none, none, legacy, legacy),
            (none, none, nft, nft),
            (none, none, None, nft),
            (filled, none, nft, legacy),
            (none, filled, legacy, nft),
            (filled, filled, legacy, legacy),
            (filled, filled, nft, nft),
            (ours, filled, nft, legacy),
            (filled, ours, legacy, nft),
            (ours, ours, legacy, legacy),
        ] {
            assert_eq!(pick(of_legacy, of_nft, usual), want, "{of_legacy:?} {of_nft:?} {usual:?}");
        }
    }

    fn tool() -> Tool {
        let path = PathBuf::from("/nowhere/iptables-restore");
        Tool { family: Family::V4, backend: Backend::Legacy, save: path.clone(), restore: path }
    }

    #[test]
    fn a_tool_that_cannot_be_started_is_named() {
        let error = tool().change(&["-F TRAFFIC_IN".to_owned()]).unwrap_err().to_string();
        let want = "cannot change the iptables rules: /nowhere/iptables-restore says: \
                    it cannot be started";
        assert!(error.starts_with(want), "{error}");
    }

    #[test]
    fn no_change_starts_no_tool() {
        assert!(tool().change(&[]).is_ok());
    }

    #[test]
    fn words_of_a_tool_are_one_line_that_is_safe_to_print() {
        assert_eq!(shown_long("a: \"b\"\n\n  c\u{1b}[2J\n"), "a: \"b\"; c\\u{1b}[2J");
    }
}

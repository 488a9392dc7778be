//! What the rules of a firewall counted, per port, per user and in total: `traffic iptables`.

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;

use super::{
    json::{JSON_VERSION, Ordered, TrafficJson, time},
    sheet::{self, number, word},
    stats::{Document, GroupDocument},
    table::grid,
};
use crate::accounting::{
    ident::shown,
    reading::{Coverage, Traffic},
    report::Dump,
    rules::RulesReport,
    units::{human_bytes, human_count},
};

/// How a row's bytes were found to be those of its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// One user's share of his group, by what the proxy says that he moved.
    Api,
    /// All of a group: nobody said who moved what.
    Together,
    /// What is left of a group when its users have got their shares.
    Unattributed,
}

impl Split {
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Together => "together",
            Self::Unattributed => "unattributed",
        }
    }
}

/// Kernel bytes of one user, or of users who cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserRow {
    /// Emails; none when nobody is known.
    pub users: Vec<String>,
    /// Ports of the group.
    pub ports: String,
    /// Tag of the inbound.
    pub group: Option<String>,
    /// Bytes that entered, in the layer of the rules.
    pub input_bytes: u64,
    /// Bytes that left.
    pub output_bytes: u64,
    /// How it was found.
    pub split: Split,
}

/// The kernel bytes of each group by user.
///
/// Where the proxy has not said who moved what, the group's users are named together.
pub fn by_user(document: &Document) -> Vec<UserRow> {
    document.groups.iter().flat_map(rows).collect()
}

fn rows(group: &GroupDocument) -> Vec<UserRow> {
    let Some(kernel) = group.kernel else {
        return Vec::new();
    };
    let row = |users, input_bytes, output_bytes, split| UserRow {
        users,
        ports: group.ports.clone(),
        group: group.tag.clone(),
        input_bytes,
        output_bytes,
        split,
    };
    let shares: Vec<(&str, u64, u64)> = group
        .users
        .iter()
        .filter_map(|user| Some((user.email.as_str(), user.wire_input?, user.wire_output?)))
        .collect();
    if shares.iter().all(|(_, input, output)| (*input, *output) == (0, 0)) {
        let users = group.users.iter().map(|user| user.email.clone()).collect();
        return vec![row(users, kernel.input_bytes, kernel.output_bytes, Split::Together)];
    }
    let mut left = (kernel.input_bytes, kernel.output_bytes);
    let mut rows = Vec::with_capacity(shares.len() + 1);
    for (email, input, output) in shares {
        rows.push(row(vec![email.to_owned()], input, output, Split::Api));
        left = (left.0.saturating_sub(input), left.1.saturating_sub(output));
    }
    if left != (0, 0) {
        rows.push(row(Vec::new(), left.0, left.1, Split::Unattributed));
    }
    rows
}

/// The kernel bytes of each group where no proxy says who its users are.
pub fn by_nobody(report: &RulesReport) -> Vec<UserRow> {
    let row = |line: Line<'_>| UserRow {
        users: Vec::new(),
        ports: line.key,
        group: line.group.map(str::to_owned),
        input_bytes: line.traffic.input_bytes,
        output_bytes: line.traffic.output_bytes,
        split: Split::Together,
    };
    lines(report).into_iter().map(row).collect()
}

#[derive(Serialize)]
struct Head<'a> {
    jsonversion: &'static str,
    taken_at: String,
    host: &'a str,
    meter: &'a str,
    layer: &'a str,
    epoch: Option<String>,
    since: Option<String>,
    coverage: &'a str,
    family: &'static str,
}

#[derive(Serialize)]
struct PortJson<'a> {
    #[serde(flatten)]
    traffic: TrafficJson,
    group: Option<&'a str>,
    transport: &'static str,
    watched: bool,
    reset_at: Option<String>,
}

#[derive(Serialize)]
struct PortsJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    ports: Ordered<String, PortJson<'a>>,
    total: TrafficJson,
}

#[derive(Serialize)]
struct TotalJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    total: TrafficJson,
}

#[derive(Serialize)]
struct UsersJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    users: &'a [UserRow],
}

fn head(report: &RulesReport) -> Head<'_> {
    let snapshot = &report.snapshot;
    Head {
        jsonversion: JSON_VERSION,
        taken_at: time(snapshot.window.end),
        host: &report.host,
        meter: snapshot.meter,
        layer: snapshot.layer.name(),
        epoch: Some(format!("{:016x}", snapshot.epoch.0)),
        since: snapshot.since.map(|since| time(i128::from(since) * 1_000_000_000)),
        coverage: snapshot.coverage.name(),
        family: report.family.map_or("both", |family| family.name()),
    }
}

/// One group's line.
struct Line<'a> {
    key: String,
    group: Option<&'a str>,
    transport: &'static str,
    watched: bool,
    reset: Option<i128>,
    traffic: Traffic,
}

fn lines(report: &RulesReport) -> Vec<Line<'_>> {
    let snapshot = report.snapshot.clone();
    let dump = Dump { host: String::new(), snapshot, devices: Vec::new(), passed_over: Vec::new() };
    dump.keys()
        .into_iter()
        .zip(report.snapshot.groups.iter())
        .zip(report.resets.iter().copied().chain(std::iter::repeat(None)))
        .map(|((key, reading), reset)| Line {
            reset,
            key,
            group: reading.group.name(),
            transport: reading.group.transport().name(),
            watched: reading.watched,
            traffic: report.traffic(&reading.lanes),
        })
        .collect()
}

/// `iptables port --json`.
///
/// # Errors
///
/// None in practice.
pub fn ports_json(report: &RulesReport) -> serde_json::Result<String> {
    let ports = lines(report)
        .into_iter()
        .map(|line| {
            let Line { key, group, transport, watched, reset, traffic } = line;
            let reset_at = reset.map(time);
            (key, PortJson { traffic: traffic.into(), group, transport, watched, reset_at })
        })
        .collect();
    let document =
        PortsJson { head: head(report), ports: Ordered(ports), total: report.total().into() };
    serde_json::to_string(&document)
}

/// `iptables total --json`.
///
/// # Errors
///
/// None in practice.
pub fn total_json(report: &RulesReport) -> serde_json::Result<String> {
    serde_json::to_string(&TotalJson { head: head(report), total: report.total().into() })
}

/// `iptables user --json`.
///
/// # Errors
///
/// None in practice.
pub fn users_json(
    report: &RulesReport,
    merged: Option<&Document>,
    rows: &[UserRow],
) -> serde_json::Result<String> {
    let mut head = head(report);
    if let Some(document) = merged {
        // The numbers of a merge begin with it, and so do its epochs.
        head.taken_at.clone_from(&document.taken_at);
        head.epoch.clone_from(&document.epoch);
        head.since.clone_from(&document.since);
        head.coverage = &document.coverage;
        return serde_json::to_string(&UsersJson { head, users: rows });
    }
    serde_json::to_string(&UsersJson { head, users: rows })
}

const COLUMNS: [&str; 4] = ["input_bytes", "output_bytes", "input_packets", "output_packets"];

fn columns(traffic: Traffic) -> [u64; 4] {
    let Traffic { input_bytes, input_packets, output_bytes, output_packets } = traffic;
    [input_bytes, output_bytes, input_packets, output_packets]
}

/// `iptables port --csv`.
pub fn ports_csv(report: &RulesReport) -> String {
    let mut text = sheet::names(["ports", "transport", "group"].into_iter().chain(COLUMNS));
    for line in lines(report) {
        let group = line.group.unwrap_or_default();
        let first = [word(&line.key), word(line.transport), sheet::text(group)];
        let numbers = columns(line.traffic).map(number);
        text.push_str(&sheet::line(first.into_iter().chain(numbers)));
    }
    text
}

/// `iptables total --csv`.
pub fn total_csv(report: &RulesReport) -> String {
    sheet::names(COLUMNS) + &sheet::line(columns(report.total()).map(number))
}

/// `iptables user --csv`. The users of a row are joined by a space.
pub fn users_csv(rows: &[UserRow]) -> String {
    let columns = ["users", "ports", "group", "input_bytes", "output_bytes", "split"];
    let line = |row: &UserRow| {
        sheet::line([
            sheet::text(&row.users.join(" ")),
            word(&row.ports),
            sheet::text(row.group.as_deref().unwrap_or_default()),
            number(row.input_bytes),
            number(row.output_bytes),
            word(row.split.name()),
        ])
    };
    sheet::names(columns) + &rows.iter().map(line).collect::<String>()
}

/// `iptables port --txt`: one value a line.
pub fn ports_txt(report: &RulesReport) -> String {
    let mut text = String::new();
    for line in lines(report) {
        for (name, number) in COLUMNS.into_iter().zip(columns(line.traffic)) {
            text.push_str(&format!("port {} {name}: {number}\n", line.key));
        }
    }
    text
}

/// `iptables total --txt`.
pub fn total_txt(report: &RulesReport) -> String {
    let lines = COLUMNS.into_iter().zip(columns(report.total()));
    lines.map(|(name, number)| format!("total {name}: {number}\n")).collect()
}

/// `iptables user --txt`.
pub fn users_txt(rows: &[UserRow]) -> String {
    let line = |row: &UserRow| {
        let who = names(row);
        let split = row.split.name();
        format!(
            "port {} users {who} ({split}) input_bytes: {}\nport {} users {who} ({split}) output_bytes: {}\n",
            row.ports, row.input_bytes, row.ports, row.output_bytes
        )
    };
    rows.iter().map(line).collect()
}

fn names(row: &UserRow) -> String {
    if row.users.is_empty() {
        return match row.split {
            Split::Unattributed => "nobody yet".to_owned(),
            Split::Api | Split::Together => "not known".to_owned(),
        };
    }
    row.users.iter().map(|email| shown(email)).collect::<Vec<_>>().join(", ")
}

fn note(report: &RulesReport) -> String {
    let snapshot = &report.snapshot;
    let family = match report.family {
        None => "IPv4 and IPv6".to_owned(),
        Some(family) => format!("{} only", family.name()),
    };
    let since = snapshot.since.map_or_else(
        || "an unknown time".to_owned(),
        |since| time(i128::from(since) * 1_000_000_000),
    );
    let gap = match snapshot.coverage {
        Coverage::Complete => "",
        Coverage::Gap => "GAP: rules were gone for a time, and packets passed unseen\n",
        Coverage::Estimated => "some numbers are estimated\n",
    };
    format!(
        "{} rules, {family}, layer 3 bytes of socket buffers ({}), since {since}\n{gap}",
        snapshot.meter,
        snapshot.layer.name()
    )
}

/// `iptables port` for people.
pub fn ports_table(report: &RulesReport) -> String {
    let mut table = grid(&["PORT", "NAME", "IN", "OUT", "TOTAL", "PKTS IN", "PKTS OUT"], 2);
    let mut add = |key: &str, name: &str, traffic: Traffic| {
        let numbers = [
            human_bytes(traffic.input_bytes, 1),
            human_bytes(traffic.output_bytes, 1),
            human_bytes(traffic.bytes(), 1),
            human_count(traffic.input_packets),
            human_count(traffic.output_packets),
        ];
        let mut row = vec![Cell::new(key), Cell::new(name)];
        row.extend(numbers.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
        table.add_row(row);
    };
    for line in lines(report) {
        let suffix = match line.transport {
            "tcp+udp" => String::new(),
            _ if line.key.contains('/') => String::new(),
            transport => format!("/{transport}"),
        };
        let gone = if line.watched { "" } else { " (no longer counted)" };
        let name = format!("{}{gone}", line.group.unwrap_or_default());
        add(&format!("{}{suffix}", line.key), name.trim(), line.traffic);
    }
    add("total", "", report.total());
    format!("{table}\n{}{}", note(report), resets(report))
}

/// Groups whose numbers do not begin where those of the others do.
fn resets(report: &RulesReport) -> String {
    let reset = |line: Line<'_>| {
        line.reset.map(|at| format!("port {} was reset: since {}\n", line.key, time(at)))
    };
    lines(report).into_iter().filter_map(reset).collect()
}

/// `iptables total` for people.
pub fn total_table(report: &RulesReport) -> String {
    let total = report.total();
    format!(
        "in   {}\nout  {}\nboth {}\n{}",
        human_bytes(total.input_bytes, 1),
        human_bytes(total.output_bytes, 1),
        human_bytes(total.bytes(), 1),
        note(report)
    ) + &resets(report)
}

/// `iptables user` for people.
pub fn users_table(rows: &[UserRow]) -> String {
    let mut table = grid(&["USERS", "PORT", "NAME", "IN", "OUT", "TOTAL", "SPLIT"], 3);
    for row in rows {
        let mut cells = vec![
            Cell::new(names(row)),
            Cell::new(&row.ports),
            Cell::new(row.group.as_deref().map(shown).unwrap_or_default()),
        ];
        let numbers =
            [row.input_bytes, row.output_bytes, row.input_bytes.saturating_add(row.output_bytes)];
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        cells.extend(numbers.map(|bytes| right(human_bytes(bytes, 1))));
        cells.push(right(row.split.name().to_owned()));
        table.add_row(cells);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of two users on port 443, and of one on port 80, as a daemon answers it.
    fn document(state: &str, shares: [(u64, u64); 2]) -> Document {
        let payload = || serde_json::json!({"uplink": null, "downlink": null, "total": null});
        let user = |email: &str, wire: Option<(u64, u64)>| {
            let mut user = payload();
            user["email"] = email.into();
            user["wire_share"] = wire.map(|(input, output)| input + output).into();
            user["wire_input"] = wire.map(|(input, _)| input).into();
            user["wire_output"] = wire.map(|(_, output)| output).into();
            user["online"] = None::<u64>.into();
            user["shared"] = false.into();
            user["configured"] = true.into();
            user
        };
        let group = |tag: &str, port: u16, users: Vec<serde_json::Value>| {
            serde_json::json!({
                "tag": tag, "port": port, "ports": port.to_string(), "transport": "tcp",
                "protocol": null, "configured": true, "users": users, "group_total": null,
                "kernel": {"input_bytes": 100, "output_bytes": 1000, "input_packets": 1,
                           "output_packets": 2},
                "overhead_ratio": null, "unattributed_bytes": null,
            })
        };
        let mut total = payload();
        total["active_users"] = 0.into();
        total["active_groups"] = 0.into();
        let [alice, bob] = shares;
        let document = serde_json::json!({
            "jsonversion": "1", "taken_at": "t", "host": "h", "epoch": null, "since": null,
            "coverage": "complete", "meter": "nft", "layer": "l3-skb",
            "api": {"state": state, "since": null, "reason": null, "remedy": null,
                    "product": null, "uptime_seconds": null},
            "groups": [
                group("in", 443, vec![user("a@x", Some(alice)), user("b@x", Some(bob))]),
                group("other", 80, vec![user("c@x", Some((0, 0)))]),
            ],
            "unplaced": [], "system_total": total, "relay": null, "anomalies": [], "events": [],
        });
        serde_json::from_value(document).unwrap()
    }

    fn rows(document: &Document) -> Vec<(String, u64, u64, Split)> {
        let row =
            |row: UserRow| (row.users.join("+"), row.input_bytes, row.output_bytes, row.split);
        by_user(document).into_iter().map(row).collect()
    }

    fn together(users: &str) -> (String, u64, u64, Split) {
        (users.to_owned(), 100, 1000, Split::Together)
    }

    #[test]
    fn shares_and_what_is_left_add_up_to_the_group() {
        // What it has said stays said when it is down.
        for state in ["ok", "down"] {
            let document = document(state, [(60, 500), (30, 499)]);
            let wanted = [
                ("a@x".to_owned(), 60, 500, Split::Api),
                ("b@x".to_owned(), 30, 499, Split::Api),
                (String::new(), 10, 1, Split::Unattributed),
                together("c@x"),
            ];
            assert_eq!(rows(&document), wanted, "{state}");
        }
    }

    #[test]
    fn users_are_named_together_where_the_proxy_has_not_said_who_moved_what() {
        let document = document("down", [(0, 0), (0, 0)]);
        assert_eq!(rows(&document), [together("a@x+b@x"), together("c@x")]);
    }
}

//! Reports as tables for people.

use comfy_table::{Cell, CellAlignment, Table, presets};
use jiff::Timestamp;
use unicode_width::UnicodeWidthStr as _;

use crate::accounting::{
    delta::Deltas,
    ident::shown,
    proxy::{Inbound, Users},
    reading::{Coverage, Layer, Snapshot, Traffic},
    report::{Dump, PortReport},
    units::{human_bytes, human_count, human_rate},
};

/// Shown where nothing was measured.
pub(super) const UNKNOWN: &str = "-";

/// One line of a table of groups.
struct Line {
    key: String,
    name: String,
    traffic: Traffic,
    rate: Option<(String, String)>,
}

/// What can be left away where a terminal has no room for it, the first first.
const SPARED: [&[&str]; 3] = [&["PKTS IN", "PKTS OUT"], &["NAME"], &["IN/s", "OUT/s"]];

/// The live table: totals since the epoch began, and rates since the tick before.
///
/// `most` bounds the lines; with more groups the busiest are shown and the rest is summed up. Columns that make
/// it wider than `width` are left away: half a number would be another one.
pub fn live(report: &Dump, deltas: Option<&Deltas>, most: usize, width: usize) -> String {
    let mut headers = vec!["PORT", "NAME", "IN", "OUT", "IN/s", "OUT/s", "PKTS IN", "PKTS OUT"];
    let mut spared = SPARED.iter();
    loop {
        let (text, rows) = table(report, deltas, most, &headers);
        let widest = text.lines().take(rows).map(|line| line.trim_end().width()).max();
        match spared.next() {
            Some(less) if widest > Some(width) => headers.retain(|header| !less.contains(header)),
            _ => return text,
        }
    }
}

/// The table and what stands under it, and how many of the lines are the table's.
fn table(report: &Dump, deltas: Option<&Deltas>, most: usize, headers: &[&str]) -> (String, usize) {
    let snapshot = &report.snapshot;
    let mut lines: Vec<Line> = report
        .keys()
        .into_iter()
        .zip(snapshot.groups.iter())
        .enumerate()
        .map(|(n, (key, reading))| {
            // What is not watched any more does not stand still: nobody looks.
            let delta = deltas.filter(|_| reading.watched).and_then(|deltas| {
                // Deltas keep the order of the snapshot that they end with.
                let delta = deltas.groups.get(n).filter(|delta| delta.group == reading.group)?;
                rate(deltas, delta.lanes.total())
            });
            Line {
                key: format!("{key}{}", transport_suffix(&key, reading.group.transport().name())),
                name: reading.group.name().unwrap_or_default().to_owned(),
                traffic: reading.lanes.total(),
                rate: delta,
            }
        })
        .collect();
    let hidden = lines.len().saturating_sub(most);
    if hidden > 0 {
        lines.sort_by_key(|line| std::cmp::Reverse(line.traffic.bytes()));
        lines.truncate(most);
    }
    let mut table = grid(headers, headers.iter().filter(|header| is_text(header)).count());
    for line in &lines {
        add(&mut table, line, headers);
    }
    let total = Line {
        key: "total".to_owned(),
        name: String::new(),
        traffic: snapshot.total(),
        rate: deltas.and_then(|deltas| rate(deltas, deltas.total())),
    };
    add(&mut table, &total, headers);
    let mut text = table.to_string();
    text.push('\n');
    let rows = text.lines().count();
    if hidden > 0 {
        text.push_str(&format!("and {hidden} more with less traffic\n"));
    }
    text.push_str(&footer(report));
    (text, rows)
}

fn is_text(header: &str) -> bool {
    matches!(header, "PORT" | "NAME")
}

fn add(table: &mut Table, line: &Line, headers: &[&str]) {
    let Traffic { input_bytes, input_packets, output_bytes, output_packets } = line.traffic;
    let (input, output) =
        line.rate.clone().unwrap_or_else(|| (UNKNOWN.to_owned(), UNKNOWN.to_owned()));
    let cells = [
        ("PORT", line.key.clone()),
        ("NAME", line.name.clone()),
        ("IN", human_bytes(input_bytes, 1)),
        ("OUT", human_bytes(output_bytes, 1)),
        ("IN/s", input),
        ("OUT/s", output),
        ("PKTS IN", human_count(input_packets)),
        ("PKTS OUT", human_count(output_packets)),
    ];
    table.add_row(cells.into_iter().filter(|(header, _)| headers.contains(header)).map(
        |(header, text)| {
            let right = !is_text(header);
            Cell::new(text).set_alignment(if right {
                CellAlignment::Right
            } else {
                CellAlignment::Left
            })
        },
    ));
}

fn rate(deltas: &Deltas, traffic: Traffic) -> Option<(String, String)> {
    let elapsed = deltas.elapsed().filter(|elapsed| !elapsed.is_zero())?;
    Some((human_rate(traffic.input_bytes, elapsed), human_rate(traffic.output_bytes, elapsed)))
}

/// A key says its transport itself where another group has the same ports.
fn transport_suffix(key: &str, transport: &str) -> String {
    if transport == "tcp+udp" || key.contains('/') {
        String::new()
    } else {
        format!("/{transport}")
    }
}

/// An empty table, whose first columns are texts and the others numbers.
pub(super) fn grid(headers: &[&str], texts: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(headers.iter().enumerate().map(|(n, text)| {
        let alignment = if n < texts { CellAlignment::Left } else { CellAlignment::Right };
        Cell::new(*text).set_alignment(alignment)
    }));
    table
}

/// So many groups that are not watched any more are named.
const MOST_RETIRED: usize = 8;

/// What else was seen, where it was counted, and what the numbers mean.
fn footer(report: &Dump) -> String {
    let snapshot = &report.snapshot;
    let mut text = String::new();
    if let Some(skipped) = &snapshot.skipped {
        let parts: Vec<String> = skipped
            .each()
            .into_iter()
            .filter(|(_, traffic)| traffic.packets() != 0)
            .map(|(name, traffic)| format!("{name} {}", human_bytes(traffic.bytes(), 1)))
            .collect();
        if !parts.is_empty() {
            text.push_str(&format!("also seen: {}\n", parts.join(", ")));
        }
    }
    let retired: Vec<String> = report
        .keys()
        .into_iter()
        .zip(snapshot.groups.iter())
        .filter(|(_, reading)| !reading.watched)
        .map(|(key, _)| key)
        .collect();
    if !retired.is_empty() {
        let more = retired.len().saturating_sub(MOST_RETIRED);
        let named = retired[..retired.len() - more].join(", ");
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        text.push_str(&format!("not counted any more: {named}{more}\n"));
    }
    // Whoever names a device may put anything into its name that is no space.
    let devices: Vec<String> = report.devices.iter().map(|device| shown(&device.name)).collect();
    let place = match (snapshot.meter, devices.as_slice()) {
        ("cgroup", _) => "all sockets of the cgroup".to_owned(),
        ("nft" | "iptables", _) => "all sockets of this host".to_owned(),
        (_, []) => "no device yet".to_owned(),
        (_, names) => names.join(", "),
    };
    let bytes = match snapshot.layer {
        Layer::L3Skb => "layer 3 bytes of socket buffers (l3-skb: below what the wire carries)",
        Layer::L3 | Layer::Wire | Layer::Payload => "layer 3 bytes as on the wire",
    };
    text.push_str(&format!("{} on {place}, {bytes}, {}\n", snapshot.meter, since(snapshot)));
    match snapshot.coverage {
        Coverage::Complete => {}
        Coverage::Estimated => text.push_str("some numbers are estimated\n"),
        Coverage::Gap => text.push_str("GAP: some packets of this epoch were not seen\n"),
    }
    text
}

fn since(snapshot: &Snapshot) -> String {
    match snapshot.since.and_then(|since| Timestamp::from_second(since).ok()) {
        Some(since) => format!("since {since}"),
        None => "since an unknown time".to_owned(),
    }
}

/// The counters as they stand: `dump` without `--json`. Read once, so without rates.
pub fn dump(report: &Dump) -> String {
    table(report, None, usize::MAX, &["PORT", "NAME", "IN", "OUT", "PKTS IN", "PKTS OUT"]).0
}

/// The first few users of an inbound, and how many there are.
fn users(inbound: &Inbound) -> String {
    const MOST: usize = 3;
    let Users { emails, nameless, unknown } = &inbound.users;
    let mut names: Vec<String> = emails.iter().take(MOST).map(|email| shown(email)).collect();
    if emails.len() > MOST {
        names.push(format!("and {} more", emails.len() - MOST));
    }
    if *nameless > 0 {
        names.push(format!("{nameless} without a name"));
    }
    if names.is_empty() && *unknown {
        names.push("not known".to_owned());
    }
    names.join(", ")
}

/// Configured ports with their traffic.
pub fn ports(meter: Option<&str>, reports: &[PortReport]) -> String {
    let mut table =
        grid(&["PORT", "NAME", "PROTOCOL", "USERS", "IN", "OUT", "TOTAL", "LISTENS", "COUNTED"], 4);
    for report in reports {
        let bytes = |of: fn(Traffic) -> u64| {
            let text = report.traffic.map(|traffic| human_bytes(of(traffic), 1));
            text.unwrap_or_else(|| UNKNOWN.to_owned())
        };
        let yes_no = |value: Option<bool>| match value {
            Some(true) => "yes",
            Some(false) => "no",
            None => UNKNOWN,
        };
        let suffix = transport_suffix(&report.key, report.group.transport().name());
        let cells = [
            bytes(|traffic| traffic.input_bytes),
            bytes(|traffic| traffic.output_bytes),
            bytes(Traffic::bytes),
            yes_no(report.listening).to_owned(),
            yes_no(Some(report.watched)).to_owned(),
        ];
        let tag = report.inbound.as_ref().and_then(|inbound| inbound.tag.as_deref());
        let name = tag.map(shown).or_else(|| report.group.name().map(str::to_owned));
        let protocol = report.inbound.as_ref().map(|inbound| shown(&inbound.protocol));
        let mut row = vec![
            Cell::new(format!("{}{suffix}", report.key)),
            Cell::new(name.unwrap_or_default()),
            Cell::new(protocol.unwrap_or_default()),
            Cell::new(report.inbound.as_ref().map(users).unwrap_or_default()),
        ];
        row.extend(
            cells.into_iter().map(|text| Cell::new(text).set_alignment(CellAlignment::Right)),
        );
        table.add_row(row);
    }
    let source = match meter {
        Some(meter) => format!("counted at {meter}\n"),
        None => "nothing counts here, so nothing was measured: start `traffic run`\n".into(),
    };
    format!("{table}\n{source}")
}

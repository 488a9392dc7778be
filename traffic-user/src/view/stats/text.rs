//! The merged report for people and spreadsheets.

use comfy_table::{Cell, CellAlignment, Table};

use super::{
    super::{
        sheet::cell,
        table::{UNKNOWN, grid},
    },
    Part,
    document::{Document, GroupDocument, PayloadDocument, UserDocument},
};
use crate::accounting::{ident::shown, reading::Layer, units::human_bytes};

/// Most anomalies and events below a table; JSON has them all.
const MOST_NOTES: usize = 5;

fn bytes(value: Option<u64>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| human_bytes(value, 1))
}

fn row(table: &mut Table, texts: usize, cells: impl IntoIterator<Item = String>) {
    table.add_row(cells.into_iter().enumerate().map(|(n, text)| {
        let alignment = if n < texts { CellAlignment::Left } else { CellAlignment::Right };
        Cell::new(text).set_alignment(alignment)
    }));
}

fn payload_cells(payload: &PayloadDocument) -> [String; 3] {
    [bytes(payload.uplink), bytes(payload.downlink), bytes(payload.total)]
}

fn name(group: &GroupDocument) -> String {
    let suffix = match group.transport.as_str() {
        "tcp+udp" => String::new(),
        transport => format!("/{transport}"),
    };
    format!("{}{suffix}", group.ports)
}

fn tag(group: &GroupDocument) -> String {
    group.tag.as_deref().map(shown).unwrap_or_default()
}

fn protocol(group: &GroupDocument) -> String {
    group.protocol.as_deref().map(shown).unwrap_or_default()
}

fn marked(user: &UserDocument) -> String {
    let shared = if user.shared { " *" } else { "" };
    format!("{}{shared}", shown(&user.email))
}

fn ratio(group: &GroupDocument) -> String {
    group.overhead_ratio.map_or_else(|| UNKNOWN.to_owned(), |ratio| format!("{ratio:.3}"))
}

/// Tables of what is wanted.
pub fn table(document: &Document, part: Part) -> String {
    let mut text = match part {
        Part::Whole => format!("{}\n\n{}\n", groups(&document.groups), users(document, usize::MAX)),
        Part::Users => format!("{}\n", users(document, usize::MAX)),
        Part::Groups => format!("{}\n", groups(&document.groups)),
        Part::Total => format!("{}\n", total(document)),
    };
    if part == Part::Whole {
        text.push('\n');
        text.push_str(&total(document));
        text.push('\n');
    }
    text.push_str(&footer(document));
    text
}

/// Tables that fit into so many lines, those who moved most first.
pub fn live(document: &Document, most: usize) -> String {
    let room = (most / 2).max(3);
    let hidden = document.groups.len().saturating_sub(room);
    let mut groups = groups(&busiest(document, room)).to_string();
    if hidden > 0 {
        groups.push_str(&format!("\nand {hidden} more groups with less traffic"));
    }
    let room = most.saturating_sub(groups.lines().count()).max(3);
    format!("{groups}\n\n{}\n{}", users(document, room), footer(document))
}

/// As many groups, in their order if all fit, else those with most bytes.
fn busiest(document: &Document, most: usize) -> Vec<GroupDocument> {
    let bytes = |group: &GroupDocument| {
        let kernel = group.kernel.unwrap_or_default();
        kernel.input_bytes.saturating_add(kernel.output_bytes)
    };
    let mut groups = document.groups.clone();
    if groups.len() > most {
        groups.sort_by_key(|group| std::cmp::Reverse(bytes(group)));
        groups.truncate(most);
    }
    groups
}

fn groups(groups: &[GroupDocument]) -> Table {
    let headers = [
        "PORT",
        "TAG",
        "PROTOCOL",
        "UP",
        "DOWN",
        "KERNEL IN",
        "KERNEL OUT",
        "RATIO",
        "UNATTRIBUTED",
    ];
    let mut table = grid(&headers, 3);
    for group in groups {
        let inbound = group.group_total.unwrap_or_default();
        let kernel = group.kernel;
        row(
            &mut table,
            3,
            [
                name(group),
                tag(group),
                protocol(group),
                bytes(inbound.uplink),
                bytes(inbound.downlink),
                bytes(kernel.map(|kernel| kernel.input_bytes)),
                bytes(kernel.map(|kernel| kernel.output_bytes)),
                ratio(group),
                bytes(group.unattributed_bytes),
            ],
        );
    }
    table
}

/// Each user once, with the wire bytes of all his groups.
struct Person<'a> {
    user: &'a UserDocument,
    groups: Vec<String>,
    wire: Option<u64>,
}

fn persons(document: &Document) -> Vec<Person<'_>> {
    let mut persons: Vec<Person<'_>> = Vec::new();
    let mut known = std::collections::HashMap::new();
    let of_groups = document
        .groups
        .iter()
        .flat_map(|group| group.users.iter().map(move |user| (Some(group), user)));
    for (group, user) in of_groups.chain(document.unplaced.iter().map(|user| (None, user))) {
        let at = *known.entry(user.email.as_str()).or_insert_with(|| {
            persons.push(Person { user, groups: Vec::new(), wire: None });
            persons.len() - 1
        });
        let person = &mut persons[at];
        person.groups.extend(group.map(|group| {
            let tag = tag(group);
            if tag.is_empty() { name(group) } else { tag }
        }));
        person.wire = match (person.wire, user.wire_share) {
            (None, share) => share,
            (wire, None) => wire,
            (Some(wire), Some(share)) => Some(wire.saturating_add(share)),
        };
    }
    persons
}

fn users(document: &Document, most: usize) -> String {
    let mut persons = persons(document);
    let hidden = persons.len().saturating_sub(most);
    if hidden > 0 {
        persons.sort_by_key(|person| std::cmp::Reverse(person.user.payload.total));
        persons.truncate(most);
    }
    let mut table = grid(&["USER", "GROUPS", "UP", "DOWN", "TOTAL", "WIRE", "ONLINE"], 2);
    for person in &persons {
        let [up, down, total] = payload_cells(&person.user.payload);
        let groups = person.groups.join(", ");
        let online =
            person.user.online.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string());
        row(
            &mut table,
            2,
            [marked(person.user), groups, up, down, total, bytes(person.wire), online],
        );
    }
    let mut text = table.to_string();
    if persons.iter().any(|person| person.user.shared) {
        text.push_str("\n* in several groups: the proxy has one counter for him, counted once");
    }
    if hidden > 0 {
        text.push_str(&format!("\nand {hidden} more users with less traffic"));
    }
    text
}

fn total(document: &Document) -> String {
    let system = &document.system_total;
    let [up, down, total] = payload_cells(&system.payload);
    format!(
        "total: {up} up, {down} down, {total} payload; {} users and {} groups active",
        system.active_users, system.active_groups
    )
}

/// Where the numbers come from and what is wrong with them.
fn footer(document: &Document) -> String {
    let mut text = String::new();
    let api = &document.api;
    let product = api.product.as_deref().unwrap_or("proxy");
    match (api.state.as_deref(), &api.reason) {
        (None, _) => text.push_str("API: not asked yet\n"),
        (Some("ok"), _) => {
            let uptime = api.uptime_seconds.map(|seconds| format!(", up {seconds} s"));
            text.push_str(&format!("API: {product} ok{}\n", uptime.unwrap_or_default()));
        }
        (Some(state), reason) => {
            let since = api.since.as_deref().unwrap_or("?");
            let reason = reason.as_deref().unwrap_or_default();
            text.push_str(&format!("API: {state} since {since}: {reason}\n"));
            if let Some(remedy) = &api.remedy {
                text.push_str(&format!("  remedy: {remedy}\n"));
            }
        }
    }
    match &document.meter {
        Some(meter) => {
            let layer = document.layer.as_deref().unwrap_or_default();
            let since = document.since.as_deref().unwrap_or("an unknown time");
            text.push_str(&format!("kernel: {meter}, {layer} bytes, since {since}\n"));
        }
        None => text.push_str("kernel: nothing counts; start `traffic run`\n"),
    }
    if let Some(relay) = &document.relay {
        let rules = document.layer.as_deref() == Some(Layer::L3Skb.name());
        let what = if rules { "devices less groups, estimated" } else { "on no watched port" };
        text.push_str(&format!(
            "relay ({what}): {} in, {} out\n",
            human_bytes(relay.input_bytes, 1),
            human_bytes(relay.output_bytes, 1)
        ));
    }
    match document.coverage.as_str() {
        "gap" => text.push_str("GAP: some of what was moved is not known; see below\n"),
        "estimated" => text.push_str(
            "estimated: kernel and proxy count since different times; run `traffic run` for exact shares\n",
        ),
        _ => {}
    }
    for anomaly in document.anomalies.iter().take(MOST_NOTES) {
        text.push_str(&format!("! {}\n", anomaly.what));
    }
    let recent = document.events.len().saturating_sub(MOST_NOTES);
    for event in &document.events[recent..] {
        text.push_str(&format!("{}  {}\n", event.at, event.what));
    }
    text
}

/// Lines of fields for spreadsheets; what is not known is empty.
///
/// # Errors
///
/// When a line cannot be written, which does not happen in memory.
pub fn csv(document: &Document, part: Part) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let number = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
    match part {
        Part::Groups => {
            writer.write_record([
                "tag",
                "ports",
                "transport",
                "protocol",
                "uplink",
                "downlink",
                "total",
                "input_bytes",
                "output_bytes",
                "input_packets",
                "output_packets",
                "overhead_ratio",
                "unattributed_bytes",
            ])?;
            for group in &document.groups {
                let inbound = group.group_total.unwrap_or_default();
                let kernel = group.kernel;
                writer.write_record([
                    cell(group.tag.as_deref().unwrap_or_default()),
                    group.ports.clone(),
                    group.transport.clone(),
                    cell(group.protocol.as_deref().unwrap_or_default()),
                    number(inbound.uplink),
                    number(inbound.downlink),
                    number(inbound.total),
                    number(kernel.map(|kernel| kernel.input_bytes)),
                    number(kernel.map(|kernel| kernel.output_bytes)),
                    number(kernel.map(|kernel| kernel.input_packets)),
                    number(kernel.map(|kernel| kernel.output_packets)),
                    group.overhead_ratio.map_or_else(String::new, |ratio| ratio.to_string()),
                    number(group.unattributed_bytes),
                ])?;
            }
        }
        Part::Total => {
            writer.write_record([
                "uplink",
                "downlink",
                "total",
                "active_users",
                "active_groups",
            ])?;
            let system = &document.system_total;
            writer.write_record([
                number(system.payload.uplink),
                number(system.payload.downlink),
                number(system.payload.total),
                system.active_users.to_string(),
                system.active_groups.to_string(),
            ])?;
        }
        Part::Whole | Part::Users => {
            writer.write_record([
                "email",
                "tag",
                "ports",
                "uplink",
                "downlink",
                "total",
                "wire_share",
                "shared",
            ])?;
            let mut line = |group: Option<&GroupDocument>, user: &UserDocument| {
                writer.write_record([
                    cell(&user.email),
                    group.and_then(|group| group.tag.as_deref()).map_or_else(String::new, cell),
                    group.map_or_else(String::new, |group| group.ports.clone()),
                    number(user.payload.uplink),
                    number(user.payload.downlink),
                    number(user.payload.total),
                    number(user.wire_share),
                    user.shared.to_string(),
                ])
            };
            for group in &document.groups {
                group.users.iter().try_for_each(|user| line(Some(group), user))?;
            }
            document.unplaced.iter().try_for_each(|user| line(None, user))?;
        }
    }
    let written = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&written).into_owned())
}

/// One `name: value` a line, for `grep` and mails.
pub fn plain(document: &Document, part: Part) -> String {
    let mut text = format!("traffic of {} at {}\n", document.host, document.taken_at);
    let number = |value: Option<u64>| match value {
        None => "not known".to_owned(),
        Some(value) => format!("{value} ({})", human_bytes(value, 2)),
    };
    if matches!(part, Part::Whole | Part::Groups) {
        for group in &document.groups {
            let inbound = group.group_total.unwrap_or_default();
            text.push_str(&format!("group {} {} {}\n", name(group), tag(group), protocol(group)));
            text.push_str(&format!("  uplink: {}\n", number(inbound.uplink)));
            text.push_str(&format!("  downlink: {}\n", number(inbound.downlink)));
            let kernel = group.kernel;
            text.push_str(&format!("  kernel input: {}\n", number(kernel.map(|k| k.input_bytes))));
            text.push_str(&format!(
                "  kernel output: {}\n",
                number(kernel.map(|k| k.output_bytes))
            ));
            text.push_str(&format!("  overhead ratio: {}\n", ratio(group)));
            text.push_str(&format!("  unattributed: {}\n", number(group.unattributed_bytes)));
        }
    }
    if matches!(part, Part::Whole | Part::Users) {
        for person in persons(document) {
            text.push_str(&format!("user {}\n", marked(person.user)));
            text.push_str(&format!("  groups: {}\n", person.groups.join(", ")));
            text.push_str(&format!("  uplink: {}\n", number(person.user.payload.uplink)));
            text.push_str(&format!("  downlink: {}\n", number(person.user.payload.downlink)));
            text.push_str(&format!("  total: {}\n", number(person.user.payload.total)));
            text.push_str(&format!("  wire share: {}\n", number(person.wire)));
        }
    }
    if matches!(part, Part::Whole | Part::Total) {
        text.push_str(&total(document));
        text.push('\n');
    }
    text.push_str(&footer(document));
    text
}

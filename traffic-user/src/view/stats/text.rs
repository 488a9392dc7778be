//! The merged report for people and spreadsheets.

use comfy_table::{Cell, CellAlignment, Table};

use super::{
    super::{
        sheet::{self, number, word},
        table::{UNKNOWN, grid},
    },
    Part,
    document::{Document, GroupDocument, PayloadDocument, UserDocument},
};
use crate::accounting::{
    billing::Unit,
    ident::shown,
    reading::Layer,
    units::{bytes_in, human_bytes},
};

/// Most anomalies and events below a table; JSON has them all.
const MOST_NOTES: usize = 5;

/// How bytes are written: `None` as the live table does it, which stands on the same screen.
#[derive(Clone, Copy)]
struct Numbers(Option<Unit>);

impl Numbers {
    fn text(self, value: u64, precision: usize) -> String {
        match self.0 {
            Some(unit) => bytes_in(unit, value, precision),
            None => human_bytes(value, precision),
        }
    }

    fn cell(self, value: Option<u64>) -> String {
        value.map_or_else(|| UNKNOWN.to_owned(), |value| self.text(value, 1))
    }

    fn payload(self, payload: &PayloadDocument) -> [String; 3] {
        [self.cell(payload.uplink), self.cell(payload.downlink), self.cell(payload.total)]
    }
}

fn row(table: &mut Table, texts: usize, cells: impl IntoIterator<Item = String>) {
    table.add_row(cells.into_iter().enumerate().map(|(n, text)| {
        let alignment = if n < texts { CellAlignment::Left } else { CellAlignment::Right };
        Cell::new(text).set_alignment(alignment)
    }));
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
pub fn table(document: &Document, part: Part, unit: Unit) -> String {
    let numbers = Numbers(Some(unit));
    let groups = || groups(&document.groups, numbers);
    let users = || users(document, usize::MAX, numbers);
    let mut text = match part {
        Part::Whole => format!("{}\n\n{}\n\n{}\n", groups(), users(), total(document, numbers)),
        Part::Users => format!("{}\n", users()),
        Part::Groups => format!("{}\n", groups()),
        Part::Total => format!("{}\n", total(document, numbers)),
    };
    text.push_str(&footer(document, numbers));
    text
}

/// Tables that fit into so many lines, those who moved most first.
pub fn live(document: &Document, most: usize) -> String {
    let numbers = Numbers(None);
    let room = (most / 2).max(3);
    let hidden = document.groups.len().saturating_sub(room);
    let mut groups = groups(&busiest(document, room), numbers).to_string();
    if hidden > 0 {
        groups.push_str(&format!("\nand {hidden} more groups with less traffic"));
    }
    let room = most.saturating_sub(groups.lines().count()).max(3);
    format!("{groups}\n\n{}\n{}", users(document, room, numbers), footer(document, numbers))
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

fn groups(groups: &[GroupDocument], numbers: Numbers) -> Table {
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
                numbers.cell(inbound.uplink),
                numbers.cell(inbound.downlink),
                numbers.cell(kernel.map(|kernel| kernel.input_bytes)),
                numbers.cell(kernel.map(|kernel| kernel.output_bytes)),
                ratio(group),
                numbers.cell(group.unattributed_bytes),
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

fn users(document: &Document, most: usize, numbers: Numbers) -> String {
    let mut persons = persons(document);
    let hidden = persons.len().saturating_sub(most);
    if hidden > 0 {
        persons.sort_by_key(|person| std::cmp::Reverse(person.user.payload.total));
        persons.truncate(most);
    }
    let mut table = grid(&["USER", "GROUPS", "UP", "DOWN", "TOTAL", "WIRE", "ONLINE"], 2);
    for person in &persons {
        let [up, down, total] = numbers.payload(&person.user.payload);
        let groups = person.groups.join(", ");
        let online =
            person.user.online.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string());
        row(
            &mut table,
            2,
            [marked(person.user), groups, up, down, total, numbers.cell(person.wire), online],
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

fn total(document: &Document, numbers: Numbers) -> String {
    let system = &document.system_total;
    let [up, down, total] = numbers.payload(&system.payload);
    format!(
        "total: {up} up, {down} down, {total} payload; {} users and {} groups active",
        system.active_users, system.active_groups
    )
}

/// Where the numbers come from and what is wrong with them.
fn footer(document: &Document, numbers: Numbers) -> String {
    let mut text = String::new();
    let api = &document.api;
    let product = api.product.as_deref().unwrap_or("proxy");
    match (api.state.as_deref(), &api.reason) {
        (None, _) => text.push_str("API: not asked\n"),
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
            numbers.text(relay.input_bytes, 1),
            numbers.text(relay.output_bytes, 1)
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
pub fn csv(document: &Document, part: Part) -> String {
    match part {
        Part::Groups => groups_csv(document),
        Part::Total => {
            let system = &document.system_total;
            let PayloadDocument { uplink, downlink, total } = system.payload;
            let (users, groups) = (system.active_users, system.active_groups);
            let names = ["uplink", "downlink", "total", "active_users", "active_groups"];
            let active = [users, groups].map(|active| number(u64::try_from(active).ok()));
            let payload = [uplink, downlink, total].map(number);
            sheet::names(names) + &sheet::line(payload.into_iter().chain(active))
        }
        Part::Whole | Part::Users => users_csv(document),
    }
}

fn groups_csv(document: &Document) -> String {
    let mut lines = sheet::names([
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
    ]);
    for group in &document.groups {
        let inbound = group.group_total.unwrap_or_default();
        let kernel = group.kernel;
        lines.push_str(&sheet::line([
            sheet::text(group.tag.as_deref().unwrap_or_default()),
            word(&group.ports),
            word(&group.transport),
            sheet::text(group.protocol.as_deref().unwrap_or_default()),
            number(inbound.uplink),
            number(inbound.downlink),
            number(inbound.total),
            number(kernel.map(|kernel| kernel.input_bytes)),
            number(kernel.map(|kernel| kernel.output_bytes)),
            number(kernel.map(|kernel| kernel.input_packets)),
            number(kernel.map(|kernel| kernel.output_packets)),
            sheet::ratio(group.overhead_ratio),
            number(group.unattributed_bytes),
        ]));
    }
    lines
}

fn users_csv(document: &Document) -> String {
    let mut lines = sheet::names([
        "email",
        "tag",
        "ports",
        "uplink",
        "downlink",
        "total",
        "wire_share",
        "shared",
    ]);
    let mut line = |group: Option<&GroupDocument>, user: &UserDocument| {
        lines.push_str(&sheet::line([
            sheet::text(&user.email),
            sheet::text(group.and_then(|group| group.tag.as_deref()).unwrap_or_default()),
            word(group.map_or("", |group| &group.ports)),
            number(user.payload.uplink),
            number(user.payload.downlink),
            number(user.payload.total),
            number(user.wire_share),
            word(user.shared),
        ]));
    };
    for group in &document.groups {
        group.users.iter().for_each(|user| line(Some(group), user));
    }
    document.unplaced.iter().for_each(|user| line(None, user));
    lines
}

/// One `name: value` a line, for `grep` and mails.
pub fn plain(document: &Document, part: Part, unit: Unit) -> String {
    let numbers = Numbers(Some(unit));
    let mut text = format!("traffic of {} at {}\n", document.host, document.taken_at);
    let number = |value: Option<u64>| match value {
        None => "not known".to_owned(),
        Some(value) => format!("{value} ({})", numbers.text(value, 2)),
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
        text.push_str(&total(document, numbers));
        text.push('\n');
    }
    text.push_str(&footer(document, numbers));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unit_is_on_one_screen() {
        let payload = serde_json::json!({"uplink": 2_000_000, "downlink": 0, "total": 2_000_000});
        let mut total = payload.clone();
        (total["active_users"], total["active_groups"]) = (1.into(), 1.into());
        let mut user = payload.clone();
        for (key, value) in serde_json::json!({"email": "a@x", "wire_share": 3_000_000,
            "wire_input": null, "wire_output": null, "online": null, "shared": false,
            "configured": true})
        .as_object()
        .unwrap()
        {
            user[key] = value.clone();
        }
        let document = serde_json::json!({
            "jsonversion": "1", "taken_at": "t", "host": "h", "epoch": null, "since": null,
            "coverage": "complete", "meter": "tcx", "layer": "l3",
            "api": {"state": "ok", "since": null, "reason": null, "remedy": null,
                    "product": null, "uptime_seconds": null},
            "groups": [{"tag": "in", "port": 443, "ports": "443", "transport": "tcp",
                "protocol": null, "configured": true, "users": [user], "group_total": payload,
                "kernel": {"input_bytes": 4_000_000, "output_bytes": 5_000_000,
                           "input_packets": 1, "output_packets": 2},
                "overhead_ratio": null, "unattributed_bytes": 6_000_000}],
            "unplaced": [], "system_total": total,
            "relay": {"input_bytes": 7_000_000, "output_bytes": 8_000_000, "coverage": "complete"},
            "anomalies": [], "events": [],
        });
        let document: Document = serde_json::from_value(document).unwrap();
        for (unit, own) in [(Unit::Gib, "MiB"), (Unit::Gb, "MB")] {
            for text in [
                table(&document, Part::Whole, unit),
                table(&document, Part::Total, unit),
                plain(&document, Part::Whole, unit),
            ] {
                let words: Vec<_> = text.split([' ', '\n', ',', ')']).collect();
                let units = words.iter().filter(|word| ["KB", "KiB", "MB", "MiB"].contains(word));
                assert!(
                    units.clone().count() > 2 && units.clone().all(|word| *word == own),
                    "{text}"
                );
            }
        }
        assert!(live(&document, 20).contains("1.9 MB"), "as the table beside it");
    }
}

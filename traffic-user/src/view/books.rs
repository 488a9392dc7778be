//! What all documents from the ledger have in common.

use serde::Serialize;

use super::{
    json::JSON_VERSION,
    sheet::{Field, number, text, word},
};
use crate::accounting::{
    billing::Counting,
    history::{Terms, Who},
    ident::shown,
    period::utc,
    reading::{Layer, Traffic},
    subject::{Subject, SubjectKind},
    usage::{Event, Span, Usage},
};

/// The beginning of a document.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    pub(super) jsonversion: &'static str,
    pub(super) kind: &'static str,
    pub(super) taken_at: String,
    pub(super) host: &'a str,
    pub(super) time_zone: String,
    pub(super) billing_day: u8,
    pub(super) counting: &'static str,
}

impl<'a> Head<'a> {
    pub(super) fn new(kind: &'static str, taken_at: i64, host: &'a str, terms: &Terms) -> Self {
        Self {
            jsonversion: JSON_VERSION,
            kind,
            taken_at: utc(taken_at).to_string(),
            host,
            time_zone: terms.calendar.zone_name(),
            billing_day: terms.calendar.billing_day(),
            counting: terms.counting.name(),
        }
    }
}

/// From when to when.
#[derive(Serialize)]
pub(super) struct SpanJson {
    from: String,
    to: String,
}

impl From<Span> for SpanJson {
    fn from(span: Span) -> Self {
        Self { from: utc(span.begin).to_string(), to: utc(span.end).to_string() }
    }
}

/// Whose.
#[derive(Serialize)]
pub(super) struct WhoJson {
    pub(super) kind: &'static str,
    key: String,
    name: Option<String>,
}

impl From<&Who> for WhoJson {
    fn from(who: &Who) -> Self {
        Self {
            kind: who.subject.kind().name(),
            key: who.subject.key(),
            name: who.name.as_deref().map(str::to_owned),
        }
    }
}

/// How much. `null` throughout where nothing was booked.
#[derive(Serialize)]
pub(super) struct UsageJson {
    input_bytes: Option<u64>,
    output_bytes: Option<u64>,
    input_packets: Option<u64>,
    output_packets: Option<u64>,
    total_bytes: Option<u64>,
    billed_bytes: Option<u64>,
    coverage: Option<&'static str>,
}

impl UsageJson {
    /// The same with what is billed, where that is not of the sum.
    pub(super) fn billed(self, billed_bytes: Option<u64>) -> Self {
        Self { billed_bytes, ..self }
    }

    pub(super) fn new(usage: Option<Usage>, kind: SubjectKind, terms: &Terms) -> Self {
        let traffic = usage.map(|usage| usage.traffic);
        let packets = traffic.filter(|_| usage.is_some_and(|usage| has_packets(kind, usage.layer)));
        Self {
            input_bytes: traffic.map(|traffic| traffic.input_bytes),
            output_bytes: traffic.map(|traffic| traffic.output_bytes),
            input_packets: packets.map(|traffic| traffic.input_packets),
            output_packets: packets.map(|traffic| traffic.output_packets),
            total_bytes: traffic.map(Traffic::bytes),
            billed_bytes: traffic.map(|traffic| terms.counting.of(traffic)),
            coverage: usage.map(|usage| usage.coverage.name()),
        }
    }

    /// The same as fields.
    pub(super) fn cells(&self) -> [Field; 7] {
        [
            number(self.input_bytes),
            number(self.output_bytes),
            number(self.input_packets),
            number(self.output_packets),
            number(self.total_bytes),
            number(self.billed_bytes),
            word(self.coverage.unwrap_or_default()),
        ]
    }

    /// Names of the fields.
    pub(super) const COLUMNS: [&'static str; 7] = [
        "input_bytes",
        "output_bytes",
        "input_packets",
        "output_packets",
        "total_bytes",
        "billed_bytes",
        "coverage",
    ];
}

/// A layer's numbers.
#[derive(Serialize)]
pub(super) struct LayerUsageJson {
    layer: &'static str,
    #[serde(flatten)]
    usage: UsageJson,
}

impl LayerUsageJson {
    pub(super) fn all(
        usages: &[Usage],
        kind: SubjectKind,
        terms: &Terms,
        billed: impl Fn(Usage) -> u64,
    ) -> Vec<Self> {
        let one = |usage: &Usage| Self {
            layer: usage.layer.name(),
            usage: UsageJson::new(Some(*usage), kind, terms).billed(Some(billed(*usage))),
        };
        usages.iter().map(one).collect()
    }
}

/// Something that happened.
#[derive(Serialize)]
pub(super) struct EventJson {
    at: String,
    kind: String,
    subject: Option<WhoJson>,
    what: String,
}

impl From<&Event> for EventJson {
    fn from(event: &Event) -> Self {
        let who = |subject: &Subject| WhoJson::from(&Who { subject: subject.clone(), name: None });
        Self {
            at: super::json::time(event.at),
            kind: event.kind.clone(),
            subject: event.subject.as_ref().map(who),
            what: event.what.clone(),
        }
    }
}

impl EventJson {
    pub(super) const COLUMNS: [&'static str; 5] = ["at", "kind", "subject_kind", "subject", "what"];

    /// The same as fields.
    pub(super) fn cells(&self) -> [Field; 5] {
        let subject = self.subject.as_ref();
        [
            word(&self.at),
            text(&self.kind),
            word(subject.map_or("", |who| who.kind)),
            text(subject.map_or("", |who| &who.key)),
            text(&self.what),
        ]
    }
}

/// Neither payload nor a user's share of the wire has packets, and nobody knows those that pass beside rules.
pub(super) fn has_packets(kind: SubjectKind, layer: Layer) -> bool {
    let beside_rules =
        layer == Layer::L3Skb && matches!(kind, SubjectKind::Host | SubjectKind::Relay);
    kind != SubjectKind::User && layer != Layer::Payload && !beside_rules
}

/// Whose, for people: safe to print.
pub(super) fn who(who: &Who) -> String {
    let key = || shown(&who.subject.key());
    let named = |key: String| match &who.name {
        Some(name) => format!("{key} ({})", shown(name)),
        None => key,
    };
    match who.subject.kind() {
        SubjectKind::Host => "host".to_owned(),
        SubjectKind::Relay => "relay".to_owned(),
        SubjectKind::User => format!("user {}", key()),
        SubjectKind::Device => format!("device {}", key()),
        SubjectKind::Group => named(format!("port {}", key())),
        SubjectKind::Lane => named(format!("lane {}", key())),
    }
}

/// What the bytes are, for people.
pub(super) fn layer_text(kind: SubjectKind, layer: Layer) -> &'static str {
    match (kind, layer) {
        (_, Layer::Payload) => "payload bytes, as the proxy counts them",
        (SubjectKind::User, Layer::L3) => "his share of the wire, layer 3 bytes",
        (SubjectKind::User, Layer::L3Skb) => "his share of the wire, bytes of socket buffers",
        (_, Layer::L3) => "layer 3 bytes, as on the wire",
        (SubjectKind::Host | SubjectKind::Relay, Layer::L3Skb) => {
            "estimated from the devices' own totals, without link headers"
        }
        (_, Layer::L3Skb) => "layer 3 bytes of socket buffers",
        (_, Layer::Wire) => "bytes on the wire, with link headers",
    }
}

/// What is billed, for people.
pub(super) fn billed_text(terms: &Terms) -> &'static str {
    match terms.counting {
        Counting::Both => "both directions",
        Counting::Larger => {
            "the larger direction of each period; of more than one, that of each billing month"
        }
        Counting::Output => "output alone",
    }
}

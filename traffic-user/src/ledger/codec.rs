//! Values of the core as the ledger keeps them, and back.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::accounting::{
    ident::Group,
    payload::{Kept, KeptCounter},
    proxy::{CounterName, Product},
    reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Skipped, Snapshot, Traffic, Window},
    relay::{DeviceReading, Devices},
    subject::SubjectKind,
    tick::{Left, ProxyCursor},
    usage::Level,
    zeros::{Zero, Zeros},
};

/// Highest number that a subject can have.
pub(super) const MOST_SUBJECTS: i64 = 0xff_ffff;
/// Meters that can have a cursor.
const METERS: [&str; 5] = ["tcx", "tc", "cgroup", "nft", "iptables"];
const LAYERS: [Layer; 4] = [Layer::L3, Layer::L3Skb, Layer::Wire, Layer::Payload];
const COVERAGES: [Coverage; 3] = [Coverage::Complete, Coverage::Estimated, Coverage::Gap];

/// One kind of subject and one layer: rows of a book are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Book(i64);

impl Book {
    pub(super) fn new(kind: SubjectKind, layer: Layer) -> Self {
        let kind: i64 = match kind {
            SubjectKind::Host => 0,
            SubjectKind::Device => 1,
            SubjectKind::Group => 2,
            SubjectKind::Lane => 3,
            SubjectKind::User => 4,
            SubjectKind::Relay => 5,
        };
        let layer: i64 = match layer {
            Layer::L3 => 0,
            Layer::L3Skb => 1,
            Layer::Wire => 2,
            Layer::Payload => 3,
        };
        Self(kind << 2 | layer)
    }

    /// The books of a kind.
    pub(super) fn of_kind(kind: SubjectKind) -> [(Layer, Self); 4] {
        LAYERS.map(|layer| (layer, Self::new(kind, layer)))
    }
}

/// Where the usage of one subject, in one bucket and book, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(pub(super) i64);

impl Key {
    pub(super) const fn new(bucket: i64, book: Book, subject: i64) -> Self {
        Self(bucket << 29 | book.0 << 24 | subject)
    }

    /// First and last key that a bucket can have.
    pub(super) const fn of_bucket(bucket: i64) -> (i64, i64) {
        (bucket << 29, bucket << 29 | 0x1fff_ffff)
    }

    /// The same of one book in it.
    pub(super) const fn of_book(bucket: i64, book: Book) -> (i64, i64) {
        let first = Self::new(bucket, book, 0).0;
        (first, first | MOST_SUBJECTS)
    }

    /// The same subject and book in another bucket.
    pub(super) const fn moved_to(self, bucket: i64) -> Self {
        Self(bucket << 29 | self.0 & 0x1fff_ffff)
    }

    pub(super) const fn subject(self) -> i64 {
        self.0 & MOST_SUBJECTS
    }

    pub(super) fn layer(self) -> Layer {
        match self.0 >> 24 & 3 {
            0 => Layer::L3,
            1 => Layer::L3Skb,
            2 => Layer::Wire,
            _ => Layer::Payload,
        }
    }
}

pub(super) fn kind(name: &str) -> Option<SubjectKind> {
    SubjectKind::ALL.into_iter().find(|kind| kind.name() == name)
}

pub(super) const fn level_number(level: Level) -> i64 {
    match level {
        Level::Minutes => 0,
        Level::Hour => 1,
        Level::Day => 2,
    }
}

pub(super) fn level(number: i64) -> Option<Level> {
    Level::ALL.into_iter().find(|level| level_number(*level) == number)
}

pub(super) const fn coverage_number(coverage: Coverage) -> i64 {
    match coverage {
        Coverage::Complete => 0,
        Coverage::Estimated => 1,
        Coverage::Gap => 2,
    }
}

pub(super) fn coverage(number: i64) -> Coverage {
    match number {
        0 => Coverage::Complete,
        1 => Coverage::Estimated,
        _ => Coverage::Gap,
    }
}

/// A number of SQLite, which stops at 63 bits.
pub(super) fn stored(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

pub(super) fn meter(name: &str) -> Option<&'static str> {
    METERS.into_iter().find(|meter| *meter == name)
}

type FourNumbers = [u64; 4];

#[derive(Serialize, Deserialize)]
struct StoredSnapshot {
    layer: u8,
    epoch: u64,
    since: Option<i64>,
    begin: i128,
    end: i128,
    coverage: u8,
    groups: Vec<StoredGroup>,
    skipped: Option<[FourNumbers; 5]>,
}

#[derive(Serialize, Deserialize)]
struct StoredGroup {
    group: String,
    watched: bool,
    lanes: [FourNumbers; 4],
}

#[derive(Serialize, Deserialize)]
struct StoredDevices {
    boot: u64,
    readings: Vec<(u32, FourNumbers)>,
}

#[derive(Serialize, Deserialize)]
struct StoredLeft {
    boot: u64,
    meter: String,
    epoch: Option<u64>,
    place: String,
}

#[derive(Serialize, Deserialize)]
struct StoredZero {
    meter: String,
    epoch: u64,
    at: i128,
    group: String,
    lanes: [FourNumbers; 4],
}

#[derive(Serialize, Deserialize)]
struct StoredProxy {
    boot: u64,
    product: Option<u8>,
    uptime: Option<u32>,
    window: (i128, i128),
    boot_time: (i128, i128),
    /// Number of the name, last value, polls since it was seen.
    counters: Vec<(u32, Option<u64>, u64)>,
}

/// Where a value is in its list. The lists are short.
fn place<T: PartialEq>(list: &[T], value: &T) -> u8 {
    let at = list.iter().position(|one| one == value).unwrap_or(0);
    u8::try_from(at).unwrap_or(0)
}

fn four(traffic: Traffic) -> FourNumbers {
    let Traffic { input_bytes, input_packets, output_bytes, output_packets } = traffic;
    [input_bytes, input_packets, output_bytes, output_packets]
}

fn traffic([input_bytes, input_packets, output_bytes, output_packets]: FourNumbers) -> Traffic {
    Traffic { input_bytes, input_packets, output_bytes, output_packets }
}

pub(super) fn write_snapshot(snapshot: &Snapshot) -> Result<Vec<u8>, postcard::Error> {
    let group = |reading: &GroupReading| StoredGroup {
        group: reading.group.to_string(),
        watched: reading.watched,
        lanes: reading.lanes.each().map(|(_, traffic)| four(traffic)),
    };
    postcard::to_allocvec(&StoredSnapshot {
        layer: place(&LAYERS, &snapshot.layer),
        epoch: snapshot.epoch.0,
        since: snapshot.since,
        begin: snapshot.window.begin,
        end: snapshot.window.end,
        coverage: place(&COVERAGES, &snapshot.coverage),
        groups: snapshot.groups.iter().map(group).collect(),
        skipped: snapshot.skipped.map(|skipped| skipped.each().map(|(_, traffic)| four(traffic))),
    })
}

pub(super) fn write_left(left: &Left) -> Result<Vec<u8>, postcard::Error> {
    let Left { boot, meter, epoch, place } = left.clone();
    let epoch = epoch.map(|epoch| epoch.0);
    postcard::to_allocvec(&StoredLeft { boot, meter: meter.to_owned(), epoch, place })
}

/// `None` when it cannot be understood.
pub(super) fn read_left(bytes: &[u8]) -> Option<Left> {
    let StoredLeft { boot, meter: name, epoch, place } = postcard::from_bytes(bytes).ok()?;
    Some(Left { boot, meter: meter(&name)?, epoch: epoch.map(Epoch), place })
}

/// `None` when it cannot be understood.
pub(super) fn read_snapshot(meter: &'static str, bytes: &[u8]) -> Option<Snapshot> {
    let stored: StoredSnapshot = postcard::from_bytes(bytes).ok()?;
    let group = |stored: StoredGroup| {
        let [tcp4, tcp6, udp4, udp6] = stored.lanes.map(traffic);
        Some(GroupReading {
            group: Arc::new(stored.group.parse::<Group>().ok()?),
            lanes: Lanes { tcp4, tcp6, udp4, udp6 },
            watched: stored.watched,
        })
    };
    let skipped = stored.skipped.map(|skipped| {
        let [unwatched, fragment, other, malformed, loopback] = skipped.map(traffic);
        Skipped { unwatched, fragment, other, malformed, loopback }
    });
    Some(Snapshot {
        meter,
        layer: *LAYERS.get(usize::from(stored.layer))?,
        epoch: Epoch(stored.epoch),
        since: stored.since,
        window: Window { begin: stored.begin, end: stored.end },
        coverage: *COVERAGES.get(usize::from(stored.coverage))?,
        groups: stored.groups.into_iter().map(group).collect::<Option<_>>()?,
        skipped,
    })
}

pub(super) fn write_devices(devices: &Devices) -> Result<Vec<u8>, postcard::Error> {
    let reading = |reading: &DeviceReading| (reading.index, four(reading.traffic));
    let readings = devices.readings.iter().map(reading).collect();
    postcard::to_allocvec(&StoredDevices { boot: devices.boot, readings })
}

/// `None` when it cannot be understood.
pub(super) fn read_devices(bytes: &[u8]) -> Option<Devices> {
    let StoredDevices { boot, readings } = postcard::from_bytes(bytes).ok()?;
    let reading = |(index, four)| DeviceReading { index, traffic: traffic(four) };
    Some(Devices { boot, readings: readings.into_iter().map(reading).collect() })
}

pub(super) fn write_zeros(zeros: &Zeros) -> Result<Vec<u8>, postcard::Error> {
    let stored = |zero: &Zero| StoredZero {
        meter: zero.meter.to_owned(),
        epoch: zero.epoch.0,
        at: zero.at,
        group: zero.group.to_string(),
        lanes: zero.lanes.each().map(|(_, traffic)| four(traffic)),
    };
    postcard::to_allocvec(&zeros.0.iter().map(stored).collect::<Vec<_>>())
}

/// Those that can be understood.
pub(super) fn read_zeros(bytes: &[u8]) -> Zeros {
    let stored: Vec<StoredZero> = postcard::from_bytes(bytes).unwrap_or_default();
    let zero = |stored: StoredZero| {
        let [tcp4, tcp6, udp4, udp6] = stored.lanes.map(traffic);
        Some(Zero {
            meter: meter(&stored.meter)?,
            epoch: Epoch(stored.epoch),
            at: stored.at,
            group: Arc::new(stored.group.parse().ok()?),
            lanes: Lanes { tcp4, tcp6, udp4, udp6 },
        })
    };
    Zeros(stored.into_iter().filter_map(zero).collect())
}

/// `number` gives the number of a counter's name.
pub(super) fn write_proxy(
    cursor: &ProxyCursor,
    mut number: impl FnMut(&CounterName) -> Option<u32>,
) -> Result<Vec<u8>, postcard::Error> {
    let kept = &cursor.kept;
    let counters = kept
        .counters
        .iter()
        .filter_map(|counter| Some((number(&counter.name)?, counter.value, counter.away)))
        .collect();
    let product = kept.product.map(|product| match product {
        Product::V2ray => 0,
        Product::Xray => 1,
    });
    postcard::to_allocvec(&StoredProxy {
        boot: cursor.boot,
        product,
        uptime: kept.uptime,
        window: (kept.window.begin, kept.window.end),
        boot_time: (kept.boot.begin, kept.boot.end),
        counters,
    })
}

/// `None` when it cannot be understood.
pub(super) fn read_proxy(bytes: &[u8], names: &HashMap<u32, CounterName>) -> Option<ProxyCursor> {
    let stored: StoredProxy = postcard::from_bytes(bytes).ok()?;
    let product = match stored.product {
        None => None,
        Some(0) => Some(Product::V2ray),
        Some(1) => Some(Product::Xray),
        Some(_) => return None,
    };
    let counter = |(number, value, away)| {
        Some(KeptCounter { name: names.get(&number)?.clone(), value, away })
    };
    let window = |(begin, end)| Window { begin, end };
    Some(ProxyCursor {
        boot: stored.boot,
        kept: Kept {
            product,
            uptime: stored.uptime,
            window: window(stored.window),
            boot: window(stored.boot_time),
            counters: stored.counters.into_iter().map(counter).collect::<Option<_>>()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::proxy::{Subject, Way};

    #[test]
    fn keys_of_a_bucket_and_a_book_are_neighbours_and_tell_what_they_are_of() {
        let book = Book::new(SubjectKind::User, Layer::Payload);
        let key = Key::new(9, book, 77);
        let ((first, last), (low, high)) = (Key::of_bucket(9), Key::of_book(9, book));
        assert!(first < low && low < key.0 && key.0 < high && high < last);
        assert_eq!(last + 1, Key::of_bucket(10).0);
        assert_eq!((key.subject(), key.layer()), (77, Layer::Payload));
        assert_eq!(key.moved_to(3), Key::new(3, book, 77));
        let most = Key::new(9, Book::new(SubjectKind::Relay, Layer::Payload), MOST_SUBJECTS);
        assert!(most.0 <= last);
    }

    #[test]
    fn every_layer_has_a_book_of_its_own() {
        let books: std::collections::BTreeSet<_> = SubjectKind::ALL
            .into_iter()
            .flat_map(Book::of_kind)
            .map(|(layer, book)| {
                assert_eq!(Key::new(1, book, 1).layer(), layer);
                book.0
            })
            .collect();
        assert_eq!(books.len(), 24);
        assert!(books.iter().all(|book| *book < 32));
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written() {
        let traffic = |n| Traffic {
            input_bytes: n,
            input_packets: n + 1,
            output_bytes: u64::MAX - n,
            output_packets: n + 2,
        };
        let reading = |text: &str, n| GroupReading {
            group: Arc::new(text.parse().unwrap()),
            lanes: Lanes {
                tcp4: traffic(n),
                tcp6: traffic(n + 10),
                udp4: traffic(n + 20),
                udp6: traffic(n + 30),
            },
            watched: n > 5,
        };
        let snapshot = Snapshot {
            meter: "nft",
            layer: Layer::L3Skb,
            epoch: Epoch(u64::MAX),
            since: Some(-5),
            window: Window { begin: -1, end: i128::MAX },
            coverage: Coverage::Gap,
            groups: [reading("443+8443/tcp=web", 1), reading("20000-50000/udp", 9)].into(),
            skipped: Some(Skipped {
                unwatched: traffic(100),
                fragment: traffic(200),
                other: traffic(300),
                malformed: traffic(400),
                loopback: traffic(500),
            }),
        };
        let bytes = write_snapshot(&snapshot).unwrap();
        assert_eq!(read_snapshot("nft", &bytes), Some(snapshot));
        for length in 0..bytes.len() {
            assert_eq!(read_snapshot("nft", &bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn readings_of_devices_are_read_as_they_were_written() {
        let traffic = Traffic { input_bytes: u64::MAX, output_packets: 7, ..Traffic::default() };
        let readings = vec![DeviceReading { index: 9, traffic }];
        let devices = Devices { boot: u64::MAX, readings };
        let bytes = write_devices(&devices).unwrap();
        assert_eq!(read_devices(&bytes), Some(devices));
        assert_eq!(read_devices(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn zeros_are_read_as_they_were_written() {
        let traffic =
            |n| Traffic { input_bytes: n, output_packets: u64::MAX, ..Traffic::default() };
        let zero = |meter, group: &str, n| Zero {
            meter,
            epoch: Epoch(u64::MAX),
            at: i128::from(n) - 5,
            group: Arc::new(group.parse().unwrap()),
            lanes: Lanes { tcp6: traffic(n), udp4: traffic(n + 1), ..Lanes::default() },
        };
        let zeros = Zeros(vec![zero("nft", "443+80=web", 1), zero("tcx", "9/udp", 7)]);
        assert_eq!(read_zeros(&write_zeros(&zeros).unwrap()), zeros);
        assert_eq!(read_zeros(b"nothing"), Zeros::default());
    }

    #[test]
    fn a_proxy_cursor_is_read_as_it_was_written() {
        let name = |email: &str, way| CounterName { subject: Subject::User(email.into()), way };
        let names = [name("a>>>b@x", Way::Uplink), name("a>>>b@x", Way::Downlink)];
        let counter = |n: usize, value, away| KeptCounter { name: names[n].clone(), value, away };
        let cursor = ProxyCursor {
            boot: 7,
            kept: Kept {
                product: Some(Product::Xray),
                uptime: Some(u32::MAX),
                window: Window { begin: 1, end: 2 },
                boot: Window { begin: 3, end: 4 },
                counters: vec![counter(1, Some(u64::MAX), 0), counter(0, None, 3)],
            },
        };
        let number = |name: &CounterName| {
            names.iter().position(|one| one == name).and_then(|at| u32::try_from(at).ok())
        };
        let bytes = write_proxy(&cursor, number).unwrap();
        let known = (0..).zip(names.clone()).collect();
        assert_eq!(read_proxy(&bytes, &known), Some(cursor));
        assert_eq!(read_proxy(&bytes, &HashMap::new()), None);
    }
}

//! The named packets of `traffic-ebpf/corpus`, each with the answer that the design asks for, written
//! by hand: a file says what a parser or a program has to find, not what one found.
//!
//! A file is text. Comment lines at its top say what mistake it would catch. Then come lines of
//! `key: value`, an empty line, and the bytes in hexadecimal, where `#` begins a comment and
//! `zeros: N` stands for N bytes of 0:
//!
//! | key | value | when absent |
//! |---|---|---|
//! | `link` | `ethernet` or `bare` | required |
//! | `l3` | where the IP header begins | 14 or 0, by the link |
//! | `gso_segs`, `gso_size` | what the kernel says of the segments | 0 |
//! | `headers` | bytes of IP and transport headers in a buffer of several segments | none |
//! | `direction` | `input` or `output`: which of the ports is this host's | required |
//! | `lane`, `ports` | `tcp4`, `tcp6`, `udp4` or `udp6`; `source -> destination` | has no ports |
//! | `place` | `first` or `later` fragment | not fragmented |
//! | `charge` | the port of [`WATCHED`] whose group pays, or the reason why none does | required |
//! | `bytes`, `packets` | how much, by the design's definition | required |
//!
//! The tests of the parser include this file as their own module: both see the same packets.

use std::{
    fs,
    path::{Path, PathBuf},
};

use traffic_ebpf::{
    abi,
    packet::{Link, Offload},
};

/// Ports that every test of the corpus watches, and whether for UDP as well as for TCP.
pub const WATCHED: [(u16, bool); 5] =
    [(1, true), (53, true), (443, true), (8443, false), (65_535, true)];

/// Which of a packet's ports is this host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Input: the destination's.
    Input,
    /// Output: the source's.
    Output,
}

/// Where in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Not fragmented.
    Whole,
    /// First fragment.
    First,
    /// Later fragment.
    Later,
}

/// Who pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// The group of this port of [`WATCHED`].
    Port(u16),
    /// Nobody, for this reason of [`abi::skip`].
    Skipped(u32),
}

/// One packet with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The file's name without `.hex`.
    pub name: String,
    /// What mistake it would catch.
    pub why: String,
    /// What the first byte belongs to.
    pub link: Link,
    /// Where the IP header begins.
    pub l3: usize,
    /// What the kernel says of the segments.
    pub offload: Offload,
    /// Bytes of headers that each segment repeats, and of those that are in the buffer alone.
    pub headers: Option<usize>,
    /// Which port is this host's.
    pub side: Side,
    /// Lane, source port and destination port, for a packet that has them.
    pub flow: Option<(u8, u16, u16)>,
    /// Where in its datagram.
    pub position: Position,
    /// Who pays, when the packet comes alone.
    pub charge: Charge,
    /// Layer-3 bytes on the wire.
    pub bytes: u64,
    /// Packets on the wire.
    pub packets: u64,
    /// The packet.
    pub packet: Vec<u8>,
}

/// All packets, in the order of their names.
///
/// # Panics
///
/// When the folder cannot be read, or a file does not keep to the form above.
pub fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../traffic-ebpf/corpus");
    let files = fs::read_dir(&folder)
        .unwrap_or_else(|err| panic!("read the folder {}: {err}", folder.display()));
    let mut paths: Vec<PathBuf> = files
        .map(|file| file.expect("read the folder of the corpus").path())
        .filter(|path| path.extension().is_some_and(|end| end == "hex"))
        .collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

/// The packet of this name.
///
/// # Panics
///
/// When there is none, or its file does not keep to the form above.
pub fn named(name: &str) -> Case {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../traffic-ebpf/corpus");
    read(&folder.join(name).with_extension("hex"))
}

fn read(path: &Path) -> Case {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().to_string();
    let text = fs::read_to_string(path).unwrap_or_else(|err| panic!("{name}.hex: {err}"));
    parse(&name, &text).unwrap_or_else(|err| panic!("{name}.hex: {err}"))
}

fn parse(name: &str, text: &str) -> Result<Case, String> {
    let (head, body) = text.split_once("\n\n").ok_or("no empty line before the bytes")?;
    let why: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("# ")).collect();
    if why.is_empty() {
        return Err("no line that says what it would catch".to_owned());
    }
    let mut fields = Fields::read(head)?;
    let link = match fields.needed("link")? {
        "ethernet" => Link::Ethernet,
        "bare" => Link::Bare,
        other => return Err(format!("no link: {other}")),
    };
    let side = match fields.needed("direction")? {
        "input" => Side::Input,
        "output" => Side::Output,
        other => return Err(format!("no direction: {other}")),
    };
    let flow = match (fields.take("lane"), fields.take("ports")) {
        (Some(lane), Some(ports)) => {
            let lane = index_of(&abi::LANE_NAMES, lane).ok_or("no such lane")?;
            let (source, destination) = ports.split_once(" -> ").ok_or("no arrow in the ports")?;
            Some((lane, number(source)?, number(destination)?))
        }
        (None, None) => None,
        _ => return Err("lane and ports come together".to_owned()),
    };
    let position = match fields.take("place") {
        None => Position::Whole,
        Some("first") => Position::First,
        Some("later") => Position::Later,
        Some(other) => return Err(format!("no place: {other}")),
    };
    let charge = fields.needed("charge")?;
    let charge = match index_of(&abi::skip::NAMES, charge) {
        Some(reason) => Charge::Skipped(reason),
        None => Charge::Port(number(charge)?),
    };
    let case = Case {
        name: name.to_owned(),
        why: why.join(" "),
        link,
        l3: match fields.take("l3") {
            Some(l3) => number(l3)?,
            None if link == Link::Ethernet => 14,
            None => 0,
        },
        offload: Offload {
            segments: fields.take("gso_segs").map_or(Ok(0), number)?,
            size: fields.take("gso_size").map_or(Ok(0), number)?,
        },
        headers: fields.take("headers").map(number).transpose()?,
        side,
        flow,
        position,
        charge,
        bytes: number(fields.needed("bytes")?)?,
        packets: number(fields.needed("packets")?)?,
        packet: bytes(body)?,
    };
    fields.end()?;
    Ok(case)
}

/// The `key: value` lines that nobody has asked for yet.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn read(head: &'a str) -> Result<Self, String> {
        let lines = head.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.map(|line| line.split_once(": ").ok_or_else(|| line.to_owned()));
        Ok(Self(pairs.collect::<Result<_, _>>()?))
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(known, _)| *known == key)?;
        Some(self.0.remove(at).1)
    }

    fn needed(&mut self, key: &str) -> Result<&'a str, String> {
        self.take(key).ok_or_else(|| format!("no line {key}"))
    }

    fn end(self) -> Result<(), String> {
        match self.0.first() {
            Some((key, _)) => Err(format!("unknown or twice: {key}")),
            None => Ok(()),
        }
    }
}

fn index_of<N: TryFrom<usize>>(names: &[&str], name: &str) -> Option<N> {
    let index = names.iter().position(|known| *known == name)?;
    N::try_from(index).ok()
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("no number: {text}"))
}

fn bytes(body: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for line in body.lines() {
        let line = line.split('#').next().unwrap_or_default();
        if let Some(count) = line.strip_prefix("zeros: ") {
            bytes.resize(bytes.len() + number::<usize>(count.trim())?, 0);
            continue;
        }
        for byte in line.split_whitespace() {
            let byte = u8::from_str_radix(byte, 16).map_err(|_| format!("no byte: {byte}"))?;
            bytes.push(byte);
        }
    }
    Ok(bytes)
}

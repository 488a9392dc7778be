//! What a host moved beside its groups, where the meter sees nothing but them: its devices' own totals less
//! the groups.
//!
//! Rules count on their ports alone. A device counts all that passes it: less its link headers that is a sum
//! of layer-3 bytes, of wire packets or of socket buffers, as its driver has them. So the difference is an
//! estimate ([`Coverage::Estimated`]), and never a number of packets. In it is what is on no watched port,
//! and also what the rules do not see at all (other protocols, forwarded packets, what is dropped before
//! them), and the headers by which buffers of the groups are short of what was on the wire. Groups that are
//! reached by another way, the loopback or a device that is not counted, make it smaller.
//!
//! Both sides are differences of the same time. Where one of them is not known there is no estimate, and
//! where the groups moved more than the devices it is not below zero: it is nothing.

use super::{
    delta::{Deltas, Seam},
    reading::{Coverage, Traffic},
};

/// One part in so many of what was lately is forgotten at each tick.
const FORGOTTEN: u64 = 8;

/// The counters of one device, in one life of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceReading {
    /// Its number: another device with its name has another.
    pub index: u32,
    /// What it received and sent since it was made, without link headers.
    pub traffic: Traffic,
}

/// The counters of the devices that carry the host's traffic, at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Tells one boot of the host from another.
    pub boot: u64,
    /// Each device once.
    pub readings: Vec<DeviceReading>,
}

/// What a tick found beside the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Bytes; never packets.
    pub traffic: Traffic,
    /// At best an estimate.
    pub coverage: Coverage,
}

/// Follows devices and groups from tick to tick.
#[derive(Clone, Debug, Default)]
pub struct Relay {
    /// The last readings of the devices.
    last: Option<Devices>,
    /// What the groups counted since then.
    counted: Traffic,
    /// Input and output.
    ways: [Way; 2],
    /// Whether something passed the devices unseen since the last estimate.
    unseen: bool,
}

impl Relay {
    /// Goes on from the readings that were last made use of.
    pub fn resumed(last: Option<Devices>) -> Self {
        Self { last, ..Self::default() }
    }

    /// The readings up to which all is told; `None` when the groups have counted since.
    pub fn last(&self) -> Option<&Devices> {
        self.last.as_ref().filter(|_| self.counted == Traffic::default())
    }

    /// Takes what a meter that sees its groups alone has counted, and the devices at that time; `None` when
    /// they could not be read. Gives what moved beside, where that can be told.
    pub fn tick(&mut self, devices: Option<&Devices>, groups: &Deltas) -> Option<Relayed> {
        if groups.seam != Seam::Same {
            // What the groups moved since the last tick is not all in these numbers.
            self.begin_anew(devices);
            return None;
        }
        self.counted = self.counted.plus(groups.total());
        let devices = devices?;
        let known = self.last.as_ref().filter(|last| last.boot == devices.boot);
        let Some((moved, all)) = known.map(|last| moved(last, devices)) else {
            self.begin_anew(Some(devices));
            return None;
        };
        let counted = std::mem::take(&mut self.counted);
        let [input, output] = &mut self.ways;
        let input = input.beyond(moved.input_bytes, counted.input_bytes);
        let output = output.beyond(moved.output_bytes, counted.output_bytes);
        self.last = Some(devices.clone());
        let unseen = std::mem::take(&mut self.unseen) || !all;
        let coverage =
            if unseen { Coverage::Gap } else { groups.coverage.max(Coverage::Estimated) };
        let traffic = Traffic {
            input_bytes: input.unwrap_or_default(),
            output_bytes: output.unwrap_or_default(),
            ..Traffic::default()
        };
        // It is told together with bytes: what is nothing is booked nowhere.
        self.unseen = unseen && traffic == Traffic::default();
        (input.is_some() || output.is_some()).then_some(Relayed { traffic, coverage })
    }

    /// Lets go of all, because a meter counts that sees more than its groups.
    pub fn stop(&mut self) {
        *self = Self::default();
    }

    fn begin_anew(&mut self, devices: Option<&Devices>) {
        let unseen = self.unseen || self.last.is_some();
        *self = Self { last: devices.cloned(), unseen, ..Self::default() };
    }
}

/// One direction. The two sides are read one after the other, and a device may count a packet after the
/// rules have.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// By how much the groups are ahead of the devices.
    ahead: u64,
    /// What they moved in one tick lately, at most: they cannot be further ahead, unless another way leads
    /// to them, and then it is not owed.
    lately: u64,
}

impl Way {
    /// What is left of what the devices moved; `None` when the groups moved more.
    fn beyond(&mut self, moved: u64, counted: u64) -> Option<u64> {
        self.lately = counted.max(self.lately - self.lately.div_ceil(FORGOTTEN));
        let taken = counted.saturating_add(self.ahead);
        self.ahead = taken.saturating_sub(moved).min(self.lately);
        moved.checked_sub(taken)
    }
}

/// What the devices moved between two readings, and whether that is all: a device that is new, gone or
/// began again moved something that is in neither.
fn moved(last: &Devices, next: &Devices) -> (Traffic, bool) {
    let before = |index| last.readings.iter().find(|reading| reading.index == index);
    let mut sum = Traffic::default();
    let mut all = last
        .readings
        .iter()
        .all(|gone| next.readings.iter().any(|reading| reading.index == gone.index));
    for reading in &next.readings {
        let step = before(reading.index).map(|last| less(reading.traffic, last.traffic));
        all &= step.is_some_and(|step| step.is_some());
        sum = sum.plus(match step {
            Some(Some(step)) => step,
            // From zero.
            Some(None) => reading.traffic,
            None => Traffic::default(),
        });
    }
    (sum, all)
}

/// The difference; `None` when a number fell.
fn less(next: Traffic, last: Traffic) -> Option<Traffic> {
    Some(Traffic {
        input_bytes: next.input_bytes.checked_sub(last.input_bytes)?,
        input_packets: next.input_packets.checked_sub(last.input_packets)?,
        output_bytes: next.output_bytes.checked_sub(last.output_bytes)?,
        output_packets: next.output_packets.checked_sub(last.output_packets)?,
    })
}

#[cfg(test)]
mod tests;

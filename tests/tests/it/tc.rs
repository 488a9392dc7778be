//! Real packets over veth and tun devices: what is counted is what went over the wire, byte for byte.

mod bare;
mod known;
mod segments;

use std::time::Instant;

use traffic_tests::{daemon::Daemon, device::Device, document::Document, wait};

/// Asserts that a device has moved exactly the packets that its meter has seen. Only for a device that
/// neither cuts nor joins packets, and was down until its meter was there.
#[track_caller]
fn agrees_with_the_device(daemon: &mut Daemon, device: &Device) -> Document {
    let end = Instant::now() + wait::DEADLINE;
    loop {
        let before = device.moved();
        let document = daemon.fresh();
        let seen = document.everything();
        let moved = device.moved();
        let agree = seen.input_packets == moved.rx_packets
            && seen.output_packets == moved.tx_packets
            && before == moved;
        if agree {
            return document;
        }
        // A report of IPv6's may pass between the readings; a difference that stays is one.
        assert!(
            Instant::now() < end,
            "{} moved {moved:?}, and the meter saw {seen:?}",
            device.name
        );
    }
}

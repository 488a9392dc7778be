//! What is owed to the ledger, of whom and in which layer.

use super::{
    super::{
        delta::{Deltas, Seam},
        payload::PayloadDeltas,
        proxy::Subject as Counted,
        reading::{Coverage, Lane, Layer, Traffic},
        subject::{GroupKey, Subject},
    },
    Owed, State,
};

impl State {
    pub(super) fn book_kernel(&mut self, deltas: &Deltas) {
        let (layer, coverage) = (deltas.layer, deltas.coverage);
        // What was lost is told of whoever may have lost it, though nothing was counted yet.
        let lost = coverage == Coverage::Gap && deltas.seam != Seam::Same;
        for delta in &deltas.groups {
            let total = delta.lanes.total();
            if total == Traffic::default() && !lost {
                continue;
            }
            let key = GroupKey::of(&delta.group);
            for lane in Lane::ALL {
                let subject = Subject::Lane(key.clone(), lane);
                self.owe(subject, layer, *delta.lanes.lane(lane), coverage);
            }
            let name = delta.group.name().map(Into::into);
            let owed = if lost {
                Some(self.owe_gap(Subject::Group(key), layer, total))
            } else {
                self.owe(Subject::Group(key), layer, total, coverage)
            };
            if let Some(owed) = owed {
                owed.name = name;
            }
        }
        if lost {
            self.owe_gap(Subject::Host, layer, Traffic::default());
        }
        if let Some(skipped) = deltas.skipped {
            let seen = [skipped.unwatched, skipped.fragment, skipped.other, skipped.malformed];
            let host = seen.into_iter().sum::<Traffic>().plus(deltas.total());
            self.owe(Subject::Host, layer, host, coverage);
            self.owe(Subject::Relay, layer, skipped.unwatched, coverage);
        } else if layer == Layer::L3Skb {
            // Rules see their own ports and nothing else: the host is at least that. Packets beside them are
            // not known.
            let Traffic { input_bytes, output_bytes, .. } = deltas.total();
            let host = bytes(input_bytes, output_bytes);
            self.owe(Subject::Host, layer, host, coverage.max(Coverage::Estimated));
        }
    }

    pub(super) fn book_payload(&mut self, payload: &PayloadDeltas) {
        for (subject, charge) in &payload.charges {
            if let Counted::User(email) = subject {
                let traffic = bytes(charge.uplink, charge.downlink);
                let user = Subject::User(email.clone());
                self.owe(user, Layer::Payload, traffic, payload.coverage);
            }
        }
        for subject in payload.losers() {
            if let Counted::User(email) = subject {
                self.owe_gap(Subject::User(email.clone()), Layer::Payload, Traffic::default());
            }
        }
    }

    pub(super) fn book_shares(&mut self) {
        let Some(layer) = self.layer else { return };
        for (email, wire) in self.merge.take_drawn() {
            let traffic = bytes(wire.input, wire.output);
            self.owe(Subject::User(email), layer, traffic, Coverage::Complete);
        }
    }

    pub(super) fn owe(
        &mut self,
        subject: Subject,
        layer: Layer,
        traffic: Traffic,
        coverage: Coverage,
    ) -> Option<&mut Owed> {
        if traffic == Traffic::default() {
            return None;
        }
        let owed = self.owed.entry((subject, layer)).or_default();
        owed.traffic = owed.traffic.plus(traffic);
        owed.coverage = owed.coverage.max(coverage);
        Some(owed)
    }

    /// Owes what may be less than what passed, be it nothing.
    pub(super) fn owe_gap(
        &mut self,
        subject: Subject,
        layer: Layer,
        traffic: Traffic,
    ) -> &mut Owed {
        let owed = self.owed.entry((subject, layer)).or_default();
        owed.traffic = owed.traffic.plus(traffic);
        owed.coverage = Coverage::Gap;
        owed
    }
}

const fn bytes(input_bytes: u64, output_bytes: u64) -> Traffic {
    Traffic { input_bytes, output_bytes, input_packets: 0, output_packets: 0 }
}

//! One user downloads what the proxy reports only at the end, while another moves little.

use proptest::prelude::*;

use super::{
    tests::{inbound, kernel, merge, of, payload, report},
    *,
};

const MB: u64 = 1_000_000;

/// What both truly cause at each tick, and how it looks.
#[derive(Clone, Copy, Debug)]
struct Scene {
    /// Wire bytes for a thousand bytes of payload: bulk, and small requests.
    bulk: u64,
    small: u64,
    /// Payload of the download, and ticks that it takes.
    download: u64,
    ticks: u64,
    /// Payload of the quiet one at each tick.
    quiet: u64,
    /// Scans at each tick.
    scans: u64,
}

/// Plays a scene of a past, a download and what comes after it. Gives both wire shares and what both
/// truly caused.
fn play(scene: Scene) -> Result<[(u64, u64); 2], TestCaseError> {
    let mut merge = merge(&[inbound("443=in", &["loud", "quiet"])]);
    let (mut loud, mut quiet) = (0, 0);
    let (mut reported, mut all) = (0, 0);
    let each = scene.download / scene.ticks;
    for tick in 0..10 + scene.ticks + 30 {
        let running = (10..10 + scene.ticks).contains(&tick);
        let ends = tick == 10 + scene.ticks;
        // Splice hides all but a little of the start.
        let (mut wire, mut said) = (0, 0);
        if running {
            wire = each * scene.bulk / 1000;
            said = if tick == 10 { 15_521.min(each) } else { 0 };
        }
        if ends {
            said = each * scene.ticks - reported;
        }
        reported += said;
        loud += wire;
        quiet += scene.quiet * scene.small / 1000;
        let bytes = wire + scene.quiet * scene.small / 1000 + scene.scans;
        all += bytes;
        merge.tick(
            Some(&kernel(&[("443", 0, bytes)])),
            Some(&payload(PayloadSeam::Same, &[("loud", 0, said), ("quiet", 0, scene.quiet)])),
        );

        let report = report(&merge);
        let group = of(&report, "443");
        let [loudly, quietly] = [0, 1].map(|n: usize| group.users[n].wire.unwrap().output);
        prop_assert_eq!(loudly + quietly + group.unattributed.unwrap().output, all);
        // At no tick more than he caused, but for the 5 % that a group's multiple is estimated with.
        prop_assert!(quietly * 100 <= quiet * 105, "{quietly} of {quiet} at tick {tick}");
        prop_assert!(loudly * 100 <= loud * 105, "{loudly} of {loud} at tick {tick}");
    }
    let report = report(&merge);
    let share = |n: usize| of(&report, "443").users[n].wire.unwrap().output;
    Ok([(share(0), loud), (share(1), quiet)])
}

fn within_5_percent((share, truth): (u64, u64)) -> bool {
    share.abs_diff(truth) * 20 <= truth
}

#[test]
fn the_quiet_one_is_not_charged_for_the_splice_and_the_loud_one_gets_it_in_the_end() {
    let scene = Scene {
        bulk: 1005,
        small: 1080,
        download: 400 * MB,
        ticks: 40,
        quiet: 10_000,
        scans: 2000,
    };
    let [loud, quiet] = play(scene).unwrap();
    assert!(within_5_percent(loud), "{loud:?}");
    assert!(within_5_percent(quiet), "{quiet:?}");
    assert_eq!((loud.1, quiet.1), (402 * MB, 80 * 10_800));
}

proptest! {
    /// Whatever their sizes and however long it takes, as far as one multiple can fit both.
    #[test]
    fn shares_are_true_in_the_end_and_never_ahead(
        bulk in 1003u64..1020,
        small in 1003u64..1050,
        download in 10 * MB..2000 * MB,
        ticks in 1u64..120,
        // Beside the download he is quiet: in parts of a thousand of a quarter of it.
        part in 1u64..1000,
    ) {
        let quiet = (download / ticks / 4 * part / 1000).max(1000);
        let scans = quiet / 500;
        for share in play(Scene { bulk, small, download, ticks, quiet, scans })? {
            prop_assert!(within_5_percent(share), "{share:?}");
        }
    }
}

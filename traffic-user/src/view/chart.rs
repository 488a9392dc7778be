//! Small charts in a terminal.

/// Eighths of a cell, from left to right.
const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
/// Eighths of a cell, from below.
const HEIGHTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `part * by / whole`, to the nearest whole number; 0 of nothing.
fn scaled(part: u64, by: u64, whole: u64) -> u64 {
    let (part, by, whole) = (u128::from(part), u128::from(by), u128::from(whole));
    let scaled = (part * by + whole / 2).checked_div(whole).unwrap_or(0);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// A bar of two parts, `most` being as long as `width` cells: `░` for the first, `█` for the second.
///
/// What is not zero is seen: at least an eighth of a cell.
pub(super) fn bar(first: u64, second: u64, most: u64, width: usize) -> String {
    let cells = u64::try_from(width).unwrap_or(u64::MAX).min(1000);
    let all = first.saturating_add(second);
    let eighths = scaled(all, cells * 8, most).max(u64::from(all > 0)).min(cells * 8);
    let light = scaled(first, cells, most).min(eighths / 8);
    let mut text = "░".repeat(usize::try_from(light).unwrap_or(0));
    text.push_str(&"█".repeat(usize::try_from(eighths / 8 - light).unwrap_or(0)));
    if let Some(part) = usize::try_from(eighths % 8).ok().and_then(|part| PARTS.get(part))
        && *part != ' '
    {
        text.push(*part);
    }
    text
}

/// One cell a value, as high as it is beside the largest.
pub(super) fn spark(values: &[u64]) -> String {
    let most = values.iter().copied().max().unwrap_or(0);
    let height = |value: &u64| {
        let eighths = scaled(*value, 8, most).clamp(u64::from(*value > 0), 8);
        usize::try_from(eighths)
            .ok()
            .and_then(|eighths| HEIGHTS.get(eighths))
            .copied()
            .unwrap_or(' ')
    };
    values.iter().map(height).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        for (first, second, most, want) in [
            (0, 0, 100, ""),
            (0, 0, 0, ""),
            (0, 100, 100, "██████████"),
            (50, 50, 100, "░░░░░█████"),
            (100, 0, 100, "░░░░░░░░░░"),
            (0, 1, 1_000_000, "▏"),
            (0, 55, 100, "█████▌"),
            (u64::MAX, u64::MAX, u64::MAX, "░░░░░░░░░░"),
        ] {
            assert_eq!(bar(first, second, most, 10), want, "{first} {second} {most}");
        }
        assert_eq!(bar(1, 1, 2, 0), "");
    }

    #[test]
    fn a_spark_has_one_cell_a_value() {
        assert_eq!(spark(&[0, 1, 4, 8, 1000]), " ▁▁▁█");
        assert_eq!(spark(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), " ▁▂▃▄▅▆▇█");
        assert_eq!(spark(&[0, 0]), "  ");
        assert_eq!(spark(&[]), "");
    }

    proptest! {
        #[test]
        fn no_bar_is_longer_than_its_room(first: u64, second: u64, most: u64, width in 0usize..200) {
            prop_assert!(bar(first, second, most, width).chars().count() <= width);
        }

        #[test]
        fn a_larger_value_never_has_a_shorter_bar(a: u64, b: u64, most: u64) {
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(scaled(less, 80, most) <= scaled(more, 80, most));
            prop_assert_eq!(spark(&[a, b]).chars().count(), 2);
        }
    }
}

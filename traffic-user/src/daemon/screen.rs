//! The terminal on which a table is drawn over itself.

/// Rows and columns of the terminal; 24 and 80 where it does not say.
pub(super) fn size() -> (usize, usize) {
    terminal_size::terminal_size()
        .map_or((24, 80), |(width, height)| (usize::from(height.0), usize::from(width.0)))
}

/// As much of a text as a terminal shows without breaking a line or moving up, which would leave a part of it
/// above what is drawn over next.
pub(super) fn cut(text: &str, rows: usize, columns: usize) -> String {
    let mut short = String::with_capacity(text.len());
    for line in text.lines().take(rows.saturating_sub(1).max(1)) {
        short.extend(line.chars().take(columns));
        short.push('\n');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_small_terminal_shows_the_beginning_of_each_line() {
        assert_eq!(cut("PORT  NAME\n443\nmore\n", 3, 4), "PORT\n443\n");
        assert_eq!(cut("a\nb\n", usize::MAX, usize::MAX), "a\nb\n");
        assert_eq!(cut("a\nb\n", 1, 80), "a\n");
    }
}

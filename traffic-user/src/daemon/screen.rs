//! The terminal on which a table is drawn over itself, with the messages that it would be drawn over.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::accounting::ident::escaped;

/// So many messages are kept.
const KEPT: usize = 3;
/// For so long a message stands under the table.
const STANDS: Duration = Duration::from_secs(60);

/// Rows and columns of the terminal; 24 and 80 where it does not say.
pub(super) fn size() -> (usize, usize) {
    terminal_size::terminal_size()
        .map_or((24, 80), |(width, height)| (usize::from(height.0), usize::from(width.0)))
}

/// Whether stdout is a terminal on which the cursor can be moved.
pub(super) fn can_be_drawn_over() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// As much of a text as a terminal shows without breaking a line or moving up, which would leave a part of it
/// above what is drawn over next. A line that was cut ends in an ellipsis.
pub(super) fn cut(text: &str, rows: usize, columns: usize) -> String {
    let mut short = String::with_capacity(text.len());
    for line in text.lines().take(rows.saturating_sub(1).max(1)) {
        let line = line.trim_end();
        let (room, end) =
            if line.width() > columns { (columns.saturating_sub(1), "…") } else { (columns, "") };
        let mut used = 0;
        short.extend(line.chars().take_while(|char| {
            // Some take two columns.
            used += char.width().unwrap_or(0);
            used <= room
        }));
        short.push_str(end);
        short.push('\n');
    }
    short
}

/// The last messages, each a line, and where they go besides: to stderr.
#[derive(Clone, Debug, Default)]
pub(crate) struct Messages(Arc<Mutex<VecDeque<(Instant, String)>>>);

impl Messages {
    /// Those that are to be seen now, the newest last.
    pub(super) fn recent(&self) -> Vec<String> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(at, _)| at.elapsed() < STANDS);
        kept.iter().map(|(_, text)| text.clone()).collect()
    }
}

/// A line without colours, and with nothing else that a terminal obeys.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        text.push_str(before);
        let end = after.find(|char: char| !char.is_ascii_digit() && char != ';');
        rest = end.and_then(|end| after[end..].strip_prefix('m')).unwrap_or(after);
    }
    text.push_str(rest);
    escaped(&text)
}

impl io::Write for Messages {
    /// A message that stderr does not take is no reason to stop counting.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Each write is one message, of which the first line says what it is.
        let text = String::from_utf8_lossy(bytes);
        kept.extend(text.lines().next().map(|line| (Instant::now(), plain(line))));
        let over = kept.len().saturating_sub(KEPT);
        kept.drain(..over);
        drop(kept);
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_terminal_shows_the_beginning_of_each_line() {
        assert_eq!(cut("PORT  NAME\n443\nmore\n", 3, 4), "POR…\n443\n");
        assert_eq!(cut("PORT  \n", 3, 4), "PORT\n");
        assert_eq!(cut("a\nb\n", usize::MAX, usize::MAX), "a\nb\n");
        assert_eq!(cut("a\nb\n", 1, 80), "a\n");
        assert_eq!(cut("\u{6d41}\u{91cf}\u{8a08}x\n", 3, 5), "\u{6d41}\u{91cf}…\n");
    }

    #[test]
    fn under_a_table_a_message_has_neither_colours_nor_orders() {
        assert_eq!(plain("\x1b[33m WARN\x1b[0m it is \x1b[1;31mlate\x1b[0m"), " WARN it is late");
        assert_eq!(plain("device=e\x1b[2J\tx\x1b"), "device=e2J\\tx\\u{1b}");
    }

    #[test]
    fn the_last_messages_are_kept() {
        let messages = Messages::default();
        for n in 0..5 {
            io::Write::write_all(
                &mut messages.clone(),
                format!("message {n} of a test\n").as_bytes(),
            )
            .expect("it never fails");
        }
        let kept = [2, 3, 4].map(|n| format!("message {n} of a test"));
        assert_eq!(messages.recent(), kept);
    }
}

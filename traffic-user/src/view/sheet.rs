//! Lines of fields for spreadsheets.

/// A writer of lines whose texts stand in quotes.
pub(super) fn writer<W: std::io::Write>(to: W) -> csv::Writer<W> {
    csv::WriterBuilder::new().quote_style(csv::QuoteStyle::NonNumeric).from_writer(to)
}

/// What was written to memory.
pub(super) fn text(writer: csv::Writer<Vec<u8>>) -> Result<String, csv::Error> {
    let written = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&written).into_owned())
}

/// Foreign text in a field: a terminal must not take it for orders, nor a spreadsheet for a formula.
pub(crate) fn cell(text: &str) -> String {
    let mut field = String::with_capacity(text.len());
    if text.trim_start().starts_with(['=', '+', '-', '@']) {
        field.push('\'');
    }
    for c in text.chars() {
        if c.is_control() { field.extend(c.escape_default()) } else { field.push(c) }
    }
    field
}

/// A number where there is one.
pub(super) fn number(value: Option<u64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_is_a_formula_or_an_order() {
        for (text, want) in [
            ("alice@example.com", "alice@example.com"),
            ("=cmd()", "'=cmd()"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            (" =1", "' =1"),
            ("\t=1", "'\\t=1"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("a\nb", "a\\nb"),
            ("", ""),
        ] {
            assert_eq!(cell(text), want);
        }
    }

    #[test]
    fn texts_stand_in_quotes_and_numbers_do_not() {
        let mut lines = writer(Vec::new());
        lines.write_record(["a\"b", "1", "", "x,y"]).unwrap();
        assert_eq!(text(lines).unwrap(), "\"a\"\"b\",1,\"\",\"x,y\"\n");
    }
}

//! Lines of fields for spreadsheets.
//!
//! A column is quoted or not whatever stands in it: texts always, numbers never, also where there is none.
//! So what reads them can tell the columns apart, and a name cannot change the form of a line.

use crate::accounting::ident::escaped;

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// In quotes.
    Text(String),
    /// As it is; empty where nothing is known.
    Number(String),
}

/// Foreign text.
pub(crate) fn text(text: &str) -> Field {
    Field::Text(cell(text))
}

/// A word of ours.
pub(super) fn word(text: impl ToString) -> Field {
    Field::Text(text.to_string())
}

/// A number where there is one.
pub(crate) fn number(value: impl Into<Option<u64>>) -> Field {
    Field::Number(value.into().map_or_else(String::new, |value| value.to_string()))
}

/// A share or ratio where there is one.
pub(super) fn ratio(value: Option<f64>) -> Field {
    Field::Number(value.map_or_else(String::new, |value| value.to_string()))
}

/// A line with its end.
pub(crate) fn line(fields: impl IntoIterator<Item = Field>) -> String {
    let mut line = String::new();
    for (n, field) in fields.into_iter().enumerate() {
        if n > 0 {
            line.push(',');
        }
        match field {
            Field::Text(text) => {
                line.push('"');
                if text.contains('"') {
                    line.push_str(&text.replace('"', "\"\""));
                } else {
                    line.push_str(&text);
                }
                line.push('"');
            }
            Field::Number(number) => line.push_str(&number),
        }
    }
    line.push('\n');
    line
}

/// The first line.
pub(super) fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    line(names.into_iter().map(word))
}

/// Foreign text in a field: a terminal must not take it for orders, nor a spreadsheet for a formula.
fn cell(text: &str) -> String {
    let formula = text.trim_start().starts_with(['=', '+', '-', '@']);
    format!("{}{}", if formula { "'" } else { "" }, escaped(text))
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
            ("a\u{202e}b", "a\\u{202e}b"),
            ("", ""),
        ] {
            assert_eq!(cell(text), want);
        }
    }

    #[test]
    fn texts_stand_in_quotes_and_numbers_do_not_whatever_they_are() {
        let fields = [text("a\"b"), number(1), number(None), text("2"), text(""), ratio(Some(0.5))];
        assert_eq!(line(fields), "\"a\"\"b\",1,,\"2\",\"\",0.5\n");
        assert_eq!(line([number(None), number(7)]), ",7\n");
        assert_eq!(names(["a", "b"]), "\"a\",\"b\"\n");
    }
}

//! Files that are broken: what is said, and where.

use super::*;

#[track_caller]
fn wrong(text: &str) -> Vec<(String, usize, usize, String)> {
    match read(text).unwrap_err() {
        ProxyConfigError::Wrong(mistakes) => mistakes
            .into_iter()
            .map(|mistake| {
                (mistake.place.key, mistake.place.line, mistake.place.column, mistake.what)
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn port_is_wrong(port: &str, want: &str) {
    let mistakes = wrong(&one(&format!(r#""protocol": "vless", "port": {port}"#)));
    assert_eq!(mistakes.len(), 1, "{port}: {mistakes:?}");
    let (key, _, _, what) = &mistakes[0];
    assert!(key.starts_with("inbounds[0].port"), "{key}");
    assert!(what.contains(want), "{port}: {what}");
}

#[test]
fn ports_that_are_none_are_told() {
    port_is_wrong("0", "`0`: with port 0 nobody can tell the port");
    port_is_wrong("\"0-5\"", "`0-5`: with port 0");
    port_is_wrong("\"abc\"", "this is no port");
    port_is_wrong("70000", "`70000` is out of range");
    port_is_wrong("\"1-65536\"", "`1-65536` is out of range");
    port_is_wrong("\"9-3\"", "`9-3` is the wrong way round");
    port_is_wrong("-1", "`-1` is no port");
    port_is_wrong("443.5", "`443.5` is no port");
    port_is_wrong("1e3", "`1e3` is no port");
    port_is_wrong("\"+1\"", "`+1` is no port");
    port_is_wrong("99999999999999999999999", "is out of range");
    port_is_wrong("\"\"", "there is no port in this");
    port_is_wrong("[]", "there is no port in this");
    port_is_wrong("true", "this is no port");
    port_is_wrong("{}", "this is no port");
    port_is_wrong("[1, {}]", "this is no port");
}

#[test]
fn all_mistakes_are_told_with_their_places() {
    let text = "{ // a comment\n \"inbounds\": [\n  {\"port\": 0, \"protocol\": \"vless\"},\n  \
                {\"port\": 1},\n  7,\n  {\"port\": 2, \"protocol\": \"trojan\", \"settings\": \
                {\"clients\": [{\"email\": 5}]}}\n ], \"api\": []}";
    let places: Vec<_> =
        wrong(text).into_iter().map(|(key, line, column, _)| (key, line, column)).collect();
    let want = [
        ("inbounds[0].port", 3, 12),
        ("inbounds[1]", 4, 3),
        ("inbounds[2]", 5, 3),
        ("inbounds[3].settings.clients[0].email", 6, 72),
        ("api", 7, 12),
    ];
    let want: Vec<_> =
        want.into_iter().map(|(key, line, column)| (key.to_owned(), line, column)).collect();
    assert_eq!(places, want);
}

#[test]
fn a_message_names_file_line_column_and_key() {
    let error =
        read("{\n \"inbounds\": [{\"port\": 70000, \"protocol\": \"vless\"}]}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the proxy's config is wrong:\n  config.json, line 2, column 24: inbounds[0].port: `70000` \
         is out of range: ports are 1 to 65535"
    );
    assert!(error.remedy().starts_with("correct the file"));
}

#[test]
fn a_file_that_is_empty_says_so() {
    for text in ["", " \n\t", "// only a comment", "/* another", "# and\n# more"] {
        assert!(matches!(read(text), Err(ProxyConfigError::Empty { .. })), "{text}");
    }
}

#[test]
fn a_file_that_is_cut_off_says_where_it_ends() {
    for end in 1..V2RAY.trim_end().len() {
        match read(&V2RAY[..end]) {
            Err(ProxyConfigError::Truncated { place }) => {
                let text = V2RAY[..end].trim_end();
                let line = 1 + text.matches('\n').count();
                let column = 1 + text.rsplit('\n').next().unwrap().chars().count();
                assert_eq!((place.line, place.column), (line, column), "{end}");
            }
            other => panic!("{end}: {other:?}"),
        }
    }
}

#[test]
fn a_file_that_is_no_json_says_where() {
    for (text, line, column) in [
        ("{\"a\": 1,}", 1, 9),
        ("{\n  \"a\" 1}", 2, 7),
        ("{'a': 1}", 1, 2),
        ("inbounds:\n - port: 1", 1, 1),
        ("{\"ä\": x}", 1, 7),
        ("\u{feff}{}", 1, 1),
    ] {
        match read(text).unwrap_err() {
            ProxyConfigError::Syntax(mistake) => {
                assert_eq!((mistake.place.line, mistake.place.column), (line, column), "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn what_stands_behind_the_config_is_a_problem_and_not_an_error() {
    let config = read("{\"inbounds\": []}\n {\"inbounds\": 7}").unwrap();
    assert_eq!((config.problems[0].place.line, config.problems[0].place.column), (2, 2));
}

#[test]
fn a_value_that_is_no_object_is_told() {
    for text in ["[]", "7", "\"x\"", "null", "true"] {
        assert_eq!(wrong(text)[0].3, "this must be an object: { … }", "{text}");
    }
}

#[test]
fn a_config_without_a_port_is_a_problem() {
    let config = read("{}").unwrap();
    assert_eq!(config.problems[0].what, "no inbound has a port that can be counted");
}

#[test]
fn a_thousand_mistakes_are_told_as_fifty() {
    let inbounds = vec![r#"{"port": 0, "protocol": "vless"}"#; 1000].join(",");
    let mistakes = wrong(&format!(r#"{{"inbounds": [{inbounds}]}}"#));
    assert_eq!(mistakes.len(), 51);
    assert_eq!(mistakes[50].3, "and 950 more like these");
}

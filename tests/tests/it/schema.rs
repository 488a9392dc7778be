//! Whether a document is what its schema says, and no more.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

/// Asserts that a document keeps to `traffic-user/schema/NAME.schema.json`, which has a word on each of its
/// keys: that there may be others is for later versions.
#[track_caller]
pub(crate) fn keeps_to(name: &str, document: &Value) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../traffic-user/schema/{name}.schema.json"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(&file).expect("read a schema"))
        .expect("a schema is JSON");
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .expect("a schema is one");
    let errors: Vec<String> = validator
        .iter_errors(document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:?}\n{document}");
    let mut names = Names::default();
    names.gather(&schema);
    names.assert_has(name, document);
}

/// The keys that a schema describes, wherever they stand, and those of them under which any key may stand.
#[derive(Default)]
struct Names {
    keys: BTreeSet<String>,
    maps: BTreeSet<String>,
}

impl Names {
    fn gather(&mut self, schema: &Value) {
        match schema {
            Value::Object(parts) => {
                let properties = parts.get("properties").and_then(Value::as_object);
                for (name, part) in properties.into_iter().flatten() {
                    self.keys.insert(name.clone());
                    let words = ["additionalProperties", "patternProperties"];
                    if words.iter().any(|word| part.get(word).is_some_and(Value::is_object)) {
                        self.maps.insert(name.clone());
                    }
                }
                parts.values().for_each(|part| self.gather(part));
            }
            Value::Array(parts) => parts.iter().for_each(|part| self.gather(part)),
            _ => {}
        }
    }

    #[track_caller]
    fn assert_has(&self, name: &str, document: &Value) {
        match document {
            Value::Object(parts) => {
                for (key, part) in parts {
                    assert!(self.keys.contains(key), "{name}: no word on {key} of {document}");
                    match part {
                        // Reports beside others have schemas of their own.
                        Value::Object(_) if (name, key.as_str()) == ("dump", "stats") => {
                            keeps_to("stats", part);
                        }
                        Value::Object(_) if (name, key.as_str()) == ("stats", "ledger") => {
                            keeps_to("summary", part);
                        }
                        Value::Object(any) if self.maps.contains(key) => {
                            any.values().for_each(|part| self.assert_has(name, part));
                        }
                        part => self.assert_has(name, part),
                    }
                }
            }
            Value::Array(parts) => parts.iter().for_each(|part| self.assert_has(name, part)),
            _ => {}
        }
    }
}

#[test]
fn a_key_of_which_the_schema_says_nothing_is_noticed() {
    let mut document = serde_json::json!(
        {"jsonversion": "1", "user": null, "port": 1, "reset": true, "said": "done"}
    );
    keeps_to("reset", &document);
    document["more"] = 1.into();
    assert!(std::panic::catch_unwind(|| keeps_to("reset", &document)).is_err());
}

//! Any text: a list of groups that reads the same when it is written again, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use traffic_user::accounting::ident::Groups;

fuzz_target!(|text: &str| {
    if let Ok(groups) = Groups::parse(text, 65_535) {
        let again: Vec<String> = groups.iter().map(ToString::to_string).collect();
        assert_eq!(Groups::parse(&again.join(","), 65_535), Ok(groups));
    }
});

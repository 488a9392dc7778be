//! Real files in a folder of the test's own.

use std::{
    os::unix::fs::symlink,
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("traffic-proxy-config-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Puts a file in the place of another, as careful editors do.
    fn replace(&self, name: &str, text: &str) {
        let new = self.write("new~", text);
        fs::rename(new, self.0.join(name)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn with(tag: &str, port: u16) -> String {
    format!(r#"{{"inbounds": [{{"tag": "{tag}", "port": {port}, "protocol": "vless"}}]}}"#)
}

fn texts(config: &ProxyConfig) -> Vec<String> {
    config.inbounds.iter().map(|inbound| inbound.group.to_string()).collect()
}

#[test]
fn a_file_and_a_folder_are_read_in_order() {
    let folder = Folder::new();
    let main = folder.write("main.txt", &with("main", 1));
    folder.write("20-b.json", &with("b", 3));
    folder.write("10-a.jsonc", &with("a", 2));
    folder.write("30-a.json", &with("a", 4));
    folder.write("README", "not JSON");
    folder.write("40-c.yaml", "inbounds: []");
    let config = load(&[main, folder.0.clone()]).unwrap();
    assert_eq!(texts(&config), ["1/tcp=main", "4/tcp=a", "3/tcp=b"]);
    assert_eq!(config.problems.len(), 1);
    assert!(config.problems[0].place.file.ends_with("40-c.yaml"));
}

#[test]
fn a_mistake_names_its_file() {
    let folder = Folder::new();
    folder.write("a.json", &with("a", 1));
    let bad = folder.write("b.json", &with("b", 0));
    match load(std::slice::from_ref(&folder.0)).unwrap_err() {
        ProxyConfigError::Wrong(mistakes) => assert_eq!(*mistakes[0].place.file, *bad),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_read_says_why() {
    let folder = Folder::new();
    let missing = folder.0.join("missing.json");
    match load(std::slice::from_ref(&missing)).unwrap_err() {
        ProxyConfigError::Read { path, cause } => {
            assert_eq!(path, missing);
            assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
    match load(std::slice::from_ref(&folder.0)).unwrap_err() {
        ProxyConfigError::NoFiles { paths } => {
            assert_eq!(paths[..], *std::slice::from_ref(&folder.0));
        }
        other => panic!("{other:?}"),
    }
    let error = load(&["/dev/zero".into()]).unwrap_err();
    assert!(matches!(error, ProxyConfigError::Kind { .. }), "{error:?}");
}

#[test]
fn a_pipe_does_not_hold_the_program_up() {
    let folder = Folder::new();
    let pipe = folder.0.join("pipe.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = load(&[pipe]).unwrap_err();
    assert!(matches!(error, ProxyConfigError::Kind { .. }), "{error:?}");
}

#[test]
fn a_file_of_the_largest_size_is_read_and_a_larger_one_is_not() {
    let folder = Folder::new();
    let size = usize::try_from(SIZE_LIMIT).unwrap();
    let mut text = with("a", 1);
    text.push_str(&" ".repeat(size - text.len()));
    let path = folder.write("a.json", &text);
    assert_eq!(texts(&load(std::slice::from_ref(&path)).unwrap()), ["1/tcp=a"]);
    folder.write("a.json", &(text + " "));
    match load(&[path]).unwrap_err() {
        ProxyConfigError::TooLarge { limit, .. } => assert_eq!(limit, 16 << 20),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_place_with_a_config_is_found() {
    let folder = Folder::new();
    let path = |name: &str| folder.0.join(name).to_str().unwrap().to_owned();
    fs::create_dir(folder.0.join("empty")).unwrap();
    fs::create_dir(folder.0.join("conf")).unwrap();
    folder.write("conf/a.json", "{}");
    folder.write("config.json", "{}");
    let (none, empty) = (path("none.json"), path("empty"));
    let (file, conf) = (path("config.json"), path("conf"));
    assert_eq!(find_among(&[&[&none], &[&empty]]).count(), 0);
    assert_eq!(
        find_among(&[&[&none, &empty], &[&file, &empty, &conf], &[&file]]).collect::<Vec<_>>(),
        [vec![PathBuf::from(&file), PathBuf::from(&conf)], vec![PathBuf::from(&file)]]
    );
}

#[test]
fn a_config_that_breaks_leaves_the_last_good_one() {
    let folder = Folder::new();
    let path = folder.write("a.json", &with("a", 1));
    let mut watched = Watched::new(vec![path]);
    assert!(watched.changed() && watched.good().is_none());
    assert_eq!(texts(watched.poll().unwrap().unwrap()), ["1/tcp=a"]);
    assert!(!watched.changed() && watched.poll().is_none());

    folder.replace("a.json", "{\n\"inbounds\": [");
    assert!(watched.changed());
    let error = watched.poll().unwrap().unwrap_err().to_string();
    assert!(error.contains("line 2, column 14"), "{error}");
    assert!(watched.poll().is_none());
    assert_eq!(texts(watched.good().unwrap()), ["1/tcp=a"]);
    assert!(watched.error().is_some());

    folder.replace("a.json", &with("b", 2));
    assert_eq!(texts(watched.poll().unwrap().unwrap()), ["2/tcp=b"]);
    assert!(watched.error().is_none());

    // Gone, and back as it was.
    fs::remove_file(folder.0.join("a.json")).unwrap();
    assert!(matches!(watched.poll(), Some(Err(ProxyConfigError::Read { .. }))));
    folder.replace("a.json", &with("b", 2));
    assert_eq!(texts(watched.poll().unwrap().unwrap()), ["2/tcp=b"]);
}

#[test]
fn a_change_that_says_the_same_is_no_news() {
    let folder = Folder::new();
    let path = folder.write("a.json", &with("a", 1));
    let mut watched = Watched::new(vec![path]);
    assert!(watched.poll().unwrap().is_ok());
    folder.replace("a.json", &with("a", 1));
    assert!(watched.changed());
    assert!(watched.poll().is_none());
    assert!(!watched.changed());
}

#[test]
fn a_folder_is_watched_with_its_files_and_links_with_their_targets() {
    let folder = Folder::new();
    folder.write("a.json", &with("a", 1));
    let mut watched = Watched::new(vec![folder.0.clone()]);
    assert_eq!(texts(watched.poll().unwrap().unwrap()), ["1/tcp=a"]);
    folder.write("target", &with("b", 2));
    assert!(!watched.changed());
    symlink(folder.0.join("target"), folder.0.join("b.json")).unwrap();
    assert_eq!(texts(watched.poll().unwrap().unwrap()), ["1/tcp=a", "2/tcp=b"]);
    folder.write("target", &with("longer", 3));
    assert_eq!(texts(watched.poll().unwrap().unwrap()), ["1/tcp=a", "3/tcp=longer"]);
    fs::remove_file(folder.0.join("b.json")).unwrap();
    assert_eq!(texts(watched.poll().unwrap().unwrap()), ["1/tcp=a"]);
}

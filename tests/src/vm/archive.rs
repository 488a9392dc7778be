//! The initial file system of a machine: a cpio archive in the form that the kernel unpacks
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`, "newc").

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
    process::Command,
};

/// Loads programs that are linked with shared libraries, and tells which.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

const FOLDER: u32 = 0o040_755;
const DEVICE: u32 = 0o020_600;
const REGULAR: u32 = 0o100_000;

/// Files and folders by their place in the machine.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    bytes: Vec<u8>,
}

impl Archive {
    /// With what every machine needs: places to mount on, and a console.
    pub fn new() -> Self {
        let mut archive = Self::default();
        for folder in ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc", "/var/lib"] {
            archive.folder(folder);
        }
        archive.add(Path::new("/dev/console"), DEVICE, (5, 1), Vec::new());
        archive
    }

    /// An empty folder, with those above it. A path with `..` in it gets what it is spelled with as
    /// well as what it means.
    pub fn folder(&mut self, path: impl AsRef<Path>) {
        let mut real = PathBuf::from("/");
        for part in path.as_ref().components() {
            match part {
                Component::ParentDir => {
                    real.pop();
                }
                Component::Normal(name) => {
                    real.push(name);
                    self.add(&real, FOLDER, (0, 0), Vec::new());
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }

    /// A copy of a file.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    #[track_caller]
    pub fn file(&mut self, source: &Path, inside: impl AsRef<Path>) {
        let read = |err| panic!("read {}: {err}", source.display());
        let bytes = fs::read(source).unwrap_or_else(read);
        let mode = fs::metadata(source)
            .map(|meta| meta.permissions().mode() & 0o777)
            .unwrap_or_else(|err| panic!("look at {}: {err}", source.display()));
        self.parent(inside.as_ref());
        self.add(inside.as_ref(), REGULAR | mode, (0, 0), bytes);
    }

    /// Copies of all files of a folder; folders in it are left out.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    #[track_caller]
    pub fn files(&mut self, source: &Path, inside: impl AsRef<Path>) {
        self.folder(inside.as_ref());
        let entries =
            fs::read_dir(source).unwrap_or_else(|err| panic!("read {}: {err}", source.display()));
        for entry in entries {
            let path = entry.expect("an entry of a folder").path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                self.file(&path, inside.as_ref().join(name));
            }
        }
    }

    /// A copy of a program, with the libraries that it is linked with where it looks for them.
    ///
    /// # Panics
    ///
    /// When it cannot be read, or needs a library that is not here.
    #[track_caller]
    pub fn program(&mut self, source: &Path, inside: impl AsRef<Path>) {
        self.file(source, inside);
        let output = Command::new(LOADER)
            .arg("--list")
            .arg(source)
            .output()
            .unwrap_or_else(|err| panic!("ask {LOADER} about {}: {err}", source.display()));
        // It refuses what is not linked with shared libraries.
        if !output.status.success() {
            return;
        }
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("not found"), "libraries of {}: {text}", source.display());
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            if !self.entries.contains_key(Path::new(library)) {
                self.file(Path::new(library), library);
            }
        }
        if !self.entries.contains_key(Path::new(LOADER)) {
            self.file(Path::new(LOADER), LOADER);
        }
    }

    fn parent(&mut self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
    }

    fn add(&mut self, path: &Path, mode: u32, device: (u32, u32), bytes: Vec<u8>) {
        let entry = Entry { mode, device, bytes };
        self.entries.insert(path.to_owned(), entry);
    }

    /// The archive, for the kernel. Folders come before what is in them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
            append(&mut bytes, number, &name, entry);
        }
        let end = Entry { mode: 0, device: (0, 0), bytes: Vec::new() };
        append(&mut bytes, 0, "TRAILER!!!", &end);
        bytes
    }
}

fn append(to: &mut Vec<u8>, number: u32, name: &str, entry: &Entry) {
    let size = |bytes: usize| u32::try_from(bytes).expect("less than 4 GiB");
    let (major, minor) = entry.device;
    let fields = [
        number,
        entry.mode,
        0, // owner
        0, // group
        1, // links
        0, // time
        size(entry.bytes.len()),
        0, // device that holds it
        0,
        major,
        minor,
        size(name.len() + 1),
        0, // checksum, not used in this form
    ];
    to.extend(b"070701");
    for field in fields {
        to.extend(format!("{field:08x}").bytes());
    }
    to.extend(name.bytes());
    to.push(0);
    pad(to);
    to.extend(&entry.bytes);
    pad(to);
}

fn pad(to: &mut Vec<u8>) {
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_all_is_aligned() {
        let mut archive = Archive::default();
        archive.add(Path::new("/a-file"), REGULAR | 0o644, (0, 0), b"four".to_vec());
        archive.folder("/one/two/../three");
        let bytes = archive.to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> = ["a-file\0", "one\0", "one/three\0", "one/two\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).expect("is in the archive"))
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        let heads: Vec<_> = text.match_indices("070701").map(|(at, _)| at % 4).collect();
        assert_eq!(heads, [0; 5]);
    }

    #[test]
    fn a_program_comes_with_its_libraries() {
        let mut archive = Archive::new();
        archive.program(&std::env::current_exe().expect("this program"), "/bin/it");
        let names: Vec<_> = archive.entries.keys().map(|path| path.to_string_lossy()).collect();
        assert!(names.iter().any(|name| name.ends_with("/libc.so.6")), "{names:?}");
        assert!(names.iter().any(|name| name == LOADER), "{names:?}");
    }
}

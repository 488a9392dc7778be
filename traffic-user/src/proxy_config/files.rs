//! The files of a proxy's config: where they usually are, reading them, and seeing that they changed.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    ProxyConfig,
    error::{Mistake, Place, ProxyConfigError},
    read::{Source, parse},
};

/// Most bytes of one file that are read.
pub const SIZE_LIMIT: u64 = 16 << 20;

/// Where the configs of the usual installations are, the more likely first. What stands together is
/// read together: files, and folders of files.
pub const fn usual_places() -> &'static [&'static [&'static str]] {
    &[
        &["/usr/local/etc/xray/config.json"],
        &["/usr/local/etc/v2ray/config.json"],
        // Some scripts keep an inbound a file beside the rest.
        &["/etc/xray/config.json", "/etc/xray/conf"],
        &["/etc/v2ray/config.json", "/etc/v2ray/conf"],
        &["/usr/local/etc/xray"],
        &["/usr/local/etc/v2ray"],
        &["/etc/v2ray-agent/xray/conf"],
        // Panels that write the config of the proxy that they start.
        &["/usr/local/x-ui/bin/config.json"],
        &["/var/lib/marzban/xray_config.json"],
        &["/opt/marzban/xray_config.json"],
        &["/opt/hiddify-manager/xray/configs"],
        &["/etc/xray"],
        &["/etc/v2ray"],
    ]
}

/// The first of the usual places where there is a config.
pub fn find() -> Option<Vec<PathBuf>> {
    find_all().next()
}

/// Each of the usual places where there is a config, the likeliest first.
pub fn find_all() -> impl Iterator<Item = Vec<PathBuf>> {
    find_among(usual_places())
}

fn find_among(places: &[&[&str]]) -> impl Iterator<Item = Vec<PathBuf>> {
    let there = |path: &Path| match expand(path) {
        Ok(files) => !files.json.is_empty(),
        Err(_) => false,
    };
    places.iter().filter_map(move |together| {
        let paths: Vec<_> = together.iter().map(PathBuf::from).filter(|path| there(path)).collect();
        (!paths.is_empty()).then_some(paths)
    })
}

/// Reads files, and the `.json` and `.jsonc` files of folders in the order of their names, as one
/// config.
///
/// Ports that are written as `env:NAME` are taken from this process's environment.
///
/// # Errors
///
/// [`ProxyConfigError`].
pub fn load(paths: &[PathBuf]) -> Result<ProxyConfig, ProxyConfigError> {
    let mut files = Files::default();
    for path in paths {
        let more = expand(path)?;
        files.json.extend(more.json);
        files.other.extend(more.other);
    }
    if files.json.is_empty() {
        return Err(ProxyConfigError::NoFiles { paths: paths.to_vec() });
    }
    let sources = files.json.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut config = parse(&sources, &|name| std::env::var(name).ok())?;
    config.problems.extend(files.other.into_iter().map(|path| Mistake {
        place: Place { file: path.into(), line: 1, column: 1, key: String::new() },
        what: "only JSON is read here: what this file says is not known".to_owned(),
    }));
    Ok(config)
}

/// The files that a path stands for.
#[derive(Default)]
struct Files {
    json: Vec<PathBuf>,
    /// Configs of a kind that is not read.
    other: Vec<PathBuf>,
}

fn expand(path: &Path) -> Result<Files, ProxyConfigError> {
    let failed = |cause| ProxyConfigError::Read { path: path.into(), cause };
    let metadata = fs::metadata(path).map_err(failed)?;
    let mut files = Files::default();
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("json" | "jsonc") => files.json.push(file),
                Some("toml" | "yaml" | "yml") => files.other.push(file),
                _ => {}
            }
        }
        files.json.sort_unstable();
        files.other.sort_unstable();
    } else {
        files.json.push(path.into());
    }
    Ok(files)
}

fn read(path: PathBuf) -> Result<Source, ProxyConfigError> {
    // Opening a pipe would wait for a writer, so the kind is asked for first.
    let content = fs::metadata(&path).and_then(|metadata| {
        if !metadata.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        fs::File::open(&path)?.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    });
    match content {
        Ok(Some(bytes)) if u64::try_from(bytes.len()).is_ok_and(|size| size <= SIZE_LIMIT) => {
            Ok(Source { path, bytes })
        }
        Ok(Some(_)) => Err(ProxyConfigError::TooLarge { path, limit: SIZE_LIMIT }),
        Ok(None) => Err(ProxyConfigError::Kind { path }),
        Err(cause) => Err(ProxyConfigError::Read { path, cause }),
    }
}

/// What tells that files changed, without reading them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, Option<Mark>)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// A file that was moved here keeps its time of modification, not this one.
    changed: (i64, i64),
}

impl Stamp {
    /// Of files, and of the files in folders, as they are now. What is not there has a stamp too.
    pub fn of(paths: &[PathBuf]) -> Self {
        let files = paths.iter().flat_map(|path| match expand(path) {
            Ok(files) => [files.json, files.other].concat(),
            Err(_) => vec![path.clone()],
        });
        Self(
            files
                .map(|file| {
                    let mark = fs::metadata(&file).ok().map(Mark::of);
                    (file, mark)
                })
                .collect(),
        )
    }
}

impl Mark {
    fn of(metadata: fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A config whose files are looked at again and again.
#[derive(Debug)]
pub struct Watched {
    paths: Vec<PathBuf>,
    stamp: Option<Stamp>,
    good: Option<ProxyConfig>,
    error: Option<ProxyConfigError>,
}

impl Watched {
    /// Reads nothing yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, stamp: None, good: None, error: None }
    }

    /// Whether the files are others than at the last [`poll`](Self::poll).
    pub fn changed(&self) -> bool {
        self.stamp.as_ref() != Some(&Stamp::of(&self.paths))
    }

    /// Reads the files if they changed. `None` when that makes no difference.
    ///
    /// A config that cannot be used leaves the last good one in force.
    pub fn poll(&mut self) -> Option<Result<&ProxyConfig, &ProxyConfigError>> {
        // Taken before reading: what changes meanwhile is read at the next call.
        let stamp = Stamp::of(&self.paths);
        if self.stamp.as_ref() == Some(&stamp) {
            return None;
        }
        self.stamp = Some(stamp);
        match load(&self.paths) {
            Ok(config) => {
                let broken = self.error.take().is_some();
                if !broken && self.good.as_ref() == Some(&config) {
                    return None;
                }
                Some(Ok(self.good.insert(config)))
            }
            Err(error) => Some(Err(self.error.insert(error))),
        }
    }

    /// The last config that could be used.
    pub fn good(&self) -> Option<&ProxyConfig> {
        self.good.as_ref()
    }

    /// Why the files as they are now cannot be used.
    pub fn error(&self) -> Option<&ProxyConfigError> {
        self.error.as_ref()
    }

    /// Which files and folders.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }
}

#[cfg(test)]
mod tests;

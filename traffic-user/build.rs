//! Compiles the eBPF programs and leaves them where the library embeds them, and makes the client of the
//! proxy's API from `proto/`.
//!
//! For the programs there are three ways, the first that is set wins; `cargo xtask` sets one of the first two:
//!
//! * `TRAFFIC_EBPF_OBJECT`: a path; that object is embedded as it is;
//! * `TRAFFIC_EBPF_TOOLCHAIN`: a name for `rustup run` (without rustup: any text, the plain `cargo` is
//!   used); the object is compiled from `traffic-ebpf`. `TRAFFIC_EBPF_BOOTSTRAP=1` tells a stable
//!   compiler to accept what the BPF target needs, in this build alone;
//! * neither: an empty stub, so that `cargo check` and the unit tests need no eBPF tool chain. The
//!   binary says so when it is asked to attach.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

const OBJECT: &str = "traffic-ebpf";
/// What the library speaks of `proto/`.
const PROTOS: &[&str] = &["v2ray_stats.proto", "xray_stats.proto"];
/// Where their packages are, as modules.
const PACKAGES: &str = "packages.rs";

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    client()?;
    programs()
}

/// Makes the messages and the client of the StatsService.
fn client() -> Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(PROTOS, ["proto"]).context("read the .proto files")?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file(PACKAGES)
        .compile_fds(files)
        .context("make the client of the proxy's API")
}

/// Compiles or copies the eBPF programs.
fn programs() -> Result<()> {
    for name in ["TRAFFIC_EBPF_OBJECT", "TRAFFIC_EBPF_TOOLCHAIN", "TRAFFIC_EBPF_BOOTSTRAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let embedded =
        PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?).join(OBJECT);

    if let Some(object) = env::var_os("TRAFFIC_EBPF_OBJECT") {
        let object = PathBuf::from(object);
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, &embedded)
            .with_context(|| format!("copy the eBPF object {}", object.display()))?;
        return Ok(());
    }
    if let Some(toolchain) = env::var_os("TRAFFIC_EBPF_TOOLCHAIN") {
        if env::var_os("TRAFFIC_EBPF_BOOTSTRAP").is_some() {
            // SAFETY: a build script of one thread; nothing reads the environment at the same time.
            unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
        }
        // aya-build turns each line of cargo's progress into a warning, which is shown again and again.
        // SAFETY: as above.
        unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
        let toolchain = toolchain.to_string_lossy();
        let programs = Package {
            name: "traffic-ebpf",
            root_dir: "../traffic-ebpf",
            no_default_features: true,
            features: &["programs"],
        };
        aya_build::build_ebpf([programs], Toolchain::Custom(&toolchain))
            .context("compile the eBPF programs")?;
        return drop_dwarf(&embedded).context("take the debug information out of the eBPF object");
    }
    fs::write(&embedded, []).context("write the stub of the eBPF object")
}

/// Takes out DWARF, which is four fifths of the object and which nobody reads: the kernel and its
/// verifier speak BTF. The loader would go through every relocation of it.
fn drop_dwarf(path: &Path) -> Result<()> {
    let data = fs::read(path)?;
    let mut object = Builder::read(&*data)?;
    for section in &mut object.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug") || name.starts_with(".rel.debug");
    }
    // The linker keeps one table for the names of sections and symbols; the writer wants two.
    let has_names = |data: &SectionData<'_>| matches!(data, SectionData::SectionString);
    if !object.sections.iter().any(|section| has_names(&section.data)) {
        let names = object.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    object.delete_orphans();
    let mut stripped = Vec::new();
    object.write(&mut stripped)?;
    Ok(fs::write(path, stripped)?)
}

//! Makes the messages that the fake server speaks, and the HandlerService's client, from the same files as
//! `traffic-user`. That crate keeps its own to itself, and a program for users carries nothing for tests.

use std::error::Error;

const FOLDER: &str = "../traffic-user/proto";
const PROTOS: &[&str] = &["v2ray_stats.proto", "xray_stats.proto", "v2ray_handler.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={FOLDER}");
    let files = protox::compile(PROTOS, [FOLDER])?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("packages.rs")
        .compile_fds(files)?;
    Ok(())
}

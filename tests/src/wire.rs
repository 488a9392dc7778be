//! The messages of a proxy's API, made by `build.rs`.

mod packages {
    #![expect(
        missing_docs,
        unused_qualifications,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use packages::{v2ray, xray};

//! The messages and clients that `build.rs` makes from `proto/`.
//!
//! They are the wire's, not ours: nothing outside this folder sees one.

mod packages {
    #![expect(
        unreachable_pub,
        unused_qualifications,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub(super) use packages::{
    v2ray::core::app::stats::command as v2ray, xray::app::stats::command as xray,
};

//! The eBPF programs: count, and leave every packet's fate to others.
//!
//! Six short entry points around [`account::account`]. Built for the BPF target only, by
//! `traffic-user/build.rs`.
#![no_std]
#![no_main]
#![expect(internal_features, reason = "BPF has no atomic add but this intrinsic")]
#![feature(core_intrinsics, asm_experimental_arch)]
#![expect(unreachable_pub, reason = "entry points and maps are found by symbol")]
#![expect(missing_docs, reason = "the name says it all")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "kernel fields of 32 bits, on a 64-bit target"
)]

mod account;
mod maps;

use account::{Direction, account, account_socket};
use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use traffic_ebpf::packet::Link;

/// Same number as `TCX_NEXT`: the next program on the hook decides.
const NEXT: i32 = TC_ACT_UNSPEC;
/// Allow; 0 would drop the packet.
const ALLOW: i32 = 1;

#[classifier]
pub fn traffic_eth_in(ctx: TcContext) -> i32 {
    account(&ctx, Link::Ethernet, Direction::Input);
    NEXT
}

#[classifier]
pub fn traffic_eth_out(ctx: TcContext) -> i32 {
    account(&ctx, Link::Ethernet, Direction::Output);
    NEXT
}

#[classifier]
pub fn traffic_raw_in(ctx: TcContext) -> i32 {
    account(&ctx, Link::Bare, Direction::Input);
    NEXT
}

#[classifier]
pub fn traffic_raw_out(ctx: TcContext) -> i32 {
    account(&ctx, Link::Bare, Direction::Output);
    NEXT
}

#[cgroup_skb]
pub fn traffic_cg_in(ctx: SkBuffContext) -> i32 {
    account_socket(&ctx, Direction::Input);
    ALLOW
}

#[cgroup_skb]
pub fn traffic_cg_out(ctx: SkBuffContext) -> i32 {
    account_socket(&ctx, Direction::Output);
    ALLOW
}

/// A panic that could be reached would be an endless loop, which the verifier refuses to load.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are open to GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! Rules that multi-v2ray leaves behind.

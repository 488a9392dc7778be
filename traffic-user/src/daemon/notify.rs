//! What a service manager is told: that counting began, how it stands, that the loop goes round.

/// Whether a service manager started us and wants to hear of us.
pub(crate) fn is_watched() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

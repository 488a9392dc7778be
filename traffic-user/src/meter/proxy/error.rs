//! Why the proxy's API does not say what was asked, and what to do about it.

use std::{error::Error, io, time::Duration};

use tonic::{Code, Status};

use crate::accounting::proxy::ApiState;

/// How much of a server's message is repeated.
const LONGEST_MESSAGE: usize = 200;

/// Why the proxy's API could not be read or told something.
///
/// Texts that came from the other side are escaped and cut: they are safe to print.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// What was given is no address.
    #[error("`{text}` is not the address of an API: {reason}")]
    Address {
        /// What was given, escaped.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The name of the host leads nowhere.
    #[error("the proxy's API at {address}: the name of the host leads to no address")]
    Name {
        /// Where.
        address: String,
        /// The resolver's answer; `None` when it answered with nothing.
        #[source]
        cause: Option<io::Error>,
    },

    /// Nobody takes the connection.
    #[error("the proxy's API at {address}: no connection")]
    Connect {
        /// Where.
        address: String,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },

    /// The connection was taken and closed without a word.
    ///
    /// A proxy does so while it starts and while it stops; so do ports that expect TLS or another
    /// protocol.
    #[error("the proxy's API at {address} takes the connection and closes it without a word")]
    Silent {
        /// Where.
        address: String,
    },

    /// The connection ended in the middle of a call.
    #[error("the proxy's API at {address} closed the connection in the middle of an answer")]
    Broken {
        /// Where.
        address: String,
    },

    /// Nothing came in time.
    #[error("the proxy's API at {address} did not answer within {deadline:?}")]
    Late {
        /// Where.
        address: String,
        /// What it was given.
        deadline: Duration,
    },

    /// The other side does not want us.
    #[error("the proxy's API at {address} does not let us in: {reason}")]
    Denied {
        /// Where.
        address: String,
        /// What it said, escaped.
        reason: String,
    },

    /// It is not gRPC that is spoken there.
    #[error("what answers at {address} is not a proxy's API: it {speech}")]
    Speech {
        /// Where.
        address: String,
        /// What it does instead.
        speech: &'static str,
    },

    /// An answer of a size that no proxy has reason for.
    #[error("the answer of the proxy's API at {address} is larger than {} MiB", .limit >> 20)]
    TooLarge {
        /// Where.
        address: String,
        /// What would have been read, bytes.
        limit: usize,
    },

    /// An answer that cannot be used: not the message that was expected, or a failure of its own.
    #[error("the proxy's API at {address} answers what makes no sense: {reason}")]
    Garbage {
        /// Where.
        address: String,
        /// What is wrong with it, escaped.
        reason: String,
    },

    /// HTTP/2 is spoken, but the service is not among those that are offered.
    #[error("the proxy's API at {address} does not offer the StatsService")]
    NoService {
        /// Where.
        address: String,
    },

    /// The service is there, and the proxy counts nothing.
    #[error("the proxy at {address} counts nothing: its statistics are off")]
    NoStats {
        /// Where.
        address: String,
    },

    /// The task that reads could not be started.
    #[error("cannot start the thread that reads the proxy's API")]
    Start(#[source] io::Error),
}

impl ProxyError {
    /// The state that the API is in, as far as this tells.
    pub fn state(&self) -> ApiState {
        match self {
            Self::Connect { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
                ApiState::Denied
            }
            Self::Connect { cause, .. } if cause.kind() == io::ErrorKind::TimedOut => {
                ApiState::Slow
            }
            Self::Address { .. }
            | Self::Name { .. }
            | Self::Connect { .. }
            | Self::Silent { .. }
            | Self::Broken { .. }
            | Self::Start(_) => ApiState::Down,
            Self::Late { .. } => ApiState::Slow,
            Self::Denied { .. } => ApiState::Denied,
            Self::Speech { .. } | Self::TooLarge { .. } | Self::Garbage { .. } => ApiState::Garbage,
            Self::NoService { .. } | Self::NoStats { .. } => ApiState::Disabled,
        }
    }

    /// What helps, as a sentence for a person; `None` where the text says it all.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Address { .. } => "give it as HOST:PORT, for example 127.0.0.1:10085",
            Self::Name { .. } => "check the host in --api; the proxy's own machine is 127.0.0.1",
            Self::Connect { .. } => {
                "start the proxy, or check that --api names the port of its API inbound"
            }
            Self::Silent { .. } => {
                "nothing, if the proxy is starting; otherwise name the port of its API inbound with --api"
            }
            Self::Broken { .. } => "nothing, if the proxy was stopped; its log tells otherwise",
            Self::Late { .. } => {
                "see whether the proxy hangs or its machine is overloaded; if something else listens \
                 there, name the API inbound with --api"
            }
            Self::Denied { .. } => {
                "let this machine reach the API, or read it without what stands in front of it"
            }
            Self::Speech { .. } | Self::TooLarge { .. } => {
                "name the port of the proxy's API inbound with --api"
            }
            Self::Garbage { .. } => {
                "name the port of the proxy's API inbound with --api; `traffic doctor` shows what was found"
            }
            Self::NoService { .. } => {
                "add \"StatsService\" to `api.services` in the proxy's config and restart it"
            }
            Self::NoStats { .. } => {
                "add \"stats\": {} to the proxy's config and restart it; `traffic doctor` shows what else is needed"
            }
            Self::Start(_) => return None,
        };
        Some(text.to_owned())
    }

    /// The text with all its causes, on one line.
    pub fn reason(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {}", clean(&error.to_string()));
            cause = error.source();
        }
        text
    }

    /// Whether a new connection may fare better, because the old one led to a program that is gone.
    pub(super) const fn is_of_connection(&self) -> bool {
        matches!(
            self,
            Self::Silent { .. }
                | Self::Broken { .. }
                | Self::Speech { .. }
                | Self::Garbage { .. }
                | Self::NoService { .. }
        )
    }
}

/// What an answer means that came over gRPC, not one that the transport made up.
pub(super) fn answered(address: &str, limit: usize, status: &Status) -> ProxyError {
    let address = address.to_owned();
    let reason = || match status.message() {
        "" => status.code().description().to_owned(),
        message => clean(message),
    };
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => {
            ProxyError::Denied { address, reason: reason() }
        }
        // Derived by tonic from the status of HTTP.
        Code::Unimplemented if status.message().starts_with("grpc-status header missing") => {
            ProxyError::Speech { address, speech: "is a web server" }
        }
        Code::Unimplemented => ProxyError::NoService { address },
        // What a server says that keeps no statistics: `QueryStats only works its own stats.Manager.`
        Code::Unknown if status.message().contains("stats.Manager") => {
            ProxyError::NoStats { address }
        }
        // Said by tonic before it reads the answer.
        Code::OutOfRange if status.message().contains("message length too large") => {
            ProxyError::TooLarge { address, limit }
        }
        // Said by what stands in front of a proxy that is away.
        Code::Unavailable => ProxyError::Connect {
            address,
            cause: io::Error::new(io::ErrorKind::ConnectionRefused, reason()),
        },
        _ => ProxyError::Garbage { address, reason: reason() },
    }
}

/// Text of others, safe to print and not too long.
pub(super) fn clean(text: &str) -> String {
    let mut short: String = text.chars().take(LONGEST_MESSAGE).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> ProxyError {
        answered("127.0.0.1:1", 64 << 20, &Status::new(code, message))
    }

    #[track_caller]
    fn means(code: Code, message: &str, state: ApiState, text: &str) {
        let error = of(code, message);
        assert_eq!(error.state(), state, "{error}");
        assert_eq!(error.reason(), text);
        assert!(error.remedy().is_some());
    }

    #[test]
    fn each_answer_has_its_state_and_its_text() {
        means(
            Code::PermissionDenied,
            "not you",
            ApiState::Denied,
            "the proxy's API at 127.0.0.1:1 does not let us in: not you",
        );
        means(
            Code::Unimplemented,
            "unknown service",
            ApiState::Disabled,
            "the proxy's API at 127.0.0.1:1 does not offer the StatsService",
        );
        means(
            Code::Unimplemented,
            "grpc-status header missing, mapped from HTTP status code 404",
            ApiState::Garbage,
            "what answers at 127.0.0.1:1 is not a proxy's API: it is a web server",
        );
        means(
            Code::Unknown,
            "v2ray.com/core/app/stats/command: QueryStats only works its own stats.Manager.",
            ApiState::Disabled,
            "the proxy at 127.0.0.1:1 counts nothing: its statistics are off",
        );
        means(
            Code::OutOfRange,
            "Error, decoded message length too large: found 104857600 bytes, the limit is: 67108864 bytes",
            ApiState::Garbage,
            "the answer of the proxy's API at 127.0.0.1:1 is larger than 64 MiB",
        );
        means(
            Code::Unavailable,
            "upstream is away",
            ApiState::Down,
            "the proxy's API at 127.0.0.1:1: no connection: upstream is away",
        );
        means(
            Code::Unknown,
            "a@x not found.",
            ApiState::Garbage,
            "the proxy's API at 127.0.0.1:1 answers what makes no sense: a@x not found.",
        );
    }

    #[test]
    fn words_of_others_are_neither_long_nor_able_to_paint_the_terminal() {
        let text = of(Code::Internal, &format!("\x1b[31m{}", "x".repeat(1000))).to_string();
        assert!(!text.contains('\x1b'));
        assert!(text.contains("\\u{1b}[31mxxx"));
        assert!(text.ends_with("xxx…"));
        assert!(text.chars().count() < 300, "{text}");
    }
}

//! Where a proxy's API listens.

use std::{fmt, path::PathBuf, str::FromStr};

use super::error::ProxyError;

/// Where a proxy's API listens: `HOST:PORT`, `[IPV6]:PORT`, or `unix:PATH`.
///
/// ```
/// use traffic_user::meter::proxy::Address;
///
/// let address: Address = "[::1]:10085".parse().unwrap();
/// assert_eq!(address, Address::Tcp { host: "::1".to_owned(), port: 10085 });
/// assert_eq!(address.to_string(), "[::1]:10085");
/// assert!("10085".parse::<Address>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Over TCP, in plain text.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// Over a socket in the file system.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = ProxyError;

    /// # Errors
    ///
    /// [`ProxyError::Address`] with what is wrong.
    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let wrong = |reason: &'static str| {
            let text = text.chars().take(80).collect::<String>().escape_debug().to_string();
            ProxyError::Address { text, reason }
        };
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(wrong("a path is missing after `unix:`"));
            }
            return Ok(Self::Unix(path.into()));
        }
        if text.contains("://") {
            return Err(wrong("it has a scheme, and needs none"));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(wrong("an IPv6 address needs brackets: [::1]:10085"));
        }
        let host = bracketed.unwrap_or(host);
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        if host.contains(|c: char| c.is_whitespace() || c.is_control() || "/@[]".contains(c)) {
            return Err(wrong("its host is neither a name nor an address"));
        }
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong("its port is not a number"));
        }
        match port.parse() {
            Ok(0) | Err(_) => Err(wrong("its port is not between 1 and 65535")),
            Ok(port) => Ok(Self::Tcp { host: host.to_owned(), port }),
        }
    }
}

impl fmt::Display for Address {
    /// As it is written, safe to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => {
                write!(f, "[{}]:{port}", host.escape_debug())
            }
            Self::Tcp { host, port } => {
                write!(f, "{}:{port}", host.escape_debug())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.to_string_lossy().escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(text: &str, host: &str, port: u16) {
        let address: Address = text.parse().unwrap();
        assert_eq!(address, Address::Tcp { host: host.to_owned(), port });
        assert_eq!(address.to_string(), text);
    }

    #[track_caller]
    fn refused(text: &str, reason: &str) {
        let error = text.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text:?}: {error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }

    #[test]
    fn names_addresses_and_sockets_are_read_as_they_are_written() {
        is("127.0.0.1:10085", "127.0.0.1", 10085);
        is("[::1]:1", "::1", 1);
        is("api.example:65535", "api.example", 65535);
        let unix: Address = "unix:/run/xray.sock".parse().unwrap();
        assert_eq!(unix, Address::Unix("/run/xray.sock".into()));
        assert_eq!(unix.to_string(), "unix:/run/xray.sock");
    }

    #[test]
    fn what_is_no_address_is_told_apart() {
        refused("", "no port");
        refused("10085", "no port");
        refused("localhost", "no port");
        refused(":10085", "no host");
        refused("[]:10085", "no host");
        refused("::1:10085", "brackets");
        refused("http://host:80", "scheme");
        refused("user@host:80", "neither a name nor an address");
        refused("host:", "between 1 and 65535");
        refused("host:0", "between 1 and 65535");
        refused("host:65536", "between 1 and 65535");
        refused("host:+80", "not a number");
        refused("host:abc", "not a number");
        refused("ho\x1b[31mst:80", "neither a name nor an address");
        refused("unix:", "a path is missing");
    }
}

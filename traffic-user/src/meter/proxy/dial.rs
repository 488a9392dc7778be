//! Connects, and remembers how the other side began to speak: gRPC's own errors do not tell a web server
//! from a proxy that was just killed.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream, lookup_host},
};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::{address::Address, error::ProxyError};

/// As much as tells the protocols apart: the head of an HTTP/2 frame.
const HEAD: usize = 9;
/// Type of the frame that a server of HTTP/2 has to begin with.
const SETTINGS: u8 = 4;

/// How the other side speaks, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    /// Not a word yet.
    Silence,
    /// HTTP/2, as it should.
    Http2,
    /// HTTP/1.
    Http1,
    /// TLS.
    Tls,
    /// Something else.
    Other,
}

/// What came over a connection so far.
#[derive(Debug, Default)]
struct Heard {
    head: Vec<u8>,
    /// The other side will not say more.
    ended: bool,
}

/// A look at what came over a connection, from outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Witness(Arc<Mutex<Heard>>);

impl Witness {
    /// How the other side speaks.
    pub(super) fn speech(&self) -> Speech {
        self.with(|heard| speech(&heard.head))
    }

    /// Whether it has closed or lost the connection.
    pub(super) fn ended(&self) -> bool {
        self.with(|heard| heard.ended)
    }

    fn with<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tells a protocol by the first bytes of what a server says.
fn speech(head: &[u8]) -> Speech {
    match head {
        [] => Speech::Silence,
        [b'H', b'T', b'T', b'P', ..] => Speech::Http1,
        // A handshake or an alert of SSL 3.0 to TLS 1.3.
        [0x15 | 0x16, 3, 0..=4, ..] => Speech::Tls,
        // Length of three bytes, type, flags, and stream 0.
        [0, _, _, SETTINGS, _, 0, 0, 0, 0] => Speech::Http2,
        _ => Speech::Other,
    }
}

/// A stream that lets a witness see what is read from it.
struct Watched<S> {
    stream: S,
    witness: Witness,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(result) = &outcome {
            let new = buffer.filled().get(before..).unwrap_or_default();
            self.witness.with(|heard| {
                heard.ended |= result.is_err() || (room > 0 && new.is_empty());
                let missing = HEAD.saturating_sub(heard.head.len()).min(new.len());
                heard.head.extend_from_slice(&new[..missing]);
            });
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, data) {
            // Whoever closed may have said why before. Reading finds that, and then the end.
            Poll::Ready(Err(_)) => Poll::Ready(Ok(data.len())),
            outcome => outcome,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connects to an API. Has no deadline of its own.
pub(super) async fn dial(address: &Address) -> Result<(Channel, Witness), ProxyError> {
    match address {
        Address::Tcp { host, port } => {
            let stream = connect(address, host, *port).await?;
            speak(address, stream).await
        }
        Address::Unix(path) => {
            let refused = |cause| ProxyError::Connect { address: address.to_string(), cause };
            let stream = UnixStream::connect(path).await.map_err(refused)?;
            speak(address, stream).await
        }
    }
}

/// Tries the addresses of a host one after the other.
async fn connect(address: &Address, host: &str, port: u16) -> Result<TcpStream, ProxyError> {
    let nowhere = |cause| ProxyError::Name { address: address.to_string(), cause };
    let mut refused = None;
    for target in lookup_host((host, port)).await.map_err(|cause| nowhere(Some(cause)))? {
        match TcpStream::connect(target).await {
            Ok(stream) => {
                // A question is a few small packets: none of them waits for an answer to another. If
                // that cannot be set it is only slower.
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Err(cause) => refused = Some(cause),
        }
    }
    match refused {
        Some(cause) => Err(ProxyError::Connect { address: address.to_string(), cause }),
        None => Err(nowhere(None)),
    }
}

/// Begins HTTP/2. The channel serves this one connection: when it breaks, every call fails, so that
/// whoever uses it knows that the other side may be another program by now.
async fn speak<S>(address: &Address, stream: S) -> Result<(Channel, Witness), ProxyError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let witness = Witness::default();
    let mut once = Some(TokioIo::new(Watched { stream, witness: witness.clone() }));
    let connector = service_fn(move |_: Uri| {
        let stream = once.take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_shared(authority(address))
        .unwrap_or_else(|_| Endpoint::from_static("http://localhost"))
        .connect_with_connector(connector)
        .await;
    match channel {
        Ok(channel) => Ok((channel, witness)),
        // Only writing the greeting can fail: the other side is gone already.
        Err(_) => Err(ProxyError::Broken { address: address.to_string() }),
    }
}

/// What stands in front of a proxy may choose by the name that it is called by.
fn authority(address: &Address) -> String {
    match address {
        Address::Tcp { .. } => format!("http://{address}"),
        Address::Unix(_) => "http://localhost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_apart_by_their_first_bytes() {
        assert_eq!(speech(b""), Speech::Silence);
        assert_eq!(speech(b"HTTP/1.1 "), Speech::Http1);
        assert_eq!(speech(&[0x15, 3, 1, 0, 2, 2, 70]), Speech::Tls);
        assert_eq!(speech(&[0x16, 3, 3, 0, 90, 2, 0, 0, 86]), Speech::Tls);
        assert_eq!(speech(&[0, 0, 18, 4, 0, 0, 0, 0, 0]), Speech::Http2);
        assert_eq!(speech(&[0, 0, 0, 4, 1, 0, 0, 0, 0]), Speech::Http2);
        assert_eq!(speech(b"SSH-2.0-O"), Speech::Other);
        // Something on another stream, and a frame of another type.
        assert_eq!(speech(&[0, 0, 18, 4, 0, 0, 0, 0, 1]), Speech::Other);
        assert_eq!(speech(&[0, 0, 18, 0, 0, 0, 0, 0, 0]), Speech::Other);
        // Too little to tell.
        assert_eq!(speech(&[0, 0, 18]), Speech::Other);
    }
}

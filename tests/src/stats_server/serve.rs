//! How the fake API speaks: frames of HTTP/2 with gRPC inside, and what is neither.

use std::{
    hash::{DefaultHasher, Hasher as _},
    net::TcpListener,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Builder,
    sync::watch,
};

use super::{Behaviour, Kind, Question, State, Uptime, lock};
use crate::wire::{
    v2ray::core::app::stats::command::{
        GetStatsRequest, GetStatsResponse, QueryStatsRequest, QueryStatsResponse, Stat,
        SysStatsResponse,
    },
    xray::app::stats::command::{
        GetAllOnlineUsersResponse, GetStatsOnlineIpListResponse, GetUsersStatsRequest,
        GetUsersStatsResponse, OnlineIpEntry, UserStat,
    },
};

const UNKNOWN: u32 = 2;
const NOT_FOUND: u32 = 5;
const PERMISSION_DENIED: u32 = 7;
const UNIMPLEMENTED: u32 = 12;

/// A message, or a code with its text.
type Answer = Result<Vec<u8>, (u32, String)>;

/// Serves until nobody holds the other end of `cuts`.
pub(super) fn serve(listener: TcpListener, state: &Arc<Mutex<State>>, cuts: watch::Receiver<()>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("a listener that does not block");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let mut end = cuts.clone();
        let mut end = pin!(async move { while end.changed().await.is_ok() {} });
        loop {
            let stream = tokio::select! {
                biased;
                () = &mut end => return,
                accepted = listener.accept() => accepted.expect("a connection").0,
            };
            let opened = Open::count(state);
            let (state, mut cuts) = (Arc::clone(state), cuts.clone());
            cuts.mark_unchanged();
            tokio::spawn(async move {
                let _opened = opened;
                tokio::select! {
                    biased;
                    _ = cuts.changed() => {}
                    () = connection(stream, state) => {}
                }
            });
        }
    });
    runtime.shutdown_timeout(Duration::ZERO);
}

/// A connection that is counted while it is open.
struct Open(Arc<Mutex<State>>);

impl Open {
    fn count(state: &Arc<Mutex<State>>) -> Self {
        let mut counted = lock(state);
        counted.connections += 1;
        counted.open += 1;
        Self(Arc::clone(state))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.0).open -= 1;
    }
}

/// One connection, until either side has enough of it.
async fn connection(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let behaviour = lock(&state).behaviour;
    let words: &[u8] = match behaviour {
        Behaviour::Close => return,
        Behaviour::Silent => return std::future::pending().await,
        Behaviour::Noise => b"\x8f\x02\xe1\x9c\x00\x41\xd3\x77\x1e\xb0\xff\xff\xff\x31\x5a\x6d\xc4",
        Behaviour::Http1 => b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        // An alert: protocol version.
        Behaviour::Tls => b"\x15\x03\x01\x00\x02\x02\x46",
        _ => b"",
    };
    if !words.is_empty() {
        // Answer the greeting, as those who wait for a question do.
        let mut greeting = [0; 24];
        if stream.read_exact(&mut greeting).await.is_ok() {
            stream.write_all(words).await.ok();
            stream.shutdown().await.ok();
            // What is still on its way would turn the end into a reset.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.ok();
        }
        return;
    }
    let mut builder = h2::server::Builder::new();
    builder.max_send_buffer_size(256 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        if lock(&state).behaviour == Behaviour::BreakOff {
            break_off(respond);
            // What was said has to leave first.
            let flushed = std::future::poll_fn(|context| connection.poll_closed(context));
            tokio::time::timeout(Duration::from_millis(20), flushed).await.ok();
            return;
        }
        let state = Arc::clone(&state);
        tokio::spawn(async move { request_of(request, respond, &state).await });
    }
}

/// Half an answer.
fn break_off(mut respond: SendResponse<Bytes>) {
    if let Ok(mut stream) = respond.send_response(head(), false) {
        stream.send_data(Bytes::from_static(&[0, 0, 0, 1, 0, 10, 3]), false).ok();
        std::mem::forget(stream);
    }
}

/// One question. An error only means that the other side went away.
async fn request_of(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    state: &Mutex<State>,
) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut data = BytesMut::new();
    while let Some(Ok(chunk)) = body.data().await {
        body.flow_control().release_capacity(chunk.len()).ok();
        data.extend_from_slice(&chunk);
    }
    // One byte says whether it is compressed, four how long it is.
    let message = data.get(5..).unwrap_or_default();
    let (service, call) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let (behaviour, answer) = {
        let mut state = lock(state);
        (state.behaviour, state.answer(service, call, message))
    };
    let answer = match behaviour {
        Behaviour::Hang => return std::future::pending().await,
        Behaviour::Deny => Err((PERMISSION_DENIED, "not you \u{1b}[31m".to_owned())),
        Behaviour::NoService => Err((UNIMPLEMENTED, format!("unknown service {service}"))),
        Behaviour::NoStats if call == "QueryStats" => {
            Err((UNKNOWN, "QueryStats only works its own stats.Manager.".to_owned()))
        }
        Behaviour::Nonsense if answer.is_ok() => Ok(b"\x0a\xff\xff\xff\xff\x0f nonsense".to_vec()),
        Behaviour::Huge(size) if answer.is_ok() => Ok(huge(size)),
        _ => answer,
    };
    if behaviour == Behaviour::Web {
        let mut respond = respond;
        let mut response = Response::new(());
        *response.status_mut() = http::StatusCode::NOT_FOUND;
        respond.send_response(response, true).ok();
        return;
    }
    send(respond, answer);
}

fn send(mut respond: SendResponse<Bytes>, answer: Answer) {
    let message = match answer {
        Ok(message) => message,
        Err((code, text)) => {
            let mut response = head();
            trailers(response.headers_mut(), code, &text);
            respond.send_response(response, true).ok();
            return;
        }
    };
    let Ok(mut stream) = respond.send_response(head(), false) else {
        return;
    };
    let mut data = BytesMut::with_capacity(message.len() + 5);
    data.put_u8(0);
    data.put_u32(u32::try_from(message.len()).expect("a message of less than 4 GiB"));
    data.extend_from_slice(&message);
    let mut end = HeaderMap::new();
    trailers(&mut end, 0, "");
    if stream.send_data(data.freeze(), false).is_ok() {
        stream.send_trailers(end).ok();
    }
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}

/// Code and text of an answer, the text with what a header cannot hold written as `%XX`.
fn trailers(headers: &mut HeaderMap, code: u32, text: &str) {
    let code = HeaderValue::from_str(&code.to_string()).expect("a number as a header");
    headers.insert("grpc-status", code);
    if !text.is_empty() {
        let text: String = text
            .bytes()
            .map(|byte| match byte {
                b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect();
        let text = HeaderValue::from_str(&text).expect("escaped text as a header");
        headers.insert("grpc-message", text);
    }
}

/// A message of this size that is what it should be: one counter with a long name.
fn huge(size: usize) -> Vec<u8> {
    let stat = Stat { name: vec![b'x'; size], value: 1 };
    QueryStatsResponse { stat: vec![stat] }.encode_to_vec()
}

impl State {
    /// What a proxy would answer.
    fn answer(&mut self, service: &str, call: &str, message: &[u8]) -> Answer {
        let xray = matches!(self.kind, Kind::OldXray | Kind::Xray | Kind::NewXray);
        let own = match service {
            "v2ray.core.app.stats.command.StatsService" => "v2ray",
            "xray.app.stats.command.StatsService" => "xray",
            _ => "",
        };
        let mut question = Question {
            service: if own.is_empty() { service } else { own }.to_owned(),
            call: call.to_owned(),
            about: String::new(),
            reset: false,
        };
        let answer = match (own, call) {
            ("", _) => Err((UNIMPLEMENTED, format!("unknown service {service}"))),
            ("xray", _) if !xray => Err((UNIMPLEMENTED, format!("unknown service {service}"))),
            (_, "GetSysStats") => Ok(self.sys()),
            (_, "GetStats") => {
                let request: GetStatsRequest = decode(message)?;
                question.about.clone_from(&request.name);
                question.reset = request.reset;
                self.one(&request)
            }
            (_, "QueryStats") => {
                let request: QueryStatsRequest = decode(message)?;
                question.about.clone_from(&request.pattern);
                question.reset = request.reset;
                self.matching(request)
            }
            (_, "GetStatsOnlineIpList") if matches!(self.kind, Kind::Xray | Kind::NewXray) => {
                let request: GetStatsRequest = decode(message)?;
                question.about.clone_from(&request.name);
                self.addresses(request.name)
            }
            (_, "GetAllOnlineUsers") if matches!(self.kind, Kind::Xray | Kind::NewXray) => {
                let users = self.online.keys().map(|email| online_name(email)).collect();
                Ok(GetAllOnlineUsersResponse { users }.encode_to_vec())
            }
            (_, "GetUsersStats") if self.kind == Kind::NewXray => {
                let request: GetUsersStatsRequest = decode(message)?;
                question.reset = request.reset;
                Ok(self.users())
            }
            _ => Err((UNIMPLEMENTED, format!("unknown method {call} for service {service}"))),
        };
        self.questions.push(question);
        answer
    }

    fn sys(&self) -> Vec<u8> {
        let uptime = match self.uptime {
            Uptime::Since(begin) => u32::try_from(begin.elapsed().as_secs()).unwrap_or(u32::MAX),
            Uptime::Stands(seconds) => seconds,
        };
        SysStatsResponse { uptime, num_goroutine: 9, ..SysStatsResponse::default() }.encode_to_vec()
    }

    fn one(&mut self, request: &GetStatsRequest) -> Answer {
        let name = request.name.as_bytes();
        let Some(value) = self.counters.get_mut(name) else {
            let code = match self.kind {
                Kind::V2ray4 | Kind::V2ray5 | Kind::OldXray => UNKNOWN,
                Kind::Xray | Kind::NewXray => NOT_FOUND,
            };
            return Err((code, format!("{} not found.", request.name)));
        };
        let stat = Stat { name: name.to_vec(), value: *value };
        if request.reset {
            *value = 0;
        }
        Ok(GetStatsResponse { stat: Some(stat) }.encode_to_vec())
    }

    fn matching(&mut self, request: QueryStatsRequest) -> Answer {
        let mut patterns = vec![request.pattern];
        if self.kind == Kind::V2ray5 {
            if request.regexp && patterns.iter().any(|pattern| pattern == "(") {
                return Err((UNKNOWN, "error parsing regexp: missing closing ): `(`".to_owned()));
            }
            patterns.extend(request.patterns);
        }
        patterns.retain(|pattern| !pattern.is_empty());
        let contains = |name: &[u8], part: &str| {
            name.windows(part.len()).any(|window| window == part.as_bytes())
        };
        let mut stat = Vec::new();
        for (name, value) in &mut self.counters {
            if patterns.is_empty() || patterns.iter().any(|pattern| contains(name, pattern)) {
                stat.push(Stat { name: name.clone(), value: *value });
                if request.reset {
                    *value = 0;
                }
            }
        }
        // Maps of Go have no order, so whoever wants one has to sort.
        stat.sort_by_cached_key(|stat| hash(&stat.name));
        Ok(QueryStatsResponse { stat }.encode_to_vec())
    }

    fn addresses(&self, name: String) -> Answer {
        let user = self.online.iter().find(|(email, _)| online_name(email) == name.as_bytes());
        let Some((_, addresses)) = user else {
            return Err((NOT_FOUND, format!("{name} not found.")));
        };
        let ips = entries(addresses);
        Ok(GetStatsOnlineIpListResponse { name: name.into_bytes(), ips }.encode_to_vec())
    }

    fn users(&self) -> Vec<u8> {
        let users = self.online.iter().map(|(email, addresses)| UserStat {
            email: email.clone(),
            ips: entries(addresses),
            traffic: None,
        });
        GetUsersStatsResponse { users: users.collect() }.encode_to_vec()
    }
}

fn entries(addresses: &std::collections::BTreeMap<String, i64>) -> Vec<OnlineIpEntry> {
    let entry =
        |(ip, seen): (&String, &i64)| OnlineIpEntry { ip: ip.clone().into(), last_seen: *seen };
    addresses.iter().map(entry).collect()
}

fn online_name(email: &[u8]) -> Vec<u8> {
    [b"user>>>", email, b">>>online"].concat()
}

fn decode<M: Message + Default>(message: &[u8]) -> Result<M, (u32, String)> {
    M::decode(message).map_err(|error| (13, error.to_string()))
}

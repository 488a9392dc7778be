//! One connection to an API: who answers there, and the calls that are made.

use std::error::Error;

use tonic::{Code, Status, transport::Channel};

use super::{
    address::Address,
    counters::{counters, text},
    dial::{Speech, Witness, dial},
    error::{ProxyError, answered, clean},
    online::{OnlineUser, addresses, email},
    wire::{
        v2ray::{
            GetStatsRequest, QueryStatsRequest, Stat, SysStatsRequest,
            stats_service_client::StatsServiceClient as V2rayClient,
        },
        xray::{
            GetAllOnlineUsersRequest, GetUsersStatsRequest,
            stats_service_client::StatsServiceClient as XrayClient,
        },
    },
};
use crate::accounting::proxy::{CounterName, Product};

/// A pattern that is no regular expression, and part of hardly any name.
const NO_EXPRESSION: &str = "(";

/// Which program answers, found out by what it answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// V2Ray or Xray; `None` when the question itself was not allowed.
    pub product: Option<Product>,
    /// Of V2Ray: 5 when it knows regular expressions, 4 when it does not (the first versions of 5 did
    /// not either). `None` for Xray, and when it could not be told.
    pub generation: Option<u8>,
    /// It tells who is connected (newer versions of Xray).
    pub online: bool,
}

/// What an API tells about who is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Online {
    Nothing,
    /// Who is; from where is asked for each.
    Names,
    /// All in one answer.
    All,
}

/// A connection, with what is known of the other side.
#[derive(Debug)]
pub(super) struct Connection {
    address: String,
    channel: Channel,
    witness: Witness,
    /// Largest answer that is read, bytes.
    limit: usize,
    product: Option<Product>,
    generation: Option<u8>,
    online: Online,
}

impl Connection {
    /// Connects and finds out who answers. Has no deadline of its own.
    pub(super) async fn open(address: &Address, limit: usize) -> Result<Self, ProxyError> {
        let (channel, witness) = dial(address).await?;
        let mut connection = Self {
            address: address.to_string(),
            channel,
            witness,
            limit,
            product: None,
            generation: None,
            online: Online::Nothing,
        };
        connection.recognise().await?;
        Ok(connection)
    }

    /// Who answers, as far as it was found out.
    pub(super) fn identity(&self) -> Identity {
        Identity {
            product: self.product,
            generation: self.generation,
            online: self.online != Online::Nothing,
        }
    }

    /// Finds out who answers, by reading alone.
    pub(super) async fn recognise(&mut self) -> Result<(), ProxyError> {
        self.generation = None;
        self.online = Online::Nothing;
        self.product = match self.xray().get_sys_stats(SysStatsRequest {}).await {
            Ok(_) => Some(Product::Xray),
            Err(status) => match self.failed(&status) {
                ProxyError::NoService { .. } => Some(Product::V2ray),
                // Something in front of it allows some calls only.
                ProxyError::Denied { .. } => None,
                error => return Err(error),
            },
        };
        match self.product {
            Some(Product::Xray) => self.online = self.probe_online().await?,
            Some(Product::V2ray) => self.generation = self.probe_generation().await?,
            None => {}
        }
        Ok(())
    }

    async fn probe_online(&self) -> Result<Online, ProxyError> {
        match self.xray().get_users_stats(GetUsersStatsRequest::default()).await {
            Ok(_) => return Ok(Online::All),
            Err(status) => self.unless_absent(&status)?,
        }
        match self.xray().get_all_online_users(GetAllOnlineUsersRequest {}).await {
            Ok(_) => Ok(Online::Names),
            Err(status) => self.unless_absent(&status).map(|()| Online::Nothing),
        }
    }

    /// An error that does not only say that there is no such call, or that it is not for us.
    fn unless_absent(&self, status: &Status) -> Result<(), ProxyError> {
        match self.failed(status) {
            ProxyError::NoService { .. } | ProxyError::Denied { .. } => Ok(()),
            error => Err(error),
        }
    }

    /// V2Ray 5 refuses what is no regular expression; 4 passes over the wish for one.
    async fn probe_generation(&self) -> Result<Option<u8>, ProxyError> {
        let request = QueryStatsRequest {
            pattern: NO_EXPRESSION.to_owned(),
            regexp: true,
            ..QueryStatsRequest::default()
        };
        match self.v2ray().query_stats(request).await {
            Ok(_) => Ok(Some(4)),
            Err(status) => match self.failed(&status) {
                ProxyError::Garbage { .. } if is_answer(&status) => Ok(Some(5)),
                // Told once more, and in full, by the reading that follows.
                ProxyError::NoService { .. }
                | ProxyError::NoStats { .. }
                | ProxyError::Denied { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Whole seconds since the proxy's start; `None` when it does not tell.
    pub(super) async fn uptime(&self) -> Result<Option<u32>, ProxyError> {
        let request = SysStatsRequest {};
        let answer = match self.product {
            Some(Product::Xray) => self.xray().get_sys_stats(request).await,
            _ => self.v2ray().get_sys_stats(request).await,
        };
        match answer {
            Ok(answer) => Ok(Some(answer.into_inner().uptime)),
            Err(status) => self.unless_absent(&status).map(|()| None),
        }
    }

    /// All counters whose name contains the pattern.
    pub(super) async fn counters(
        &self,
        pattern: &str,
        reset: bool,
    ) -> Result<Vec<(CounterName, i64)>, ProxyError> {
        let request = QueryStatsRequest {
            pattern: pattern.to_owned(),
            reset,
            ..QueryStatsRequest::default()
        };
        let answer = match self.product {
            Some(Product::Xray) => self.xray().query_stats(request).await,
            _ => self.v2ray().query_stats(request).await,
        };
        let answer = answer.map_err(|status| self.failed(&status))?;
        Ok(counters(&answer.into_inner().stat))
    }

    /// Sets a counter to zero and gives what it was; `None` when there is none of this name.
    pub(super) async fn reset(&self, name: &CounterName) -> Result<Option<i64>, ProxyError> {
        let request = GetStatsRequest { name: name.to_string(), reset: true };
        let answer = match self.product {
            Some(Product::Xray) => self.xray().get_stats(request).await,
            _ => self.v2ray().get_stats(request).await,
        };
        match answer {
            // An answer without its value is one whose value is zero.
            Ok(answer) => Ok(Some(answer.into_inner().stat.map_or(0, |stat: Stat| stat.value))),
            Err(status) if is_absent(&status) => Ok(None),
            Err(status) => Err(self.failed(&status)),
        }
    }

    /// Who is connected; `None` when the API does not tell.
    pub(super) async fn online(&self) -> Result<Option<Vec<OnlineUser>>, ProxyError> {
        let mut users = match self.online {
            Online::Nothing => return Ok(None),
            Online::All => self.online_at_once().await?,
            Online::Names => self.online_one_by_one().await?,
        };
        users.sort_unstable_by(|a, b| a.email.cmp(&b.email));
        Ok(Some(users))
    }

    async fn online_at_once(&self) -> Result<Vec<OnlineUser>, ProxyError> {
        let answer = self.xray().get_users_stats(GetUsersStatsRequest::default()).await;
        let answer = answer.map_err(|status| self.failed(&status))?.into_inner();
        let user = |user: &super::wire::xray::UserStat| OnlineUser {
            email: email(&user.email),
            addresses: addresses(&user.ips),
        };
        Ok(answer.users.iter().map(user).collect())
    }

    async fn online_one_by_one(&self) -> Result<Vec<OnlineUser>, ProxyError> {
        let answer = self.xray().get_all_online_users(GetAllOnlineUsersRequest {}).await;
        let answer = answer.map_err(|status| self.failed(&status))?.into_inner();
        let mut users = Vec::with_capacity(answer.users.len());
        for name in &answer.users {
            let email = email(name);
            // The name as it came, where it is one already.
            let name = match text(name) {
                name if name.starts_with("user>>>") => name.into_owned(),
                name => format!("user>>>{name}>>>online"),
            };
            let request = GetStatsRequest { name, reset: false };
            match self.xray().get_stats_online_ip_list(request).await {
                Ok(answer) => {
                    users.push(OnlineUser { email, addresses: addresses(&answer.get_ref().ips) });
                }
                // He left in between.
                Err(status) if is_absent(&status) => {}
                Err(status) => return Err(self.failed(&status)),
            }
        }
        Ok(users)
    }

    fn v2ray(&self) -> V2rayClient<Channel> {
        V2rayClient::new(self.channel.clone()).max_decoding_message_size(self.limit)
    }

    fn xray(&self) -> XrayClient<Channel> {
        XrayClient::new(self.channel.clone()).max_decoding_message_size(self.limit)
    }

    /// What the failure of a call means.
    fn failed(&self, status: &Status) -> ProxyError {
        let address = self.address.clone();
        if is_answer(status) {
            return answered(&address, self.limit, status);
        }
        let speech = match self.witness.speech() {
            Speech::Http1 => "speaks HTTP/1",
            Speech::Tls => "speaks TLS",
            Speech::Other => "does not speak HTTP/2",
            Speech::Silence => return ProxyError::Silent { address },
            Speech::Http2 if self.witness.ended() => return ProxyError::Broken { address },
            Speech::Http2 => {
                let mut reason = clean(status.message());
                let mut cause = status.source();
                while let Some(error) = cause {
                    reason = format!("{reason}: {}", clean(&error.to_string()));
                    cause = error.source();
                }
                return ProxyError::Garbage { address, reason };
            }
        };
        ProxyError::Speech { address, speech }
    }
}

/// Whether a status was said by the other side, or is about what it said; else the transport made it up.
fn is_answer(status: &Status) -> bool {
    status.source().is_none()
}

/// There is no counter of this name. V2Ray and older Xray have no code of its own for it.
fn is_absent(status: &Status) -> bool {
    is_answer(status) && matches!(status.code(), Code::Unknown | Code::NotFound)
}

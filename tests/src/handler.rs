//! Adds and removes users of a proxy that runs, as panels do: its HandlerService.

use std::net::SocketAddr;

use prost::Message as _;
use tokio::runtime::Builder;
use tonic::{Status, transport::Endpoint};

use crate::wire::v2ray::core::app::proxyman::command::{
    AddUserOperation, AlterInboundRequest, RemoveUserOperation, TypedMessage, User,
    handler_service_client::HandlerServiceClient,
};

const OPERATIONS: &str = "v2ray.core.app.proxyman.command";
const VMESS: &str = "v2ray.core.proxy.vmess.Account";

/// Takes a user out of an inbound.
///
/// # Errors
///
/// What the proxy says against it.
///
/// # Panics
///
/// When there is no proxy.
pub fn remove_user(api: SocketAddr, tag: &str, email: &str) -> Result<(), Status> {
    let operation = RemoveUserOperation { email: email.to_owned() };
    alter(api, tag, "RemoveUserOperation", operation.encode_to_vec())
}

/// Lets a user into a vmess inbound.
///
/// # Errors
///
/// What the proxy says against it.
///
/// # Panics
///
/// When there is no proxy.
pub fn add_vmess_user(api: SocketAddr, tag: &str, email: &str, id: &str) -> Result<(), Status> {
    // An account of one field: `string id = 1`.
    let length = u8::try_from(id.len()).expect("an id of 36 characters");
    let account = [&[0x0a, length], id.as_bytes()].concat();
    let account = TypedMessage { r#type: VMESS.to_owned(), value: account };
    let user = User { level: 0, email: email.to_owned(), account: Some(account) };
    let operation = AddUserOperation { user: Some(user) };
    alter(api, tag, "AddUserOperation", operation.encode_to_vec())
}

fn alter(api: SocketAddr, tag: &str, operation: &str, value: Vec<u8>) -> Result<(), Status> {
    let operation = TypedMessage { r#type: format!("{OPERATIONS}.{operation}"), value };
    let request = AlterInboundRequest { tag: tag.to_owned(), operation: Some(operation) };
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{api}")).expect("an address");
        let channel = endpoint.connect().await.expect("the proxy's API");
        HandlerServiceClient::new(channel).alter_inbound(request).await.map(drop)
    })
}

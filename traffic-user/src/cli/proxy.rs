//! Which proxy is meant: what the verbs that look at one have in common.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::Common;
use crate::{daemon::ProxyPlace, meter::proxy::Address};

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ProxyArgs {
    /// Configuration of V2Ray or Xray: files, or a folder of them. Without it: the usual places
    #[arg(long, value_name = "FILE", num_args = 1.., value_delimiter = ',')]
    proxy_config: Vec<PathBuf>,
    /// Where the proxy's API listens. Without it: as its configuration says
    #[arg(long, value_name = "HOST:PORT")]
    api: Option<Address>,
    /// Look for no proxy: count ports only
    #[arg(long, conflicts_with_all = ["proxy_config", "api"])]
    no_proxy: bool,
}

impl ProxyArgs {
    /// Whether the command line names a proxy.
    pub(super) const fn is_named(&self) -> bool {
        !self.proxy_config.is_empty() || self.api.is_some()
    }

    /// The command line, else our configuration. `None` when no proxy is wanted.
    pub(super) fn place(&self, common: &Common) -> Result<Option<ProxyPlace>> {
        let config = &common.config;
        if self.no_proxy || (config.proxy == Some(false) && !self.is_named()) {
            return Ok(None);
        }
        let files = if self.proxy_config.is_empty() {
            config.proxy_config.clone().unwrap_or_default()
        } else {
            self.proxy_config.clone()
        };
        let set = config.api.as_deref().map(str::parse).transpose();
        let api = match &self.api {
            Some(api) => Some(api.clone()),
            None => set.context("`api` in the configuration")?,
        };
        Ok(Some(ProxyPlace { files, api }))
    }
}

//! What is the same in opening each of the stores: the library's clients with the patience of the settings.

use std::sync::Arc;

use ckptd_core::os::process::keep_memory_private;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::path::Path;
use object_store::{BackoffConfig, RetryConfig};

use super::answers::Reader;
use super::http::Transport;
use super::lifecycle::BucketRules;
use super::storage::{Client, Clients, CloudStorage, VersionBy};
use crate::errors::{ErrorKind, ObjectError, Operation, Result};
use crate::objects::Abilities;
use crate::secrets::Redactor;
use crate::settings::{RemoteSettings, Retries};

/// Why something cannot be opened: kind and clause.
pub type Clause = (ErrorKind, String);

const LONGEST_WAIT: std::time::Duration = std::time::Duration::from_secs(15);

/// The library makes a client of this.
pub trait ClientBuilder: Clone {
    /// The client.
    type Store: Client;

    /// A client that makes its requests through `transport` and tries again by `retries`.
    fn client(self, transport: Transport, retries: Retries) -> object_store::Result<Self::Store>;
}

macro_rules! client_builder {
    ($builder:ty => $store:ty) => {
        impl ClientBuilder for $builder {
            type Store = $store;

            fn client(self, transport: Transport, retries: Retries) -> object_store::Result<$store> {
                let options = transport.options();
                let builder = self.with_retry(retry_config(retries)).with_client_options(options);
                builder.with_http_connector(transport).build()
            }
        }
    };
}

client_builder!(AmazonS3Builder => AmazonS3);
client_builder!(GoogleCloudStorageBuilder => GoogleCloudStorage);
client_builder!(MicrosoftAzureBuilder => MicrosoftAzure);

/// The library's form of `retries`.
fn retry_config(retries: Retries) -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: retries.first_wait, max_backoff: LONGEST_WAIT, base: 2.0 };
    RetryConfig { backoff, max_retries: retries.max, retry_timeout: retries.within }
}

/// A store that is to be opened.
pub struct Opening<'a> {
    pub place: String,
    pub prefix: &'a str,
    pub settings: &'a RemoteSettings,
    pub version_by: VersionBy,
    pub abilities: Abilities,
}

impl Opening<'_> {
    /// Opens what `configure` describes (a builder, and where its credentials come from), of which `clients` makes the
    /// library's clients. Makes no request.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where settings or credentials are malformed, or of a kind that cannot be read.
    pub fn open<B>(
        self,
        configure: impl FnOnce(&Redactor) -> Result<(B, String), Clause>,
        clients: impl FnOnce(B, &Transport, &RemoteSettings) -> object_store::Result<(Clients, BucketRules)>,
    ) -> Result<CloudStorage> {
        let Opening { place, prefix, settings, version_by, abilities } = self;
        // From here on credentials are in this process's memory.
        keep_memory_private();
        let fail = |(kind, detail): Clause| ObjectError::new(Operation::Open, &place, None, kind, detail);
        let transport = Transport::new(settings).map_err(fail)?;
        let redactor = Redactor::default();
        let (builder, credentials) = configure(&redactor).map_err(fail)?;
        let reader = Reader { redactor, clock: transport.clock(), credentials };
        let made = clients(builder, &transport, settings);
        let (clients, rules) = made.map_err(|e| fail((ErrorKind::Config, reader.read(&e).1)))?;
        Ok(CloudStorage { prefix: Path::from(prefix), place, clients, reader, version_by, abilities, rules })
    }
}

/// The clients of a store whose bodies carry no digest.
pub fn clients<B: ClientBuilder<Store: Client + 'static>>(
    builder: B,
    transport: &Transport,
    settings: &RemoteSettings,
) -> object_store::Result<(Clients, Arc<B::Store>)> {
    let control = Arc::new(builder.clone().client(transport.clone(), settings.control_retries)?);
    let data = Arc::new(builder.client(transport.clone(), settings.data_retries)?);
    Ok((Clients { control: control.clone(), data, tampering: control.clone(), cheaper: None }, control))
}

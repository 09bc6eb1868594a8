//! The channel to the coordinator and what every call carries.

use std::time::Duration;

use pleach_base::{Result, ResultExt as _, code};
use pleach_proto::MAX_MESSAGE_BYTES;
use pleach_proto::v1::worker_service_client::WorkerServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::cli::Args;

pub(crate) type Client = WorkerServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds the token to every call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A client that connects when it is first used, and again whenever the connection was lost.
pub(crate) fn connect(args: &Args) -> Result<Client> {
    let address = &args.coordinator;
    let invalid = || format!("--coordinator: `{address}` is not an address such as http://host:7700");
    let mut endpoint = Endpoint::from_shared(address.clone())
        .or_code(code::BAD_VALUE, invalid)?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        // A coordinator that vanished without a word is found by these, not by the operating system's minutes.
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    if address.starts_with("https://") {
        endpoint = endpoint.tls_config(tls(args)?).or_code(code::BAD_VALUE, invalid)?;
    }
    let token = match &args.token {
        Some(token) => {
            let value = MetadataValue::try_from(format!("Bearer {token}"));
            Some(value.or_code(code::BAD_VALUE, || "--token: characters that a header cannot carry".to_owned())?)
        }
        None => None,
    };
    let client = WorkerServiceClient::with_interceptor(endpoint.connect_lazy(), Bearer(token));
    Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
}

fn tls(args: &Args) -> Result<ClientTlsConfig> {
    let Some(path) = &args.ca else {
        return Err(code::BAD_VALUE.error("--ca: needed for an https:// coordinator"));
    };
    let pem = std::fs::read(path).or_code(code::IO, || format!("--ca: cannot read {}", path.display()))?;
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
}

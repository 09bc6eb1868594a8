//! The coordinators that this worker knows, the one that it talks to at the moment, and what every call carries. One of
//! them leads; the others refuse and name it. The session decides which one to try; reports go where the session is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pleach_base::{Result, ResultExt as _, code};
use pleach_proto::MAX_MESSAGE_BYTES;
use pleach_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::cli::Args;

pub(crate) type Client = WorkerServiceClient<InterceptedService<Channel, Bearer>>;

/// How long a connection may take: a machine that is gone answers nothing at all, and the next one may lead.
const CONNECT: Duration = Duration::from_secs(2);

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

/// The coordinator that is talked to.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) address: String,
    pub(crate) client: Client,
}

/// All of them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Coordinators(Arc<Inner>);

struct Inner {
    known: Vec<String>,
    /// The one of `known` that is tried, or was before a redirect.
    at: AtomicUsize,
    current: watch::Sender<Current>,
    /// Whether the current one knows this worker and holds its session.
    attached: AtomicBool,
    tls: Option<ClientTlsConfig>,
    bearer: Bearer,
}

impl Coordinators {
    /// Reads `--coordinator`, `--token` and `--ca`. Connects when first used.
    ///
    /// # Errors
    /// `BAD_VALUE` when one of them cannot be used.
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let known: Vec<String> = args.coordinator.split(',').map(|address| address.trim().to_owned()).collect();
        let secure = known.iter().any(|address| address.starts_with("https://"));
        let tls = if secure { Some(tls(args)?) } else { None };
        let bearer = Bearer(match &args.token {
            Some(token) => {
                let value = MetadataValue::try_from(format!("Bearer {token}"));
                Some(value.or_code(code::BAD_VALUE, || "--token: characters that a header cannot carry".to_owned())?)
            }
            None => None,
        });
        for address in &known {
            connect(address, tls.as_ref(), &bearer)?;
        }
        let first = connect(&known[0], tls.as_ref(), &bearer)?;
        let current = watch::channel(first).0;
        let attached = AtomicBool::new(false);
        Ok(Self(Arc::new(Inner { known, at: AtomicUsize::new(0), current, attached, tls, bearer })))
    }

    /// The one that is talked to now.
    pub(crate) fn current(&self) -> Current {
        self.0.current.borrow().clone()
    }

    /// Turns to the next known one.
    pub(crate) fn next(&self) {
        let at = self.0.at.load(Ordering::SeqCst).wrapping_add(1) % self.0.known.len();
        self.0.at.store(at, Ordering::SeqCst);
        let address = self.0.known[at].clone();
        self.turn_to(&address);
    }

    /// Turns to the one that another has named as the leader; an address that cannot be used changes nothing.
    pub(crate) fn turn_to(&self, address: &str) {
        if self.current().address == address {
            return;
        }
        match connect(address, self.0.tls.as_ref(), &self.0.bearer) {
            Ok(next) => drop(self.0.current.send_replace(next)),
            Err(error) => tracing::warn!(reason = %error.chain(), "cannot follow to {address}"),
        }
    }

    /// Says whether the current one holds this worker's session.
    pub(crate) fn attach(&self, attached: bool) {
        self.0.attached.store(attached, Ordering::SeqCst);
        // Whoever waits looks again.
        self.0.current.send_modify(|_| {});
    }

    /// Whether the current one holds this worker's session.
    pub(crate) fn is_attached(&self) -> bool {
        self.0.attached.load(Ordering::SeqCst)
    }

    /// Returns when the current one changed or the session came or went.
    pub(crate) async fn changed(&self) {
        let mut view = self.0.current.subscribe();
        // The sender lives in `self`.
        let _ = view.changed().await;
    }
}

/// A client that connects when it is first used, and again whenever the connection was lost.
fn connect(address: &str, tls: Option<&ClientTlsConfig>, bearer: &Bearer) -> Result<Current> {
    let invalid = || format!("--coordinator: `{address}` is not an address such as http://host:7700");
    let mut endpoint = Endpoint::from_shared(address.to_owned())
        .or_code(code::BAD_VALUE, invalid)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        // A coordinator that vanished without a word is found by these, not by the operating system's minutes.
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true);
    if address.starts_with("https://") {
        let tls = tls.ok_or_else(|| code::BAD_VALUE.error("--ca: needed for an https:// coordinator"))?;
        endpoint = endpoint.tls_config(tls.clone()).or_code(code::BAD_VALUE, invalid)?;
    } else if !address.starts_with("http://") {
        return Err(code::BAD_VALUE.error(invalid()));
    }
    let client = WorkerServiceClient::with_interceptor(endpoint.connect_lazy(), bearer.clone());
    let client = client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(Current { address: address.to_owned(), client })
}

fn tls(args: &Args) -> Result<ClientTlsConfig> {
    let Some(path) = &args.ca else {
        return Err(code::BAD_VALUE.error("--ca: needed for an https:// coordinator"));
    };
    let pem = std::fs::read(path).or_code(code::IO, || format!("--ca: cannot read {}", path.display()))?;
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn of(list: &str) -> Result<Coordinators> {
        Coordinators::new(&Args::parse_from(["pleach-worker", "--coordinator", list]))
    }

    #[tokio::test]
    async fn they_are_tried_in_turn_and_a_redirect_leads_elsewhere() {
        let all = of("http://a:1, http://b:2,http://c:3").unwrap();
        let address = || all.current().address;
        assert_eq!(address(), "http://a:1");
        all.next();
        assert_eq!(address(), "http://b:2");
        all.turn_to("http://z:9");
        assert_eq!(address(), "http://z:9");
        all.turn_to("nonsense");
        assert_eq!(address(), "http://z:9");
        all.next();
        assert_eq!(address(), "http://c:3");
        all.next();
        assert_eq!(address(), "http://a:1");
    }

    #[tokio::test]
    async fn every_address_is_checked() {
        for bad in ["", "http://a:1,", "http://a:1,b:2", "https://a:1"] {
            let Err(error) = of(bad) else { panic!("{bad} was taken") };
            assert_eq!(error.code(), code::BAD_VALUE, "{bad}");
        }
    }
}

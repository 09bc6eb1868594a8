//! Who calls: the bearer token and the tenant.

use pleach_base::{Result, Tenant, code};
use pleach_proto::TENANT_KEY;
use pleach_proto::status::{not_leader, to_status};
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::actor::Seat;

/// The tenant of calls that name none.
pub(crate) const DEFAULT_TENANT: &str = "default";

/// Lets calls pass that carry the token, when there is one, and while this coordinator leads.
#[derive(Clone)]
pub(crate) struct Gate {
    token: Option<std::sync::Arc<str>>,
    seat: Option<Seat>,
}

impl Gate {
    pub(crate) fn new(token: Option<&str>) -> Self {
        Self { token: token.map(Into::into), seat: None }
    }

    /// Also refuses calls while another coordinator leads, and says which.
    pub(crate) fn leading(self, seat: Seat) -> Self {
        Self { seat: Some(seat), ..self }
    }

    fn admits(&self, metadata: &MetadataMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = metadata.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let given = given.strip_prefix("Bearer ").or_else(|| given.strip_prefix("bearer ")).unwrap_or_default();
        same(given.as_bytes(), token.as_bytes())
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if self.admits(request.metadata()) {
            return match self.seat.as_ref().and_then(Seat::elsewhere) {
                None => Ok(request),
                Some(leader) => Err(not_leader(leader.as_deref())),
            };
        }
        let error = code::TOKEN_REFUSED
            .error("authorization: the call carries no token, or not the coordinator's")
            .hint("set `PLEACH_TOKEN` to the coordinator's token");
        Err(to_status(&error))
    }
}

/// Compares in a time that depends on the length of `given` alone, so that answers tell nothing about the secret.
fn same(given: &[u8], secret: &[u8]) -> bool {
    let mut differs = u8::from(given.len() != secret.len());
    for (index, byte) in given.iter().enumerate() {
        let other = secret.get(index % secret.len().max(1)).copied().unwrap_or_default();
        differs |= std::hint::black_box(byte ^ other);
    }
    differs == 0
}

/// The tenant that the call names, if it names one.
pub(crate) fn named_tenant(metadata: &MetadataMap) -> Result<Option<Tenant>> {
    let Some(value) = metadata.get(TENANT_KEY) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| !text.is_empty() && !text.contains('/'));
    let text = text.ok_or_else(|| code::BAD_VALUE.error(format!("metadata {TENANT_KEY}: it is not a name")))?;
    Ok(Some(text.into()))
}

/// The tenant of a call.
pub(crate) fn tenant(metadata: &MetadataMap) -> Result<Tenant> {
    Ok(named_tenant(metadata)?.unwrap_or_else(|| DEFAULT_TENANT.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_passes() {
        let mut gate = Gate::new(Some("secret"));
        for (header, passes) in [
            ("Bearer secret", true),
            ("Bearer secre", false),
            ("Bearer secretsecret", false),
            ("Bearer ", false),
            ("secret", false),
            ("Bearer Secret", false),
        ] {
            let mut request = Request::new(());
            request.metadata_mut().insert("authorization", header.parse().unwrap());
            assert_eq!(gate.call(request).is_ok(), passes, "{header}");
        }
        assert!(gate.call(Request::new(())).is_err());
        assert!(Gate::new(None).call(Request::new(())).is_ok());
    }
}

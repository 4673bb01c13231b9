//! Google Cloud Storage.

use object_store::gcp::GoogleCloudStorageBuilder;

use super::answers::kept_for_good;
use super::lifecycle::BucketRules;
use super::opening::{Clause, Opening, clients};
use super::storage::{CloudStorage, VersionBy};
use crate::errors::{ErrorKind, Result};
use crate::objects::Abilities;
use crate::secrets::Redactor;
use crate::settings::RemoteSettings;

/// The service itself.
const ENDPOINT: &str = "https://storage.googleapis.com";
const MAX_PARTS: u32 = 10_000;
const MIN_PART_BYTES: u64 = 5 << 20;
/// Where `gcloud auth application-default login` writes.
const DEFAULT_CREDENTIALS: &str = ".config/gcloud/application_default_credentials.json";
/// Larger files are no credentials.
const MAX_CREDENTIALS_BYTES: u64 = 1 << 20;

/// The bucket `bucket`, below `prefix`. Makes no request.
///
/// # Errors
/// [`ErrorKind::Config`] where settings or credentials are malformed, or of a kind that cannot be read.
pub fn open(place: String, bucket: &str, prefix: &str, settings: &RemoteSettings) -> Result<CloudStorage> {
    let abilities = Abilities {
        swap: true,
        digests: false,
        whole_creates: true,
        sweeps: false,
        max_parts: MAX_PARTS,
        min_part_bytes: MIN_PART_BYTES,
    };
    let opening = Opening { place, prefix, settings, version_by: VersionBy::Generation, abilities };
    let configure = |redactor: &Redactor| configured(bucket, settings, redactor);
    let url = format!("{}/{bucket}", endpoint(settings).unwrap_or(ENDPOINT).trim_end_matches('/'));
    opening.open(configure, |builder, transport, settings| {
        let (clients, client) = clients(builder, transport, settings)?;
        let (transport, bucket) = (transport.clone(), bucket.to_owned());
        Ok((clients, BucketRules::Google { transport, url, bucket, credentials: client.credentials().clone() }))
    })
}

/// Another endpoint than Google's.
fn endpoint(settings: &RemoteSettings) -> Option<&str> {
    settings.endpoint.as_deref().or_else(|| settings.environment.get("STORAGE_EMULATOR_HOST"))
}

fn configured(
    bucket: &str,
    settings: &RemoteSettings,
    redactor: &Redactor,
) -> Result<(GoogleCloudStorageBuilder, String), Clause> {
    let environment = &settings.environment;
    let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket);
    if let Some(endpoint) = endpoint(settings) {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    for variable in ["GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN"] {
        if let Some(token) = environment.get(variable) {
            redactor.hide(token);
            return Ok((builder.with_bearer_token(token), kept_for_good(variable)));
        }
    }
    if let Some(key) = environment.get("GOOGLE_SERVICE_ACCOUNT_KEY") {
        hide_fields(key, redactor);
        return Ok((builder.with_service_account_key(key), kept_for_good("GOOGLE_SERVICE_ACCOUNT_KEY")));
    }
    let named = environment.first(&["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"]).map(Into::into);
    let found = environment.home(DEFAULT_CREDENTIALS).filter(|path| path.exists());
    let Some(path) = named.or(found) else {
        return Ok((builder, "the credentials are those of the machine's metadata service".into()));
    };
    let fail = |what: String| (ErrorKind::Config, format!("the credentials in {}: {what}", path.display()));
    let length = std::fs::metadata(&path).map_err(|e| fail(e.to_string()))?.len();
    if length > MAX_CREDENTIALS_BYTES {
        return Err(fail(format!("{length} bytes are no key file")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
    let kind = hide_fields(&text, redactor).ok_or_else(|| fail("they are not JSON with a \"type\"".into()))?;
    match kind.as_str() {
        "service_account" | "authorized_user" => {
            let source = format!("the credentials are those in {}, as they were at the start", path.display());
            Ok((builder.with_application_credentials(path.to_string_lossy()), source))
        }
        other => Err(fail(format!(
            "their type {other:?} cannot be read; use a service account's key, gcloud auth application-default login, \
             a machine with a service account, or GOOGLE_OAUTH_ACCESS_TOKEN=$(gcloud auth print-access-token)"
        ))),
    }
}

/// Hides every text of a key file that is a secret; its type.
fn hide_fields(text: &str, redactor: &Redactor) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    for field in ["private_key", "private_key_id", "client_secret", "refresh_token"] {
        if let Some(secret) = value.get(field).and_then(|secret| secret.as_str()) {
            redactor.hide(secret);
            secret.lines().for_each(|line| redactor.hide(line));
        }
    }
    Some(value.get("type")?.as_str()?.to_owned())
}

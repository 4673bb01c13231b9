//! S3, and what speaks like it: R2, MinIO, Backblaze.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};

use super::answers::kept_for_good;
use super::lifecycle::{BucketAddress, BucketRules};
use super::opening::{Clause, ClientBuilder, Opening};
use super::profile;
use super::profile_keys::ProfileKeys;
use super::storage::{CheaperDigest, Clients, CloudStorage, VersionBy};
use crate::errors::{ErrorKind, Result};
use crate::objects::Abilities;
use crate::secrets::Redactor;
use crate::settings::{Digest, RemoteSettings, Retries};

/// S3 takes so many parts of an upload, of at least so many bytes.
const MAX_PARTS: u32 = 10_000;
const MIN_PART_BYTES: u64 = 5 << 20;
const USUAL_REGION: &str = "us-east-1";
/// Other services that are given credentials by these variables, which must not be taken for those of the store.
const PREFIX: [&str; 1] = ["AWS_"];

/// The bucket `bucket`, below `prefix`. Makes no request.
///
/// # Errors
/// [`ErrorKind::Config`] where settings or credentials are malformed, or of a kind that cannot be read.
pub fn open(place: String, bucket: &str, prefix: &str, settings: &RemoteSettings) -> Result<CloudStorage> {
    let abilities = Abilities {
        swap: true,
        digests: true,
        whole_creates: true,
        sweeps: false,
        max_parts: MAX_PARTS,
        min_part_bytes: MIN_PART_BYTES,
    };
    let opening = Opening { place, prefix, settings, version_by: VersionBy::ETag, abilities };
    let configure = |redactor: &Redactor| configured(bucket, settings, redactor);
    let address = address(bucket, settings);
    opening.open(configure, |builder, transport, settings| {
        let control = builder.clone().client(transport.clone(), settings.control_retries)?;
        // Fetched once for all.
        let builder = builder.with_credentials(Arc::clone(control.credentials()));
        let once = Retries { max: 0, ..settings.control_retries };
        let cheaper = match digest(settings) {
            Some(_) => None,
            None => {
                let builder = crc64(builder.clone());
                let data = Arc::new(builder.clone().client(transport.clone(), settings.data_retries)?);
                let trial = Arc::new(builder.clone().client(transport.clone(), once)?);
                Some(CheaperDigest::new(data, trial, Arc::new(builder.client(transport.tampering(), once)?)))
            }
        };
        let tampering = Arc::new(builder.clone().client(transport.tampering(), once)?);
        let data = Arc::new(builder.client(transport.clone(), settings.data_retries)?);
        let credentials = Arc::clone(control.credentials());
        let rules = BucketRules::S3 { transport: transport.clone(), bucket: address, credentials };
        Ok((Clients { control: Arc::new(control), data, tampering, cheaper }, rules))
    })
}

fn configured(
    bucket: &str,
    settings: &RemoteSettings,
    redactor: &Redactor,
) -> Result<(AmazonS3Builder, String), Clause> {
    let environment = &settings.environment;
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_disable_bulk_delete(true);
    for (name, value) in environment.beginning(&PREFIX) {
        if ["SECRET", "TOKEN", "KEY"].iter().any(|part| name.contains(part)) && !name.ends_with("_FILE") {
            redactor.hide(value);
        }
        match name.to_ascii_lowercase().parse() {
            Ok(AmazonS3ConfigKey::Client(_) | AmazonS3ConfigKey::Bucket) | Err(_) => {}
            Ok(key) => builder = builder.with_config(key, value),
        }
    }
    let mut source = source_of(settings);
    if source.is_none()
        && let Some(keys) = ProfileKeys::of(environment, redactor).map_err(|what| (ErrorKind::Config, what))?
    {
        source = Some(keys.source());
        builder = builder.with_credentials(Arc::new(keys));
    }
    let source = source.unwrap_or_else(|| "the credentials are those of the machine's metadata service".into());
    if let Some(region) = region(settings) {
        builder = builder.with_region(region);
    }
    let endpoint = endpoint(settings);
    if digest(settings) == Some(Digest::Crc64Nvme) {
        builder = crc64(builder);
    }
    let is_path_style = is_path_style(bucket, settings);
    match endpoint {
        Some(endpoint) if is_path_style => builder = builder.with_endpoint(endpoint.trim_end_matches('/')),
        Some(endpoint) => builder = builder.with_endpoint(before_host(endpoint, bucket)?),
        None => {}
    }
    Ok((builder.with_virtual_hosted_style_request(!is_path_style), source))
}

/// Another endpoint than Amazon's.
fn endpoint(settings: &RemoteSettings) -> Option<&str> {
    let named = || settings.environment.first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
    settings.endpoint.as_deref().or_else(named)
}

/// Whether the bucket is named in the path: a certificate for *.host does not cover a bucket's name with dots.
fn is_path_style(bucket: &str, settings: &RemoteSettings) -> bool {
    settings.path_style.unwrap_or(endpoint(settings).is_some()) || bucket.contains('.')
}

/// Where the bucket itself is reached, for what the client library does not ask.
fn address(bucket: &str, settings: &RemoteSettings) -> BucketAddress {
    let region = region(settings).unwrap_or_else(|| USUAL_REGION.to_owned());
    let own = format!("https://s3.{region}.amazonaws.com");
    let host = endpoint(settings).unwrap_or(&own).trim_end_matches('/');
    let url = match before_host(host, bucket) {
        Ok(url) if !is_path_style(bucket, settings) => format!("{url}/"),
        _ => format!("{host}/{bucket}"),
    };
    let is_public = settings.environment.first(&["AWS_SKIP_SIGNATURE"]).is_some_and(|skips| skips != "false");
    BucketAddress { name: bucket.to_owned(), url, region, is_public }
}

/// What protects a body; none: the signature, until the store was seen to compare the cheaper one.
fn digest(settings: &RemoteSettings) -> Option<Digest> {
    let is_aws = endpoint(settings).is_none_or(|endpoint| endpoint.contains(".amazonaws.com"));
    settings.digest.or(is_aws.then_some(Digest::Crc64Nvme))
}

fn crc64(builder: AmazonS3Builder) -> AmazonS3Builder {
    builder.with_unsigned_payload(true).with_checksum_algorithm(Checksum::CRC64NVME)
}

/// `https://host` as `https://bucket.host`.
fn before_host(endpoint: &str, bucket: &str) -> Result<String, Clause> {
    let bad = || (ErrorKind::Config, "the endpoint has no scheme; write https://host".to_owned());
    let (scheme, host) = endpoint.trim_end_matches('/').split_once("://").ok_or_else(bad)?;
    Ok(format!("{scheme}://{bucket}.{host}"))
}

/// Where the credentials come from, if the environment itself has them or says where they are had without the user's
/// files.
fn source_of(settings: &RemoteSettings) -> Option<String> {
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        if settings.environment.get(variable).is_some() {
            return Some(kept_for_good(variable));
        }
    }
    let others = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    ];
    let found = others.into_iter().find(|variable| settings.environment.get(variable).is_some());
    found.map(|variable| format!("the credentials are had by {variable}"))
}

fn region(settings: &RemoteSettings) -> Option<String> {
    let set = settings.region.as_deref().or_else(|| settings.environment.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
    set.map(str::to_owned).or_else(|| profile::region(&settings.environment))
}

//! How a remote is reached: endpoint, region, certificates, patience. Each is set in the job file, or else by the
//! variables that the store's own tools read.

use std::path::PathBuf;
use std::time::Duration;

use crate::secrets::Environment;

/// How a remote is reached.
#[derive(Clone, Debug)]
pub struct RemoteSettings {
    /// Another service with the same protocol: `https://minio.example:9000`.
    pub endpoint: Option<String>,
    /// The bucket's region (s3).
    pub region: Option<String>,
    /// Whether the bucket stands in the URL's path (s3, true) or before the host (false).
    pub path_style: Option<bool>,
    /// Certificates (PEM) that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// What is run as `ssh` (sftp): a program and its first arguments.
    pub ssh: Vec<String>,
    /// A request is given up when no byte has moved in either direction for so long.
    pub stall: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How often, and for how long, a request for data is made again: parts, ranges, lists.
    pub data_retries: Retries,
    /// The same for small objects under a condition, where the caller would rather look again itself.
    pub control_retries: Retries,
    /// What protects a body on its way (s3); none: CRC-64 at S3 itself, and elsewhere where the store was seen to
    /// compare it; else SHA-256.
    pub digest: Option<Digest>,
    /// Where credentials come from.
    pub environment: Environment,
}

/// The digest of a body that the store is to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// A part of the signature: every service knows it, at twice the processor time.
    Sha256,
    /// A header of its own; the body is not signed. S3 itself, and new releases of others.
    Crc64Nvme,
}

/// How persistent a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    pub max: usize,
    pub within: Duration,
    /// The first wait; each further one is twice as long, with jitter, up to 15 s.
    pub first_wait: Duration,
}

impl RemoteSettings {
    /// The settings of this process's environment.
    pub fn of_process() -> RemoteSettings {
        RemoteSettings::of(Environment::of_process())
    }

    /// The settings of `environment`.
    pub fn of(environment: Environment) -> RemoteSettings {
        RemoteSettings {
            endpoint: None,
            region: None,
            path_style: None,
            ca_file: environment.first(&["CKPTD_CA_FILE", "AWS_CA_BUNDLE"]).map(PathBuf::from),
            ssh: vec!["ssh".into()],
            stall: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            data_retries: Retries { max: 10, within: Duration::from_secs(180), first_wait: Duration::from_millis(100) },
            control_retries: Retries {
                max: 3,
                within: Duration::from_secs(15),
                first_wait: Duration::from_millis(100),
            },
            digest: environment.get("CKPTD_S3_DIGEST").and_then(digest_named),
            environment,
        }
    }
}

fn digest_named(name: &str) -> Option<Digest> {
    match name {
        "sha256" => Some(Digest::Sha256),
        "crc64nvme" => Some(Digest::Crc64Nvme),
        _ => None,
    }
}

//! The stores that the tests run against, each below a prefix of its own.
#![allow(dead_code)] // each test program uses a part

use std::sync::Arc;
use std::time::Duration;

use ckptd_remote::secrets::Environment;
use ckptd_remote::settings::{Digest, Retries};
use ckptd_remote::{ObjectName, ObjectStorage, RemoteSettings, open};
use ckptd_testkit::servers::{ObjectServer, Program};

/// Keys of the emulated Azure account, as every emulator has them.
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

pub fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// Patience for tests: soon told.
pub fn settings(environment: Environment) -> RemoteSettings {
    let first_wait = Duration::from_millis(10);
    RemoteSettings {
        stall: Duration::from_secs(10),
        data_retries: Retries { max: 6, within: Duration::from_secs(20), first_wait },
        control_retries: Retries { max: 3, within: Duration::from_secs(10), first_wait },
        ..RemoteSettings::of(environment)
    }
}

pub fn s3_settings(endpoint: &str) -> RemoteSettings {
    let environment = Environment::of([
        ("AWS_ACCESS_KEY_ID", "AKIAPLANTEDKEYID"),
        ("AWS_SECRET_ACCESS_KEY", "planted/secret/of/s3"),
        ("AWS_SESSION_TOKEN", "planted-session-token"),
    ]);
    let settings = settings(environment);
    RemoteSettings { endpoint: Some(endpoint.to_owned()), digest: Some(Digest::Crc64Nvme), ..settings }
}

pub async fn s3(endpoint: &str, prefix: &str) -> Arc<dyn ObjectStorage> {
    open(&format!("s3://bucket/{prefix}").parse().unwrap(), &s3_settings(endpoint)).await.unwrap()
}

pub fn google_settings(endpoint: &str) -> RemoteSettings {
    let environment = Environment::of([("GOOGLE_OAUTH_ACCESS_TOKEN", "planted-token-of-gs")]);
    RemoteSettings { endpoint: Some(endpoint.to_owned()), ..settings(environment) }
}

pub async fn google(server: &ObjectServer, prefix: &str) -> Arc<dyn ObjectStorage> {
    open(&format!("gs://bucket/{prefix}").parse().unwrap(), &google_settings(&server.url())).await.unwrap()
}

pub fn azure_settings(endpoint: &str) -> RemoteSettings {
    let environment =
        Environment::of([("AZURE_STORAGE_ACCOUNT", "devstoreaccount1"), ("AZURE_STORAGE_KEY", AZURITE_KEY)]);
    RemoteSettings { endpoint: Some(format!("{endpoint}/devstoreaccount1")), ..settings(environment) }
}

pub async fn azure(server: &Program, prefix: &str) -> Arc<dyn ObjectStorage> {
    server.make_container("bucket", AZURITE_KEY);
    open(&format!("az://bucket/{prefix}").parse().unwrap(), &azure_settings(&server.url())).await.unwrap()
}

pub async fn moto(server: &Program) -> Arc<dyn ObjectStorage> {
    server.make_bucket("bucket");
    s3(&server.url(), "a/job").await
}

pub async fn folder(path: &std::path::Path) -> Arc<dyn ObjectStorage> {
    let url = format!("file://{}", path.display()).parse().unwrap();
    open(&url, &settings(Environment::default())).await.unwrap()
}

/// A folder behind OpenSSH's server of files, on pipes instead of a network.
pub async fn sftp(server: &std::path::Path, path: &std::path::Path) -> Arc<dyn ObjectStorage> {
    // In the place of ssh: whatever host is asked for, its server of files answers.
    let script = r#"exec "$0""#;
    let ssh = ["sh", "-c", script, server.to_str().unwrap()].map(str::to_owned).to_vec();
    let settings = RemoteSettings { ssh, ..settings(Environment::default()) };
    open(&format!("sftp://me@host{}", path.display()).parse().unwrap(), &settings).await.unwrap()
}

//! No credential is seen: planted secrets are looked for in whatever a store shows.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod stores;

use std::sync::Arc;

use bytes::Bytes;
use ckptd_remote::secrets::Environment;
use ckptd_remote::{ErrorKind, ObjectStorage, ObjectVersion, RemoteSettings, RemoteUrl, open};
use ckptd_testkit::servers::{Fault, FaultProxy, ObjectServer, Rule};
use stores::{name, settings};

const PLANTED: &str = "planted";

fn assert_clean(what: &str, text: &str) {
    assert!(!text.to_lowercase().contains(PLANTED), "{what}: {text}");
}

/// Every error of a store whose server quotes what it was sent.
async fn errors(storage: &Arc<dyn ObjectStorage>) -> Vec<String> {
    let (at, body) = (name("lease.json"), Bytes::from_static(b"x"));
    let version = ObjectVersion("1".into());
    let mut errors = vec![
        storage.create(&at, body.clone()).await.map(drop),
        storage.swap(&at, &version, body.clone()).await.map(drop),
        storage.put(&at, body.clone()).await.map(drop),
        storage.get(&at, 10).await.map(drop),
        storage.get_range(&at, 0..1).await.map(drop),
        storage.head(&at).await.map(drop),
        storage.list("").await.map(drop),
        storage.delete(&at).await,
        storage.upload_part(&at, &ckptd_remote::UploadId("u".into()), 0, 1, body).await.map(drop),
    ];
    errors.push(storage.complete_upload(&at, &ckptd_remote::UploadId("u".into()), &[]).await.map(drop));
    let errors = errors.into_iter().filter_map(Result::err);
    errors.flat_map(|e| [e.to_string(), format!("{e:?}"), format!("{e:#?}")]).collect()
}

async fn shows_nothing(url: &str, settings: &RemoteSettings) {
    let url: RemoteUrl = url.parse().unwrap();
    let storage = open(&url, settings).await.unwrap();
    let shown = [format!("{storage:?} {settings:?} {url:?} {url}"), storage.place().to_owned()];
    let errors = errors(&storage).await;
    assert!(errors.len() >= 20, "{url}: {errors:?}");
    for text in shown.iter().chain(&errors) {
        assert_clean(&url.to_string(), text);
    }
    let place = url.to_string();
    assert!(errors.iter().all(|error| error.contains(&place)), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_are_in_no_text_of_any_store() {
    let server = ObjectServer::start();
    let proxy = FaultProxy::start(&server.url());
    let quotes = |quoting: &'static str| proxy.set([Rule::always("", "", Fault::Status(403, quoting))]);
    let endpoint = Some(proxy.url());
    quotes(
        "<Error><Code>AccessDenied</Code>\
         <Message>planted/secret/of/s3 AKIAPLANTEDKEYID planted-session-token</Message></Error>",
    );
    shows_nothing("s3://bucket/job", &stores::s3_settings(&proxy.url())).await;
    quotes("planted-token-of-gs");
    shows_nothing("gs://bucket/job", &stores::google_settings(&proxy.url())).await;
    let sas = "sv=2024-01-01&sp=rw&sig=planted%2Fsig%2Blong";
    let key = "cGxhbnRlZC1rZXktb2YtYXp1cmU=";
    let own =
        [("AZURE_STORAGE_SAS_TOKEN", sas, "planted%2Fsig%2Blong planted/sig+long"), ("AZURE_STORAGE_KEY", key, key)];
    for (variable, secret, quoting) in own {
        quotes(quoting);
        let credentials = (variable, secret);
        let environment = Environment::of([("AZURE_STORAGE_ACCOUNT", "account"), credentials]);
        let settings = RemoteSettings { endpoint: endpoint.clone(), ..settings(environment) };
        shows_nothing("az://bucket/job", &settings).await;
        // Nothing listens there: the client itself tells what it tried.
        let settings = RemoteSettings { endpoint: Some("http://127.0.0.1:9".into()), ..settings };
        shows_nothing("az://bucket/job", &settings).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_are_in_no_refusal_of_settings() {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key.json");
    let key = r#"{"type": "service_account", "private_key": "planted-private-key", "client_email": "me@x",
                  "private_key_id": "planted-key-id"}"#;
    let external = r#"{"type": "external_account", "client_secret": "planted-client-secret"}"#;
    let at = key_file.to_str().unwrap();
    for text in [key, external, "planted: not json"] {
        std::fs::write(&key_file, text).unwrap();
        let environment = Environment::of([("GOOGLE_APPLICATION_CREDENTIALS", at)]);
        let refused = open(&"gs://bucket/job".parse().unwrap(), &settings(environment)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Config, "{refused}");
        assert_clean("gs", &format!("{refused} {refused:?}"));
    }
    for variables in [
        vec![("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;AccountKey=planted==")],
        vec![("AZURE_STORAGE_ACCOUNT", "a"), ("AZURE_STORAGE_KEY", "planted: not base64")],
    ] {
        let refused = open(&"az://c/job".parse().unwrap(), &settings(Environment::of(variables))).await.unwrap_err();
        assert_clean("az", &format!("{refused} {refused:?}"));
    }
    let half = Environment::of([("AWS_SECRET_ACCESS_KEY", "planted/secret")]);
    let refused = open(&"s3://bucket/job".parse().unwrap(), &settings(half)).await.unwrap_err();
    assert_clean("s3", &format!("{refused} {refused:?}"));
}

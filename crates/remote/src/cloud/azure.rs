//! Azure Blob Storage.

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};

use super::answers::kept_for_good;
use super::lifecycle::BucketRules;
use super::opening::{Clause, Opening, clients};
use super::storage::{CloudStorage, VersionBy};
use crate::errors::{ErrorKind, Result};
use crate::objects::Abilities;
use crate::secrets::Redactor;
use crate::settings::RemoteSettings;

const MAX_PARTS: u32 = 50_000;
/// Azure's command line calls them so.
const ALIASES: [(&str, &str); 3] = [
    ("AZURE_STORAGE_ACCOUNT", "azure_storage_account_name"),
    ("AZURE_STORAGE_KEY", "azure_storage_account_key"),
    ("AZURE_STORAGE_SAS_TOKEN", "azure_storage_sas_token"),
];

/// The container `container`, below `prefix`. Makes no request.
///
/// # Errors
/// [`ErrorKind::Config`] where settings or credentials are malformed, or of a kind that cannot be read.
pub fn open(place: String, container: &str, prefix: &str, settings: &RemoteSettings) -> Result<CloudStorage> {
    let abilities = Abilities {
        swap: true,
        digests: false,
        whole_creates: true,
        sweeps: false,
        max_parts: MAX_PARTS,
        min_part_bytes: 1,
    };
    let opening = Opening { place, prefix, settings, version_by: VersionBy::ETag, abilities };
    let configure = |redactor: &Redactor| configured(container, settings, redactor);
    opening.open(configure, |builder, transport, settings| {
        let (clients, _) = clients(builder, transport, settings)?;
        Ok((clients, BucketRules::Azure))
    })
}

fn configured(
    container: &str,
    settings: &RemoteSettings,
    redactor: &Redactor,
) -> Result<(MicrosoftAzureBuilder, String), Clause> {
    let environment = &settings.environment;
    if environment.get("AZURE_STORAGE_CONNECTION_STRING").is_some()
        && environment.first(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]).is_none()
    {
        let what = "AZURE_STORAGE_CONNECTION_STRING cannot be read; set AZURE_STORAGE_ACCOUNT_NAME and \
                    AZURE_STORAGE_ACCOUNT_KEY to its AccountName and AccountKey";
        return Err((ErrorKind::Config, what.into()));
    }
    let mut builder = MicrosoftAzureBuilder::new().with_container_name(container);
    for (name, value) in environment.beginning(&["AZURE_", "IDENTITY_", "MSI_"]) {
        if ["SECRET", "TOKEN", "KEY", "SAS", "CONNECTION", "IDENTITY_HEADER"].iter().any(|part| name.contains(part)) {
            redactor.hide(value);
            hide_signature(value, redactor);
        }
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, key)| (*key).to_owned());
        match alias.unwrap_or_else(|| name.to_ascii_lowercase()).parse() {
            Ok(AzureConfigKey::Client(_) | AzureConfigKey::ContainerName) | Err(_) => {}
            Ok(key) => builder = builder.with_config(key, value),
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    Ok((builder, source_of(settings)))
}

/// Where the credentials come from, and how there are new ones.
fn source_of(settings: &RemoteSettings) -> String {
    let kept = [
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_CLIENT_SECRET",
    ];
    let kept = kept.into_iter().find(|variable| settings.environment.get(variable).is_some());
    let others = || match settings.environment.get("AZURE_FEDERATED_TOKEN_FILE") {
        Some(_) => "the credentials are had by AZURE_FEDERATED_TOKEN_FILE".to_owned(),
        None => "the credentials are those of the machine's managed identity".to_owned(),
    };
    kept.map_or_else(others, kept_for_good)
}

/// The signature of a shared access token, alone.
fn hide_signature(token: &str, redactor: &Redactor) {
    if let Some((_, signature)) = token.split_once("sig=") {
        let signature = signature.split('&').next().unwrap_or_default();
        redactor.hide(signature);
        redactor.hide(&percent_encoding::percent_decode_str(signature).decode_utf8_lossy());
    }
}

//! The keys of a profile in the user's files, read again whenever those files have changed.
//!
//! Invariant: whatever is read is hidden before it is used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use super::profile::{self, Profile};
use crate::secrets::{Environment, Redactor};

/// When a file was written, and its length; none where it is not there.
type Stamp = Option<(SystemTime, u64)>;

/// Keys that may be replaced while they are in use: those of temporary credentials are, every few hours.
pub struct ProfileKeys {
    environment: Environment,
    redactor: Redactor,
    name: String,
    files: [PathBuf; 2],
    now: Mutex<([Stamp; 2], Arc<AwsCredential>)>,
}

impl std::fmt::Debug for ProfileKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProfileKeys({:?})", self.name)
    }
}

impl ProfileKeys {
    /// Those of the chosen profile; none where it has none.
    ///
    /// # Errors
    /// What cannot be used, as a clause with what to do instead.
    pub fn of(environment: &Environment, redactor: &Redactor) -> Result<Option<ProfileKeys>, String> {
        let files = profile::files(environment);
        let stamps = stamps(&files);
        let Some(keys) = profile::read(environment)? else { return Ok(None) };
        let now = Mutex::new((stamps, hidden(keys, redactor)));
        let (environment, redactor, name) = (environment.clone(), redactor.clone(), profile::chosen(environment));
        Ok(Some(ProfileKeys { environment, redactor, name, files, now }))
    }

    /// Where the keys come from, and how there are new ones, as a clause.
    pub fn source(&self) -> String {
        let (name, file) = (&self.name, self.files[0].display());
        format!("the credentials are those of the AWS profile {name:?}; new ones in {file} are taken at once")
    }
}

#[async_trait::async_trait]
impl CredentialProvider for ProfileKeys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let stamps = stamps(&self.files);
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.0 != stamps {
            // A file that is being written is looked at again.
            if let Ok(Some(keys)) = profile::read(&self.environment) {
                *now = (stamps, hidden(keys, &self.redactor));
            }
        }
        Ok(Arc::clone(&now.1))
    }
}

fn hidden(keys: Profile, redactor: &Redactor) -> Arc<AwsCredential> {
    redactor.hide(&keys.key_id);
    redactor.hide(&keys.secret_key);
    keys.token.iter().for_each(|token| redactor.hide(token));
    Arc::new(AwsCredential { key_id: keys.key_id, secret_key: keys.secret_key, token: keys.token })
}

fn stamps(files: &[PathBuf; 2]) -> [Stamp; 2] {
    let stamp = |path: &Path| {
        let attributes = std::fs::metadata(path).ok()?;
        Some((attributes.modified().ok()?, attributes.len()))
    };
    [stamp(&files[0]), stamp(&files[1])]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn keys_that_are_written_anew_are_taken_and_hidden() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let write = |secret: &str| {
            let text = format!("[default]\naws_access_key_id = one\naws_secret_access_key = {secret}\n");
            std::fs::write(home.path().join(".aws/credentials"), text).unwrap();
        };
        write("the first secret");
        let redactor = Redactor::default();
        let environment = Environment::of([("HOME", home.path().to_str().unwrap())]);
        let keys = ProfileKeys::of(&environment, &redactor).unwrap().unwrap();
        assert_eq!(keys.get_credential().await.unwrap().secret_key, "the first secret");
        write("another secret, a longer one");
        assert_eq!(keys.get_credential().await.unwrap().secret_key, "another secret, a longer one");
        assert_eq!(redactor.clean("the first secret, another secret, a longer one"), "[hidden], [hidden]");
        // What cannot be read leaves things as they are.
        std::fs::write(home.path().join(".aws/credentials"), "[default]\naws_acc").unwrap();
        assert_eq!(keys.get_credential().await.unwrap().secret_key, "another secret, a longer one");
        assert!(!format!("{keys:?}").contains("secret"));
    }
}

//! From an address and its settings to a store.

use std::sync::Arc;

use crate::address::RemoteUrl;
use crate::cloud;
use crate::errors::Result;
use crate::folder;
use crate::objects::ObjectStorage;
use crate::settings::RemoteSettings;
use crate::sftp;

/// The store at `url`. Makes no request to a bucket; a folder is looked at.
///
/// # Errors
/// [`crate::ErrorKind::Config`] where settings or credentials are malformed or of a kind that cannot be read.
pub async fn open(url: &RemoteUrl, settings: &RemoteSettings) -> Result<Arc<dyn ObjectStorage>> {
    let place = url.to_string();
    Ok(match url {
        RemoteUrl::S3 { bucket, prefix } => Arc::new(cloud::open_s3(place, bucket, prefix, settings)?),
        RemoteUrl::Google { bucket, prefix } => Arc::new(cloud::open_google(place, bucket, prefix, settings)?),
        RemoteUrl::Azure { container, prefix } => Arc::new(cloud::open_azure(place, container, prefix, settings)?),
        RemoteUrl::Folder { path } => Arc::new(folder::open(place, path).await?),
        RemoteUrl::Sftp { user, host, port, path } => {
            Arc::new(sftp::open(place, user.clone(), host.clone(), *port, path, settings).await?)
        }
    })
}

//! The address of a remote: which store, which bucket or host, and the prefix below which all its objects are.
//!
//! Invariant: a [`RemoteUrl`] holds no credential. Deliberately not here: where credentials come from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

/// A checked address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteUrl {
    /// `s3://bucket/prefix`
    S3 { bucket: String, prefix: String },
    /// `gs://bucket/prefix`
    Google { bucket: String, prefix: String },
    /// `az://container/prefix`
    Azure { container: String, prefix: String },
    /// `sftp://user@host:port/absolute/path`, or `sftp://host/~/path` below the user's home.
    Sftp { user: Option<String>, host: String, port: Option<u16>, path: String },
    /// `file:///absolute/path`
    Folder { path: PathBuf },
}

/// Why a text is no address of a remote. It never quotes what may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadUrl(String);

const FORMS: &str =
    "write s3://bucket/job, gs://bucket/job, az://container/job, sftp://user@host/folder or file:///folder";

impl FromStr for RemoteUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<RemoteUrl, BadUrl> {
        let scheme = text
            .split_once("://")
            .map(|(scheme, _)| scheme)
            .ok_or_else(|| BadUrl(format!("the remote's URL has no scheme; {FORMS}")))?;
        if !["s3", "gs", "az", "sftp", "file"].contains(&scheme) {
            let shown: String = scheme.chars().filter(|c| c.is_ascii_alphanumeric()).take(20).collect();
            return Err(BadUrl(format!("no remote is reached by {shown}://; {FORMS}")));
        }
        let url =
            Url::parse(text).map_err(|e| BadUrl(format!("the remote's {scheme}:// URL is malformed: {e}; {FORMS}")))?;
        refuse_credentials(&url, scheme)?;
        match scheme {
            "sftp" => sftp(&url),
            "file" => folder(&url, text),
            _ => bucket(&url, scheme),
        }
    }
}

/// Where credentials belong, by scheme.
fn place_of_credentials(scheme: &str) -> &'static str {
    match scheme {
        "s3" => "put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or into ~/.aws/credentials",
        "gs" => "name a key file in GOOGLE_APPLICATION_CREDENTIALS",
        "az" => "put them into AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
        _ => "use a key in ssh-agent or ~/.ssh",
    }
}

fn refuse_credentials(url: &Url, scheme: &str) -> Result<(), BadUrl> {
    let has_user = !url.username().is_empty() && scheme != "sftp";
    if has_user || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        let what =
            if url.query().is_some() || url.fragment().is_some() { "a query or a fragment" } else { "credentials" };
        let place = place_of_credentials(scheme);
        return Err(BadUrl(format!("the remote's {scheme}:// URL has {what} in it, which would be logged; {place}")));
    }
    Ok(())
}

fn bucket(url: &Url, scheme: &str) -> Result<RemoteUrl, BadUrl> {
    let bucket = url.host_str().unwrap_or_default().to_owned();
    if bucket.is_empty() || url.port().is_some() {
        return Err(BadUrl(format!("the remote's {scheme}:// URL names no bucket; {FORMS}")));
    }
    let prefix = url.path().trim_matches('/').to_owned();
    let is_plain = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.=".contains(&b))
            && !part.starts_with('.')
    };
    if !prefix.is_empty() && !prefix.split('/').all(is_plain) {
        return Err(BadUrl(format!(
            "the prefix {prefix:?} of the remote's URL may only have letters, digits, '-', '_', '.' and '=' between \
             its slashes"
        )));
    }
    Ok(match scheme {
        "s3" => RemoteUrl::S3 { bucket, prefix },
        "gs" => RemoteUrl::Google { bucket, prefix },
        _ => RemoteUrl::Azure { container: bucket, prefix },
    })
}

fn sftp(url: &Url) -> Result<RemoteUrl, BadUrl> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
    let host = url.host_str().unwrap_or_default().to_owned();
    let user = (!url.username().is_empty()).then(|| decode(url.username()).unwrap_or_default());
    // What ssh would take for an option, or for another program's command, is no name.
    let is_name = |text: &str| {
        !text.is_empty()
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b))
    };
    if !is_name(&host) || user.as_deref().is_some_and(|user| !is_name(user)) {
        return Err(BadUrl(format!("the remote's sftp:// URL names no host, or not a plain one; {FORMS}")));
    }
    let path = decode(url.path()).map(|path| path.trim_end_matches('/').to_owned());
    let Some(path) = path.filter(|path| path.len() > 1 && !path.contains('\0')) else {
        return Err(BadUrl(format!("the remote's sftp:// URL names no folder; {FORMS}")));
    };
    let path = path.strip_prefix("/~/").map_or(path.clone(), str::to_owned);
    Ok(RemoteUrl::Sftp { user, host, port: url.port(), path })
}

fn folder(url: &Url, text: &str) -> Result<RemoteUrl, BadUrl> {
    match url.to_file_path() {
        Ok(path) if path != Path::new("/") => Ok(RemoteUrl::Folder { path }),
        _ => Err(BadUrl(format!(
            "{text} is no folder of this machine; write file:// and an absolute path: file:///mnt/drive/job"
        ))),
    }
}

impl RemoteUrl {
    /// The folder above, and the last part of the path; none where there is no such part.
    pub fn split_last(&self) -> Option<(RemoteUrl, &str)> {
        let cut = |prefix: &'_ str| prefix.rsplit_once('/').map_or_else(String::new, |(above, _)| above.to_owned());
        let last = |path: &'_ str| path.rsplit('/').next().filter(|last| !last.is_empty()).map(str::len);
        match self {
            RemoteUrl::S3 { bucket, prefix } => {
                let above = RemoteUrl::S3 { bucket: bucket.clone(), prefix: cut(prefix) };
                Some((above, &prefix[prefix.len() - last(prefix)?..]))
            }
            RemoteUrl::Google { bucket, prefix } => {
                let above = RemoteUrl::Google { bucket: bucket.clone(), prefix: cut(prefix) };
                Some((above, &prefix[prefix.len() - last(prefix)?..]))
            }
            RemoteUrl::Azure { container, prefix } => {
                let above = RemoteUrl::Azure { container: container.clone(), prefix: cut(prefix) };
                Some((above, &prefix[prefix.len() - last(prefix)?..]))
            }
            RemoteUrl::Folder { path } => {
                Some((RemoteUrl::Folder { path: path.parent()?.to_owned() }, path.file_name()?.to_str()?))
            }
            RemoteUrl::Sftp { user, host, port, path } => {
                let folder = match path.rsplit_once('/') {
                    Some(("", _)) => "/",
                    Some((folder, _)) => folder,
                    None => ".",
                };
                let (user, host) = (user.clone(), host.clone());
                let above = RemoteUrl::Sftp { user, host, port: *port, path: folder.to_owned() };
                Some((above, &path[path.len() - last(path)?..]))
            }
        }
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_bucket = |f: &mut fmt::Formatter<'_>, scheme: &str, bucket: &str, prefix: &str| {
            write!(f, "{scheme}://{bucket}{}{prefix}", if prefix.is_empty() { "" } else { "/" })
        };
        match self {
            RemoteUrl::S3 { bucket, prefix } => in_bucket(f, "s3", bucket, prefix),
            RemoteUrl::Google { bucket, prefix } => in_bucket(f, "gs", bucket, prefix),
            RemoteUrl::Azure { container, prefix } => in_bucket(f, "az", container, prefix),
            RemoteUrl::Folder { path } => write!(f, "file://{}", path.display()),
            RemoteUrl::Sftp { user, host, port, path } => {
                let user = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
                let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                let root = if path.starts_with('/') { "" } else { "/~/" };
                write!(f, "sftp://{user}{host}{port}{root}{path}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_form_is_shown_as_it_is_written() {
        for text in [
            "s3://bucket/runs/a-1",
            "s3://bucket",
            "gs://my_bucket/job",
            "az://container/job.2",
            "file:///mnt/My Drive/job",
            "sftp://me@host:2222/srv/ckptd",
            "sftp://host/~/ckptd",
        ] {
            assert_eq!(text.parse::<RemoteUrl>().unwrap().to_string(), text);
        }
        let home = RemoteUrl::Sftp { user: None, host: "host".into(), port: None, path: "ckptd/job".into() };
        assert_eq!("sftp://host/~/ckptd/job/".parse::<RemoteUrl>().unwrap(), home);
    }

    #[test]
    fn the_last_part_is_a_name_in_the_folder_above() {
        for (text, above, last) in [
            ("s3://bucket/runs/a.tar.zst", "s3://bucket/runs", "a.tar.zst"),
            ("gs://bucket/a.zip", "gs://bucket", "a.zip"),
            ("az://c/x/y/a.zip", "az://c/x/y", "a.zip"),
            ("file:///mnt/My Drive/a.zip", "file:///mnt/My Drive", "a.zip"),
            ("sftp://me@host:22/srv/a.zip", "sftp://me@host:22/srv", "a.zip"),
            ("sftp://host/~/x/a.zip", "sftp://host/~/x", "a.zip"),
        ] {
            let url: RemoteUrl = text.parse().unwrap();
            let (folder, name) = url.split_last().unwrap();
            assert_eq!((folder.to_string().as_str(), name), (above, last));
        }
        assert_eq!("s3://bucket".parse::<RemoteUrl>().unwrap().split_last(), None);
    }

    #[test]
    fn a_url_with_credentials_is_refused_without_being_quoted() {
        for (text, place) in [
            ("s3://AKIAPLANTED:planted%2Fsecret@bucket/job", "AWS_ACCESS_KEY_ID"),
            ("s3://bucket/job?X-Amz-Signature=planted", "AWS_ACCESS_KEY_ID"),
            ("gs://planted@bucket/job", "GOOGLE_APPLICATION_CREDENTIALS"),
            ("az://container/job?sv=2024&sig=planted", "AZURE_STORAGE_SAS_TOKEN"),
            ("sftp://me:planted@host/srv", "ssh-agent"),
        ] {
            let refused = text.parse::<RemoteUrl>().unwrap_err().to_string();
            assert!(refused.contains(place), "{refused}");
            assert!(!refused.to_lowercase().contains("planted"), "{refused}");
        }
    }

    #[test]
    fn what_is_no_address_says_how_one_looks() {
        for text in [
            "bucket/job",
            "http://bucket/job",
            "s3://",
            "s3:///job",
            "s3://bucket:9/job",
            "s3://bucket/a b",
            "s3://bucket/a//b",
            "s3://bucket/.hidden",
            "file://relative/path",
            "file:///",
            "sftp://host",
            "sftp://-host/srv",
            "sftp://ho st/srv",
            "planted:secret://x",
        ] {
            let refused = text.parse::<RemoteUrl>().unwrap_err().to_string();
            assert!(refused.contains("://") || refused.contains("prefix"), "{refused}");
        }
    }
}

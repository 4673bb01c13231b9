//! Whether a bucket removes the parts of uploads that nobody completes: its lifecycle rules, which the client library
//! does not read.
//!
//! Invariant: nothing is changed here, and a bucket whose rules cannot be read is no error: that is told with what to
//! do.

use std::fmt;

use ::http::{Method, Request, StatusCode, header};
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpRequest, HttpRequestBody, HttpService};
use object_store::gcp::GcpCredentialProvider;

use super::http::Transport;
use crate::errors::ErrorKind;
use crate::objects::PartsRule;

/// Rules are small; what is longer is something else.
const MAX_RULES_BYTES: usize = 1 << 20;
/// Azure drops blocks that were not committed for so long.
const AZURE_DAYS: u32 = 7;

/// Where the rules of a bucket are.
#[derive(Clone)]
pub enum BucketRules {
    /// S3.
    S3 { transport: Transport, bucket: BucketAddress, credentials: AwsCredentialProvider },
    /// Google Cloud Storage.
    Google { transport: Transport, url: String, bucket: String, credentials: GcpCredentialProvider },
    /// There are none, and parts go by themselves.
    Azure,
}

/// Where a bucket of S3 is reached.
#[derive(Clone, Debug)]
pub struct BucketAddress {
    /// Its name.
    pub name: String,
    /// `https://bucket.s3.eu-central-1.amazonaws.com` or `http://host/bucket`.
    pub url: String,
    pub region: String,
    /// Requests are not signed.
    pub is_public: bool,
}

impl fmt::Debug for BucketRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BucketRules")
    }
}

impl BucketRules {
    /// The rule for what is below `prefix`, with kind and clause where it cannot be asked for.
    pub async fn parts_rule(&self, prefix: &str) -> Result<PartsRule, (ErrorKind, String)> {
        let (transport, request) = match self {
            BucketRules::Azure => return Ok(PartsRule::Dropped { days: AZURE_DAYS }),
            BucketRules::S3 { transport, bucket, credentials } => {
                let mut request = get(&format!("{}?lifecycle", bucket.url))?;
                if !bucket.is_public {
                    let credential = credentials.get_credential().await.map_err(unreadable)?;
                    let signer = AwsAuthorizer::new(&credential, "s3", &bucket.region);
                    signer.try_authorize(&mut request, None).map_err(unreadable)?;
                }
                (transport, request)
            }
            BucketRules::Google { transport, url, credentials, .. } => {
                let mut request = get(&format!("{url}?lifecycle"))?;
                let credential = credentials.get_credential().await.map_err(unreadable)?;
                if !credential.bearer.is_empty() {
                    let value = format!("Bearer {}", credential.bearer).parse().map_err(unreadable)?;
                    request.headers_mut().insert(header::AUTHORIZATION, value);
                }
                (transport, request)
            }
        };
        let answer = transport.call(request).await.map_err(|e| (ErrorKind::Unreachable, e.to_string()))?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(|e| (ErrorKind::Unreachable, e.to_string()))?;
        let text = String::from_utf8_lossy(&body[..body.len().min(MAX_RULES_BYTES)]);
        Ok(match status {
            StatusCode::OK => match days(&text, prefix) {
                Some(days) => PartsRule::Dropped { days },
                None => PartsRule::Missing { remedy: self.remedy(prefix) },
            },
            StatusCode::NOT_FOUND if !text.contains("NoSuchBucket") => {
                PartsRule::Missing { remedy: self.remedy(prefix) }
            }
            StatusCode::NOT_FOUND => return Err((ErrorKind::NoBucket, "there is no such bucket".into())),
            // Not allowed, or not known to a server that speaks the protocol.
            _ => PartsRule::NotShown { remedy: format!("{} (answered {status})", self.look(prefix)) },
        })
    }

    /// How a rule is made.
    fn remedy(&self, prefix: &str) -> String {
        match self {
            BucketRules::S3 { bucket, .. } => format!(
                "put one beside the bucket's other rules: aws s3api put-bucket-lifecycle-configuration --bucket {} \
                 --lifecycle-configuration '{}' (it replaces the rules that are there)",
                bucket.name,
                serde_json::json!({"Rules": [{
                    "ID": "ckptd-parts", "Status": "Enabled", "Filter": {"Prefix": prefix},
                    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
                }]})
            ),
            BucketRules::Google { bucket, .. } => format!(
                "put one beside the bucket's other rules: write '{}' into rules.json, then gcloud storage buckets \
                 update gs://{bucket} --lifecycle-file=rules.json (it replaces the rules that are there)",
                serde_json::json!({"rule": [{
                    "action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": 2},
                }]})
            ),
            BucketRules::Azure => String::new(),
        }
    }

    /// How a person looks who may.
    fn look(&self, prefix: &str) -> String {
        let (permission, look) = match self {
            BucketRules::S3 { bucket, .. } => (
                "s3:GetLifecycleConfiguration",
                format!("aws s3api get-bucket-lifecycle-configuration --bucket {}", bucket.name),
            ),
            BucketRules::Google { bucket, .. } => {
                ("storage.buckets.get", format!("gcloud storage buckets describe gs://{bucket}"))
            }
            BucketRules::Azure => return String::new(),
        };
        format!("these credentials lack {permission}; look with: {look}; if there is none, {}", self.remedy(prefix))
    }
}

fn get(url: &str) -> Result<HttpRequest, (ErrorKind, String)> {
    let request = Request::builder().method(Method::GET).uri(url).body(HttpRequestBody::empty());
    request.map_err(unreadable)
}

fn unreadable(error: impl fmt::Display) -> (ErrorKind, String) {
    (ErrorKind::Config, error.to_string())
}

/// After how many days the rules remove parts of what is below `prefix`; none where no rule does.
fn days(rules: &str, prefix: &str) -> Option<u32> {
    let blocks = rules.split("<Rule>").skip(1).filter_map(|block| block.split("</Rule>").next());
    let holds = |block: &&str| {
        let is_on = between(block, "Status").is_none_or(|status| status == "Enabled");
        let mut prefixes = ["Prefix", "MatchesPrefix"].into_iter().filter_map(|tag| between(block, tag));
        let aborts = block.contains("<AbortIncompleteMultipartUpload");
        is_on && aborts && !block.contains("<Tag>") && prefixes.all(|only| prefix.starts_with(only))
    };
    let age = |block: &str| {
        let days = between(block, "DaysAfterInitiation").or_else(|| between(block, "Age"))?;
        days.trim().parse().ok()
    };
    blocks.filter(holds).filter_map(age).min()
}

fn between<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    text.split_once(&format!("<{tag}>"))?.1.split_once(&format!("</{tag}>")).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_counts_where_it_is_on_and_covers_the_prefix() {
        let rule = |inner: &str| format!("<LifecycleConfiguration><Rule>{inner}</Rule></LifecycleConfiguration>");
        let abort = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>3</DaysAfterInitiation>\
                     </AbortIncompleteMultipartUpload>";
        let on = "<Status>Enabled</Status>";
        let here = "<Filter><Prefix>runs/</Prefix></Filter>";
        assert_eq!(days(&rule(&format!("{on}{here}{abort}")), "runs/a"), Some(3));
        assert_eq!(days(&rule(&format!("{on}<Filter><Prefix/></Filter>{abort}")), "runs/a"), Some(3));
        assert_eq!(days(&rule(&format!("{on}{here}{abort}")), "other"), None);
        assert_eq!(days(&rule(&format!("<Status>Disabled</Status>{abort}")), "runs/a"), None);
        assert_eq!(days(&rule(&format!("{on}<Expiration><Days>1</Days></Expiration>")), "runs/a"), None);
        // Google's.
        let google = "<Action><AbortIncompleteMultipartUpload/></Action><Condition><Age>7</Age></Condition>";
        assert_eq!(days(&rule(google), "runs/a"), Some(7));
        assert_eq!(days("", "runs/a"), None);
    }
}

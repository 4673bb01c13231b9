//! What an error of the client library means: kind and one readable clause, without credentials.

use object_store::client::{HttpError, HttpErrorKind};

use super::http::ClockOffset;
use crate::errors::ErrorKind;
use crate::secrets::Redactor;

/// Beyond this a store refuses signatures.
const MAX_CLOCK_OFFSET_S: i64 = 300;
/// Asked for credentials where nothing else has any.
const METADATA_HOSTS: [&str; 3] = ["169.254.169.254", "metadata.google.internal", "metadata/computeMetadata"];
const NO_CREDENTIALS: &str =
    "there are no credentials in the environment or in the user's files, and no metadata service gave any";
/// What is quoted of an answer at most, in characters.
const MAX_QUOTED: usize = 300;

/// What is needed to read an error.
#[derive(Clone, Debug)]
pub struct Reader {
    pub redactor: Redactor,
    pub clock: ClockOffset,
    /// Where the credentials in use come from, and how there are new ones.
    pub credentials: String,
}

impl Reader {
    /// Kind and clause of `error`.
    pub fn read(&self, error: &object_store::Error) -> (ErrorKind, String) {
        let said = chain(error);
        if METADATA_HOSTS.iter().any(|host| said.contains(host)) {
            return (ErrorKind::Denied, NO_CREDENTIALS.to_owned());
        }
        let answer = Answer::of(&said);
        let kind = kind(error, &answer);
        let detail = match (&answer.status, kind) {
            (_, ErrorKind::ClockOff) => String::new(),
            (Some(status), ErrorKind::Denied) => {
                format!("the store answered {status}{}; {}", answer.told(), self.credentials)
            }
            (Some(status), _) => format!("the store answered {status}{}", answer.told()),
            (None, _) => shorten(&said),
        };
        let detail = self.redactor.clean(&detail);
        match self.clock.seconds() {
            Some(off) if kind == ErrorKind::ClockOff || is_refused(kind) && off.abs() > MAX_CLOCK_OFFSET_S => {
                (ErrorKind::ClockOff, clock_text(off))
            }
            _ if kind == ErrorKind::ClockOff => (kind, "the store says that the clock of this machine is off".into()),
            _ => (kind, detail),
        }
    }
}

/// Of credentials in a variable, which a running process keeps.
pub fn kept_for_good(variable: &str) -> String {
    format!(
        "the credentials are those of {variable} in the environment, which a running process keeps: for new ones end \
         it, as by SIGTERM, and start it with them"
    )
}

fn is_refused(kind: ErrorKind) -> bool {
    kind == ErrorKind::Denied
}

/// "the clock of this machine is 20 minutes ahead ...".
fn clock_text(off: i64) -> String {
    let by = match off.abs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} minutes", seconds / 60),
        seconds => format!("{} hours", seconds / 3600),
    };
    let way = if off > 0 { "ahead of" } else { "behind" };
    format!("the clock of this machine is off by {by}, {way} the store's: its signatures are refused")
}

/// An error and its sources; each says what its sources say, or not.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        source = error.source();
    }
    said
}

/// What a store answered, as far as the text of an error shows it.
struct Answer {
    /// "403 Forbidden".
    status: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

impl Answer {
    fn of(said: &str) -> Answer {
        let status = ["status code: ", "response status: "].iter().find_map(|before| said.split_once(before));
        let status = status.map(|(_, rest)| rest.split([':', '\n']).next().unwrap_or_default().trim().to_owned());
        let status = status.filter(|status| status.len() < 60 && status.starts_with(|c: char| c.is_ascii_digit()));
        let tag = |name: &str| {
            let (_, rest) = said.split_once(&format!("<{name}>"))?;
            let (text, _) = rest.split_once(&format!("</{name}>"))?;
            Some(shorten(text))
        };
        // An answer of 200 may hold an error.
        let code = tag("Code");
        let status = status.or_else(|| code.is_some().then(|| "with an error".to_owned()));
        Answer { status, code, message: tag("Message") }
    }

    fn number(&self) -> u16 {
        self.status.as_deref().and_then(|status| status.get(..3)?.parse().ok()).unwrap_or(0)
    }

    fn told(&self) -> String {
        let code = self.code.as_ref().map(|code| format!(", {code}")).unwrap_or_default();
        self.message.as_ref().map_or(code.clone(), |message| format!("{code}: {}", message.trim_end_matches('.')))
    }
}

fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

fn kind(error: &object_store::Error, answer: &Answer) -> ErrorKind {
    let code = answer.code.as_deref().unwrap_or_default();
    match code {
        "RequestTimeTooSkewed" => return ErrorKind::ClockOff,
        "NoSuchBucket" | "ContainerNotFound" => return ErrorKind::NoBucket,
        "NoSuchUpload" | "InvalidBlockList" | "InvalidPart" => return ErrorKind::NoUpload,
        "XMinioStorageFull" | "InsufficientStorage" => return ErrorKind::NoSpace,
        // Ceph, MinIO (XMinioAdminBucketQuotaExceeded), NooBaa, Versity; S3, Google and Azure themselves have no quota.
        quota if quota.ends_with("QuotaExceeded") && !quota.contains("Throttle") => return ErrorKind::NoSpace,
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => return ErrorKind::Denied,
        "RequestTimeout" | "SlowDown" | "InternalError" | "ServerBusy" | "OperationTimedOut" => {
            return ErrorKind::Unreachable;
        }
        _ => {}
    }
    match (error, answer.number()) {
        (object_store::Error::NotFound { .. }, _) => ErrorKind::NotThere,
        (object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }, _) => {
            ErrorKind::Denied
        }
        (_, 401 | 403) => ErrorKind::Denied,
        // To a HEAD, which has no body, S3 says no more of credentials that have expired.
        (_, 400) if answer.code.is_none() => ErrorKind::Denied,
        (_, 507) => ErrorKind::NoSpace,
        (_, 408 | 429 | 500..=599) => ErrorKind::Unreachable,
        (_, 416) => ErrorKind::BadAnswer,
        (_, 400..=499) => ErrorKind::Refused,
        (object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }, _) => {
            ErrorKind::Unsupported
        }
        _ => transport(error),
    }
}

/// The kind of what never became an answer.
fn transport(error: &object_store::Error) -> ErrorKind {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Unknown => ErrorKind::Refused,
                _ => ErrorKind::Unreachable,
            };
        }
        source = error.source();
    }
    ErrorKind::BadAnswer
}

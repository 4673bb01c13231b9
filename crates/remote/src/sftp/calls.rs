//! Calls over the connections to a server: which connection a call takes, and what a failure means.
//!
//! Invariant: a connection that broke is not used again; the next call makes another one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::StatusCode;
use tokio::sync::Mutex;

use super::session::{Failure, Server, Session};
use crate::errors::{ErrorKind, ObjectError, Operation, Result};
use crate::names::ObjectName;
use crate::objects::ObjectStorage;
use crate::settings::RemoteSettings;

/// One connection is one processor and one window: data goes over several.
const DATA_CONNECTIONS: usize = 3;

/// Objects as files behind SFTP. Connects when it is used, and again after a connection broke.
#[derive(Clone)]
pub struct SftpStorage(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) place: String,
    server: Server,
    pub(super) root: String,
    settings: RemoteSettings,
    /// The first is for small objects.
    connections: [Mutex<Option<Arc<Session>>>; 1 + DATA_CONNECTIONS],
    turn: AtomicUsize,
}

impl fmt::Debug for SftpStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SftpStorage({})", self.0.place)
    }
}

/// Which connections a call may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Control,
    Data,
}

/// Why a call did not come to its end.
pub(super) enum Trouble {
    Failure(Failure),
    Refused(ErrorKind, String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Failure(failure)
    }
}

/// A call over one connection.
pub(super) struct Call<'a> {
    storage: &'a SftpStorage,
    operation: Operation,
    name: Option<&'a ObjectName>,
    connection: &'a Mutex<Option<Arc<Session>>>,
    pub(super) session: Arc<Session>,
}

impl Call<'_> {
    /// What it came to; a connection that broke is not used again.
    pub(super) async fn end<T>(self, outcome: Outcome<T>) -> Result<T> {
        if let Err(Trouble::Failure(failure)) = &outcome
            && !matches!(failure.error, SftpError::Status(_))
        {
            self.connection.lock().await.take_if(|now| Arc::ptr_eq(now, &self.session));
        }
        outcome.map_err(|trouble| self.storage.failed(self.operation, self.name, trouble))
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Trouble>;

impl SftpStorage {
    /// Connects to nothing yet.
    pub(super) fn new(place: String, server: Server, root: &str, settings: &RemoteSettings) -> SftpStorage {
        SftpStorage(Arc::new(Inner {
            place,
            server,
            root: root.to_owned(),
            settings: settings.clone(),
            connections: Default::default(),
            turn: AtomicUsize::new(0),
        }))
    }

    fn connection(&self, line: Line) -> &Mutex<Option<Arc<Session>>> {
        match line {
            Line::Control => &self.0.connections[0],
            Line::Data => &self.0.connections[1 + self.0.turn.fetch_add(1, Relaxed) % DATA_CONNECTIONS],
        }
    }

    /// Takes a connection that stands.
    pub(super) async fn begin<'a>(
        &'a self,
        operation: Operation,
        name: Option<&'a ObjectName>,
        line: Line,
    ) -> Result<Call<'a>> {
        let connection = self.connection(line);
        match self.session(connection).await {
            Ok(session) => Ok(Call { storage: self, operation, name, connection, session }),
            Err(e) => Err(self.failed(operation, name, Trouble::Failure(e))),
        }
    }

    async fn session(&self, connection: &Mutex<Option<Arc<Session>>>) -> std::result::Result<Arc<Session>, Failure> {
        let mut connection = connection.lock().await;
        if let Some(session) = &*connection {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(Session::connect(&self.0.server, &self.0.settings).await?);
        Ok(Arc::clone(connection.insert(session)))
    }

    pub(super) fn failed(&self, operation: Operation, name: Option<&ObjectName>, trouble: Trouble) -> ObjectError {
        let (kind, detail) = match trouble {
            Trouble::Refused(kind, detail) => (kind, detail),
            Trouble::Failure(failure) => told(operation, &failure),
        };
        self.error(operation, name, kind, &detail)
    }
}

/// Kind and clause of a failed call.
fn told(operation: Operation, failure: &Failure) -> (ErrorKind, String) {
    let is_upload = matches!(operation, Operation::UploadPart | Operation::CompleteUpload);
    if failure.is_full {
        return (ErrorKind::NoSpace, "the server has no room for it".into());
    }
    if let SftpError::Status(status) = &failure.error {
        let kind = match status.status_code {
            StatusCode::NoSuchFile if is_upload => return (ErrorKind::NoUpload, "there is no such upload".into()),
            StatusCode::NoSuchFile => return (ErrorKind::NotThere, "there is no such object".into()),
            StatusCode::PermissionDenied => ErrorKind::Denied,
            StatusCode::OpUnsupported => ErrorKind::Unsupported,
            StatusCode::Eof => return (ErrorKind::BadAnswer, "the object ends before the range".into()),
            // A quota that is used up is told so, too.
            StatusCode::Failure if is_write(operation) => {
                let what = "the server answered: Failure, which is all it says of a quota that is used up, too";
                return (ErrorKind::Unreachable, what.into());
            }
            _ => ErrorKind::Unreachable,
        };
        return (kind, format!("the server answered: {}", status.error_message));
    }
    let said = failure.said.split_whitespace().collect::<Vec<_>>().join(" ");
    let refusals = ["Permission denied", "Host key verification failed", "Too many authentication failures"];
    let is_refused = refusals.iter().any(|refusal| said.contains(refusal));
    let kind = if is_refused { ErrorKind::Denied } else { ErrorKind::Unreachable };
    let unknown = said.contains("Host key verification failed");
    let hint = if unknown { "; compare the host's key and add it: ssh-keyscan HOST >> ~/.ssh/known_hosts" } else { "" };
    let error = &failure.error;
    let text = if said.is_empty() { error.to_string() } else { format!("{error}; ssh says: {said}{hint}") };
    (kind, text)
}

fn is_write(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Create | Operation::Put | Operation::BeginUpload | Operation::UploadPart | Operation::CompleteUpload
    )
}

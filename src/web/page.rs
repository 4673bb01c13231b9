//! The page of a running job.
//!
//! Invariant: who looks never makes the job wait: a thread of the page asks for the job's report as `ckptd status`
//! does, at most once a second. Where no page can be served the training goes on without, and the user is told.

use std::net::SocketAddr;

use tracing::{info, warn};

use super::metrics_file::MetricsFile;
use super::{token, view};
use crate::daemon::inbox::InboxSender;
use ckptd_core::config::{Config, StatusSection};
use ckptd_core::error::Result;
use ckptd_core::store::{Record, Store, StoreLock};
use ckptd_page::access::PageAccess;
use ckptd_page::board::{JobBoard, ServedJob};
use ckptd_page::server::PageServer;

/// What is served of a job, for as long as this lives.
pub struct JobPage {
    file: Option<MetricsFile>,
    server: Option<PageServer>,
    board: JobBoard,
}

impl Drop for JobPage {
    fn drop(&mut self) {
        // The file still says how the session ended.
        self.file = None;
        self.server = None;
        self.board.close();
    }
}

impl JobPage {
    /// Serves what `[status]` of `config` asks for. `None`: nothing.
    ///
    /// # Errors
    /// Where the user's file of a token cannot be taken.
    pub fn start<E: Send + 'static>(
        config: &Config,
        store: &Store,
        lock: &StoreLock,
        inputs: &InboxSender<E>,
    ) -> Result<Option<JobPage>> {
        let status = &config.status;
        if status.http.is_none() && status.metrics_file.is_none() {
            return Ok(None);
        }
        let board = JobBoard::start(vec![served(config, store, inputs)?])?;
        let token = match &status.http_token_file {
            _ if status.http.is_none() || status.http_open => Ok(None),
            Some(path) => Ok(Some(token::of_file(path)?)),
            None => store.page_token(lock).map(Some),
        };
        let server = match (token, status.http) {
            (Ok(token), Some(address)) => serve(address, status, token.as_deref(), &board),
            (Ok(_), None) => None,
            (Err(error), _) => {
                warn!("there is no page: {error}; the training goes on without");
                None
            }
        };
        let file = status.metrics_file.clone().map(|path| MetricsFile::start(path, board.clone())).transpose()?;
        Ok(Some(JobPage { file, server, board }))
    }
}

/// A port that another process has is no reason not to train.
fn serve(address: SocketAddr, status: &StatusSection, token: Option<&str>, board: &JobBoard) -> Option<PageServer> {
    let access = |port| PageAccess::new(token, port, &status.http_hosts);
    match PageServer::start(address, board.clone(), access) {
        Ok(server) => {
            let known = match (&status.http_token_file, token) {
                (_, None) => "open to every user of this machine".to_owned(),
                (Some(path), _) => format!("its token is in {}", path.display()),
                (None, _) => "its token is in page.token in the store".to_owned(),
            };
            info!("the page is at http://{}/, {known}", server.address());
            Some(server)
        }
        Err(error) => {
            warn!("there is no page: {error}; the training goes on without");
            None
        }
    }
}

fn served<E: Send + 'static>(config: &Config, store: &Store, inputs: &InboxSender<E>) -> Result<ServedJob> {
    // Its own: it must not keep the store of the session open.
    let (there, store) = (Store::open(store.path())?, Store::open(store.path())?);
    let inputs = inputs.clone();
    let look = move || {
        let report = inputs.status_from_thread()?;
        // As it is now: parts of a job file may change while it runs.
        let config: Option<Config> = there.read_record(Record::Job).ok().flatten();
        Some(view::view(&report, config.as_ref(), &there))
    };
    Ok(ServedJob { name: config.job.name.clone(), store, look: Box::new(look) })
}

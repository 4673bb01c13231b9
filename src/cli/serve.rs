//! `ckptd serve`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};

use super::target::CommandTarget;
use super::{exit_code, output, status};
use crate::web::{token, view};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;
use ckptd_page::access::PageAccess;
use ckptd_page::board::{JobBoard, ServedJob};
use ckptd_page::server::PageServer;
use ckptd_page::view::JobView;

/// Show jobs on a page that updates itself, running or not, until SIGINT or SIGTERM.
#[derive(clap::Args)]
pub(super) struct ServeArgs {
    /// Stores or job files.
    #[arg(value_name = "STORE|CONFIG", required = true)]
    targets: Vec<PathBuf>,
    /// Where, an address of this machine with a port; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8377")]
    http: SocketAddr,
    /// Holds the token, for its owner's eyes only. Without it a token is made and printed. An address that other
    /// machines can reach needs it.
    #[arg(long, value_name = "FILE", conflicts_with = "open")]
    token_file: Option<PathBuf>,
    /// No token is needed: every user of this machine can look.
    #[arg(long)]
    open: bool,
    /// A name under which the page is reached besides localhost and plain addresses, as behind a proxy.
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
}

pub(super) fn execute(args: &ServeArgs) -> Result<u8> {
    if !args.http.ip().is_loopback() && args.token_file.is_none() {
        return Err(Error::Config(format!(
            "--http {}: other machines can reach this address; --token-file FILE holds what they must know",
            args.http
        )));
    }
    let token = match &args.token_file {
        _ if args.open => None,
        Some(path) => Some(token::of_file(path)?),
        None => Some(RunId::random()?.to_string()),
    };
    let jobs = served(&args.targets)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::Other(format!("waiting for signals: {e}")))?;
    let board = JobBoard::start(jobs)?;
    let server = PageServer::start(args.http, board, |port| PageAccess::new(token.as_deref(), port, &args.host))?;
    let known = match (&token, &args.token_file) {
        (None, _) => "open to every user of this machine".to_owned(),
        (Some(_), Some(path)) => format!("its token is in {}", path.display()),
        (Some(token), None) => format!("its token is {token}"),
    };
    output::text(&format!("http://{}/, {known}\n", server.address()))?;
    let failed = |e| Error::Other(format!("listening to signals: {e}"));
    runtime.block_on(async {
        let mut ends =
            (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?);
        tokio::select! { _ = ends.0.recv() => {}, _ = ends.1.recv() => {} }
        Ok::<_, Error>(())
    })?;
    drop(server);
    Ok(exit_code::DONE)
}

/// Each under a name of its own.
fn served(paths: &[PathBuf]) -> Result<Vec<ServedJob>> {
    let targets = paths.iter().map(|path| CommandTarget::open(path)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = targets.iter().map(CommandTarget::name).collect();
    let served = paths.iter().zip(targets).zip(&names).map(|((path, target), name)| {
        let is_taken = names.iter().filter(|other| *other == name).count() > 1;
        let name = if is_taken { format!("{name} ({})", target.store.path().display()) } else { name.clone() };
        let (path, shown) = (path.clone(), name.clone());
        let look = move || {
            let seen = look(&path).unwrap_or_else(|error| view::unreadable(&shown, error.to_string()));
            Some(JobView { name: shown.clone(), ..seen })
        };
        ServedJob { name, store: target.store, look: Box::new(look) }
    });
    Ok(served.collect())
}

/// What is known of a job now, of its daemon or of its files.
fn look(path: &Path) -> Result<JobView> {
    let target = CommandTarget::open(path)?;
    let report = status::report(&target)?;
    Ok(view::view(&report, target.config.as_ref(), &target.store))
}

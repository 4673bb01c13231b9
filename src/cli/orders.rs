//! `ckptd stop` and `ckptd snapshot`: orders to the daemon of a job, over its socket.

use std::path::PathBuf;
use std::time::Duration;

use super::target::CommandTarget;
use super::{exit_code, output};
use crate::daemon::order::{DaemonOrder, OrderReply};
use crate::daemon::status;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::{LastSession, Store};

/// Between two looks whether the session is over.
const LOOK: Duration = Duration::from_millis(50);

/// End the session of a running job with a last snapshot, and wait until it is over.
#[derive(clap::Args)]
pub(super) struct StopArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// As it is: what was trained since the last snapshot is lost.
    #[arg(long)]
    now: bool,
}

/// Have a running job take a snapshot, and go on.
#[derive(clap::Args)]
pub(super) struct SnapshotArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
}

pub(super) fn stop(args: &StopArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let order = if args.now { DaemonOrder::StopNow } else { DaemonOrder::Stop };
    match give(&target, order)? {
        None => output::text(&format!("no job runs in {}\n", target.store.path().display()))?,
        Some(reply) => {
            output::text(&format!("{}\n", reply.said))?;
            wait_for_end(&target.store)?;
            output::text("the session is over\n")?;
        }
    }
    Ok(exit_code::DONE)
}

pub(super) fn snapshot(args: &SnapshotArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    match give(&target, DaemonOrder::Snapshot)? {
        Some(OrderReply { taken: true, said }) => output::text(&format!("{said}\n"))?,
        Some(OrderReply { said, .. }) => return Err(Error::Other(said)),
        None => return Err(Error::Other(format!("no job runs in {}", target.store.path().display()))),
    }
    Ok(exit_code::DONE)
}

/// Gives the job's daemon an order; `None`: none runs.
fn give(target: &CommandTarget, order: DaemonOrder) -> Result<Option<OrderReply>> {
    let running = matches!(target.store.last_session()?, LastSession::Running { .. });
    let Some(config) = &target.config else { return Ok(None) };
    let listens = status::answers(&config.status.socket);
    let reply = status::order(&config.status.socket, order).map_err(|e| target.not_answering(e))?;
    match (reply, target.store.last_session()?) {
        (Some(reply), _) => Ok(Some(reply)),
        // It ended while it was asked.
        (None, LastSession::Ended(_)) if running => {
            Ok(Some(OrderReply { taken: true, said: "the session has just ended".into() }))
        }
        (None, LastSession::Running { pid }) if listens => Err(Error::Other(format!(
            "the daemon, process {pid}, knows no orders: it is of an older release. `kill -INT {pid}` ends its \
             session, `kill -USR1 {pid}` takes a snapshot"
        ))),
        (None, LastSession::Running { pid }) => Err(Error::Other(format!(
            "the daemon, process {pid}, has no socket at {}. `kill -INT {pid}` ends its session, `kill -USR1 {pid}` \
             takes a snapshot",
            config.status.socket.display()
        ))),
        (None, _) => Ok(None),
    }
}

fn wait_for_end(store: &Store) -> Result<()> {
    while matches!(store.last_session()?, LastSession::Running { .. }) {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

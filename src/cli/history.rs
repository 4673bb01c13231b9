//! `ckptd history`

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::history_rows::{HistoryRows, RowForm};
use super::history_table;
use super::output::{self, Reader};
use super::target::CommandTarget;
use super::{console::Console, exit_code};
use crate::daemon::event_file::EventFile;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::{LastSession, Store};
use ckptd_history::follow::HistoryFollower;
use ckptd_history::overview::HistoryOverview;
use ckptd_history::reader::{HistoryItem, TrainingHistory};

/// Between two looks for what is new.
const LOOK: Duration = Duration::from_millis(500);

/// Show what happened in all sessions: the sessions in a table, or every step and event as data.
#[derive(clap::Args)]
pub(super) struct HistoryArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// Every step, evaluation, snapshot and session, oldest first; with --follow one object per line.
    #[arg(long, group = "form")]
    json: bool,
    /// Every step and evaluation, oldest first.
    #[arg(long, group = "form")]
    csv: bool,
    /// Write an event file for TensorBoard into this folder, in the place of the one that was written there before.
    #[arg(long, value_name = "DIR", group = "form")]
    tensorboard: Option<PathBuf>,
    /// Go on with what happens from now on, until Ctrl-C.
    #[arg(short, long, requires = "form")]
    follow: bool,
    /// Also what a resume from an earlier step has cut off, marked as abandoned.
    #[arg(long, requires = "form", conflicts_with = "tensorboard")]
    all: bool,
}

pub(super) fn execute(args: &HistoryArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let history = TrainingHistory::read(&target.store)?;
    complain(&target.store, &history)?;
    let is_data = args.json || args.csv || args.follow;
    if history.is_empty() && !is_data {
        let path = target.store.path().display();
        return Err(Error::NotFound(format!("no history is kept in {path} yet; `ckptd run` keeps it")));
    }
    match (&args.tensorboard, args.json || args.csv) {
        (Some(folder), _) => write_events(args, folder, &target, &history)?,
        (None, true) => show_rows(args, &target.store, &history)?,
        (None, false) => {
            let overview = HistoryOverview::of(&history, history_table::POINTS)?;
            output::text(&history_table::table(&overview, is_running(&target.store)?))?;
        }
    }
    Ok(exit_code::DONE)
}

/// Whether a session is under way.
pub(super) fn is_running(store: &Store) -> Result<bool> {
    Ok(matches!(store.last_session()?, LastSession::Running { .. }))
}

/// Says what of a history could not be read.
pub(super) fn complain(store: &Store, history: &TrainingHistory) -> Result<()> {
    history.problems.iter().for_each(|problem| warn(problem.clone()));
    if history.torn_bytes > 0 && !is_running(store)? {
        warn(format!("the last {} bytes of the history are half a batch: the session was killed", history.torn_bytes));
    }
    Ok(())
}

fn warn(problem: String) {
    output::complain(&format!("warning: {problem}"));
}

fn show_rows(args: &HistoryArgs, store: &Store, history: &TrainingHistory) -> Result<()> {
    let form = match (args.csv, args.follow) {
        (true, _) => RowForm::Csv,
        (false, false) => RowForm::Array,
        (false, true) => RowForm::Lines,
    };
    let mut rows = HistoryRows::new(form);
    let take = &mut |item: HistoryItem| if args.all || !item.is_abandoned { rows.add(&item) } else { Ok(()) };
    match history.each(take, &mut warn) {
        // Nobody reads on.
        Err(Error::Abandoned) => return Ok(()),
        other => other?,
    }
    if rows.end()? == Reader::Gone || !args.follow {
        return Ok(());
    }
    let mut follower = HistoryFollower::from(history.end());
    loop {
        std::thread::sleep(LOOK);
        for record in follower.next(store)? {
            match rows.add(&HistoryItem { record, is_abandoned: false }) {
                Err(Error::Abandoned) => return Ok(()),
                other => other?,
            }
        }
        if rows.flush()? == Reader::Gone {
            return Ok(());
        }
    }
}

fn write_events(args: &HistoryArgs, folder: &Path, target: &CommandTarget, history: &TrainingHistory) -> Result<()> {
    let console = Console::start()?;
    let mut file = EventFile::create(folder)?;
    file.describe(target.config.as_ref())?;
    let take = &mut |item: HistoryItem| {
        ckptd_core::progress::ProgressSink::advance(&console, 0)?;
        if item.is_abandoned { Ok(()) } else { file.add(&item.record) }
    };
    history.each(take, &mut warn)?;
    file.flush()?;
    output::complain(&format!("wrote {} points to {}", file.points(), file.path().display()));
    if !args.follow {
        return Ok(());
    }
    let mut follower = HistoryFollower::from(history.end());
    while ckptd_core::progress::ProgressSink::advance(&console, 0).is_ok() {
        std::thread::sleep(LOOK);
        for record in follower.next(&target.store)? {
            file.add(&record)?;
        }
        file.flush()?;
    }
    Ok(())
}

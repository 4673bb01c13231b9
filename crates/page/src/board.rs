//! What is known of the jobs now, for all who look.
//!
//! One thread looks, at most once a second and only while somebody wants to know; its results are shared. Invariant:
//! looking takes at most a share of one core, however long a history is, and however many look. A client that is slow
//! gets the newest when it is ready for it, and costs nothing meanwhile. Deliberately not here: HTTP.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::debug;

use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::lower_priority;
use ckptd_core::store::Store;
use ckptd_history::follow::{self, HistoryExtent};
use ckptd_history::overview::HistoryOverview;
use ckptd_history::reader::TrainingHistory;
use ckptd_history::totals::HistoryTotals;

use crate::curve::{self, CurveView};
use crate::metrics::MeasuredJob;
use crate::view::JobView;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(30);
/// A look takes at most one part in so many of the time.
const PATIENCE: u32 = 100;
/// A history is read this seldom at the least: the daemon writes it in batches of two seconds.
const HISTORY_INTERVAL: Duration = Duration::from_secs(2);
/// Others have the processor first.
const NICE: i32 = 10;

/// What was found out about a job, or `None` where there is nothing to be found any more.
type LookAtJob = Box<dyn Fn() -> Option<JobView> + Send>;

/// A job that is shown.
pub struct ServedJob {
    /// Its name.
    pub name: String,
    /// Where its history is.
    pub store: Store,
    /// Finds out all but its curve; may take time.
    pub look: LookAtJob,
}

/// A job as it is now.
#[derive(Debug)]
pub struct JobNow {
    /// When it was looked at.
    pub at: Instant,
    /// All but the curve.
    pub view: JobView,
    /// The curve and what was lost.
    pub overview: HistoryOverview,
    /// Its counters.
    pub totals: HistoryTotals,
    /// The view and the curve as JSON.
    pub view_json: Arc<str>,
    /// See `view_json`.
    pub curve_json: Arc<str>,
}

impl JobNow {
    /// For its metrics.
    pub fn measured(&self) -> MeasuredJob<'_> {
        MeasuredJob { view: &self.view, totals: &self.totals, lost_steps: self.overview.lost_steps() }
    }
}

/// What is shared by the thread that looks and those who want to know.
#[derive(Clone)]
pub struct JobBoard {
    names: Arc<Vec<String>>,
    cells: Arc<Vec<watch::Sender<Option<Arc<JobNow>>>>>,
    demand: Arc<(Mutex<Demand>, Condvar)>,
}

#[derive(Debug, Default)]
struct Demand {
    /// Those who want everything that is new.
    followers: usize,
    /// Somebody wants to know once.
    is_asked: bool,
    /// No look begins before.
    least: Option<Instant>,
    is_closed: bool,
}

/// Somebody who wants everything that is new, for as long as this lives.
pub struct BoardFollower(JobBoard);

impl Drop for BoardFollower {
    fn drop(&mut self) {
        self.0.demand(|demand| demand.followers = demand.followers.saturating_sub(1));
    }
}

impl JobBoard {
    /// Of `jobs`, with the thread that looks at them.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(jobs: Vec<ServedJob>) -> Result<JobBoard> {
        let names = jobs.iter().map(|job| job.name.clone()).collect();
        let cells = jobs.iter().map(|_| watch::Sender::new(None)).collect();
        let board = JobBoard { names: Arc::new(names), cells: Arc::new(cells), demand: Arc::default() };
        let there = board.clone();
        std::thread::Builder::new()
            .name("page look".into())
            .spawn(move || there.look_on(jobs))
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(board)
    }

    /// How many jobs there are.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The jobs' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Ends the thread that looks, soon.
    pub fn close(&self) {
        self.demand(|demand| demand.is_closed = true);
    }

    /// Job `n`, and all that will be known of it; `None`: there is no such job.
    pub fn watch(&self, n: usize) -> Option<watch::Receiver<Option<Arc<JobNow>>>> {
        Some(self.cells.get(n)?.subscribe())
    }

    /// Has the jobs looked at again and again.
    pub fn follow(&self) -> BoardFollower {
        self.demand(|demand| demand.followers += 1);
        BoardFollower(self.clone())
    }

    /// Job `n` as it is now, or as it was known last where that takes longer than `patience`, or where the next look
    /// may not begin yet.
    pub async fn now(&self, n: usize, patience: Duration) -> Option<Arc<JobNow>> {
        let mut receiver = self.watch(n)?;
        let known = receiver.borrow_and_update().clone();
        let is_newest = |known: &Arc<JobNow>| known.at.elapsed() < INTERVAL * 3 / 2 || Instant::now() < self.least();
        if known.as_ref().is_some_and(is_newest) {
            return known;
        }
        self.demand(|demand| demand.is_asked = true);
        let _ = tokio::time::timeout(patience, receiver.changed()).await;
        receiver.borrow().clone()
    }

    /// Job `n` as it is now, for a thread that may wait.
    pub fn wait_for(&self, n: usize, patience: Duration) -> Option<Arc<JobNow>> {
        let (receiver, asked) = (self.watch(n)?, Instant::now());
        self.demand(|demand| demand.is_asked = true);
        loop {
            let known = receiver.borrow().clone();
            let is_new = known.as_ref().is_some_and(|known| known.at >= asked);
            if is_new || asked.elapsed() >= patience {
                return known;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn demand(&self, change: impl FnOnce(&mut Demand)) {
        let (demand, wake) = &*self.demand;
        change(&mut demand.lock().unwrap_or_else(PoisonError::into_inner));
        wake.notify_all();
    }

    /// When the next look may begin.
    fn least(&self) -> Instant {
        self.demand.0.lock().unwrap_or_else(PoisonError::into_inner).least.unwrap_or_else(Instant::now)
    }

    /// Waits until somebody wants to know, and until the next look may begin. `false`: it is closed.
    fn wait(&self) -> bool {
        let (demand, wake) = &*self.demand;
        let mut demand = demand.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let early = demand.least.map_or(Duration::ZERO, |least| least.saturating_duration_since(Instant::now()));
            if demand.is_closed {
                return false;
            }
            let is_wanted = demand.followers > 0 || demand.is_asked;
            if is_wanted && early.is_zero() {
                demand.is_asked = false;
                return true;
            }
            let wait = if is_wanted { early } else { LONGEST_INTERVAL };
            demand = wake.wait_timeout(demand, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look_on(&self, jobs: Vec<ServedJob>) {
        lower_priority(NICE);
        let mut looks: Vec<JobLook> = jobs.into_iter().map(JobLook::of).collect();
        while self.wait() {
            let began = Instant::now();
            for (look, cell) in looks.iter_mut().zip(self.cells.iter()) {
                if let Some(now) = look.again() {
                    cell.send_replace(Some(now));
                }
            }
            let least = began + (began.elapsed() * PATIENCE).clamp(INTERVAL, LONGEST_INTERVAL);
            self.demand(|demand| demand.least = Some(least));
        }
    }
}

/// One job, and what was known of it last.
struct JobLook {
    job: ServedJob,
    history: (HistoryOverview, HistoryTotals, Arc<str>),
    extent: Option<HistoryExtent>,
    read_least: Instant,
}

impl JobLook {
    fn of(job: ServedJob) -> JobLook {
        let history = (HistoryOverview::default(), HistoryTotals::default(), json(&CurveView::default()));
        JobLook { job, history, extent: None, read_least: Instant::now() }
    }

    fn again(&mut self) -> Option<Arc<JobNow>> {
        let view = (self.job.look)()?;
        if Instant::now() >= self.read_least {
            let began = Instant::now();
            if let Err(error) = self.read() {
                debug!("the history of {} is not shown: {error}", self.job.name);
            }
            self.read_least = began + (began.elapsed() * PATIENCE).clamp(HISTORY_INTERVAL, LONGEST_INTERVAL);
        }
        let (overview, totals, curve_json) = self.history.clone();
        let view_json = json(&view);
        Some(Arc::new(JobNow { at: Instant::now(), view, overview, totals, view_json, curve_json }))
    }

    fn read(&mut self) -> Result<()> {
        let extent = follow::extent(&self.job.store)?;
        if self.extent.as_ref() == Some(&extent) {
            return Ok(());
        }
        let history = TrainingHistory::read(&self.job.store)?;
        let overview = HistoryOverview::of(&history, curve::POINTS)?;
        let curve = json(&CurveView::of(&overview));
        self.history = (overview, HistoryTotals::of(&history), curve);
        self.extent = Some(extent);
        Ok(())
    }
}

fn json<T: serde::Serialize>(value: &T) -> Arc<str> {
    // Plain values always have a form.
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_long_to_find_out_is_shown_as_it_was_known_last() {
        const HOUR: Duration = Duration::from_secs(3600);
        let folder = tempfile::tempdir().unwrap();
        let look = || {
            // The next look begins half a minute later.
            std::thread::sleep(LONGEST_INTERVAL / PATIENCE);
            Some(JobView::default())
        };
        let job = ServedJob { name: "job".into(), store: Store::create(folder.path()).unwrap(), look: Box::new(look) };
        let board = JobBoard::start(vec![job]).unwrap();
        let first = board.now(0, HOUR).await.unwrap();
        tokio::time::sleep(INTERVAL * 2).await;
        let second = board.now(0, HOUR).await.unwrap();
        board.close();
        assert!(Arc::ptr_eq(&first, &second), "nobody waits for the next look");
    }
}

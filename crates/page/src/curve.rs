//! A history as the page draws it: columns of numbers, few enough for a phone.
//!
//! Invariant: what it takes is bounded, however long the training and however many its snapshots. Deliberately not
//! here: what it looks like (the page's script).

use serde::Serialize;

use ckptd_history::bucket::Bucket;
use ckptd_history::overview::{HistoryOverview, SnapshotFate, SnapshotMark};

/// Points of the curve.
pub const POINTS: usize = 360;
/// Evaluations that are shown.
const EVALUATIONS: usize = 360;
/// Points of a branch that was lost.
const LOST_POINTS: usize = 60;
/// Branches, sessions and snapshots that are shown, the newest.
const BRANCHES: usize = 60;
const SESSIONS: usize = 200;
const SNAPSHOTS: usize = 500;

/// All that is drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CurveView {
    points: CurveColumns,
    lost: Vec<LostView>,
    /// Step and validation loss.
    evaluations: Vec<(u64, Option<f64>)>,
    snapshots: Vec<MarkView>,
    sessions: Vec<BandView>,
    total_steps: Option<u64>,
    lost_steps: u64,
}

/// The curve's points, column by column.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct CurveColumns {
    first: Vec<u64>,
    last: Vec<u64>,
    at_ms: Vec<i64>,
    loss: Vec<Option<f64>>,
    least: Vec<Option<f64>>,
    most: Vec<Option<f64>>,
    rate: Vec<f64>,
    speed: Vec<Option<f64>>,
    norm: Vec<Option<f64>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct LostView {
    from: u64,
    to: u64,
    steps: u64,
    /// Step and loss.
    points: Vec<(u64, Option<f64>)>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct MarkView {
    step: u64,
    fate: &'static str,
    is_best: bool,
    is_replicated: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct BandView {
    number: u64,
    from: u64,
    to: u64,
    why: Option<String>,
}

impl CurveView {
    /// Of `overview`.
    pub fn of(overview: &HistoryOverview) -> CurveView {
        let lost = overview.lost.iter().rev().take(BRANCHES).rev();
        let newest = overview.sessions.len().saturating_sub(SESSIONS);
        let sessions = overview.sessions.iter().zip(overview.spans()).enumerate().skip(newest);
        CurveView {
            points: columns(&overview.curve),
            lost: lost.filter_map(|branch| lost_view(&branch.buckets)).collect(),
            evaluations: evaluations(overview),
            snapshots: marks(&overview.snapshots),
            sessions: sessions
                .filter_map(|(n, (session, span))| {
                    let (from, to) = span?;
                    Some(BandView { number: n as u64 + 1, from, to, why: session.why.clone() })
                })
                .collect(),
            total_steps: overview.total_steps,
            lost_steps: overview.lost_steps(),
        }
    }
}

/// Six digits are more than a screen shows.
fn short(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(5 - value.abs().log10().floor() as i32);
    if scale.is_finite() && scale > 0.0 { (value * scale).round() / scale } else { value }
}

fn finite(value: f32, count: u64) -> Option<f64> {
    (count > 0).then(|| short(f64::from(value)))
}

fn columns(buckets: &[Bucket]) -> CurveColumns {
    CurveColumns {
        first: buckets.iter().map(|b| b.first_step).collect(),
        last: buckets.iter().map(|b| b.last_step).collect(),
        at_ms: buckets.iter().map(|b| b.last_ms).collect(),
        loss: buckets.iter().map(|b| b.loss.mean().map(short)).collect(),
        least: buckets.iter().map(|b| finite(b.loss.min, b.loss.count)).collect(),
        most: buckets.iter().map(|b| finite(b.loss.max, b.loss.count)).collect(),
        rate: buckets.iter().map(|b| short(f64::from(b.learning_rate))).collect(),
        speed: buckets.iter().map(|b| b.tokens_per_second().map(short)).collect(),
        norm: buckets.iter().map(|b| b.grad_norm.mean().map(short)).collect(),
    }
}

fn lost_view(buckets: &[Bucket]) -> Option<LostView> {
    let (first, last) = (buckets.first()?, buckets.last()?);
    let thin = ckptd_history::bucket::at_most(buckets, LOST_POINTS);
    Some(LostView {
        from: first.first_step,
        to: last.last_step,
        steps: buckets.iter().map(|bucket| bucket.rows).sum(),
        points: thin.iter().map(|b| (b.last_step, b.loss.mean().map(short))).collect(),
    })
}

/// Evenly thinned; the lowest stays.
fn evaluations(overview: &HistoryOverview) -> Vec<(u64, Option<f64>)> {
    let all = &overview.evaluations;
    let lowest = all.iter().filter_map(|point| point.val_loss).min_by(f64::total_cmp);
    let every = all.len().div_ceil(EVALUATIONS).max(1);
    let stays = |n: usize, loss: Option<f64>| n.is_multiple_of(every) || n + 1 == all.len() || loss == lowest;
    let kept = all.iter().enumerate().filter(|(n, point)| stays(*n, point.val_loss));
    kept.map(|(_, point)| (point.step, point.val_loss.map(short))).collect()
}

/// The newest, and of the others those that are more than verified.
fn marks(all: &[SnapshotMark]) -> Vec<MarkView> {
    let usual = all.iter().filter(|mark| !mark.is_abandoned && !is_special(mark)).rev().take(SNAPSHOTS);
    let special = all.iter().filter(|mark| !mark.is_abandoned && is_special(mark)).rev().take(SNAPSHOTS);
    let mut marks: Vec<MarkView> = usual.chain(special).map(mark_view).collect();
    marks.sort_by_key(|mark| mark.step);
    marks
}

fn is_special(mark: &SnapshotMark) -> bool {
    mark.is_best || !mark.is_healthy || matches!(mark.fate, SnapshotFate::Failed | SnapshotFate::Quarantined)
}

fn mark_view(mark: &SnapshotMark) -> MarkView {
    let fate = match mark.fate {
        SnapshotFate::Failed => "failed",
        SnapshotFate::Committed => "committed",
        SnapshotFate::Verified if !mark.is_healthy => "unhealthy",
        SnapshotFate::Verified => "verified",
        SnapshotFate::Quarantined => "quarantined",
    };
    MarkView { step: mark.step, fate, is_best: mark.is_best, is_replicated: mark.is_replicated }
}

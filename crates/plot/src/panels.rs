//! The panels of a picture: a curve each, over the steps.

use ckptd_history::bucket::Bucket;
use ckptd_history::overview::{HistoryOverview, SnapshotFate, SnapshotMark};

use crate::scale::{ValueScale, short};
use crate::scene::{Frame, PictureScene, Place, TextAnchor};
use crate::theme::{Colour, PictureTheme};

/// Height of labels.
pub(crate) const LABEL: f64 = 11.0;
/// A loss that spans more than this is drawn by its logarithm.
const LOGARITHMIC: f64 = 30.0;
/// Evaluations that are drawn.
const EVALUATIONS: usize = 600;
/// Evaluations that get a dot.
const DOTS: usize = 80;

/// What all panels share.
pub(crate) struct PanelContext<'a> {
    pub(crate) overview: &'a HistoryOverview,
    pub(crate) theme: &'a PictureTheme,
    pub(crate) x: ValueScale,
}

impl PanelContext<'_> {
    /// The frame of a panel with its name and its lines.
    fn frame(&self, scene: &mut PictureScene, frame: Frame, y: ValueScale, name: &str) {
        let (grid, label) = (self.theme.grid, self.theme.label);
        let rows = ((frame.bottom - frame.top) / 45.0).round().max(2.0) as usize;
        for tick in y.ticks(rows) {
            let at = y.place(tick);
            scene.line(vec![(frame.left, at), (frame.right, at)], grid.faint(0.6), 1.0);
            scene.anchored((frame.left - 8.0, at), &short(tick), LABEL, (label, TextAnchor::End));
        }
        for tick in self.x.ticks(8) {
            let at = self.x.place(tick);
            scene.line(vec![(at, frame.top), (at, frame.bottom)], grid.faint(0.35), 1.0);
        }
        let Frame { left, top, right, bottom } = frame;
        scene.line(vec![(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], grid, 1.0);
        scene.anchored((right - 8.0, top + 12.0), name, LABEL, (label, TextAnchor::End));
    }

    /// Loss and validation loss, and what was lost.
    pub(crate) fn loss(&self, scene: &mut PictureScene, frame: Frame) {
        let y = self.loss_scale(frame);
        for branch in &self.overview.lost {
            let Some((from, to)) = branch.steps() else { continue };
            let (left, right) = (self.x.place(from.saturating_sub(1) as f64), self.x.place(to as f64));
            let right = right.max(left + 2.0);
            scene.rectangle(Frame { left, right, ..frame }, self.theme.lost.faint(0.05));
            scene.hatch(Frame { left, right, ..frame }, self.theme.lost.faint(0.28));
        }
        self.frame(scene, frame, y, "loss");
        for branch in &self.overview.lost {
            self.curve(scene, &branch.buckets, &|b| b.loss.mean(), y, (self.theme.lost.faint(0.75), 1.2));
        }
        self.range(scene, y);
        self.curve(scene, &self.overview.curve, &|b| b.loss.mean(), y, (self.theme.loss, 1.8));
        self.validation(scene, y);
    }

    fn loss_scale(&self, frame: Frame) -> ValueScale {
        let means = self.overview.curve.iter().filter_map(|bucket| bucket.loss.mean());
        let lost = self.overview.lost.iter().flat_map(|branch| &branch.buckets).filter_map(|b| b.loss.mean());
        let evaluations = self.overview.evaluations.iter().filter_map(|point| point.val_loss);
        let mut all: Vec<f64> = means.chain(lost).chain(evaluations).filter(|loss| loss.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (all.first().copied(), all.last().copied()) else {
            return ValueScale::linear((0.0, 1.0), (frame.bottom, frame.top));
        };
        if least > 0.0 && most / least > LOGARITHMIC {
            return ValueScale::logarithmic((least / 1.2, most * 1.2), (frame.bottom, frame.top));
        }
        let room = ((most - least) * 0.07).max(most.abs() * 1e-3).max(1e-6);
        ValueScale::linear((least - room, most + room * 1.5), (frame.bottom, frame.top))
    }

    /// From the least to the greatest loss of each bucket.
    fn range(&self, scene: &mut PictureScene, y: ValueScale) {
        for part in runs(&self.overview.curve, |bucket| bucket.loss.count > 0) {
            let at = |bucket: &Bucket| self.x.place(middle(bucket));
            let upper = part.iter().map(|bucket| (at(bucket), y.place(f64::from(bucket.loss.max))));
            let lower = part.iter().rev().map(|bucket| (at(bucket), y.place(f64::from(bucket.loss.min))));
            scene.area(upper.chain(lower).collect(), self.theme.loss.faint(0.18));
        }
    }

    fn validation(&self, scene: &mut PictureScene, y: ValueScale) {
        let points: Vec<(u64, f64)> =
            self.overview.evaluations.iter().filter_map(|point| Some((point.step, point.val_loss?))).collect();
        let place = |(step, loss): &(u64, f64)| (self.x.place(*step as f64), y.place(*loss));
        let thinned: Vec<Place> = points.iter().step_by(points.len().div_ceil(EVALUATIONS).max(1)).map(place).collect();
        if thinned.len() <= DOTS {
            thinned.iter().for_each(|at| scene.dot(*at, 2.6, self.theme.validation));
        }
        scene.line(thinned, self.theme.validation, 1.6);
        let best = points.iter().min_by(|one, other| one.1.total_cmp(&other.1));
        if let Some(best) = best.filter(|_| points.len() > 1) {
            let (x, at) = place(best);
            scene.dot((x, at), 5.0, self.theme.background);
            scene.dot((x, at), 4.0, self.theme.validation);
            let text = format!("lowest {:.4} at step {}", best.1, best.0);
            // Where the curve leaves room, and within the picture.
            let (left, right) = (self.x.place(f64::MIN), self.x.place(f64::MAX));
            let half = crate::scene::text_width(&text, LABEL) / 2.0;
            let x = x.clamp(left + half + 4.0, right - half - 4.0);
            let above = if at - 16.0 > y.place(f64::MAX) + 30.0 { -16.0 } else { 16.0 };
            scene.anchored((x, at + above), &text, LABEL, (self.theme.validation, TextAnchor::Middle));
        }
    }

    /// The learning rate.
    pub(crate) fn rate(&self, scene: &mut PictureScene, frame: Frame) {
        let value = |bucket: &Bucket| Some(f64::from(bucket.learning_rate));
        self.single(scene, frame, "learning rate", (&value, self.theme.rate));
    }

    /// The speed.
    pub(crate) fn speed(&self, scene: &mut PictureScene, frame: Frame) {
        self.single(scene, frame, "tokens/s", (&Bucket::tokens_per_second, self.theme.speed));
    }

    fn single(&self, scene: &mut PictureScene, frame: Frame, name: &str, (value, colour): (BucketValue<'_>, Colour)) {
        let values = self.overview.curve.iter().filter_map(value).filter(|value| value.is_finite());
        let most = values.fold(0.0, f64::max);
        let y = ValueScale::linear((0.0, if most > 0.0 { most * 1.3 } else { 1.0 }), (frame.bottom, frame.top));
        self.frame(scene, frame, y, name);
        self.curve(scene, &self.overview.curve, value, y, (colour, 1.6));
    }

    fn curve(
        &self,
        scene: &mut PictureScene,
        buckets: &[Bucket],
        value: BucketValue<'_>,
        y: ValueScale,
        (colour, width): (Colour, f64),
    ) {
        for part in runs(buckets, |bucket| value(bucket).is_some_and(f64::is_finite)) {
            let place = |bucket: &Bucket| Some((self.x.place(middle(bucket)), y.place(value(bucket)?)));
            let places: Vec<Place> = part.iter().filter_map(place).collect();
            if let [at] = places[..] {
                scene.dot(at, width, colour);
            }
            scene.line(places, colour, width);
        }
    }

    /// A tick per snapshot.
    pub(crate) fn snapshots(&self, scene: &mut PictureScene, frame: Frame) {
        let label = (self.theme.label, TextAnchor::End);
        scene.anchored((frame.left - 8.0, (frame.top + frame.bottom) / 2.0), "snapshots", LABEL, label);
        scene.line(vec![(frame.left, frame.bottom), (frame.right, frame.bottom)], self.theme.grid, 1.0);
        let mut last = f64::MIN;
        for mark in &self.overview.snapshots {
            let x = self.x.place(mark.step as f64);
            let is_special = mark.is_best || mark.is_replicated || mark.fate != SnapshotFate::Verified;
            // Ticks that would be one are one.
            if is_special || (x - last).abs() > 0.8 {
                self.snapshot(scene, frame, mark, x);
                last = x;
            }
        }
    }

    fn snapshot(&self, scene: &mut PictureScene, frame: Frame, mark: &SnapshotMark, x: f64) {
        let opacity = if mark.is_abandoned { 0.35 } else { 1.0 };
        let (theme, middle) = (self.theme, (frame.top + frame.bottom) / 2.0);
        let mut tick =
            |colour: Colour, top: f64| scene.line(vec![(x, top), (x, frame.bottom)], colour.faint(opacity), 1.5);
        match mark.fate {
            SnapshotFate::Verified if mark.is_healthy => tick(theme.verified, middle - 1.0),
            SnapshotFate::Verified | SnapshotFate::Committed => tick(theme.label, middle + 2.0),
            SnapshotFate::Quarantined | SnapshotFate::Failed => {
                cross(scene, (x, middle + 2.0), theme.lost);
            }
        }
        if mark.is_replicated {
            scene.dot((x, middle - 1.0), 2.2, theme.loss.faint(opacity));
        }
        if mark.is_best {
            diamond(scene, (x, middle - 3.0), theme.best.faint(opacity));
        }
    }
}

/// A value of a bucket that has it.
type BucketValue<'a> = &'a dyn Fn(&Bucket) -> Option<f64>;

/// The sign of a snapshot that is none.
pub(crate) fn cross(scene: &mut PictureScene, (x, y): Place, colour: Colour) {
    const HALF: f64 = 3.5;
    scene.line(vec![(x - HALF, y - HALF), (x + HALF, y + HALF)], colour, 1.8);
    scene.line(vec![(x - HALF, y + HALF), (x + HALF, y - HALF)], colour, 1.8);
}

/// The sign of the best snapshot.
pub(crate) fn diamond(scene: &mut PictureScene, (x, y): Place, colour: Colour) {
    scene.area(vec![(x, y - 5.5), (x + 4.5, y), (x, y + 5.5), (x - 4.5, y)], colour);
}

fn middle(bucket: &Bucket) -> f64 {
    (bucket.first_step as f64 + bucket.last_step as f64) / 2.0
}

/// Neighbours that have a value, taken together; where steps are missing nothing is drawn.
fn runs(buckets: &[Bucket], has: impl Fn(&Bucket) -> bool) -> Vec<&[Bucket]> {
    let is_next = |one: &Bucket, other: &Bucket| other.first_step <= one.last_step + 1;
    buckets.split(|bucket| !has(bucket)).flat_map(|part| part.chunk_by(is_next)).collect()
}

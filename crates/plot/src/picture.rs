//! The whole picture: a head, the sessions, the panels, what the signs mean.

use ckptd_history::overview::{HistoryOverview, SnapshotFate, SnapshotMark};

use crate::panels::{LABEL, PanelContext, cross, diamond};
use crate::scale::{ValueScale, short};
use crate::scene::{Frame, PictureScene, Place, TextAnchor, fitting, text_width};
use crate::theme::PictureTheme;

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 758.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 28.0;
const SESSIONS: (f64, f64) = (78.0, 114.0);
const LOSS: (f64, f64) = (118.0, 418.0);
const SNAPSHOTS: (f64, f64) = (420.0, 442.0);
const RATE: (f64, f64) = (456.0, 540.0);
const SPEED: (f64, f64) = (552.0, 646.0);
const STEPS: f64 = 662.0;
const LEGEND: f64 = 712.0;
const LEGEND_ROW: f64 = 20.0;

/// What else stands in a picture.
#[derive(Clone, Debug, Default)]
pub struct PictureText {
    /// In its head: the job.
    pub title: String,
    /// A session is under way.
    pub is_running: bool,
}

/// The picture of a training.
pub fn picture(overview: &HistoryOverview, text: &PictureText, theme: &PictureTheme) -> PictureScene {
    let summary = summary(overview);
    let mut scene = PictureScene {
        size: (WIDTH, HEIGHT),
        title: format!("{}: {summary}", text.title),
        background: theme.background,
        shapes: Vec::new(),
    };
    let steps = overview.curve.iter().map(|bucket| bucket.last_step).chain(lost_ends(overview));
    let first = overview.curve.first().map_or(0, |bucket| bucket.first_step.saturating_sub(1));
    let x = ValueScale::linear((first as f64, steps.max().unwrap_or(1) as f64), (LEFT, RIGHT));
    scene.text((LEFT, 30.0), &fitting(&text.title, 20.0, RIGHT - LEFT).unwrap_or_default(), 20.0, theme.text);
    scene.text((LEFT, 54.0), &fitting(&summary, 12.5, RIGHT - LEFT).unwrap_or_default(), 12.5, theme.label);
    let context = PanelContext { overview, theme, x };
    sessions(&mut scene, &context, text.is_running);
    context.loss(&mut scene, frame(LOSS));
    context.snapshots(&mut scene, frame(SNAPSHOTS));
    context.rate(&mut scene, frame(RATE));
    context.speed(&mut scene, frame(SPEED));
    for tick in x.ticks(8) {
        scene.anchored((x.place(tick), STEPS), &short(tick), LABEL, (theme.label, TextAnchor::Middle));
    }
    scene.anchored(((LEFT + RIGHT) / 2.0, STEPS + 18.0), "step", LABEL, (theme.label, TextAnchor::Middle));
    legend(&mut scene, overview, theme);
    scene
}

fn frame((top, bottom): (f64, f64)) -> Frame {
    Frame { left: LEFT, right: RIGHT, top, bottom }
}

fn lost_ends(overview: &HistoryOverview) -> impl Iterator<Item = u64> + '_ {
    overview.lost.iter().filter_map(|branch| Some(branch.steps()?.1))
}

/// A line that says it all.
fn summary(overview: &HistoryOverview) -> String {
    let mut parts = Vec::new();
    if let Some(last) = overview.curve.last() {
        let total = overview.total_steps.map_or_else(String::new, |total| format!(" of {total}"));
        parts.push(format!("step {}{total}", last.last_step));
        parts.extend(last.loss.mean().map(|loss| format!("loss {loss:.4}")));
    }
    let one_or_more = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    parts.push(one_or_more(overview.sessions.len() as u64, "session"));
    let verified = overview.snapshots.iter().filter(|mark| mark.fate == SnapshotFate::Verified).count();
    parts.push(format!("{} verified", one_or_more(verified as u64, "snapshot")));
    let lost = overview.lost_steps();
    if lost > 0 {
        let all = lost + overview.curve.iter().map(|bucket| bucket.rows).sum::<u64>();
        let percent = 100.0 * lost as f64 / all as f64;
        parts.push(format!("{} trained and lost ({percent:.1} %)", one_or_more(lost, "step")));
    }
    parts.join(" · ")
}

/// A band per session behind the panels, and above them why it ended.
fn sessions(scene: &mut PictureScene, context: &PanelContext<'_>, is_running: bool) {
    let (overview, theme) = (context.overview, context.theme);
    for (n, (session, span)) in overview.sessions.iter().zip(overview.spans()).enumerate() {
        let Some((from, to)) = span.filter(|(from, to)| from < to) else { continue };
        let (left, right) = (context.x.place(from as f64), context.x.place(to as f64));
        if n.is_multiple_of(2) {
            let band = Frame { left, right, top: SESSIONS.0, bottom: SPEED.1 };
            scene.rectangle(band, theme.band);
        }
        if n > 0 {
            scene.line(vec![(left, SESSIONS.0), (left, SPEED.1)], theme.label.faint(0.35), 1.0);
        }
        let is_last = n + 1 == overview.sessions.len();
        let (why, colour) = match &session.why {
            Some(why) if why.starts_with("failed") => (why.as_str(), theme.lost),
            Some(why) => (why.as_str(), theme.label),
            None if is_last && is_running => ("under way", theme.verified),
            None => ("killed", theme.lost),
        };
        let (at, room) = (left + 7.0, right - left - 12.0);
        let names = [format!("session {}", n + 1), (n + 1).to_string()];
        if let Some(name) = names.iter().find(|name| text_width(name, LABEL) <= room) {
            scene.text((at, SESSIONS.0 + 10.0), name, LABEL, theme.text);
        }
        if let Some(why) = fitting(why, LABEL - 0.5, room) {
            scene.text((at, SESSIONS.0 + 25.0), &why, LABEL - 0.5, colour);
        }
    }
}

/// Draws a sign, whose left middle is at a place.
type LegendSign<'a> = Box<dyn Fn(&mut PictureScene, Place) + 'a>;

/// The signs that there are, each with what it means.
fn signs<'a>(overview: &HistoryOverview, theme: &'a PictureTheme) -> Vec<(&'static str, LegendSign<'a>)> {
    let has = |is: &dyn Fn(&SnapshotMark) -> bool| overview.snapshots.iter().any(is);
    let of = |(x, y): Place, half: f64| Frame { left: x, right: x + 18.0, top: y - half, bottom: y + half };
    let stroke = |scene: &mut PictureScene, (x, y): Place, colour| scene.line(vec![(x, y), (x + 18.0, y)], colour, 2.0);
    let tick = |scene: &mut PictureScene, (x, y): Place, colour| {
        scene.line(vec![(x + 9.0, y - 6.0), (x + 9.0, y + 5.0)], colour, 1.5);
    };
    let mut signs: Vec<(&'static str, LegendSign<'a>)> = Vec::new();
    signs.push((
        "loss: mean, least to greatest",
        Box::new(move |scene, at| {
            scene.rectangle(of(at, 5.0), theme.loss.faint(0.18));
            stroke(scene, at, theme.loss);
        }),
    ));
    if !overview.evaluations.is_empty() {
        signs.push(("validation loss", Box::new(move |scene, at| stroke(scene, at, theme.validation))));
    }
    if !overview.lost.is_empty() {
        let sign = move |scene: &mut PictureScene, at: Place| {
            scene.rectangle(of(at, 6.0), theme.lost.faint(0.06));
            scene.hatch(of(at, 6.0), theme.lost.faint(0.45));
        };
        signs.push(("trained and lost", Box::new(sign)));
    }
    if has(&|mark| mark.fate == SnapshotFate::Verified) {
        signs.push(("verified snapshot", Box::new(move |scene, at| tick(scene, at, theme.verified))));
    }
    if has(&|mark| mark.fate == SnapshotFate::Committed) {
        signs.push(("not read back", Box::new(move |scene, at| tick(scene, at, theme.label))));
    }
    if has(&|mark| mark.is_best) {
        signs.push(("best", Box::new(move |scene, (x, y)| diamond(scene, (x + 9.0, y), theme.best))));
    }
    if has(&|mark| mark.is_replicated) {
        signs.push(("replicated", Box::new(move |scene, (x, y)| scene.dot((x + 9.0, y), 2.8, theme.loss))));
    }
    if has(&|mark| matches!(mark.fate, SnapshotFate::Quarantined | SnapshotFate::Failed)) {
        signs.push(("quarantined or failed", Box::new(move |scene, (x, y)| cross(scene, (x + 9.0, y), theme.lost))));
    }
    signs
}

/// What the signs mean, row by row.
fn legend(scene: &mut PictureScene, overview: &HistoryOverview, theme: &PictureTheme) {
    let (mut x, mut y) = (LEFT, LEGEND);
    for (text, sign) in signs(overview, theme) {
        let width = 25.0 + text_width(text, LABEL) + 20.0;
        if x + width > RIGHT {
            (x, y) = (LEFT, y + LEGEND_ROW);
        }
        sign(scene, (x, y));
        scene.text((x + 25.0, y), text, LABEL, theme.label);
        x += width;
    }
}

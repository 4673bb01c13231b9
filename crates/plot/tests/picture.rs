//! A picture of a training with all that can happen to one. CKPTD_PICTURES=FOLDER keeps what was drawn.
#![allow(clippy::unwrap_used)]

use ckptd_core::store::Store;
use ckptd_history::overview::HistoryOverview;
use ckptd_history::reader::TrainingHistory;
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};
use ckptd_history::writer::HistoryWriter;
use ckptd_plot::draw;
use ckptd_plot::picture::{PictureText, picture};
use ckptd_plot::scene::{PictureScene, Shape};
use ckptd_plot::theme::PictureTheme;
use ckptd_testkit::random::SeededRandom;

const STEPS: u64 = 4000;

struct Training {
    writer: HistoryWriter,
    random: SeededRandom,
    at_ms: i64,
}

impl Training {
    fn event(&mut self, event: HistoryEvent) {
        self.writer.push(HistoryRecord::Event(TimedEvent { at_ms: self.at_ms, event }));
    }

    fn noise(&mut self) -> f64 {
        (0..4).map(|_| self.random.below(1000) as f64 / 1000.0 - 0.5).sum()
    }

    fn session(&mut self, from: u64, to: u64, why: Option<&str>) {
        self.at_ms += 3_600_000;
        self.event(HistoryEvent::SessionStarted { run: "a".into(), total_steps: STEPS, version: "1".into() });
        let id = |step| format!("step-{step:012}");
        self.event(HistoryEvent::Resumed { step: from, snapshot: (from > 0).then(|| id(from)) });
        for step in from + 1..=to {
            self.at_ms += 400;
            let done = step as f64 / STEPS as f64;
            let loss = 2.6 + 8.0 / (1.0 + done * 60.0) - 0.3 * done + 0.12 * self.noise();
            let rate = 3e-4 * (done * 20.0).min(1.0) * (0.5 + 0.5 * (std::f64::consts::PI * done).cos());
            let micros = 400_000.0 * (1.0 + 0.03 * self.noise());
            self.writer.push(HistoryRecord::Step(StepRow {
                step,
                at_ms: self.at_ms,
                loss: if step == 1777 { f32::NAN } else { loss as f32 },
                learning_rate: rate as f32,
                grad_norm: None,
                micros: micros as u64,
                tokens: 8192,
            }));
            if step.is_multiple_of(200) {
                let overfit = 0.55 * (done - 0.6).max(0.0);
                let val_loss = Some(2.68 + 8.0 / (1.0 + done * 60.0) - 0.3 * done + overfit);
                self.event(HistoryEvent::Evaluated { step, val_loss, best: false });
            }
            if step.is_multiple_of(100) {
                let val_loss = Some(2.68 + 8.0 / (1.0 + done * 60.0) - 0.3 * done + 0.55 * (done - 0.6).max(0.0));
                self.event(HistoryEvent::SnapshotCommitted { step, id: id(step), bytes: 1 << 30, seconds: 1.0 });
                match step {
                    1500 => self.event(HistoryEvent::SnapshotQuarantined { step, id: id(step), reason: "x".into() }),
                    _ => self.event(HistoryEvent::SnapshotVerified { step, id: id(step), healthy: true, val_loss }),
                }
                if step.is_multiple_of(500) && step != 1500 {
                    self.event(HistoryEvent::Replicated { step, bytes: 1, seconds: 1.0 });
                }
            }
        }
        if let Some(why) = why {
            self.event(HistoryEvent::SessionEnded { step: to, saved_step: to, why: why.into() });
        }
        self.writer.flush(0).unwrap();
    }
}

fn overview() -> HistoryOverview {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path()).unwrap();
    let lock = store.lock("a test").unwrap();
    let writer = HistoryWriter::open(&store, &lock).unwrap();
    let mut training = Training { writer, random: SeededRandom::new(2), at_ms: 1_790_000_000_000 };
    training.session(0, 900, Some("the session's budget ends"));
    training.session(900, 1560, None);
    training.session(1400, 2480, Some("SIGTERM"));
    training.session(2480, 2570, None);
    training.session(2500, 3650, Some("Slurm's time limit"));
    training.session(3650, STEPS, Some("finished"));
    HistoryOverview::of(&TrainingHistory::read(&store).unwrap(), 1000).unwrap()
}

fn texts(scene: &PictureScene) -> String {
    let text = |shape: &Shape| if let Shape::Text { text, .. } = shape { Some(text.clone()) } else { None };
    scene.shapes.iter().filter_map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_picture_shows_the_sessions_what_was_lost_and_the_snapshots() {
    let overview = overview();
    let text = PictureText { title: "gpt2 on the works of <Goethe> & others".into(), is_running: false };
    for (name, theme) in [("light", PictureTheme::light()), ("dark", PictureTheme::dark())] {
        let scene = picture(&overview, &text, &theme);
        let said = texts(&scene);
        for expected in [
            "step 4000 of 4000 · loss 2.",
            "6 sessions",
            "230 steps trained and lost (5.4 %)",
            "session 1",
            "the session's budget ends",
            "killed",
            "lowest ",
            "trained and lost",
            "replicated",
            "best",
            "quarantined or failed",
        ] {
            assert!(said.contains(expected), "{expected} is not in\n{said}");
        }
        let (width, height) = scene.size;
        let is_within = |(x, y): &(f64, f64)| (-0.01..=width).contains(x) && (-0.01..=height).contains(y);
        for shape in &scene.shapes {
            let within = match shape {
                Shape::Line { places, .. } | Shape::Area { places, .. } => places.iter().all(is_within),
                Shape::Dot { at, .. } | Shape::Text { at, .. } => is_within(at),
            };
            assert!(within, "{shape:?}");
        }
        let svg = draw::svg(&scene).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
        assert!(svg.contains("<title>gpt2 on the works of &lt;Goethe&gt; &amp; others: step 4000"), "{}", &svg[..400]);
        let png = draw::png(&scene).unwrap();
        let (r, g, b) = theme.background.rgb;
        let mut reader = png::Decoder::new(std::io::Cursor::new(&png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (2 * width as u32, 2 * height as u32));
        assert_eq!(pixels[..3], [r, g, b]);
        assert!(pixels.chunks(3).any(|pixel| pixel != [r, g, b]));
        println!("{name}: {} shapes, svg {} bytes, png {} bytes", scene.shapes.len(), svg.len(), png.len());
        if let Some(folder) = std::env::var_os("CKPTD_PICTURES").map(std::path::PathBuf::from) {
            std::fs::write(folder.join(format!("{name}.svg")), svg).unwrap();
            std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
        }
    }
}

#[test]
fn a_history_of_nothing_or_of_one_step_is_a_picture_too() {
    let theme = PictureTheme::light();
    let empty = picture(&HistoryOverview::default(), &PictureText::default(), &theme);
    draw::svg(&empty).unwrap();
    draw::png(&empty).unwrap();
    let mut one = overview();
    one.curve.truncate(1);
    one.lost.clear();
    assert!(draw::svg(&picture(&one, &PictureText::default(), &theme)).unwrap().contains("session 1"));
}

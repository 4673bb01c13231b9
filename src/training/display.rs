//! What the user sees of the progress: the panel on a terminal, and a line now and then.

use std::time::Duration;

use tracing::info;

use super::progress::JobProgress;
use crate::daemon::panel::ProgressPanel;
use crate::daemon::printer::LogPrinter;
use crate::daemon::report::JobState;
use crate::session::clock::{BootInstant, ClockReading};

/// The target of lines on the progress: beside a panel they are kept, and not shown unless that is asked for.
pub const PROGRESS: &str = "progress";
/// Time between two updates of the panel.
const PANEL_INTERVAL: Duration = Duration::from_millis(500);

/// How often there is a line on the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineInterval {
    Time(Duration),
    Steps(u64),
}

impl LineInterval {
    /// Where nothing is asked for.
    pub const USUAL: LineInterval = LineInterval::Time(Duration::from_secs(10));
}

/// The display of one run.
pub(super) struct ProgressDisplay<'a> {
    printer: &'a LogPrinter,
    lines: LineInterval,
    next_panel: BootInstant,
    last_line: BootInstant,
    /// The step of the last line.
    step: u64,
}

impl ProgressDisplay<'_> {
    /// A display on `printer`, whose panel is due at once.
    pub(super) fn new(printer: &LogPrinter, lines: LineInterval) -> ProgressDisplay<'_> {
        let now = BootInstant::now();
        ProgressDisplay { printer, lines, next_panel: now, last_line: BootInstant::since_boot(Duration::ZERO), step: 0 }
    }

    /// When the panel wants an update.
    pub(super) fn wake_at(&self) -> Option<BootInstant> {
        self.printer.is_live().then_some(self.next_panel)
    }

    /// Shows `progress` where that is due.
    pub(super) fn update(&mut self, progress: &JobProgress, now: ClockReading) {
        if self.printer.is_live() && now.at >= self.next_panel {
            self.next_panel = now.at + PANEL_INTERVAL;
            self.printer.panel(ProgressPanel {
                step: progress.step,
                total_steps: progress.total_steps,
                outlook: progress.outlook_text(now.wall),
                figures: progress.figures_text(now.wall),
            });
        }
        if self.line_is_due(progress, now) {
            self.last_line = now.at;
            let (step, loss, tokens_per_second) = (progress.step, progress.loss, progress.tokens_per_second());
            let learning_rate = progress.learning_rate;
            info!(target: PROGRESS, step, loss, learning_rate, tokens_per_second, "{}", progress.line_text());
            self.step = step;
        } else if progress.step < self.step {
            self.step = progress.step;
        }
    }

    fn line_is_due(&self, progress: &JobProgress, now: ClockReading) -> bool {
        if progress.state != JobState::Training || progress.step <= self.step {
            return false;
        }
        match self.lines {
            LineInterval::Time(every) => now.at >= self.last_line + every,
            LineInterval::Steps(every) => progress.step / every > self.step / every,
        }
    }
}

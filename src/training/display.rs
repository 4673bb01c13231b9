//! What the user sees of the progress: the panel on a terminal, else a line now and then.

use std::time::Duration;

use tracing::info;

use super::progress::JobProgress;
use crate::daemon::printer::{LogPrinter, ProgressPanel};
use crate::daemon::report::JobState;
use crate::session::clock::{BootInstant, ClockReading};

/// Time between two lines on the progress, and between two updates of the panel.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const PANEL_INTERVAL: Duration = Duration::from_millis(500);

/// The display of one run.
pub(super) struct ProgressDisplay<'a> {
    printer: &'a LogPrinter,
    next: BootInstant,
    step: u64,
}

impl ProgressDisplay<'_> {
    /// A display on `printer`, which is due at once.
    pub(super) fn new(printer: &LogPrinter) -> ProgressDisplay<'_> {
        ProgressDisplay { printer, next: BootInstant::now(), step: 0 }
    }

    /// When the panel wants an update.
    pub(super) fn wake_at(&self) -> Option<BootInstant> {
        self.printer.is_live().then_some(self.next)
    }

    /// Shows `progress` where that is due.
    pub(super) fn update(&mut self, progress: &JobProgress, now: ClockReading) {
        if now.at < self.next {
            return;
        }
        if self.printer.is_live() {
            self.next = now.at + PANEL_INTERVAL;
            let now = now.wall;
            self.printer.panel(ProgressPanel {
                step: progress.step,
                total_steps: progress.total_steps,
                outlook: progress.outlook_text(now),
                figures: progress.figures_text(now),
            });
        } else if progress.state == JobState::Training && progress.step > self.step {
            self.next = now.at + LINE_INTERVAL;
            let (step, loss, tokens_per_second) = (progress.step, progress.loss, progress.tokens_per_second());
            info!(step, loss, tokens_per_second, "{}", progress.line_text());
        }
        self.step = progress.step;
    }
}

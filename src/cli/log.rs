//! How a run's log looks: sentences for people, or JSON objects with the figures as fields.

use std::fmt;
use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt as subscriber, reload};

use crate::daemon::log_keeper::LogKeeper;
use crate::daemon::printer::LogPrinter;
use crate::training::display::PROGRESS;
use ckptd_core::config::LogLevel;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// The log of a run.
pub(super) struct RunLog {
    pub printer: LogPrinter,
    pub keeper: LogKeeper,
    level: reload::Handle<LevelFilter, Registry>,
    kept: reload::Handle<LevelFilter, Registry>,
}

impl RunLog {
    /// Sets the level of what is logged from now on.
    pub(super) fn set_level(&self, level: LogLevel) {
        // It fails only where the subscriber is gone, and with it all logging.
        let _ = self.level.reload(filter(level));
        let _ = self.kept.reload(filter(level).max(LevelFilter::INFO));
    }
}

/// How the progress of a training is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// As lines on stderr, also beside a panel.
    pub lines: bool,
    /// In a panel, where stderr is a terminal.
    pub live: bool,
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}

/// Sends what is logged from now on to stderr, through a printer with a panel where that makes sense, and to a keeper,
/// which keeps at least what a job says by default.
pub(super) fn start(format: LogFormat, level: LogLevel, progress: Progress) -> RunLog {
    let quiet = matches!(level, LogLevel::Error | LogLevel::Warn);
    let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let printer = LogPrinter::start(terminal && format == LogFormat::Text && !quiet && progress.live);
    let keeper = LogKeeper::default();
    let (kept_level, kept) = reload::Layer::new(filter(level).max(LevelFilter::INFO));
    let (level, handle) = reload::Layer::new(filter(level));
    let hidden = printer.is_live() && !progress.lines;
    let shown = filter_fn(move |event| !hidden || event.target() != PROGRESS);
    // A failing stderr must not be reported on stderr.
    let layer = subscriber::layer().with_writer(printer.clone()).with_ansi(terminal).log_internal_errors(false);
    let file = subscriber::layer().with_writer(keeper.clone()).with_ansi(false).log_internal_errors(false);
    let file = file.event_format(Sentence { clock: FULL, journal: Journal::None }).with_filter(kept_level);
    let layer = match format {
        LogFormat::Text => {
            let journal = journal();
            let clock = match journal {
                // journald writes the time itself.
                Journal::Beside | Journal::Reads => "",
                Journal::None if terminal => "%H:%M:%S ",
                Journal::None => FULL,
            };
            layer.event_format(Sentence { clock, journal }).with_filter(level.and(shown)).boxed()
        }
        LogFormat::Json => layer.json().flatten_event(true).with_target(false).with_filter(level).boxed(),
    };
    // A second subscriber in one process is a test's; the first one stays.
    let _ = tracing_subscriber::registry().with(vec![layer, file.boxed()]).try_init();
    RunLog { printer, keeper, level: handle, kept }
}

/// A log may be of days, and be read elsewhere.
const FULL: &str = "%Y-%m-%d %H:%M:%S %:z ";

/// What systemd's journal has to do with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// The process runs under systemd, which writes the time itself, but its log goes elsewhere.
    Beside,
    /// It reads stderr: a number before each line says how urgent it is.
    Reads,
    None,
}

/// Whether the journal reads stderr: JOURNAL_STREAM has the device and the inode of what it reads.
/// Source: systemd.exec(5), sd-daemon(3).
pub(super) fn journal() -> Journal {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return Journal::None };
    let ours = rustix::fs::fstat(rustix::stdio::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    if ours.is_ok_and(|ours| ours == stream) { Journal::Reads } else { Journal::Beside }
}

/// `text`, each line of it with the number of `level` where the journal reads it.
pub(super) fn for_journal(text: &str, level: Level, journal: Journal) -> String {
    let number = match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    };
    match journal {
        Journal::Reads => text.lines().map(|line| format!("{number}{line}")).collect::<Vec<_>>().join("\n"),
        _ => text.to_owned(),
    }
}

/// "12:34:56 verified step 1200: ...": the message alone, with its level where that is a warning or an error.
struct Sentence {
    journal: Journal,
    /// As `strftime` has it; empty where another writes the time.
    clock: &'static str,
}

impl<S, N> FormatEvent<S, N> for Sentence
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if !self.clock.is_empty() {
            write!(line, "{}", jiff::ZonedDateTime::now().strftime(self.clock))?;
        }
        let level = *event.metadata().level();
        let mut message = MessageText(String::new());
        event.record(&mut message);
        let name = match level {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        writeln!(line, "{}", for_journal(&format!("{name}{}", message.0), level, self.journal))
    }
}

struct MessageText(String);

impl Visit for MessageText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // A control character from a worker's message must not steer the terminal.
            let text = format!("{value:?}");
            self.0 = text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_told_how_urgent_each_line_is() {
        assert_eq!(for_journal("a\nb", Level::WARN, Journal::Reads), "<4>a\n<4>b");
        assert_eq!(for_journal("a", Level::ERROR, Journal::Reads), "<3>a");
        assert_eq!(for_journal("a\nb", Level::WARN, Journal::Beside), "a\nb");
    }
}

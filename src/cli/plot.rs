//! `ckptd plot`

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use super::target::CommandTarget;
use super::{exit_code, history, output};
use ckptd_core::error::{Error, Result};
use ckptd_history::overview::HistoryOverview;
use ckptd_history::reader::TrainingHistory;
use ckptd_interop::output::{self as interop_output, OverwriteRule};
use ckptd_plot::draw;
use ckptd_plot::picture::{PictureText, picture};
use ckptd_plot::theme::PictureTheme;

/// Points of a curve: enough for its course, few enough that each shows how its steps scatter.
const POINTS: usize = 240;

/// Draw the training over all its sessions: loss, learning rate, speed, snapshots, and what was lost.
#[derive(clap::Args)]
pub(super) struct PlotArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// The picture, .svg or .png. Without it, the job's name with .svg, here.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = ThemeName::Light)]
    theme: ThemeName,
}

/// For which background it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ThemeName {
    Light,
    Dark,
}

pub(super) fn execute(args: &PlotArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let history = TrainingHistory::read(&target.store)?;
    history::complain(&target.store, &history)?;
    if history.rows() == 0 {
        let path = target.store.path().display();
        return Err(Error::NotFound(format!("no step is in the history of {path} yet; `ckptd run` keeps it")));
    }
    let overview = HistoryOverview::of(&history, POINTS)?;
    let text = PictureText { title: target.name(), is_running: history::is_running(&target.store)? };
    let theme = match args.theme {
        ThemeName::Light => PictureTheme::light(),
        ThemeName::Dark => PictureTheme::dark(),
    };
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.svg", text.title)));
    let scene = picture(&overview, &text, &theme);
    let drawn = match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => draw::svg(&scene).map(String::into_bytes),
        Some("png") => draw::png(&scene),
        _ => return Err(Error::Other(format!("{}: pictures are .svg or .png; name one of these", path.display()))),
    };
    let drawn = drawn.map_err(|e| Error::Other(e.to_string()))?;
    interop_output::file(&path, OverwriteRule::Replace(|_| Ok(Vec::new())), |file| {
        file.write_all(&drawn).map_err(|e| Error::io("writing", &path, e))
    })?;
    output::text(&format!("wrote {}\n", path.display()))?;
    Ok(exit_code::DONE)
}

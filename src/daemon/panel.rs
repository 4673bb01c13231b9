//! The panel at the end of a log on a terminal: two lines that are drawn again and again.
//!
//! Invariant: what was drawn is taken away before anything else is written, also where the terminal has become narrower
//! and the lines take more rows, and where it shows a Ctrl-C. Deliberately not here: writing (printer).

/// What the panel shows.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgressPanel {
    pub step: u64,
    pub total_steps: u64,
    /// Behind the bar, and below it.
    pub outlook: String,
    pub figures: String,
}

/// Widest line, in columns: most terminals stay wider, so that no line is broken when one is made narrower.
const WIDEST: usize = 100;
/// Columns of the bar.
const BAR: usize = 20;
const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// What is on the terminal.
#[derive(Debug, Default)]
pub(super) struct LivePanel {
    /// The panel that was given last.
    panel: Option<ProgressPanel>,
    /// Columns of the first line as it was drawn; `None`: nothing is there.
    drawn: Option<usize>,
}

impl LivePanel {
    /// Draws `panel` in the place of the last one, on a terminal of so many columns.
    pub(super) fn draw(&mut self, panel: &ProgressPanel, columns: usize) -> Vec<u8> {
        self.panel = Some(panel.clone());
        self.redraw(columns)
    }

    /// `lines`, and the panel below them.
    pub(super) fn around(&mut self, lines: &[u8], columns: usize) -> Vec<u8> {
        [self.erase(columns), lines.to_vec(), self.redraw(columns)].concat()
    }

    /// Takes the panel away for good.
    pub(super) fn clear(&mut self, columns: usize) -> Vec<u8> {
        self.panel = None;
        self.erase(columns)
    }

    fn redraw(&mut self, columns: usize) -> Vec<u8> {
        let mut bytes = self.erase(columns);
        let Some(panel) = &self.panel else { return bytes };
        let width = columns.saturating_sub(1).min(WIDEST);
        let head = format!("{}/{} ", panel.step, panel.total_steps);
        let bar = if width > 2 * BAR + head.len() { BAR } else { 0 };
        let share = panel.step.min(panel.total_steps) as f64 / panel.total_steps.max(1) as f64;
        let full = (share * bar as f64) as usize;
        let rest = width.saturating_sub(head.chars().count() + bar + usize::from(bar > 0));
        let (head, outlook) = (cut(&head, width), cut(&panel.outlook, rest));
        let gap = if bar > 0 { " " } else { "" };
        let columns_drawn = head.chars().count() + bar + gap.len() + outlook.chars().count();
        let (done, left) = ("\u{2501}".repeat(full), "\u{2500}".repeat(bar - full));
        let first = format!("{head}{CYAN}{done}{PLAIN}{DIM}{left}{PLAIN}{gap}{outlook}");
        // The cursor rests at the second line's beginning, where a Ctrl-C that is shown breaks nothing.
        bytes.extend(format!("{first}\r\n{}\r", cut(&panel.figures, width)).into_bytes());
        self.drawn = Some(columns_drawn);
        bytes
    }

    /// Takes away what is drawn: the second line, and the rows that the first one has at this width.
    fn erase(&mut self, columns: usize) -> Vec<u8> {
        match self.drawn.take() {
            None => Vec::new(),
            Some(drawn) => format!("\r\x1b[{}A\x1b[J", drawn.div_ceil(columns.max(1)).max(1)).into_bytes(),
        }
    }
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel() -> ProgressPanel {
        let figures = "loss 2.5000 · 120 tokens/s · nothing saved yet";
        ProgressPanel { step: 5, total_steps: 20, outlook: "done in 12s".into(), figures: figures.into() }
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn lines_come_above_the_panel_and_its_rows_are_taken_away_first() {
        let mut live = LivePanel::default();
        assert_eq!(live.around(b"a line\n", 80), b"a line\n");
        let drawn = text(&live.draw(&panel(), 80));
        assert!(drawn.starts_with("5/20 ") && drawn.ends_with("nothing saved yet\r"), "{drawn:?}");
        assert!(text(&live.around(b"next\n", 80)).starts_with("\r\x1b[1A\x1b[Jnext\n5/20 "));
        // Half as wide: the first line takes two rows now.
        assert!(text(&live.around(b"next\n", 25)).starts_with("\r\x1b[2A\x1b[Jnext\n5/20 "));
        assert_eq!(text(&live.clear(25)), "\r\x1b[1A\x1b[J");
        assert_eq!(live.clear(80), b"");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_however_narrow_that_is() {
        for columns in 1..120 {
            let drawn = text(&LivePanel::default().draw(&panel(), columns));
            let plain = drawn.replace(CYAN, "").replace(DIM, "").replace(PLAIN, "");
            assert!(plain.lines().all(|line| line.trim_end().chars().count() < columns.max(2)), "{columns}: {plain:?}");
        }
    }
}

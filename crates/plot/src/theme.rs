//! Colours, for a light and for a dark background.

/// A colour with its opacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    /// Red, green and blue.
    pub rgb: (u8, u8, u8),
    /// 0 to 1.
    pub opacity: f64,
}

impl Colour {
    const fn of(rgb: u32) -> Colour {
        Colour { rgb: ((rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8), opacity: 1.0 }
    }

    /// The same, more or less opaque.
    #[must_use]
    pub fn faint(self, opacity: f64) -> Colour {
        Colour { opacity: self.opacity * opacity, ..self }
    }
}

/// The colours of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureTheme {
    /// Behind all.
    pub background: Colour,
    /// Behind every other session.
    pub band: Colour,
    /// Around the panels, and the lines in them.
    pub grid: Colour,
    /// Titles.
    pub text: Colour,
    /// Labels.
    pub label: Colour,
    /// The loss.
    pub loss: Colour,
    /// The validation loss.
    pub validation: Colour,
    /// The learning rate.
    pub rate: Colour,
    /// The speed.
    pub speed: Colour,
    /// Lost work, kills and quarantine.
    pub lost: Colour,
    /// Verified snapshots.
    pub verified: Colour,
    /// The best snapshot.
    pub best: Colour,
}

impl PictureTheme {
    /// For paper.
    pub const fn light() -> PictureTheme {
        PictureTheme {
            background: Colour::of(0xffffff),
            band: Colour::of(0xf3f5f8),
            grid: Colour::of(0xd8dee4),
            text: Colour::of(0x1f2328),
            label: Colour::of(0x59636e),
            loss: Colour::of(0x0969da),
            validation: Colour::of(0xbc4c00),
            rate: Colour::of(0x8250df),
            speed: Colour::of(0x1a7f37),
            lost: Colour::of(0xcf222e),
            verified: Colour::of(0x1a7f37),
            best: Colour::of(0x9a6700),
        }
    }

    /// For dark screens.
    pub const fn dark() -> PictureTheme {
        PictureTheme {
            background: Colour::of(0x0d1117),
            band: Colour::of(0x161b22),
            grid: Colour::of(0x30363d),
            text: Colour::of(0xf0f6fc),
            label: Colour::of(0x9198a1),
            loss: Colour::of(0x58a6ff),
            validation: Colour::of(0xf0883e),
            rate: Colour::of(0xbc8cff),
            speed: Colour::of(0x3fb950),
            lost: Colour::of(0xf85149),
            verified: Colour::of(0x3fb950),
            best: Colour::of(0xe3b341),
        }
    }
}

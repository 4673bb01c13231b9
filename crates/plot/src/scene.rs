//! What is drawn, as shapes at places: free of any backend.

use crate::theme::Colour;

/// A place, in pixels from the upper left.
pub type Place = (f64, f64);

/// Which part of a text is at its place. Its middle is there in height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextAnchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// One shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A line through places.
    Line {
        /// Through these.
        places: Vec<Place>,
        /// Its colour.
        colour: Colour,
        /// How wide it is.
        width: f64,
    },
    /// What lies within places.
    Area {
        /// Around it.
        places: Vec<Place>,
        /// Its colour.
        colour: Colour,
    },
    /// A filled disc.
    Dot {
        /// Its middle.
        at: Place,
        /// From there to its edge.
        radius: f64,
        /// Its colour.
        colour: Colour,
    },
    /// A line of text.
    Text {
        /// Where.
        at: Place,
        /// What it says.
        text: String,
        /// How high it is.
        size: f64,
        /// Its colour.
        colour: Colour,
        /// What of it is there.
        anchor: TextAnchor,
    },
}

/// A picture before it is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureScene {
    /// How wide and how high it is.
    pub size: (f64, f64),
    /// What it is, for who cannot see it.
    pub title: String,
    /// Behind all.
    pub background: Colour,
    /// From the back to the front.
    pub shapes: Vec<Shape>,
}

/// A part of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Its left side.
    pub left: f64,
    /// Its upper side.
    pub top: f64,
    /// Its right side.
    pub right: f64,
    /// Its lower side.
    pub bottom: f64,
}

impl PictureScene {
    /// A line through `places`; of fewer than two nothing is seen.
    pub fn line(&mut self, places: Vec<Place>, colour: Colour, width: f64) {
        if places.len() > 1 {
            self.shapes.push(Shape::Line { places, colour, width });
        }
    }

    /// A filled rectangle.
    pub fn rectangle(&mut self, frame: Frame, colour: Colour) {
        let Frame { left, top, right, bottom } = frame;
        self.area(vec![(left, top), (right, top), (right, bottom), (left, bottom)], colour);
    }

    /// A filled shape.
    pub fn area(&mut self, places: Vec<Place>, colour: Colour) {
        if places.len() > 2 {
            self.shapes.push(Shape::Area { places, colour });
        }
    }

    /// A filled disc.
    pub fn dot(&mut self, at: Place, radius: f64, colour: Colour) {
        self.shapes.push(Shape::Dot { at, radius, colour });
    }

    /// A text that begins at `at`.
    pub fn text(&mut self, at: Place, text: &str, size: f64, colour: Colour) {
        self.anchored(at, text, size, (colour, TextAnchor::Start));
    }

    /// A text at `at`.
    pub fn anchored(&mut self, at: Place, text: &str, size: f64, (colour, anchor): (Colour, TextAnchor)) {
        // Control characters are in no picture.
        let text = text.chars().filter(|c| !c.is_control()).collect();
        self.shapes.push(Shape::Text { at, text, size, colour, anchor });
    }

    /// Diagonal lines that fill `frame`.
    pub fn hatch(&mut self, frame: Frame, colour: Colour) {
        const GAP: f64 = 7.0;
        let height = frame.bottom - frame.top;
        // All hatches of a picture are parts of one.
        let mut x = ((frame.left - height) / GAP).floor() * GAP;
        while x < frame.right {
            let (mut from, mut to) = ((x, frame.bottom), (x + height, frame.top));
            if from.0 < frame.left {
                from = (frame.left, frame.bottom - (frame.left - x));
            }
            if to.0 > frame.right {
                to = (frame.right, frame.bottom - (frame.right - x));
            }
            if to.0 - from.0 > 0.1 {
                self.line(vec![from, to], colour, 1.0);
            }
            x += GAP;
        }
    }
}

/// How wide a letter is, nearly, of its height.
const GLYPH: f64 = 0.55;

/// How wide a text is, nearly.
pub fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * GLYPH
}

/// `text` where it fits into `width`, else its beginning, else nothing.
pub fn fitting(text: &str, size: f64, width: f64) -> Option<String> {
    if text_width(text, size) <= width {
        return Some(text.to_owned());
    }
    let room = (width / (size * GLYPH)).floor() as usize;
    (room >= 5).then(|| text.chars().take(room - 1).chain(['…']).collect())
}

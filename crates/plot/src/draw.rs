//! A scene as a file: SVG, or PNG at twice the size.
//!
//! PNG text is drawn with a font that is part of the program: DejaVu Sans. An SVG names the fonts of whoever
//! looks at it.

use std::fmt::Display;

use plotters::backend::{BitMapBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::DrawingBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, IntoFont, RGBAColor, RGBColor, ShapeStyle, TextStyle, register_font};

use crate::scene::{PictureScene, Place, Shape, TextAnchor};
use crate::theme::Colour;

/// Pixels of a PNG per pixel of the scene.
const PNG_SCALE: u32 = 2;
/// Each of its pixels is the mean of so many in each direction, which smooths all edges.
const SAMPLES: u32 = 2;
/// What the library makes of a text's size, so that it is in pixels in both.
const SVG_TEXT: f64 = 1.24;
const PNG_TEXT: f64 = 1.164;
const FAMILY: &str = "sans-serif";

/// Why a picture could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("drawing the picture: {0}")]
pub struct DrawError(String);

impl DrawError {
    fn of(error: impl Display) -> DrawError {
        DrawError(error.to_string())
    }
}

/// The scene as SVG.
///
/// # Errors
/// Those of the drawing library.
pub fn svg(scene: &PictureScene) -> Result<String, DrawError> {
    use_own_font()?;
    let mut svg = String::new();
    let (width, height) = (scene.size.0.ceil() as u32, scene.size.1.ceil() as u32);
    draw(SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area(), scene, (1.0, SVG_TEXT))?;
    // What it is, for who cannot see it.
    let title = scene.title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let head = svg.find('>').ok_or_else(|| DrawError("there is no head".into()))?;
    Ok(format!("{} role=\"img\">\n<title>{title}</title>{}", &svg[..head], &svg[head + 1..]))
}

/// The scene as PNG.
///
/// # Errors
/// Those of the drawing library and of the encoder.
pub fn png(scene: &PictureScene) -> Result<Vec<u8>, DrawError> {
    use_own_font()?;
    let scale = PNG_SCALE * SAMPLES;
    let size = ((scene.size.0.ceil() as u32) * scale, (scene.size.1.ceil() as u32) * scale);
    let mut pixels = vec![0; size.0 as usize * size.1 as usize * 3];
    draw(BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area(), scene, (f64::from(scale), PNG_TEXT))?;
    let (width, height) = (size.0 / SAMPLES, size.1 / SAMPLES);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_text_chunk("Description".into(), scene.title.clone()).map_err(DrawError::of)?;
    let mut writer = encoder.write_header().map_err(DrawError::of)?;
    writer.write_image_data(&averaged(&pixels, width as usize, height as usize)).map_err(DrawError::of)?;
    writer.finish().map_err(DrawError::of)?;
    Ok(file)
}

fn use_own_font() -> Result<(), DrawError> {
    register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| DrawError("the font cannot be read".into()))
}

/// Pixels of which each is the mean of some.
fn averaged(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let samples = SAMPLES as usize;
    let row = width * samples * 3;
    let mut small = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let all = (0..samples).flat_map(|dy| (0..samples).map(move |dx| (dy, dx)));
                let sum: u32 = all
                    .map(|(dy, dx)| u32::from(pixels[(y * samples + dy) * row + (x * samples + dx) * 3 + channel]))
                    .sum();
                small.push((sum / (SAMPLES * SAMPLES)) as u8);
            }
        }
    }
    small
}

fn draw<DB: DrawingBackend>(
    area: DrawingArea<DB, Shift>,
    scene: &PictureScene,
    (scale, text_scale): (f64, f64),
) -> Result<(), DrawError> {
    area.fill(&colour(scene.background)).map_err(DrawError::of)?;
    let place = |at: &Place| ((at.0 * scale).round() as i32, (at.1 * scale).round() as i32);
    for shape in &scene.shapes {
        let drawn = match shape {
            Shape::Line { places, colour: of, width } => {
                let style = ShapeStyle { color: colour(*of), filled: false, stroke_width: pixels(*width * scale) };
                area.draw(&PathElement::new(places.iter().map(place).collect::<Vec<_>>(), style))
            }
            Shape::Area { places, colour: of } => {
                area.draw(&Polygon::new(places.iter().map(place).collect::<Vec<_>>(), colour(*of).filled()))
            }
            Shape::Dot { at, radius, colour: of } => {
                area.draw(&Circle::new(place(at), (radius * scale).round() as i32, colour(*of).filled()))
            }
            Shape::Text { at, text, size, colour: of, anchor } => {
                let h_pos = match anchor {
                    TextAnchor::Start => HPos::Left,
                    TextAnchor::Middle => HPos::Center,
                    TextAnchor::End => HPos::Right,
                };
                let font = (FAMILY, size * scale * text_scale).into_font();
                let ink = colour(*of);
                let style = TextStyle::from(font).color(&ink).pos(Pos::new(h_pos, VPos::Center));
                area.draw(&Text::new(text.as_str(), place(at), style))
            }
        };
        drawn.map_err(DrawError::of)?;
    }
    area.present().map_err(DrawError::of)
}

fn colour(of: Colour) -> RGBAColor {
    RGBColor(of.rgb.0, of.rgb.1, of.rgb.2).mix(of.opacity)
}

fn pixels(width: f64) -> u32 {
    (width.round() as u32).max(1)
}

//! A training's history as a picture.
//!
//! Reading order: [`theme`] (colours), [`scene`] (what is drawn, free of any backend), [`scale`] (values to places),
//! [`panels`] (one panel each), [`picture`] (all of it), [`draw`] (a scene as SVG or PNG).
//!
//! Invariant: nothing of the system is needed: no fonts, no libraries. What is drawn follows from the overview alone,
//! so that a page can show the same picture. Deliberately not here: files, reading a history (ckptd-history).

#![warn(missing_docs, unreachable_pub)]

pub mod draw;
pub mod panels;
pub mod picture;
pub mod scale;
pub mod scene;
pub mod theme;

//! Floats of any width as byte planes.
//!
//! The sign of an element trades places with the exponent's bits above it, so that the topmost plane holds the eight
//! bits below the sign (of float32 and bfloat16 exactly the exponent) and the next one the sign on top of seven bits:
//!
//! ```text
//! top = last byte << 1 | last but one >> 7        next = last byte & 0x80 | last but one & 0x7f
//! ```
//!
//! The other bytes stay as they are.

use super::dispatch::multiversion;

multiversion! {
    /// Cuts elements of `W` bytes into `W` planes of `elements.len()` bytes, one after the other, the top first.
    pub(super) fn cut<const W: usize>(elements: &[[u8; W]], planes: &mut [u8]) {
        assert!(planes.len() == W * elements.len());
        let (top, rest) = planes.split_at_mut(elements.len());
        let (next, rest) = rest.split_at_mut(elements.len());
        for ((element, top), next) in elements.iter().zip(top).zip(next) {
            let (last, before) = (element[W - 1], element[W - 2]);
            *top = last << 1 | before >> 7;
            *next = last & 0x80 | before & 0x7f;
        }
        for (byte, plane) in (0..W - 2).rev().zip(rest.chunks_exact_mut(elements.len().max(1))) {
            for (element, value) in elements.iter().zip(plane) {
                *value = element[byte];
            }
        }
    }
}

multiversion! {
    /// Undoes [`cut`]; `planes[0]` is the top one.
    pub(super) fn paste<const W: usize>(planes: &[&[u8]; W], elements: &mut [[u8; W]]) {
        let n = elements.len();
        assert!(planes.iter().all(|plane| plane.len() == n));
        for (i, element) in elements.iter_mut().enumerate() {
            let (top, next) = (planes[0][i], planes[1][i]);
            element[W - 1] = top >> 1 | next & 0x80;
            element[W - 2] = top << 7 | next & 0x7f;
            for byte in 0..W - 2 {
                element[byte] = planes[W - 1 - byte][i];
            }
        }
    }
}

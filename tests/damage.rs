//! No damage is accepted: any byte flipped, any cut, an empty file.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use ckptd_core::Error;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::verify::read_back;
use ckptd_testkit::small::{save, store};

/// Whether `bytes`, put into a file, pass a full verification.
fn accepted(folder: &std::path::Path, bytes: &[u8]) -> bool {
    let path = folder.join("damaged.ckpt");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(bytes).unwrap();
    match read_back(&path, 1, &NoProgress) {
        Ok(_) => true,
        Err(Error::Damaged { .. }) => false,
        Err(e) => panic!("damage must be told as damage: {e}"),
    }
}

#[test]
fn no_flipped_byte_and_no_cut_is_accepted() {
    let (folder, store) = store();
    let whole = std::fs::read(save(&store, 3, 1).path).unwrap();
    assert!(accepted(folder.path(), &whole));
    let mut tried = 0;
    // Every byte of the ends (head, table, manifest, trailer) and a stride through the chunks.
    let tail = whole.len() - 6000.min(whole.len());
    let places = (0..whole.len()).filter(|&i| i < 64 || i >= tail || i % 41 == 0);
    for place in places {
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << (place % 8);
        assert!(!accepted(folder.path(), &damaged), "byte {place} of {} flipped", whole.len());
        tried += 1;
    }
    let cuts = (0..whole.len()).step_by(97).chain(whole.len() - 200..whole.len());
    for length in cuts {
        assert!(!accepted(folder.path(), &whole[..length]), "cut to {length} of {}", whole.len());
        tried += 1;
    }
    for longer in [1, 152, 4096] {
        let mut damaged = whole.clone();
        damaged.resize(whole.len() + longer, 0);
        assert!(!accepted(folder.path(), &damaged), "{longer} bytes longer");
        tried += 1;
    }
    assert!(tried >= 2000, "{tried} damages are too few to mean much");
}

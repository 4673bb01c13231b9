//! Words to train on.

use crate::random::SeededRandom;

/// `words` words in lines, the frequent ones far more often than the rare ones; the same text every time.
pub fn words(words: usize) -> String {
    let mut random = SeededRandom::new(7);
    let letters = |random: &mut SeededRandom| {
        (0..2 + random.below(7)).map(|_| char::from(b'a' + random.below(26) as u8)).collect::<String>()
    };
    let known: Vec<String> = (0..400).map(|_| letters(&mut random)).collect();
    let mut text = String::new();
    for n in 1..=words {
        text.push_str(&known[(random.below(400) * random.below(400) / 400) as usize]);
        text.push(if n % 13 == 0 { '\n' } else { ' ' });
    }
    text
}

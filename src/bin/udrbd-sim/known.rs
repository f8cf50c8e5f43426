//! Findings that are open: seeds whose runs are known not to be sound, and what is known about them (`known.txt`, one a
//! line: seed, words). They are counted apart, so that a new finding is not lost among them; a fix takes its seeds out.

/// The list.
const LIST: &str = include_str!("known.txt");

/// Whether the seed is on the list.
pub fn is_known(seed: u64) -> bool {
    LIST.lines().filter_map(|line| line.split_whitespace().next()).any(|word| word.parse() == Ok(seed))
}

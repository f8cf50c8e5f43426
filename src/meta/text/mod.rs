//! The texts of `drbdmeta`, byte for byte: the dump and its parser, and the two displays of generation identifiers.
//!
//! Takes in what the other files of the room decode; gives out text, or from text what is to be restored.
//! Spec: metadata.md 10.

pub mod dump;
pub mod gi;
pub mod restore;

/// A size for people, as drbdmeta and the kernel write it: `65496 KB`, `64 MB`.
#[must_use]
pub fn human_kib(kib: u64) -> String {
    let mut value = kib;
    for unit in ["KB", "MB", "GB", "TB", "PB"] {
        if value < 10_000 {
            return format!("{value} {unit}");
        }
        value = value / 1024 + u64::from(value % 1024 >= 512);
    }
    format!("{value} EB")
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_round_half_up_from_10000_on() {
        for (sectors, text) in [
            (9999_u64, "4999 KB"),
            (19_999, "9999 KB"),
            (20_000, "10 MB"),
            (130_992, "64 MB"),
            (20_000_000, "9766 MB"),
            (22_000_000, "10 GB"),
            (4_292_608_000, "2047 GB"),
        ] {
            assert_eq!(super::human_kib(sectors / 2), text);
        }
        assert_eq!(super::human_kib(u64::MAX), "16384 EB");
    }
}

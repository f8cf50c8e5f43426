//! What already lies on a device that is to get metadata: file systems, LVM, swap, other data, other metadata.
//!
//! Takes in the first 68 KiB; gives out [`Finding`]s that say what was found, which question to ask, or that creation is
//! refused, in drbdmeta's words. Asking is the caller's. Spec: metadata.md 11.2.

use std::fmt::Write;

use super::layout::{AlStripes, DEVICE_BYTES_MIN, Layout};

/// Something that a device may hold, recognised by its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Swap space.
    Swap,
    /// A physical volume of LVM2.
    Lvm2,
    /// ext2.
    Ext2,
    /// ext3 or ext4: ext2 with a journal.
    Ext3,
    /// XFS.
    Xfs,
    /// JFS.
    Jfs,
    /// ReiserFS.
    Reiser,
    /// Bytes other than 0.
    SomeData,
}

impl Content {
    /// drbdmeta's word.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Swap => "swap space signature",
            Self::Lvm2 => "LVM2 physical volume signature",
            Self::Ext2 => "ext2 filesystem",
            Self::Ext3 => "ext3 filesystem",
            Self::Xfs => "xfs filesystem",
            Self::Jfs => "JFS filesystem",
            Self::Reiser => "reiser filesystem",
            Self::SomeData => "some data",
        }
    }
}

fn bytes_at<const N: usize>(head: &[u8], at: usize) -> [u8; N] {
    head.get(at..).and_then(|tail| tail.first_chunk()).copied().unwrap_or([0; N])
}

fn le32(head: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes_at(head, at)).into()
}

/// Looks at the first 68 KiB of a device: what they hold, and how many bytes of the device that uses, if it says so.
/// `None` when they are all 0.
#[must_use]
pub fn identify(head: &[u8]) -> Option<(Content, Option<u64>)> {
    let magic = |at: usize, wanted: &[u8]| head.get(at..).is_some_and(|tail| tail.starts_with(wanted));
    if [4086, 8182].into_iter().any(|at| magic(at, b"SWAP-SPACE") || magic(at, b"SWAPSPACE2")) {
        return Some((Content::Swap, None));
    }
    if magic(0x218, b"LVM2") {
        return Some((Content::Lvm2, None));
    }
    if magic(0x438, &0xef53_u16.to_le_bytes()) {
        let block = match le32(head, 0x418) {
            0 => Some(1024),
            1 => Some(2048),
            2 => Some(4096),
            _ => None,
        };
        let journal = bytes_at::<1>(head, 0x45c)[0] & 4 != 0;
        let kind = if journal { Content::Ext3 } else { Content::Ext2 };
        return Some((kind, block.map(|block: u64| block * le32(head, 0x404))));
    }
    if magic(0, b"XFSB") {
        let (block, count) = (u32::from_be_bytes(bytes_at(head, 4)), u64::from_be_bytes(bytes_at(head, 8)));
        return Some((Content::Xfs, Some(count.saturating_mul(block.into()))));
    }
    if magic(0x8000, b"JFS1") {
        let count = u64::from_le_bytes(bytes_at(head, 0x8008));
        return Some((Content::Jfs, Some(count.saturating_mul(le32(head, 0x8018)))));
    }
    if magic(0x10034, b"ReIsErFs") || magic(0x10034, b"ReIsEr2Fs") {
        let block = u64::from(u16::from_le_bytes(bytes_at(head, 0x1002c)));
        return Some((Content::Reiser, Some(le32(head, 0x10000) * block)));
    }
    head.iter().any(|&byte| byte != 0).then_some((Content::SomeData, None))
}

/// Bytes of a device that [`identify`] wants to see: 68 KiB.
pub const HEAD_BYTES: usize = 17 * 4096;
const _: () = assert!(HEAD_BYTES as u64 == DEVICE_BYTES_MIN);

/// Format of metadata that is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundVersion {
    /// DRBD 0.7, fixed size.
    V07,
    /// DRBD 8, with this ring.
    V08(AlStripes),
    /// DRBD 9.
    V09,
}

impl FoundVersion {
    const fn text(self) -> &'static str {
        match self {
            Self::V07 => "v07",
            Self::V08(_) => "v08",
            Self::V09 => "v09",
        }
    }
}

/// Something that stands in the way of creating metadata, in the order in which to deal with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is internal v08 metadata with another ring than the one wanted.
    OtherStripes {
        /// Position of its superblock, in bytes.
        md_byte: u64,
    },
    /// There is internal metadata.
    InternalMeta {
        /// Its format.
        version: FoundVersion,
        /// Position of its superblock, in bytes.
        md_byte: u64,
        /// Whether [`Finding::OtherStripes`] precedes, which has said so already.
        said: bool,
    },
    /// There is external metadata.
    ExternalMeta {
        /// Its format.
        version: FoundVersion,
    },
    /// There is valid metadata where a dump is to be restored.
    MetaInPlace,
    /// There is data.
    Data {
        /// What it is.
        content: Content,
        /// KiB that it uses, if known.
        used_kib: Option<u64>,
        /// Where the metadata would lie.
        layout: Layout,
    },
}

/// What a finding asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask; go on if confirmed (drbdmeta: `--force` confirms), else print `canceled` and exit with 1.
    Ask {
        /// The question.
        question: &'static str,
        /// The last words when the answer is no.
        canceled: &'static str,
    },
    /// Ask; stop with `refusal` and `exit_code` if confirmed (drbdmeta: `--force` confirms), else go on.
    AskToStop {
        /// The question.
        question: &'static str,
        /// Text for stderr.
        refusal: &'static str,
        /// Exit code.
        exit_code: u8,
    },
    /// Stop with this exit code; no force helps.
    Refuse {
        /// Exit code.
        exit_code: u8,
    },
}

const CANCELLED: &str = "Operation cancelled.\n";
const CANCELED: &str = "Operation canceled.\n";
const ZERO_OUT: &str = "If you want me to do this, you need to zero out the first part\nof the device (destroy the \
                        content).\nYou should be very sure that you mean it.\nOperation refused.\n\n";
const TRUNCATED: &str = "Device size would be truncated, which\nwould corrupt data and result in\n'access beyond end \
                         of device' errors.\n";
const SHRINK: &str = "You need to either\n   * use external meta data (recommended)\n   * shrink that filesystem \
                      first\n   * zero out the device (destroy the filesystem)\nOperation refused.\n\n";
const UNUSED_SPACE: &str = "\nEven though it looks like this would place the new meta data into\nunused space, you \
                            still need to confirm, as this is only a guess.\n";

impl Finding {
    /// KiB that the layout leaves for data.
    const fn usable_kib(layout: &Layout) -> u64 {
        layout.data_size.0 / 2
    }

    /// What to do about it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::OtherStripes { .. } => Verdict::AskToStop {
                question: "Do you want to change the activity log stripe settings *only*?",
                refusal: "Sorry, not yet fully implemented\nTry dump-md > dump.txt; restore-md -s x -z y dump.txt\n",
                exit_code: 30,
            },
            Self::InternalMeta { version: FoundVersion::V08(_), .. } => Verdict::Ask {
                question: "Do you really want to overwrite the existing meta-data?",
                canceled: CANCELLED,
            },
            Self::InternalMeta { version: FoundVersion::V07, .. }
            | Self::ExternalMeta { version: FoundVersion::V07 } => Verdict::Ask {
                question: "So you want me to replace the v07 meta-data\nwith newly initialized v08 meta-data?",
                canceled: CANCELLED,
            },
            Self::InternalMeta { version: FoundVersion::V09, .. }
            | Self::ExternalMeta { version: FoundVersion::V09 } => Verdict::Ask {
                question: "So you want me to replace the v09 meta-data\nwith newly initialized v08 meta-data?",
                canceled: CANCELLED,
            },
            Self::ExternalMeta { .. } => Verdict::Ask {
                question: "Valid meta data seems to be in place.\nDo you really want to overwrite?",
                canceled: CANCELLED,
            },
            Self::MetaInPlace => Verdict::Ask { question: "Valid meta-data in place, overwrite?", canceled: "" },
            Self::Data { content, used_kib, layout } => {
                let ask = Verdict::Ask { question: "Do you want to proceed?", canceled: CANCELED };
                let fits = used_kib.is_some_and(|used| used <= Self::usable_kib(layout));
                if *content == Content::SomeData || (layout.kind.is_internal() && fits) {
                    ask
                } else {
                    Verdict::Refuse { exit_code: 40 }
                }
            }
        }
    }

    /// What to print on stderr before the question; `device` is the metadata device's name.
    #[must_use]
    pub fn stderr_text(&self, device: &str) -> String {
        let (version, md_byte) = match self {
            Self::OtherStripes { md_byte } => ("v08", md_byte),
            Self::InternalMeta { version, md_byte, said: false } => (version.text(), md_byte),
            _ => return String::new(),
        };
        let style = if version == "v07" { "fixed-size" } else { "flexible-size" };
        format!(
            "You want me to create a v08 style flexible-size internal meta data block.\n\
             There appears to be a {version} {style} internal meta data block\n\
             already in place on {device} at byte offset {md_byte}\n"
        )
    }

    /// What to print on stdout before the question, or as the refusal.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        let Self::Data { content, used_kib, layout } = self else { return String::new() };
        let [md, al, bm] = [layout.md_offset, layout.al_offset, layout.bm_offset].map(crate::units::Sector::bytes);
        let mut text = format!("md_offset {md}\nal_offset {al}\nbm_offset {bm}\n\nFound {}\n", content.text());
        if *content == Content::SomeData {
            return text + "\n ==> This might destroy existing data! <==\n";
        }
        if !layout.kind.is_internal() {
            return text + "\nThis would corrupt existing data.\n" + ZERO_OUT;
        }
        if let Some(used) = used_kib {
            let _ = writeln!(text, "{used:12} kB data area apparently used");
        }
        let usable = Self::usable_kib(layout);
        let _ = writeln!(text, "{usable:12} kB left usable by current configuration");
        match (content, used_kib) {
            (_, Some(used)) if *used <= usable => text + UNUSED_SPACE,
            (_, Some(_)) => text + "\n" + TRUNCATED + SHRINK,
            (Content::Swap, None) => text + TRUNCATED + ZERO_OUT,
            (_, None) => {
                text + "Could not determine the size of the actually used data area.\n\n" + TRUNCATED + ZERO_OUT
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::meta::{DeviceSizes, MetaKind};
    use crate::units::Sectors;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn signatures_and_sizes_are_read() {
        let blocks = 1000_u32.to_le_bytes();
        let ext = [(0x438, &[0x53_u8, 0xef][..]), (0x404, &blocks), (0x418, &[2])];
        let journal = [ext[0], ext[1], ext[2], (0x45c, &[4])];
        for (parts, expected) in [
            (&[][..], None),
            (&[(69_631, &[1][..])], Some((Content::SomeData, None))),
            (&[(4086, b"SWAPSPACE2")], Some((Content::Swap, None))),
            (&[(8182, b"SWAP-SPACE")], Some((Content::Swap, None))),
            (&[(0x218, b"LVM2")], Some((Content::Lvm2, None))),
            (&ext, Some((Content::Ext2, Some(4_096_000)))),
            (&journal, Some((Content::Ext3, Some(4_096_000)))),
            (&[(0, b"XFSB\0\0\x10\0\0\0\0\0\0\0\0\x02")], Some((Content::Xfs, Some(8192)))),
            (&[(0x8000, b"JFS1"), (0x8008, &[5]), (0x8019, &[2])], Some((Content::Jfs, Some(2560)))),
            (&[(0x10034, b"ReIsEr2Fs"), (0x10000, &[3]), (0x1002d, &[0x10])], Some((Content::Reiser, Some(12_288)))),
        ] {
            assert_eq!(identify(&head(parts)), expected);
        }
    }

    #[test]
    fn a_file_system_that_reaches_into_the_metadata_is_refused() {
        let layout =
            Layout::new(MetaKind::Internal, AlStripes::DEFAULT, DeviceSizes::one(Sectors(131_072))).expect("fits");
        let finding = |used_kib| Finding::Data { content: Content::Ext3, used_kib, layout };
        assert_eq!(finding(Some(65_536)).verdict(), Verdict::Refuse { exit_code: 40 });
        assert!(matches!(finding(Some(65_496)).verdict(), Verdict::Ask { .. }));
        assert_eq!(finding(None).verdict(), Verdict::Refuse { exit_code: 40 });
        // metadata.md's captured output of drbdmeta.
        assert_eq!(
            finding(Some(65_536)).stdout_text(),
            "md_offset 67104768\nal_offset 67072000\nbm_offset 67067904\n\nFound ext3 filesystem\n       65536 kB data \
             area apparently used\n       65496 kB left usable by current configuration\n\nDevice size would be \
             truncated, which\nwould corrupt data and result in\n'access beyond end of device' errors.\nYou need to \
             either\n   * use external meta data (recommended)\n   * shrink that filesystem first\n   * zero out the \
             device (destroy the filesystem)\nOperation refused.\n\n"
        );
        let external =
            Layout::new(MetaKind::FlexExternal, AlStripes::DEFAULT, DeviceSizes::one(Sectors(131_072))).expect("fits");
        let finding = Finding::Data { content: Content::Ext3, used_kib: Some(1), layout: external };
        assert_eq!(finding.verdict(), Verdict::Refuse { exit_code: 40 });
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(head in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = identify(&head);
        }
    }
}

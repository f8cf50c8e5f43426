//! `get-gi`, `show-gi`, `set-gi`, `dstate`: generation identifiers and flags for people and scripts.
//!
//! Spec: metadata.md 10.3.

use std::fmt::Write;

use crate::meta::superblock::{MdFlags, Superblock};
use crate::units::GenId;

/// The flags of the `get-gi` line in their order.
const FLAGS: [MdFlags; 7] = [
    MdFlags::CONSISTENT,
    MdFlags::WAS_UP_TO_DATE,
    MdFlags::PRIMARY_IND,
    MdFlags::CONNECTED_IND,
    MdFlags::FULL_SYNC,
    MdFlags::PEER_OUT_DATED,
    MdFlags::CRASHED_PRIMARY,
];

/// The `get-gi` line without its end: four identifiers and seven flags. It shows what the disk says as well as what a
/// running node holds, so it takes the parts.
#[must_use]
pub fn gi_line(uuids: [GenId; 4], flags: MdFlags) -> String {
    let mut line = String::new();
    for uuid in uuids {
        let _ = write!(line, "{uuid}:");
    }
    let digits: Vec<_> = FLAGS.iter().map(|&flag| if flags.contains(flag) { "1" } else { "0" }).collect();
    line + &digits.join(":")
}

/// The output of `get-gi`.
#[must_use]
pub fn get_gi(superblock: &Superblock) -> String {
    gi_line(superblock.uuids(), superblock.flags) + "\n"
}

const SHOW_ABOVE: &str = "
       +--<  Current data generation UUID  >-
       |               +--<  Bitmap's base data generation UUID  >-
       |               |                 +--<  younger history UUID  >-
       |               |                 |         +-<  older history  >-
       V               V                 V         V
";

const SHOW_BELOW: &str = "
                                                                    ^ ^ ^ ^ ^ ^ ^
                                      -<  Data consistency flag  >--+ | | | | | |
                             -<  Data was/is currently up-to-date  >--+ | | | | |
                                  -<  Node was/is currently primary  >--+ | | | |
                                  -<  Node was/is currently connected  >--+ | | |
         -<  Node was in the progress of setting all bits in the bitmap  >--+ | |
                        -<  The peer's disk was out-dated or inconsistent  >--+ |
      -<  This node was a crashed primary, and has not seen its peer since   >--+

";

/// The picture of `show-gi` without what follows it.
#[must_use]
pub fn gi_picture(uuids: [GenId; 4], flags: MdFlags) -> String {
    format!("{SHOW_ABOVE}{}{SHOW_BELOW}", gi_line(uuids, flags))
}

/// The output of `show-gi`.
#[must_use]
pub fn show_gi(superblock: &Superblock) -> String {
    let mut text = gi_picture(superblock.uuids(), superblock.flags) + &flags_text(superblock.flags);
    let sectors = superblock.effective_size.0;
    if sectors == 0 {
        return text + "zero size device -- never seen peer yet?\n";
    }
    let size = super::human_kib(sectors / 2);
    let _ = write!(
        text,
        "last agreed size: {size} ({sectors} sectors)\nlast agreed max bio size: {} Byte\n",
        superblock.la_peer_max_bio_size
    );
    text
}

/// The lines about flags below the picture; a running node shows these alone.
#[must_use]
pub fn flags_text(flags: MdFlags) -> String {
    let has = |flag| flags.contains(flag);
    let mut text = String::from("flags:");
    if has(MdFlags::CRASHED_PRIMARY) {
        text += " crashed";
    }
    text += if has(MdFlags::PRIMARY_IND) { " Primary" } else { " Secondary" };
    text += if has(MdFlags::CONNECTED_IND) { ", Connected" } else { ", StandAlone" };
    text += match (has(MdFlags::CONSISTENT), has(MdFlags::WAS_UP_TO_DATE)) {
        (true, true) => ", UpToDate",
        (true, false) => ", Outdated",
        (false, _) => ", Inconsistent",
    };
    if has(MdFlags::FULL_SYNC) {
        text += ", need full sync";
    }
    if has(MdFlags::PEER_OUT_DATED) {
        text += ", peer Outdated";
    }
    text += if has(MdFlags::AL_CLEAN) { "\nmeta-data: clean\n" } else { "\nmeta-data: need apply-al\n" };
    text
}

/// The disk state that the flags say, as `dstate` prints it.
#[must_use]
pub const fn dstate(flags: MdFlags) -> &'static str {
    if !flags.contains(MdFlags::CONSISTENT) {
        return "Inconsistent";
    }
    if !flags.contains(MdFlags::WAS_UP_TO_DATE) {
        return "Outdated";
    }
    if flags.contains(MdFlags::PEER_OUT_DATED) { "UpToDate" } else { "Consistent" }
}

/// What is wrong with the argument of `set-gi`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetGiError {
    /// A part is no identifier.
    #[error("'{0}' is no generation identifier (up to 16 hex digits)")]
    Uuid(String),
    /// A part is no flag.
    #[error("'{0}' is no flag (0 or 1)")]
    Flag(String),
    /// There is more than the flags.
    #[error("unexpected ':{0}' behind the last flag")]
    Surplus(String),
}

/// Applies the argument of `set-gi`, `C:B:H0:H1:f:f:f:f:f:f:f`: missing and empty parts keep the old value.
///
/// # Errors
/// [`SetGiError`]; the superblock is then unchanged.
pub fn set_gi(superblock: &mut Superblock, argument: &str) -> Result<(), SetGiError> {
    let mut uuids = superblock.uuids();
    let mut flags = superblock.flags;
    for (i, part) in argument.trim().split(':').enumerate() {
        if part.is_empty() {
            continue;
        }
        if let Some(uuid) = uuids.get_mut(i) {
            *uuid = parse_uuid(part).ok_or_else(|| SetGiError::Uuid(part.to_owned()))?;
        } else if let Some(&flag) = FLAGS.get(i - uuids.len()) {
            flags = match part {
                "0" => flags.without(flag),
                "1" => flags.with(flag),
                _ => return Err(SetGiError::Flag(part.to_owned())),
            };
        } else {
            return Err(SetGiError::Surplus(part.to_owned()));
        }
    }
    let [current, bitmap, younger, older] = uuids;
    (superblock.current, superblock.bitmap, superblock.history) = (current, bitmap, [younger, older]);
    superblock.flags = flags;
    Ok(())
}

/// An identifier in hex, with or without `0x`.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<GenId> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten().map(GenId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{AlStripes, DeviceSizes, Layout, MetaKind};
    use crate::units::Sectors;

    fn superblock(flags: MdFlags) -> Superblock {
        let sizes = DeviceSizes::one(Sectors(131_072));
        let layout = Layout::new(MetaKind::Internal, AlStripes::DEFAULT, sizes).expect("fits");
        Superblock { flags, effective_size: Sectors(130_992), ..Superblock::create(&layout, 0) }
    }

    #[test]
    fn set_gi_keeps_what_is_not_said() {
        let mut superblock = superblock(MdFlags::AL_CLEAN | MdFlags::FULL_SYNC);
        set_gi(&mut superblock, ":5").expect("valid");
        assert_eq!((superblock.current, superblock.bitmap), (GenId(4), GenId(5)));
        set_gi(&mut superblock, "00112233445566AA:0:0:0:1:1:0:1:0:0:0").expect("valid");
        assert_eq!(
            get_gi(&superblock),
            "00112233445566AA:0000000000000000:0000000000000000:0000000000000000:1:1:0:1:0:0:0\n"
        );
        assert!(superblock.flags.contains(MdFlags::AL_CLEAN));
        let before = superblock.clone();
        for bad in ["x", "1:2:3:4:2", "1:2:3:4:1:1:1:1:1:1:1:1", "+4", "11112222333344445"] {
            assert!(set_gi(&mut superblock, bad).is_err(), "{bad}");
        }
        assert_eq!(superblock, before);
    }

    #[test]
    fn the_flags_line_says_everything() {
        let tail = |flags| show_gi(&superblock(flags)).lines().rev().take(4).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            tail(MdFlags::ALL),
            [
                "last agreed max bio size: 0 Byte",
                "last agreed size: 64 MB (130992 sectors)",
                "meta-data: clean",
                "flags: crashed Primary, Connected, UpToDate, need full sync, peer Outdated",
            ]
        );
        assert_eq!(
            tail(MdFlags::CONSISTENT)[2..],
            ["meta-data: need apply-al", "flags: Secondary, StandAlone, Outdated"]
        );
        assert_eq!(tail(MdFlags::WAS_UP_TO_DATE)[3], "flags: Secondary, StandAlone, Inconsistent");
    }

    #[test]
    fn the_disk_state_needs_the_peer_to_be_up_to_date() {
        let good = MdFlags::CONSISTENT | MdFlags::WAS_UP_TO_DATE;
        let states = [MdFlags::NONE, MdFlags::CONSISTENT, good, good | MdFlags::PEER_OUT_DATED].map(dstate);
        assert_eq!(states, ["Inconsistent", "Outdated", "Consistent", "UpToDate"]);
    }
}

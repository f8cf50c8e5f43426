//! `dump-md`: the text of superblock, bitmap, and (very verbose) activity log.
//!
//! Takes in the decoded superblock and the raw pages; writes to an `io::Write`, page by page, so that a dump needs no
//! memory for the bitmap. Spec: metadata.md 10.1. The flags line shows the real flags, as later releases of drbdmeta
//! do; 9.22 always shows 0 there.

use std::io::{self, Write};

use crate::meta::al_transaction::{AlBlock, FREE};
use crate::meta::bitmap;
use crate::meta::layout::Layout;
use crate::meta::superblock::{Block, Superblock};
use crate::units::{AlSlot, Sectors};

/// The warning on stderr when unclean metadata is dumped, and the reason why it is not without force.
pub const UNCLEAN_WARNING: &str = "Found meta data is \"unclean\", please apply-al first";

/// Two 32-bit units make one word of the listing; a line has four words.
const LINE_BYTES: usize = 32;
/// A line start at a multiple of this many units is preceded by its position.
const MARK_UNITS: u64 = 64;
/// KiB of device under one unit.
const UNIT_KIB: u64 = 128;

/// What the dump says about itself.
#[derive(Clone, Copy, Debug)]
pub struct DumpHeader<'a> {
    /// Local time, `%F %T %z [epoch]`.
    pub time: &'a str,
    /// Host name.
    pub host: &'a str,
    /// The command line.
    pub command: &'a str,
}

/// Metadata that was found where the device ended before it was resized.
#[derive(Clone, Copy, Debug)]
pub struct Relocated<'a> {
    /// The device's name.
    pub device: &'a str,
    /// The device's size, in bytes.
    pub size_bytes: u64,
    /// Position of a superblock for that size, in bytes.
    pub expected_md_byte: u64,
    /// The size that belongs to the position of the metadata, in bytes.
    pub last_known_bytes: u64,
}

/// The comment that precedes the output of every command when the superblock claims more than fits.
#[must_use]
pub fn excess_comment(claimed: Sectors, truncated: Sectors) -> String {
    format!("# la-size-sect was too big ({claimed}), truncated ({truncated})!\n")
}

/// Writes everything before the bitmap's words, and the opening of their block.
///
/// # Errors
/// Those of `out`.
pub fn render_head(
    out: &mut dyn Write,
    header: &DumpHeader<'_>,
    superblock: &Superblock,
    layout: &Layout,
    relocated: Option<&Relocated<'_>>,
) -> io::Result<()> {
    let DumpHeader { time, host, command } = header;
    write!(out, "# DRBD meta data dump\n# {time}\n# {host}> {command}\n#\n\nversion \"v08\";\n\n")?;
    if !superblock.is_clean() {
        // No token of the grammar: a restore of this dump fails on purpose.
        out.write_all(
            b"This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.\n\
              # You should \"apply-al\" first, if you plan to restore this.\n\n",
        )?;
    }
    writeln!(out, "# md_size_sect {}", layout.md_size)?;
    if let Some(Relocated { device, size_bytes, expected_md_byte, last_known_bytes }) = relocated {
        write!(
            out,
            "#\n### Device seems to have been resized!\n### dumping meta data from the last known position\n\
             ### current size of {device}: {size_bytes} byte\n### expected position of meta data:\n\
             ## md_offset {expected_md_byte}\n## al_offset 0\n## bm_offset 0\n\
             ### last known size of {device}: {last_known_bytes} byte\n### adjusted position of meta data:\n"
        )?;
    }
    let bytes = [layout.md_offset, layout.al_offset, layout.bm_offset].map(crate::units::Sector::bytes);
    write!(out, "# md_offset {}\n# al_offset {}\n# bm_offset {}\n\n", bytes[0], bytes[1], bytes[2])?;
    let [current, bitmap, younger, older] = superblock.uuids();
    write!(
        out,
        "uuid {{\n    0x{current}; 0x{bitmap}; 0x{younger}; 0x{older};\n    flags 0x{:08X};\n}}\n",
        superblock.flags.bits()
    )?;
    write!(
        out,
        "# al-extents {};\nla-size-sect {};\nbm-byte-per-bit {};\ndevice-uuid 0x{:016X};\nla-peer-max-bio-size {};\n\
         al-stripes {};\nal-stripe-size-4k {};\n# bm-bytes {};\nbm {{",
        superblock.al_extents,
        superblock.effective_size,
        superblock.bm_bytes_per_bit,
        superblock.device_uuid,
        superblock.la_peer_max_bio_size,
        superblock.al_stripes,
        superblock.al_stripe_size_4k,
        bitmap::bytes_for(superblock.effective_size),
    )
}

type Line = [u8; LINE_BYTES];

/// Lists the bitmap's words; equal lines that repeat one 32-bit pattern become one `times` line.
#[derive(Debug, Default)]
pub struct BitmapListing {
    /// Units that are already listed.
    units: u64,
    /// Repetitions of one uniform line that are not listed yet.
    pending: Option<(Line, u64)>,
    bits_set: u64,
}

impl BitmapListing {
    /// Lists the next page, raw as it lies on the disk.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn push(&mut self, out: &mut dyn Write, page: &Block) -> io::Result<()> {
        self.bits_set += bitmap::count_page(page);
        let (lines, _) = page.as_chunks::<LINE_BYTES>();
        for line in lines {
            match &mut self.pending {
                Some((pattern, count)) if pattern == line => *count += 1,
                _ => {
                    self.flush(out)?;
                    let (units, _) = line.as_chunks::<4>();
                    if units.iter().all(|unit| Some(unit) == units.first()) {
                        self.pending = Some((*line, 1));
                    } else {
                        self.list_line(out, line)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self.pending.take() {
            None => Ok(()),
            Some((line, 1)) => self.list_line(out, &line),
            Some((line, count)) => {
                self.start_line(out)?;
                self.units += count * 8;
                write!(out, " {} times 0x{:016X};", count * 4, first_word(&line))
            }
        }
    }

    fn start_line(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.units.is_multiple_of(MARK_UNITS) {
            write!(out, "\n   # at {}kB", self.units * UNIT_KIB)?;
        }
        out.write_all(b"\n   ")
    }

    fn list_line(&mut self, out: &mut dyn Write, line: &Line) -> io::Result<()> {
        self.start_line(out)?;
        self.units += 8;
        let (words, _) = line.as_chunks::<8>();
        for word in words {
            write!(out, " 0x{:016X};", u64::from_le_bytes(*word))?;
        }
        Ok(())
    }

    /// Ends the listing and the dump's bitmap block; gives back the number of set bits listed, those behind the
    /// device's end included.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(mut self, out: &mut dyn Write) -> io::Result<u64> {
        self.flush(out)?;
        write!(out, "\n}}\n# bits-set {};\n", self.bits_set)?;
        Ok(self.bits_set)
    }
}

fn first_word(line: &Line) -> u64 {
    line.first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word))
}

/// Lists the activity log, block by block in their order on the disk.
#[derive(Debug, Default)]
pub struct AlListing {
    index: u32,
    slot_max: Option<u16>,
}

impl AlListing {
    /// Starts the listing.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn start(out: &mut dyn Write) -> io::Result<Self> {
        out.write_all(b"# al {\n")?;
        Ok(Self::default())
    }

    /// Lists the next block.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn push(&mut self, out: &mut dyn Write, block: &Block) -> io::Result<()> {
        write!(out, "#     block {:2} {{", self.index)?;
        self.index += 1;
        let transaction = match AlBlock::decode(block) {
            Err(_) => return out.write_all(b" INVALID }\n"),
            Ok(AlBlock::Initialized) => return out.write_all(b" INITIALIZED }\n"),
            Ok(AlBlock::Update(transaction)) => transaction,
        };
        let size = transaction.context_size;
        write!(
            out,
            "\n# \tmagic: {:#010x}\n# \ttype: 0x0000\n# \ttr: {:10}\n# \tactive set size: {size}\n",
            crate::meta::al_transaction::AL_MAGIC,
            transaction.tr_number
        )?;
        self.note(u32::from(size.saturating_sub(1)));
        let start = u32::from(transaction.context_start.0);
        for (i, (slot, extent)) in (start..).zip(&transaction.context).enumerate() {
            if extent.is_some() || slot < u32::from(size) {
                self.note(slot);
                writeln!(out, "# \t{i:2}: {slot:10} {:10}", extent.map_or(FREE, |e| e.0))?;
            }
        }
        writeln!(out, "# \tupdates: {}", transaction.updates.len())?;
        for (i, (AlSlot(slot), extent)) in transaction.updates.iter().enumerate() {
            self.note(u32::from(*slot));
            writeln!(out, "# \t{i:2}: {slot:10} {:10}", extent.0)?;
        }
        writeln!(out, "# \tcrc32c: {:#010x}\n#     }}", crate::meta::al_transaction::checksum(block))
    }

    fn note(&mut self, slot: u32) {
        self.slot_max = self.slot_max.max(u16::try_from(slot).ok());
    }

    /// Ends the listing.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(self, out: &mut dyn Write, superblock: &Superblock) -> io::Result<()> {
        if let Some(slot) = self.slot_max
            && u32::from(slot) >= superblock.al_extents
        {
            write!(
                out,
                "### CAUTION: maximum slot number found in AL: {slot}\n\
                 ### CAUTION: but 'super-block' al-extents is: {}\n",
                superblock.al_extents
            )?;
        }
        out.write_all(b"# }\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::layout::BLOCK_BYTES;

    fn listing(pages: &[Block]) -> String {
        let mut out = Vec::new();
        let mut listing = BitmapListing::default();
        for page in pages {
            listing.push(&mut out, page).expect("memory");
        }
        listing.finish(&mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    /// metadata.md 10.1: 2050 bits at 4 MiB, 12 MiB and 20 to 28 MiB, garbage in word 509.
    #[test]
    fn the_listing_of_the_specification() {
        let mut page = [0; BLOCK_BYTES];
        (page[128], page[384], page[509 * 8]) = (1, 1, 2);
        page[640..896].fill(0xff);
        let zeros = " 0x0000000000000000;".repeat(3);
        let one = format!("    0x0000000000000001;{zeros}\n");
        let expected = format!(
            "\n   # at 0kB\n    16 times 0x0000000000000000;\n{one}    28 times 0x0000000000000000;\n{one}\
             \x20   28 times 0x0000000000000000;\n    32 times 0xFFFFFFFFFFFFFFFF;\n    396 times 0x0000000000000000;\n\
             \x20   0x0000000000000000; 0x0000000000000002; 0x0000000000000000; 0x0000000000000000;\n}}\n# bits-set 2051;\n"
        );
        assert_eq!(listing(&[page]), expected);
    }

    #[test]
    fn runs_go_on_over_pages_and_single_uniform_lines_are_spelled_out() {
        let mut page = [0; BLOCK_BYTES];
        page[4064..].fill(0x11);
        let text = listing(&[[0; BLOCK_BYTES], page]);
        let line = " 0x1111111111111111;".repeat(4);
        assert_eq!(text, format!("\n   # at 0kB\n    1020 times 0x0000000000000000;\n   {line}\n}}\n# bits-set 64;\n"));
        assert_eq!(listing(&[]), "\n}\n# bits-set 0;\n");
    }
}

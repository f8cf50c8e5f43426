//! `apply-al`, `wipe-md`, and `outdate` and `invalidate` of a disk that is not attached.

use udrbd::config::model::Volume;
use udrbd::disk::meta_file::Access;
use udrbd::meta::{MetaError, offline};

use super::device::{self, failed};
use crate::args::Call;
use crate::context::Context;
use crate::report::{Done, Exit};
use crate::target::{Target, for_volumes, select};
use crate::{ask, out};

/// `apply-al`
pub fn apply_al(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, apply_al_to)
}

/// Applies the activity log of one volume.
pub fn apply_al_to(ctx: &mut Context, target: &Target, volume: &Volume) -> Done {
    let mut device = device::open(ctx, target, volume, Access::Write, false)?;
    let (meta, report) =
        offline::apply_al(&mut device.io, device.place).map_err(|error| failed(target, volume, &error))?;
    out::print(&meta.excess_comment());
    out::hint(&report.stderr_text());
    Ok(())
}

/// `wipe-md`
pub fn wipe(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let force = call.flag("force");
    for_volumes(ctx, &targets, |ctx, target, volume| {
        let mut device = device::open(ctx, target, volume, Access::Write, force)?;
        match offline::open(&mut device.io, device.place) {
            Ok(_) => {}
            Err(MetaError::NoMetadata(_)) => {
                out::say("There appears to be no drbd meta data to wipe out?");
                return Ok(());
            }
            Err(error) => return Err(failed(target, volume, &error)),
        }
        if !ask::confirm("Do you really want to wipe out the DRBD meta data?", force) {
            out::print("Operation cancelled.\n");
            return Err(Exit(1));
        }
        out::print("Wiping meta data...\n");
        offline::wipe_md(&mut device.io, device.place).map_err(|error| failed(target, volume, &error))?;
        out::print("DRBD meta data block successfully wiped out.\n");
        Ok(())
    })
}

/// `outdate` on disk
pub fn outdate(ctx: &mut Context, target: &Target, volume: &Volume) -> Done {
    change(ctx, target, volume, offline::OpenMeta::outdate)
}

/// `invalidate` on disk
pub fn invalidate(ctx: &mut Context, target: &Target, volume: &Volume) -> Done {
    change(ctx, target, volume, |meta| {
        meta.invalidate();
        Ok(())
    })
}

fn change(
    ctx: &mut Context,
    target: &Target,
    volume: &Volume,
    edit: impl FnOnce(&mut offline::OpenMeta) -> Result<(), MetaError>,
) -> Done {
    let mut device = device::open(ctx, target, volume, Access::Write, false)?;
    let told = |error| failed(target, volume, &error);
    let mut meta = offline::open(&mut device.io, device.place).map_err(told)?;
    edit(&mut meta).map_err(told)?;
    let mut superblock = meta.superblock;
    if let Some(claimed) = meta.claimed_size {
        // Read clipped; what is on disk stays.
        superblock.effective_size = claimed;
    }
    offline::write_superblock(&mut device.io, &meta.layout, &superblock).map_err(told)
}

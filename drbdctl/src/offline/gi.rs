//! `get-gi`, `show-gi`, `dstate`: from the daemon if it has the disk, else from the disk.

use udrbd::config::model::Volume;
use udrbd::control::status::Uuids;
use udrbd::disk::meta_file::Access;
use udrbd::meta::text::gi;
use udrbd::meta::{MetaError, OpenMeta, offline};
use udrbd::units::GenId;

use super::device;
use crate::args::Call;
use crate::context::Context;
use crate::out;
use crate::report::{Done, Exit};
use crate::target::{Target, for_volumes, select};

/// `get-gi`
pub fn get(ctx: &mut Context, call: &Call) -> Done {
    each(ctx, call, |uuids| gi::gi_line(all(uuids), uuids.flags) + "\n", OpenMeta::get_gi)
}

/// `show-gi`
pub fn show(ctx: &mut Context, call: &Call) -> Done {
    let live = |uuids: &Uuids| gi::gi_picture(all(uuids), uuids.flags) + &gi::flags_text(uuids.flags);
    each(ctx, call, live, OpenMeta::show_gi)
}

fn all(uuids: &Uuids) -> [GenId; 4] {
    [uuids.current, uuids.bitmap, uuids.history[0], uuids.history[1]]
}

fn each(
    ctx: &mut Context,
    call: &Call,
    live: impl Fn(&Uuids) -> String,
    from_disk: impl Fn(&OpenMeta) -> String,
) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        let attached = device::attached(ctx, target, volume)?;
        match attached.as_ref().and_then(|v| v.uuids.as_ref()) {
            Some(uuids) => out::print(&live(uuids)),
            None => {
                let meta = open(ctx, target, volume, true)?;
                out::print(&meta.excess_comment());
                out::print(&from_disk(&meta));
            }
        }
        Ok(())
    })
}

/// The word of `dstate` for the state on disk.
pub fn dstate(ctx: &mut Context, target: &Target, volume: &Volume) -> Done<&'static str> {
    Ok(gi::dstate(open(ctx, target, volume, false)?.superblock.flags))
}

/// Reads the metadata. `silent`: drbdmeta says nothing when there is none.
fn open(ctx: &mut Context, target: &Target, volume: &Volume, silent: bool) -> Done<OpenMeta> {
    let mut device = device::open(ctx, target, volume, Access::Read, false)?;
    offline::open(&mut device.io, device.place).map_err(|error| match error {
        MetaError::NoMetadata(_) if silent => Exit(error.exit_code()),
        _ => device::failed(target, volume, &error),
    })
}

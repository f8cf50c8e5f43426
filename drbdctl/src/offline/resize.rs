//! `check-resize` of a disk that is not attached.

use udrbd::config::model::{MetaDisk, Volume};
use udrbd::disk::last_known::LastKnownFile;
use udrbd::disk::meta_file::Access;
use udrbd::meta::relocate::{Checked, check as look};
use udrbd::meta::{MetaIo, offline};

use super::device::{self, failed};
use super::undo::state_dir;
use crate::args::Call;
use crate::context::Context;
use crate::out;
use crate::report::{Done, Exit};
use crate::target::Target;

/// Moves internal metadata that were left behind when the device grew, and remembers the device's size.
pub fn check(ctx: &mut Context, call: &Call, target: &Target, volume: &Volume) -> Done {
    if volume.meta_disk != MetaDisk::Internal {
        return Ok(());
    }
    let mut remembered = LastKnownFile::of(&state_dir(ctx, call), volume.minor);
    let known = remembered.read();
    let mut device = device::open(ctx, target, volume, Access::Write, false)?;
    match look(&mut device.io, known.as_ref(), false).map_err(|error| failed(target, volume, &error))? {
        Checked::InPlace => {}
        Checked::Moved { .. } => {
            out::say("Moving the internal meta data to its proper location");
            out::say("Internal drbd meta data successfully moved.");
        }
        Checked::Nothing => {
            out::say("no suitable meta data found :(");
            return Err(Exit(1));
        }
    }
    let meta = offline::open(&mut device.io, device.place).map_err(|error| failed(target, volume, &error))?;
    remembered.about(std::path::Path::new(&device.path), meta.superblock.device_uuid);
    remembered.write(device.io.size_bytes());
    Ok(())
}

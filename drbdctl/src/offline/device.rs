//! The metadata device of a volume, opened and claimed for one command.

use std::io::ErrorKind;
use std::path::Path;

use udrbd::config::model::{MetaDisk, Volume};
use udrbd::control::status;
use udrbd::disk::meta_file::{Access, MetaFile};
use udrbd::disk::{BackingDevice, ClaimScope, DiskErrorKind, OpenOptions};
use udrbd::meta::layout::DEVICE_BYTES_MIN;
use udrbd::meta::{MetaError, MetaIo, MetaKind, Place};
use udrbd::units::Sectors;
use udrbd::wire::state::DiskState;

use crate::context::Context;
use crate::report::{Done, Exit};
use crate::target::Target;
use crate::{ask, out};

/// Size of the slot of indexed metadata, in bytes.
const SLOT_BYTES: u64 = 128 << 20;

/// An open metadata device.
#[derive(Debug)]
pub struct MetaDevice {
    /// Its bytes.
    pub io: MetaFile,
    /// Where the metadata is on it.
    pub place: Place,
    /// Its path.
    pub path: String,
    /// Holds it against others until the command ends.
    _claim: Option<BackingDevice>,
}

/// The volume in the daemon, if it has a disk.
pub fn attached(ctx: &mut Context, target: &Target, volume: &Volume) -> Done<Option<status::Volume>> {
    let Some(status) = ctx.status_if_running()? else { return Ok(None) };
    let found = status.resource(&target.resource.name).and_then(|r| r.volumes.iter().find(|v| v.volume == volume.vnr));
    Ok(found.filter(|v| v.disk > DiskState::Diskless).cloned())
}

/// Opens the metadata device of a volume. `force`: read it even if it is in use; nothing makes it writable then.
pub fn open(ctx: &mut Context, target: &Target, volume: &Volume, access: Access, force: bool) -> Done<MetaDevice> {
    if access == Access::Write && attached(ctx, target, volume)?.is_some() {
        let label = target.label(volume);
        out::say(&format!("Device '{}' is configured!", volume.minor));
        out::say(&format!("{label}: the disk is attached; use drbdctl detach {label} first"));
        return Err(Exit(20));
    }
    let kind = kind(volume)?;
    let path = volume.meta_disk.device(&volume.backing_disk).to_owned();
    let claim = claim(target, volume, &path, kind, access, force)?;
    let io = MetaFile::open(Path::new(&path), access, false).map_err(|error| cannot_open(&path, &error.to_string()))?;
    if io.size_bytes() < DEVICE_BYTES_MIN {
        out::say(&format!("{path} is only {} bytes. That's not enough.", io.size_bytes()));
        return Err(Exit(10));
    }
    let data = if kind.is_internal() {
        None
    } else {
        let backing = MetaFile::open(Path::new(&volume.backing_disk), Access::Read, false);
        backing.ok().map(|file| Sectors::from_bytes_floor(file.size_bytes()))
    };
    Ok(MetaDevice { io, place: Place { kind, data }, path, _claim: claim })
}

fn kind(volume: &Volume) -> Done<MetaKind> {
    match &volume.meta_disk {
        MetaDisk::Internal => Ok(MetaKind::Internal),
        MetaDisk::Flexible { .. } => Ok(MetaKind::FlexExternal),
        MetaDisk::Indexed { idx, .. } => u8::try_from(*idx).map(MetaKind::Indexed).map_err(|_| {
            out::say(&format!("meta-disk index {idx} is out of range [0..255]"));
            Exit(20)
        }),
    }
}

fn cannot_open(path: &str, why: &str) -> Exit {
    let why = why.split(" (os error").next().unwrap_or(why);
    out::say(&format!("open({path}) failed: {why}"));
    Exit(20)
}

fn claim(
    target: &Target,
    volume: &Volume,
    path: &str,
    kind: MetaKind,
    access: Access,
    force: bool,
) -> Done<Option<BackingDevice>> {
    let options = OpenOptions {
        read_only: access == Access::Read,
        direct: false,
        claim: match kind {
            MetaKind::Internal | MetaKind::FlexExternal => ClaimScope::Whole,
            MetaKind::Indexed(index) => ClaimScope::Range { start: u64::from(index) * SLOT_BYTES, len: SLOT_BYTES },
        },
        owner: format!("{} (drbdctl)", target.label(volume)),
    };
    let error = match BackingDevice::open(path, &options) {
        Ok(device) => return Ok(Some(device)),
        Err(error) => error,
    };
    match error.kind() {
        DiskErrorKind::InUse => {
            out::say(&format!("open({path}) failed: Device or resource busy"));
            if access == Access::Write {
                // drbdmeta asks here; whoever says yes destroys the data of a running device.
                out::say(&error.to_string());
                return Err(Exit(20));
            }
            if ask::confirm("Exclusive open failed. Do it anyways?", force) {
                return Ok(None);
            }
            out::print("Operation canceled.\n");
            Err(Exit(20))
        }
        _ if error.io_error().kind() == ErrorKind::NotFound => Err(cannot_open(path, "No such file or directory")),
        _ => Err(cannot_open(path, &error.to_string())),
    }
}

/// Tells why a metadata command failed; gives drbdmeta's exit code.
pub fn failed(target: &Target, volume: &Volume, error: &MetaError) -> Exit {
    out::say(&error.to_string());
    let label = target.label(volume);
    match error {
        MetaError::NoMetadata(reason) => {
            let path = volume.meta_disk.device(&volume.backing_disk);
            out::say(&format!("{label}: {path}: {reason}; drbdctl create-md {label} makes new metadata"));
        }
        MetaError::Unclean => out::say(&format!("{label}: drbdctl apply-al {label}")),
        _ => {}
    }
    Exit(error.exit_code())
}

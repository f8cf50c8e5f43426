//! `split-brain undo`, `export` and `forget`: what the victim of a split brain had, from its undo file.
//!
//! Works on the files and on the disk itself, as the other commands of this room. `undo` needs the disk for itself: one that
//! the daemon has attached must be Secondary and StandAlone, is detached for it and attached again. It leaves a file for the
//! way back, so that nothing is lost by it, whoever the other node may be; what the identifiers say afterwards is in
//! [`udrbd::undo::restore`].

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use udrbd::config::model::Volume;
use udrbd::control::split_brain::UndoState;
use udrbd::control::status;
use udrbd::control::{Reply, Request};
use udrbd::disk::meta_file::{Access, MetaFile};
use udrbd::disk::{BackingDevice, ClaimScope, OpenOptions as DeviceOptions};
use udrbd::meta::{MetaIo, offline};
use udrbd::undo::disk::{DiskFile, UndoPaths};
use udrbd::undo::file::UndoFile;
use udrbd::undo::format::BLOCK;
use udrbd::undo::restore;
use udrbd::wire::state::{ConnState, DiskState, Role};

use super::device;
use crate::args::Call;
use crate::cmd::bring_up;
use crate::context::Context;
use crate::report::{Done, Exit};
use crate::target::{Target, for_volumes};
use crate::{ask, out};

fn refuse(label: &str, word: &str, why: &str) -> Exit {
    out::say(&format!("{label}: split-brain {word} failed: {why}"));
    Exit(10)
}

/// The state directory: as named, as the daemon says, or the usual one.
pub(super) fn state_dir(ctx: &mut Context, call: &Call) -> PathBuf {
    if let Some(dir) = call.option("state-dir") {
        return PathBuf::from(dir);
    }
    let told = ctx.client().ok().and_then(|client| client.call(Request::Version).ok());
    match told {
        Some(Reply::Version(version)) => version.state_dir.map(PathBuf::from),
        _ => None,
    }
    .unwrap_or_else(|| ctx.state_dir())
}

fn paths(dir: &Path, target: &Target, volume: &Volume) -> UndoPaths {
    UndoPaths::new(dir, &target.resource.name, volume.vnr.0)
}

/// The undo file, opened.
fn open_file(paths: &UndoPaths, label: &str, word: &str, write: bool) -> Done<UndoFile<DiskFile>> {
    match paths.open(&paths.file, write) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(refuse(label, word, &format!("there is no undo file ({})", paths.file.display()))),
        Err(error) => Err(refuse(label, word, &format!("{}: {error}", paths.file.display()))),
    }
}

fn check_whole(file: &UndoFile<DiskFile>, label: &str, word: &str, force: bool) -> Done {
    let lost: u64 = file.lost().iter().map(|(_, count)| u64::from(*count)).sum();
    let missing = if file.damaged() {
        "the undo file is damaged: blocks that were saved cannot be read any more".to_owned()
    } else if file.incomplete() {
        "the undo file is incomplete: it ran out of room, and what was overwritten afterwards is not in it".to_owned()
    } else if lost > 0 {
        format!("{lost} blocks could not be read before they were overwritten")
    } else if !file.ended() {
        "the undo file has no end: the resync that discards these data is not over, or nobody saw its end".to_owned()
    } else {
        return Ok(());
    };
    if force {
        out::say(&format!("{label}: {missing}"));
        return Ok(());
    }
    Err(refuse(label, word, &format!("{missing}; to use the rest all the same: --force")))
}

/// `split-brain undo`
pub fn undo(ctx: &mut Context, call: &Call, targets: &[Target]) -> Done {
    let (dir, force) = (state_dir(ctx, call), call.flag("force"));
    for_volumes(ctx, targets, |ctx, target, volume| {
        let label = target.label(volume);
        let paths = paths(&dir, target, volume);
        check_whole(&open_file(&paths, &label, "undo", false)?, &label, "undo", force)?;
        let attached = device::attached(ctx, target, volume)?;
        if let Some(found) = &attached {
            check_alone(found, &label, &target.resource.name)?;
        }
        let question = format!(
            "This puts the data of {label} back to what they were before the split brain was resolved.\nBlocks that were \
             changed by the resolution and written again since get their old contents as well; other blocks that were written \
             since stay as they are.\nThe two nodes will not connect afterwards before you choose again whose data are kept.\n\
             Do you want to proceed?"
        );
        if !force && io::stdin().is_terminal() && !ask::confirm(&question, false) {
            out::print("Operation cancelled.\n");
            return Err(Exit(1));
        }
        if attached.is_some() {
            let request = Request::Detach { resource: target.resource.name.clone(), volume: volume.vnr, force: false };
            ctx.request(&target.volume_attempt(volume, "detach"), request)?;
        }
        let undone = put_back(ctx, target, volume, &paths, force);
        let again = match &attached {
            Some(_) => bring_up::attach_one(ctx, target, volume, volume.disk.clone()),
            None => Ok(()),
        };
        let blocks = undone?;
        out::line(&format!(
            "{label}: {blocks} blocks are what they were before the split brain was resolved; blocks that were written later \
             and are not among them stay as they are. What they replaced is kept: the same command again brings it back. The next connect finds a split brain; drbdctl split-brain {} says how to choose.",
            target.resource.name
        ));
        again
    })
}

fn check_alone(found: &status::Volume, label: &str, resource: &str) -> Done {
    if found.role == Role::Primary {
        return Err(refuse(label, "undo", &format!("it is Primary; first: drbdctl secondary {resource}")));
    }
    if found.state != ConnState::StandAlone {
        return Err(refuse(label, "undo", &format!("it is connected; first: drbdctl disconnect {resource}")));
    }
    if found.disk < DiskState::Inconsistent {
        return Err(refuse(label, "undo", "the disk is not ready; try again in a moment"));
    }
    Ok(())
}

fn put_back(ctx: &mut Context, target: &Target, volume: &Volume, paths: &UndoPaths, force: bool) -> Done<u64> {
    let label = target.label(volume);
    let failed = |why: String| refuse(&label, "undo", &why);
    let mut device = device::open(ctx, target, volume, Access::Write, false)?;
    let (mut meta, _) =
        offline::apply_al(&mut device.io, device.place).map_err(|error| device::failed(target, volume, &error))?;
    // With internal metadata the whole device is claimed already.
    let options = DeviceOptions {
        claim: ClaimScope::Whole,
        direct: false,
        owner: format!("{label} (drbdctl)"),
        ..DeviceOptions::default()
    };
    let _claim = if device.place.kind.is_internal() {
        None
    } else {
        Some(BackingDevice::open(&volume.backing_disk, &options).map_err(|error| failed(error.to_string()))?)
    };
    let mut data = MetaFile::open(Path::new(&volume.backing_disk), Access::Write, false)
        .map_err(|error| failed(format!("{}: {error}", volume.backing_disk)))?;
    let io_failed = |error: io::Error| failed(format!("{}: {error}", paths.file.display()));
    paths.settle(meta.superblock.current).map_err(io_failed)?;
    let mut undo = open_file(paths, &label, "undo", true)?;
    // It may be another one than before: that of a resync that had just begun.
    check_whole(&undo, &label, "undo", force)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let random = || getrandom::u64().map_err(|error| failed(format!("no random numbers: {error}")));
    let told = |error: restore::RestoreError| failed(error.to_string());
    restore::check(&meta, undo.head()).map_err(told)?;
    if restore::written_since(&meta, undo.head()) && !force {
        let why = "this disk has begun a data generation of its own since: what was written in it is lost in the blocks that are \
                   put back; to do it all the same: --force";
        return Err(failed(why.to_owned()));
    }
    let redo_failed = |error: io::Error| failed(format!("{}: {error}", paths.redo.display()));
    // One that is there was left by an undo that did not come to its end, and goes on; any other one is what somebody may miss.
    let left = paths.open(&paths.redo, true).map_err(redo_failed)?;
    let goes_on = |redo: &UndoFile<DiskFile>| {
        !redo.ended()
            && !redo.incomplete()
            && redo.head().peer == undo.head().own
            && redo.head().device == undo.head().device
    };
    let mut redo = match left.filter(goes_on) {
        Some(redo) => redo,
        None => {
            if let Some(kept) = paths.set_aside(&paths.redo).map_err(redo_failed)? {
                out::say(&format!("{label}: the file of an earlier undo is kept as {}", kept.display()));
            }
            check_room(paths, &undo).map_err(failed)?;
            let head = restore::redo_head(&meta, undo.head(), restore::generation(random()?), now, random()?);
            paths.create(&paths.redo, head).map_err(redo_failed)?
        }
    };
    // From here on the disk is Inconsistent until everything is done.
    let halfway = |error: String| {
        failed(format!(
            "{error}; the disk is Inconsistent now. Mend the cause and give the same command again, which goes on from here; or give \
             these data up: drbdctl attach {0}, then drbdctl connect {0}, and they are copied from the peer",
            target.resource.name
        ))
    };
    let told = |error: restore::RestoreError| halfway(error.to_string());
    restore::begin(&mut meta, &mut device.io, undo.head(), redo.head().after).map_err(told)?;
    let blocks = restore::write_back(&mut undo, &mut redo, &mut data).map_err(told)?;
    restore::end(&mut meta, &mut device.io, &undo).map_err(told)?;
    paths.promote(&paths.redo, &paths.file).map_err(redo_failed)?;
    Ok(blocks)
}

/// The file for the way back becomes as large as the undo file at most.
fn check_room(paths: &UndoPaths, undo: &UndoFile<DiskFile>) -> Result<(), String> {
    let free = paths.free();
    if undo.bytes() <= free {
        return Ok(());
    }
    Err(format!(
        "the file for the way back, {}, needs {} bytes, and {free} are free; nothing was changed",
        paths.redo.display(),
        undo.bytes()
    ))
}

/// `split-brain export`
pub fn export(ctx: &mut Context, call: &Call, targets: &[Target], image: &str) -> Done {
    let dir = state_dir(ctx, call);
    let [target] = targets else {
        out::say("split-brain export takes one volume and a file: drbdctl split-brain export RESOURCE[/VOLUME] FILE");
        return Err(Exit(1));
    };
    let [volume] = target.volumes.as_slice() else {
        out::say(&format!("{} has several volumes: say which, as {}/0", target.resource.name, target.resource.name));
        return Err(Exit(1));
    };
    let label = target.label(volume);
    let paths = paths(&dir, target, volume);
    let mut file = open_file(&paths, &label, "export", false)?;
    check_whole(&file, &label, "export", call.flag("force"))?;
    let attached = device::attached(ctx, target, volume)?;
    if attached.is_some() && !file.ended() {
        let why = format!("the resync is not over; first: drbdctl wait-sync {}", target.resource.name);
        return Err(refuse(&label, "export", &why));
    }
    if attached.is_some_and(|found| found.state >= ConnState::Connected || found.role == Role::Primary) {
        out::say(&format!(
            "{label}: the disk is in use: blocks that both nodes had in common are exported as they are now, not as they were"
        ));
    }
    let told = |error: io::Error| refuse(&label, "export", &format!("{image}: {error}"));
    let mut data = MetaFile::open(Path::new(&volume.backing_disk), Access::Read, false)
        .map_err(|error| refuse(&label, "export", &format!("{}: {error}", volume.backing_disk)))?;
    let out_file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(image).map_err(told)?;
    let sectors = file.head().sectors;
    out_file.set_len(sectors * 512).map_err(told)?;
    for block in 0..file.head().blocks() {
        let start = block * BLOCK as u64;
        let len = usize::try_from((sectors * 512 - start).min(BLOCK as u64)).unwrap_or(BLOCK);
        let mut bytes = [0; BLOCK];
        if file.has(block) {
            file.read(block, &mut bytes).map_err(told)?;
        } else {
            data.read_at(start, &mut bytes[..len]).map_err(told)?;
        }
        // What is zero stays a hole.
        if bytes[..len].iter().any(|byte| *byte != 0) {
            out_file.write_all_at(&bytes[..len], start).map_err(told)?;
        }
    }
    (&out_file).flush().and_then(|()| out_file.sync_all()).map_err(told)?;
    out::line(&format!("{label}: {image} is the device as it was ({} blocks from the undo file)", file.blocks()));
    Ok(())
}

/// `split-brain forget`
pub fn forget(ctx: &mut Context, call: &Call, targets: &[Target]) -> Done {
    let dir = state_dir(ctx, call);
    for_volumes(ctx, targets, |ctx, target, volume| {
        let label = target.label(volume);
        let paths = paths(&dir, target, volume);
        if device::attached(ctx, target, volume)?.is_some() {
            let explained = ctx.call(Request::SplitBrain { resource: target.resource.name.clone(), all: false })?;
            let saving = |reply: &Reply| match reply {
                Reply::SplitBrain(explanation) => explanation
                    .volumes
                    .iter()
                    .find(|found| found.volume == volume.vnr)
                    .and_then(|found| found.undo.as_ref())
                    .is_some_and(|undo| undo.state == UndoState::Saving),
                _ => false,
            };
            if saving(&explained) {
                return Err(refuse(&label, "forget", "the resync is not over, and its old data are still being saved"));
            }
        }
        let told = |error: io::Error| refuse(&label, "forget", &format!("{}: {error}", paths.file.display()));
        let there = paths.file.exists();
        paths.remove(&paths.file).and_then(|()| paths.remove(&paths.redo)).map_err(told)?;
        out::line(&format!("{label}: {}", if there { "the undo file is removed" } else { "there is no undo file" }));
        Ok(())
    })
}

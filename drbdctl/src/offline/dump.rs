//! `dump-md`

use std::io::Write as _;

use udrbd::config::model::Volume;
use udrbd::disk::meta_file::Access;
use udrbd::meta::offline::{self, DumpOptions};
use udrbd::meta::text::dump::{DumpHeader, UNCLEAN_WARNING};

use super::device::{self, failed};
use crate::args::Call;
use crate::context::Context;
use crate::report::Done;
use crate::target::{Target, for_volumes, select};
use crate::{out, time};

/// `dump-md`
pub fn run(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let force = call.flag("force");
    for_volumes(ctx, &targets, |ctx, target, volume| dump(ctx, target, volume, force))
}

fn dump(ctx: &mut Context, target: &Target, volume: &Volume, force: bool) -> Done {
    let mut device = device::open(ctx, target, volume, Access::Read, force)?;
    let told = |error| failed(target, volume, &error);
    let meta = offline::open(&mut device.io, device.place).map_err(told)?;
    if !meta.superblock.is_clean() && force {
        out::say(UNCLEAN_WARNING);
    }
    let command = format!("drbdctl dump-md {}/{}", target.resource.name, volume.vnr);
    let header = DumpHeader { time: &time::dump_stamp(), host: &ctx.node, command: &command };
    let mut writer = out::writer();
    let options = DumpOptions { force, ..DumpOptions::default() };
    meta.dump(&mut device.io, &mut writer, &header, options).map_err(told)?;
    // A reader that has seen enough is no error.
    let _ = writer.flush();
    drop(writer);
    if device::attached(ctx, target, volume)?.is_some() {
        out::say(&format!("# Output might be stale, since minor {} is attached", volume.minor));
    }
    Ok(())
}

//! Commands that are one request for each volume or resource.

use udrbd::config::model::Volume;
use udrbd::control::Request;
use udrbd::units::VolumeNr;

use crate::args::Call;
use crate::context::Context;
use crate::offline;
use crate::out;
use crate::report::{Attempt, Done, Exit};
use crate::target::{Target, for_resources, for_volumes, one_volume, select};

fn each_volume(ctx: &mut Context, call: &Call, request: impl Fn(String, VolumeNr) -> Request) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        ctx.request(&target.volume_attempt(volume, call.row.name), request(target.resource.name.clone(), volume.vnr))
    })
}

/// `primary`
pub fn primary(ctx: &mut Context, call: &Call) -> Done {
    let force = call.flag("force");
    each_volume(ctx, call, |resource, volume| Request::Primary { resource, volume, force })
}

/// `secondary`
pub fn secondary(ctx: &mut Context, call: &Call) -> Done {
    let force = call.flag("force");
    each_volume_if_running(ctx, call, |resource, volume| Request::Secondary { resource, volume, force })
}

/// `detach`
pub fn detach(ctx: &mut Context, call: &Call) -> Done {
    let force = call.flag("force");
    each_volume_if_running(ctx, call, |resource, volume| Request::Detach { resource, volume, force })
}

/// For what is so anyhow when no daemon runs.
fn each_volume_if_running(ctx: &mut Context, call: &Call, request: impl Fn(String, VolumeNr) -> Request) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        let request = request(target.resource.name.clone(), volume.vnr);
        ctx.request_if_running(&target.volume_attempt(volume, call.row.name), request)
    })
}

/// `disconnect`
pub fn disconnect(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let force = call.flag("force");
    for_resources(ctx, &targets, |ctx, target| {
        let resource = target.resource.name.clone();
        // drbdsetup knows the connection by its addresses only.
        let attempt = Attempt { object: "??".to_owned(), ..target.attempt("disconnect") };
        ctx.request_if_running(&attempt, Request::Disconnect { resource, force })
    })
}

/// `invalidate`: on disk, if the daemon does not have the volume.
pub fn invalidate(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        if !is_attached(ctx, target, volume)? {
            return offline::edit::invalidate(ctx, target, volume);
        }
        let request = Request::Invalidate { resource: target.resource.name.clone(), volume: volume.vnr };
        ctx.request(&target.volume_attempt(volume, call.row.name), request)
    })
}

/// `outdate`: on disk, if the daemon does not have the volume.
pub fn outdate(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        if !is_attached(ctx, target, volume)? {
            return offline::edit::outdate(ctx, target, volume);
        }
        let request = Request::Outdate { resource: target.resource.name.clone(), volume: volume.vnr };
        ctx.request(&target.volume_attempt(volume, call.row.name), request)
    })
}

fn is_attached(ctx: &mut Context, target: &Target, volume: &Volume) -> Done<bool> {
    Ok(offline::device::attached(ctx, target, volume)?.is_some())
}

/// `invalidate-remote`
pub fn invalidate_remote(ctx: &mut Context, call: &Call) -> Done {
    each_volume(ctx, call, |resource, volume| Request::InvalidateRemote { resource, volume })
}

/// `pause-sync`
pub fn pause_sync(ctx: &mut Context, call: &Call) -> Done {
    each_volume(ctx, call, |resource, volume| Request::PauseSync { resource, volume })
}

/// `resume-sync`
pub fn resume_sync(ctx: &mut Context, call: &Call) -> Done {
    each_volume(ctx, call, |resource, volume| Request::ResumeSync { resource, volume })
}

/// `suspend-io`
pub fn suspend_io(ctx: &mut Context, call: &Call) -> Done {
    each_volume(ctx, call, |resource, volume| Request::SuspendIo { resource, volume })
}

/// `resume-io`
pub fn resume_io(ctx: &mut Context, call: &Call) -> Done {
    each_volume(ctx, call, |resource, volume| Request::ResumeIo { resource, volume })
}

/// `new-current-uuid`
pub fn new_current_uuid(ctx: &mut Context, call: &Call) -> Done {
    let (target, volume) = one_volume(ctx, call)?;
    let request = Request::NewCurrentUuid {
        resource: target.resource.name.clone(),
        volume: volume.vnr,
        clear_bitmap: call.flag("clear-bitmap"),
    };
    ctx.request(&target.volume_attempt(&volume, "new-current-uuid"), request)
}

/// `del-minor`
pub fn del_minor(ctx: &mut Context, call: &Call) -> Done {
    each_volume(ctx, call, |resource, volume| Request::DelVolume { resource, volume })
}

/// `del-resource`
pub fn del_resource(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    for_resources(ctx, &targets, |ctx, target| {
        let resource = target.resource.name.clone();
        ctx.request(&target.attempt("del-resource"), Request::DelResource { resource })
    })
}

/// The minor is unknown to the daemon: drbdsetup's words.
pub fn no_such_minor(attempt: &Attempt) -> Exit {
    let error = udrbd::control::ErrorReply::code(127).detail("unknown minor");
    let exit = crate::report::refused(attempt, &error);
    debug_assert_eq!(exit, Exit(10));
    exit
}

/// The resource is unknown to the daemon: drbdsetup's words for `status`.
pub fn no_such_resource(name: &str) -> Exit {
    out::say(&format!("{name}: No such resource"));
    Exit(10)
}

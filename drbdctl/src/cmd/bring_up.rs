//! `up`, `down`, and the steps that `up` is made of.
//!
//! `up` works in stages over all its resources, as drbdadm does: objects, then disks, then connections. A stage with a
//! failure ends it with exit code 1.

use std::path::Path;

use udrbd::config::model::{MetaDisk, ResourceOptions, Volume};
use udrbd::control::Request;
use udrbd::control::handlers::Handlers;
use udrbd::wire::state::DiskState;

use crate::args::Call;
use crate::context::Context;
use crate::offline;
use crate::out;
use crate::report::{Attempt, Done, Exit};
use crate::target::{Target, for_resources, for_volumes, select};

/// `up`
pub fn up(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    verify_addresses(ctx, &targets)?;
    for target in &targets {
        warn_of_idle_options(ctx, target)?;
        // Found out before anything is changed.
        link(ctx, target)?;
    }
    let stages: [fn(&mut Context, &Call, &Target) -> Done; 3] = [create, attach_all, connect_one];
    for stage in stages {
        let mut failed = false;
        for target in &targets {
            match stage(ctx, call, target) {
                Ok(()) => {}
                // No daemon, for one: no other step will do better.
                Err(Exit(code)) if code >= 20 && !is_running(ctx) => return Err(Exit(code)),
                Err(Exit(_)) => failed = true,
            }
        }
        if failed {
            return Err(Exit(1));
        }
    }
    Ok(())
}

fn is_running(ctx: &mut Context) -> bool {
    ctx.client().is_ok()
}

fn create(ctx: &mut Context, _: &Call, target: &Target) -> Done {
    create_resource(ctx, target, target.resource.options.clone())?;
    target.volumes.iter().try_for_each(|volume| create_volume(ctx, target, volume))
}

fn attach_all(ctx: &mut Context, _: &Call, target: &Target) -> Done {
    let mut result = Ok(());
    for volume in &target.volumes {
        // Every volume is tried.
        let options = volume.disk.clone();
        let attached = attach_one(ctx, target, volume, options);
        result = result.and(attached);
    }
    result
}

fn connect_one(ctx: &mut Context, _: &Call, target: &Target) -> Done {
    connect_with(ctx, target, target.resource.net.clone())
}

/// `down`
pub fn down(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let force = call.flag("force");
    for_resources(ctx, &targets, |ctx, target| {
        let resource = target.resource.name.clone();
        ctx.request_if_running(&target.attempt("down"), Request::Down { resource, force })
    })
}

/// `new-resource`
pub fn new_resource(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let given = call.resource_options()?;
    for_resources(ctx, &targets, |ctx, target| {
        let mut options = target.resource.options.clone();
        options.overlay(&given);
        create_resource(ctx, target, options)
    })
}

/// `new-minor`
pub fn new_minor(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, create_volume)
}

/// `attach`
pub fn attach(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let given = call.disk_options()?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        let mut options = volume.disk.clone();
        options.overlay(&given);
        attach_one(ctx, target, volume, options)
    })
}

/// `connect`
pub fn connect(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    verify_addresses(ctx, &targets)?;
    let given = call.net_options()?;
    for_resources(ctx, &targets, |ctx, target| {
        let mut options = target.resource.net.clone();
        options.overlay(&given);
        connect_with(ctx, target, options)
    })
}

fn verify_addresses(ctx: &mut Context, targets: &[Target]) -> Done {
    let names: Vec<_> = targets.iter().map(|t| t.resource.name.clone()).collect();
    ctx.verify_addresses(&names)
}

fn warn_of_idle_options(ctx: &mut Context, target: &Target) -> Done {
    let configured = ctx.config()?;
    if let Some(resource) = configured.document.config().resource(&target.resource.name) {
        for idle in resource.not_yet_effective() {
            out::say(&format!("drbdctl: warning: {idle}"));
        }
    }
    Ok(())
}

fn create_resource(ctx: &mut Context, target: &Target, options: ResourceOptions) -> Done {
    let resource = target.resource.name.clone();
    // The daemon, and the programs that it runs, have another working directory.
    let config = Some(ctx.config()?.path.clone()).filter(|path| path != "-").map(|path| absolute(&path));
    let handlers = Some(Box::new(Handlers::of(&target.resource, ctx.peer.as_deref(), config)));
    ctx.request(&target.attempt("new-resource"), Request::NewResource { resource, options, handlers })
}

fn create_volume(ctx: &mut Context, target: &Target, volume: &Volume) -> Done {
    let request = Request::NewVolume {
        resource: target.resource.name.clone(),
        volume: volume.vnr,
        minor: volume.minor,
        device: Some(volume.device.clone()),
        options: volume.disk.clone(),
    };
    ctx.request(&target.volume_attempt(volume, "new-minor"), request)
}

/// Absolute, because the daemon has another working directory.
fn absolute(path: &str) -> String {
    std::path::absolute(Path::new(path)).map_or_else(|_| path.to_owned(), |p| p.to_string_lossy().into_owned())
}

/// Attaches the disk of one volume.
pub fn attach_one(
    ctx: &mut Context,
    target: &Target,
    volume: &Volume,
    options: udrbd::config::model::DiskOptions,
) -> Done {
    // The order of drbdadm: what is wrong with the disk is told before what is wrong with the daemon's objects.
    let status = ctx.status(Some(&target.resource.name))?;
    let found = status.resource(&target.resource.name).and_then(|r| r.volumes.iter().find(|v| v.volume == volume.vnr));
    if found.is_some_and(|v| v.disk > DiskState::Diskless) {
        out::say(&format!("Device '{}' is configured!", volume.minor));
        let label = target.label(volume);
        out::say(&format!(
            "{label}: attach failed: a disk is attached already; nothing to do, or drbdctl detach {label}"
        ));
        return Err(Exit(20));
    }
    offline::edit::apply_al_to(ctx, target, volume)?;
    let request = Request::Attach {
        resource: target.resource.name.clone(),
        volume: volume.vnr,
        backing: absolute(&volume.backing_disk),
        meta_disk: match &volume.meta_disk {
            MetaDisk::Internal => MetaDisk::Internal,
            MetaDisk::Indexed { dev, idx } => MetaDisk::Indexed { dev: absolute(dev), idx: *idx },
            MetaDisk::Flexible { dev } => MetaDisk::Flexible { dev: absolute(dev) },
        },
        options,
    };
    ctx.request(&target.volume_attempt(volume, "attach"), request)
}

fn link(ctx: &Context, target: &Target) -> Done<udrbd::config::Link> {
    target.resource.link(ctx.peer.as_deref()).map_err(|error| {
        out::say(&error.to_string());
        out::say(&format!("resource {}: cannot configure network without knowing my peer.", target.resource.name));
        Exit(20)
    })
}

fn connect_with(ctx: &mut Context, target: &Target, options: udrbd::config::model::NetOptions) -> Done {
    let link = link(ctx, target)?;
    let peer_name = target.resource.peer(ctx.peer.as_deref()).ok().map(udrbd::config::model::Host::name);
    let attempt: Attempt = target.attempt("connect");
    let request = Request::Connect {
        resource: target.resource.name.clone(),
        local: link.local,
        peer: link.peer,
        peer_name,
        options: Box::new(options),
    };
    ctx.request(&attempt, request)
}

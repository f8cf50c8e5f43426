//! `net-options`, `disk-options`, `resource-options`: change what runs; only what the command line says.

use udrbd::control::Request;

use crate::args::Call;
use crate::context::Context;
use crate::report::{Attempt, Done};
use crate::target::{for_resources, for_volumes, select};

/// `net-options`
pub fn net(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let (options, set_defaults) = (Box::new(call.net_options()?), call.flag("set-defaults"));
    for_resources(ctx, &targets, |ctx, target| {
        let attempt = Attempt { object: "??".to_owned(), ..target.attempt("net-options") };
        let resource = target.resource.name.clone();
        ctx.request(&attempt, Request::NetOptions { resource, options: options.clone(), set_defaults })
    })
}

/// `disk-options`
pub fn disk(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let (options, set_defaults) = (call.disk_options()?, call.flag("set-defaults"));
    for_volumes(ctx, &targets, |ctx, target, volume| {
        let request = Request::DiskOptions {
            resource: target.resource.name.clone(),
            volume: volume.vnr,
            options: options.clone(),
            set_defaults,
        };
        ctx.request(&target.volume_attempt(volume, "disk-options"), request)
    })
}

/// `resource-options`
pub fn resource(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let (options, set_defaults) = (call.resource_options()?, call.flag("set-defaults"));
    for_resources(ctx, &targets, |ctx, target| {
        let resource = target.resource.name.clone();
        let request = Request::ResourceOptions { resource, options: options.clone(), set_defaults };
        ctx.request(&target.attempt("resource-options"), request)
    })
}

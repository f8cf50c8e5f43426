//! The `sh-` commands: one line for scripts (config-and-commands.md 10.2).

use udrbd::config::model::Volume;
use udrbd::control::render::words;

use crate::args::Call;
use crate::context::Context;
use crate::out;
use crate::report::Done;
use crate::target::{Target, for_volumes, select};

fn each(ctx: &mut Context, call: &Call, text: impl Fn(&Target, &Volume) -> String) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, |_, target, volume| {
        out::line(&text(target, volume));
        Ok(())
    })
}

fn ignore_names(call: &Call) {
    if !call.names.is_empty() {
        out::say("This command will ignore resource names!");
    }
}

/// `sh-nop`
pub fn nop(ctx: &mut Context, call: &Call) -> Done {
    ignore_names(call);
    ctx.config().map(|_| ())
}

/// `sh-resources`
pub fn resources(ctx: &mut Context, call: &Call) -> Done {
    ignore_names(call);
    let stacked = ctx.stacked;
    let resources = &ctx.config()?.resources;
    let names: Vec<_> = resources.iter().filter(|r| r.stacked == stacked).map(|r| r.name.as_str()).collect();
    if !names.is_empty() {
        out::line(&names.join(" "));
    }
    Ok(())
}

/// `sh-resource`
pub fn resource(ctx: &mut Context, call: &Call) -> Done {
    for target in select(ctx, call, false)? {
        out::line(&target.resource.name);
    }
    Ok(())
}

/// `sh-mod-parms`
pub fn mod_parms(ctx: &mut Context, call: &Call) -> Done {
    ignore_names(call);
    let count = ctx.config()?.document.config().global.minor_count.unwrap_or(32);
    out::line(&format!("minor_count={count}"));
    Ok(())
}

/// `sh-dev`
pub fn dev(ctx: &mut Context, call: &Call) -> Done {
    each(ctx, call, |_, volume| volume.device.clone())
}

/// `sh-minor`
pub fn minor(ctx: &mut Context, call: &Call) -> Done {
    each(ctx, call, |_, volume| volume.minor.to_string())
}

/// `sh-ll-dev`
pub fn ll_dev(ctx: &mut Context, call: &Call) -> Done {
    each(ctx, call, |_, volume| volume.backing_disk.clone())
}

/// `sh-md-dev`
pub fn md_dev(ctx: &mut Context, call: &Call) -> Done {
    each(ctx, call, |_, volume| volume.meta_disk.device(&volume.backing_disk).to_owned())
}

/// `sh-md-idx`
pub fn md_idx(ctx: &mut Context, call: &Call) -> Done {
    each(ctx, call, |_, volume| volume.meta_disk.index_text())
}

/// `sh-ip`
pub fn ip(ctx: &mut Context, call: &Call) -> Done {
    each(ctx, call, |target, _| target.resource.me.address.host_text())
}

/// `sh-udev`
pub fn udev(ctx: &mut Context, call: &Call) -> Done {
    let always_vnr = ctx.config()?.document.config().global.udev_always_use_vnr;
    each(ctx, call, |target, volume| {
        let name = &target.resource.name;
        let resource = if volume.implicit && !always_vnr { name.clone() } else { format!("{name}/{}", volume.vnr) };
        let short = |path: &str| path.strip_prefix("/dev/").unwrap_or(path).to_owned();
        format!("RESOURCE={resource}\nDEVICE={}\nDISK={}", short(&volume.device), short(&volume.backing_disk))
    })
}

/// `sh-status`
pub fn status(ctx: &mut Context, call: &Call) -> Done {
    ignore_names(call);
    let (path, resources) = {
        let configured = ctx.config()?;
        (configured.path.clone(), configured.resources.clone())
    };
    let status = ctx.status_if_running()?;
    out::print(&format!("_drbd_version=9.22.0\n_drbd_api=1\n_config_file={path}\n\n\n"));
    for resource in resources.iter().filter(|r| r.stacked == ctx.stacked) {
        out::print(&format!(
            "_conf_res_name={}\n_conf_file_line={}\n\n_stacked_on=\n_stacked_on_device=\n_stacked_on_minor=\n",
            resource.name, resource.place
        ));
        for volume in &resource.me.volumes {
            let found = status.as_ref().and_then(|status| status.minor(volume.minor));
            out::print(&format!("_conf_volume={}\n{}", volume.vnr, words::sh_status(volume.minor.0, found)));
        }
    }
    Ok(())
}

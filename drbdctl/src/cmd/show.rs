//! Commands that show what the daemon has.

use std::collections::BTreeMap;

use udrbd::config::model::Volume as ConfiguredVolume;
use udrbd::control::proto::Event;
use udrbd::control::render::text::TextOptions;
use udrbd::control::render::{events, json, proc as proc_text, text, words};
use udrbd::control::status::{Resource, Status, Volume};

use super::simple::{no_such_minor, no_such_resource};
use crate::args::Call;
use crate::context::Context;
use crate::report::{Done, Exit};
use crate::target::{Target, for_resources, for_volumes, select};
use crate::{offline, out, time};

/// `status`
pub fn status(ctx: &mut Context, call: &Call) -> Done {
    let color = match call.option("color") {
        None | Some("auto") => out::is_terminal(),
        Some("always") => true,
        Some("never") => false,
        Some(other) => {
            out::say(&format!("Option --color: invalid argument '{other}'"));
            return Err(Exit(20));
        }
    };
    let options =
        TextOptions { verbose: call.flag("verbose"), statistics: call.flag("statistics"), color, width: out::width() };
    let show = |resource: &Resource| {
        out::print(&text::resource(resource, &options));
        if let Some(problem) = &resource.problem {
            out::say(&format!("{}: {}", resource.name, problem.line()));
        }
        warn(&resource.warnings, &resource.name);
        for volume in &resource.volumes {
            warn(&volume.warnings, &format!("{}/{}", resource.name, volume.volume));
        }
    };
    let named = !call.names.is_empty() && call.names != ["all"];
    // Without names JSON has what drbdsetup would show: everything that the daemon has.
    if !named && (call.flag("json") || !ctx.has_config()) {
        let status = ctx.status(None)?;
        warn(&status.warnings, "udrbd");
        if call.flag("json") {
            out::line(&json::status(&status));
        } else {
            status.resources.iter().for_each(show);
        }
        return Ok(());
    }
    let targets = select(ctx, call, true)?;
    let status = ctx.status(None)?;
    warn(&status.warnings, "udrbd");
    let mut shown = Vec::new();
    let result = for_resources(ctx, &targets, |_, target| {
        let name = &target.resource.name;
        let resource = status.resource(name).ok_or_else(|| no_such_resource(name))?;
        if call.flag("json") {
            shown.push(resource.clone());
        } else {
            show(resource);
        }
        Ok(())
    });
    if call.flag("json") {
        out::line(&json::status(&Status::new(shown)));
    }
    result
}

fn warn(warnings: &[String], label: &str) {
    for warning in warnings {
        out::say(&format!("{label}: warning: {warning}"));
    }
}

/// `proc`
pub fn proc(ctx: &mut Context, _: &Call) -> Done {
    let status = ctx.status(None)?;
    out::print(&proc_text::proc_drbd(&status));
    Ok(())
}

/// `frontends`
pub fn frontends(ctx: &mut Context, call: &Call) -> Done {
    let status = ctx.status(None)?;
    let show = |resource: &Resource| {
        for volume in &resource.volumes {
            for frontend in &volume.frontends {
                let (name, nr) = (&resource.name, volume.volume);
                out::line(&format!("{name}/{nr} {} {}", frontend.kind, frontend.address));
            }
            warn(&volume.warnings, &format!("{}/{}", resource.name, volume.volume));
        }
    };
    if call.names.is_empty() {
        status.resources.iter().for_each(show);
        return Ok(());
    }
    let targets = select(ctx, call, false)?;
    for_resources(ctx, &targets, |_, target| {
        let name = &target.resource.name;
        show(status.resource(name).ok_or_else(|| no_such_resource(name))?);
        Ok(())
    })
}

fn each_word(ctx: &mut Context, call: &Call, word: fn(&Volume) -> String) -> Done {
    let targets = select(ctx, call, false)?;
    let status = ctx.status(None)?;
    for_volumes(ctx, &targets, |_, target, volume| {
        let found = find(&status, target, volume)
            .ok_or_else(|| no_such_minor(&target.volume_attempt(volume, call.row.name)))?;
        out::line(&word(found));
        Ok(())
    })
}

fn find<'a>(status: &'a Status, target: &Target, volume: &ConfiguredVolume) -> Option<&'a Volume> {
    status.resource(&target.resource.name)?.volumes.iter().find(|v| v.volume == volume.vnr)
}

/// `role`
pub fn role(ctx: &mut Context, call: &Call) -> Done {
    each_word(ctx, call, words::role)
}

/// `cstate`
pub fn cstate(ctx: &mut Context, call: &Call) -> Done {
    each_word(ctx, call, words::cstate)
}

/// `dstate`: from the metadata, if the daemon does not have the volume.
pub fn dstate(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let status = ctx.status_if_running()?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        match status.as_ref().and_then(|status| find(status, target, volume)) {
            Some(found) => out::line(&words::dstate(found)),
            None => out::line(offline::gi::dstate(ctx, target, volume)?),
        }
        Ok(())
    })
}

/// `events2`
pub fn events2(ctx: &mut Context, call: &Call) -> Done {
    let statistics = call.flag("statistics");
    let print = |line: &str| {
        let stamp = if call.flag("timestamps") { format!("{} ", time::event_stamp()) } else { String::new() };
        // A reader that is gone ends the stream.
        out::stream(&format!("{stamp}{line}\n")).map_err(|_| Exit(0))
    };
    let only = match call.names.as_slice() {
        [] => None,
        [name] if name == "all" => None,
        [name] => Some(name.clone()),
        _ => {
            out::say("Excess arguments: events2 takes one resource, or all");
            return Err(Exit(20));
        }
    };
    let told = |error: &udrbd::control::client::ClientError| {
        out::say(&format!("drbdctl: {error}"));
        Exit(20)
    };
    let (status, mut watcher) = ctx.new_client()?.watch(only.as_deref()).map_err(|e| told(&e))?;
    let result = (|| {
        for line in events::exists(&status, statistics) {
            print(&line)?;
        }
        print("exists -")?;
        if call.flag("now") {
            return Ok(());
        }
        let mut known: BTreeMap<String, Resource> = status.resources.into_iter().map(|r| (r.name.clone(), r)).collect();
        loop {
            let Some(event) = watcher.next(None).map_err(|e| told(&e))? else { continue };
            match event {
                Event::Resource(new) => {
                    for line in events::changes(known.get(&new.name), Some(&new), statistics) {
                        print(&line)?;
                    }
                    known.insert(new.name.clone(), *new);
                }
                Event::Removed { resource } => {
                    for line in events::changes(known.remove(&resource).as_ref(), None, statistics) {
                        print(&line)?;
                    }
                }
                Event::Helper { resource, volume, helper, status } => {
                    let volume = volume.map(|(volume, minor)| (volume.0, minor.0));
                    print(&events::helper(&resource, volume, &helper, status))?;
                }
                Event::Skipped { count } => print(&format!("- skipped {count}"))?,
            }
        }
    })();
    if result == Err(Exit(0)) { Ok(()) } else { result }
}

//! Which resources and volumes the words behind a command mean: `RES`, `RES/VNR`, `minor-N`, `all`.
//!
//! Source: config-and-commands.md 9 (selectors, execution over several).

use udrbd::config::ResolvedResource;
use udrbd::config::model::Volume;

use crate::args::{Call, Per};
use crate::context::Context;
use crate::out;
use crate::report::{Attempt, Done, Exit};

/// A resource, and those of its volumes that are meant.
#[derive(Clone, Debug)]
pub struct Target {
    /// The resource.
    pub resource: ResolvedResource,
    /// Its selected volumes.
    pub volumes: Vec<Volume>,
}

impl Target {
    /// For messages about the resource.
    pub fn attempt(&self, word: &'static str) -> Attempt {
        Attempt { object: self.resource.name.clone(), label: self.resource.name.clone(), word }
    }

    /// For messages about a volume.
    pub fn volume_attempt(&self, volume: &Volume, word: &'static str) -> Attempt {
        Attempt { object: volume.minor.to_string(), label: self.label(volume), word }
    }

    /// `r0`, or `r0/1` where that is needed to say which.
    pub fn label(&self, volume: &Volume) -> String {
        if volume.implicit && self.resource.me.volumes.len() == 1 {
            self.resource.name.clone()
        } else {
            format!("{}/{}", self.resource.name, volume.vnr)
        }
    }
}

/// The targets of a call, in its order. With `all_if_none`, no name means all.
pub fn select(ctx: &mut Context, call: &Call, all_if_none: bool) -> Done<Vec<Target>> {
    if call.names.is_empty() && !all_if_none {
        call.say_usage("No resource names specified");
        return Err(Exit(1));
    }
    let stacked = ctx.stacked;
    let resources = ctx.config()?.resources.clone();
    let mut targets = Vec::new();
    let everything = [String::from("all")];
    let names: &[String] = if call.names.is_empty() { &everything } else { &call.names };
    for name in names {
        if name == "all" {
            targets.extend(resources.iter().filter(|r| r.stacked == stacked).map(whole));
            continue;
        }
        let target = find(&resources, name).ok_or_else(|| not_defined(ctx, name))?;
        if target.resource.stacked != stacked {
            let name = &target.resource.name;
            out::say(&if stacked {
                format!("'{name}' is not a stacked resource, and not available in stacked mode.")
            } else {
                format!("'{name}' is a stacked resource, and not available in normal mode.")
            });
            return Err(Exit(1));
        }
        let partial = name.contains('/') || is_minor(name).is_some();
        if call.row.per == Per::Resource && partial && !target.volumes.iter().all(|v| v.implicit) {
            let word = call.row.name;
            out::say(&format!("{word} operates on whole resources, but you specified a specific volume!"));
            return Err(Exit(1));
        }
        targets.push(target);
    }
    Ok(targets)
}

/// The one volume that a call means.
pub fn one_volume(ctx: &mut Context, call: &Call) -> Done<(Target, Volume)> {
    let targets = select(ctx, call, false)?;
    match targets.as_slice() {
        [target] if target.volumes.len() == 1 => Ok((target.clone(), target.volumes[0].clone())),
        _ => {
            let word = call.row.name;
            out::say(&format!("{word} requires a specific volume id, but none is specified."));
            out::say(&format!("Try '{word} minor-<minor_number>' or '{word} RESOURCE/<vnr>'"));
            Err(Exit(1))
        }
    }
}

fn whole(resource: &ResolvedResource) -> Target {
    Target { resource: resource.clone(), volumes: resource.me.volumes.clone() }
}

fn is_minor(name: &str) -> Option<u32> {
    name.strip_prefix("minor-")?.parse().ok()
}

fn find(resources: &[ResolvedResource], name: &str) -> Option<Target> {
    if let Some(resource) = resources.iter().find(|r| r.name == name) {
        return Some(whole(resource));
    }
    let one = |resource: &ResolvedResource, wanted: &dyn Fn(&Volume) -> bool| {
        let volume = resource.me.volumes.iter().find(|v| wanted(v))?.clone();
        Some(Target { resource: resource.clone(), volumes: vec![volume] })
    };
    if let Some(minor) = is_minor(name) {
        return resources.iter().find_map(|r| one(r, &|v| v.minor.0 == minor));
    }
    let (resource, volume) = name.rsplit_once('/')?;
    let volume: u16 = volume.parse().ok()?;
    one(resources.iter().find(|r| r.name == resource)?, &|v| v.vnr.0 == volume)
}

fn not_defined(ctx: &Context, name: &str) -> Exit {
    out::say(&format!("'{name}' not defined in your config (for this host)."));
    let resource = name.split('/').next().unwrap_or(name);
    let elsewhere = ctx.configured_elsewhere(resource);
    if !elsewhere.is_empty() {
        let node = &ctx.node;
        out::say(&format!("{resource}: this host is {node}, the resource is for {}", elsewhere.join(", ")));
    }
    Exit(1)
}

/// Does something for each volume: the first that fails ends the work on its resource; other resources are still
/// tried, unless the code is 20 or more. The largest code counts.
pub fn for_volumes(
    ctx: &mut Context,
    targets: &[Target],
    mut work: impl FnMut(&mut Context, &Target, &Volume) -> Done,
) -> Done {
    for_resources(ctx, targets, |ctx, target| target.volumes.iter().try_for_each(|volume| work(ctx, target, volume)))
}

/// The same for each resource.
pub fn for_resources(
    ctx: &mut Context,
    targets: &[Target],
    mut work: impl FnMut(&mut Context, &Target) -> Done,
) -> Done {
    let mut largest = 0;
    for target in targets {
        if let Err(Exit(code)) = work(ctx, target) {
            largest = largest.max(code);
            if code >= 20 {
                break;
            }
        }
    }
    if largest == 0 { Ok(()) } else { Err(Exit(largest)) }
}

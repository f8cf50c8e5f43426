//! Inheritance, as drbdadm 8.4 does it: resource-level volumes into the host sections, common into the resources, resource
//! disk options into the volumes.
//!
//! Order in the lists decides: in every list the last entry for an option counts, and what is inherited is put in front,
//! each time only what the list lacks. Two consequences that users meet: the *first* of two equal options of a resource's
//! `disk { }` counts, and `disk { }` inside a *resource-level* volume loses against the resource's and the common section's.
//! Source: config-and-commands.md 6, checked against drbdadm of drbd-utils 9.22.

use super::ast::{Ast, Device, Host, HostKind, Opt, ProxyOptions, Resource, Volume};

/// Copies `volume`, `device`, `disk` and `meta-disk` of the resource level into every host section, field by field.
/// Their `disk { }` sections stay behind; [`expanded`] adds them.
pub fn inherit_volumes(ast: &mut Ast) {
    for resource in &mut ast.resources {
        let Resource { volumes, hosts, .. } = resource;
        for host in hosts {
            for from in volumes.iter() {
                inherit_volume(host, from);
            }
        }
    }
}

fn inherit_volume(host: &mut Host, from: &Volume) {
    let stacked = matches!(host.kind, HostKind::Stacked(_));
    let at = host.volumes.iter().position(|v| v.vnr == from.vnr).unwrap_or_else(|| {
        let at = host.volumes.partition_point(|v| v.vnr < from.vnr);
        host.volumes.insert(at, Volume::new(from.vnr, from.implicit, host.pos));
        at
    });
    let volume = &mut host.volumes[at];
    if volume.device.is_none() {
        volume.device.clone_from(&from.device);
    }
    // The lower resource's device is the disk of a stacked section.
    if !stacked {
        if volume.disk.is_none() {
            volume.disk.clone_from(&from.disk);
            volume.disk_inherited = volume.disk.is_some();
        }
        if volume.meta.is_none() {
            volume.meta.clone_from(&from.meta);
        }
    }
}

/// Puts the options of `from` that `list` lacks in front of it, one by one.
pub fn merge(list: &mut Vec<Opt>, from: &[Opt]) {
    for opt in from {
        if !list.iter().any(|o| o.name == opt.name) {
            list.insert(0, opt.clone());
        }
    }
}

fn merge_proxy(list: &mut ProxyOptions, from: &ProxyOptions) {
    merge(&mut list.opts, &from.opts);
    for plugin in &from.plugins {
        if !list.plugins.contains(plugin) {
            list.plugins.insert(0, plugin.clone());
        }
    }
}

/// The configuration with all inheritance applied.
#[must_use]
pub fn expanded(ast: &Ast) -> Ast {
    let mut ast = ast.clone();
    for resource in &mut ast.resources {
        if let Some(common) = &ast.common {
            merge_common(resource, common);
        }
        let Resource { disk, volumes, hosts, proxy: options, .. } = resource;
        for proxy in hosts.iter_mut().filter_map(|h| h.proxy.as_mut()) {
            merge_proxy(&mut proxy.options, options);
        }
        for volume in hosts.iter_mut().flat_map(|h| &mut h.volumes) {
            merge(&mut volume.disk_opts, disk);
            if let Some(from) = volumes.iter().find(|v| v.vnr == volume.vnr) {
                merge(&mut volume.disk_opts, &from.disk_opts);
            }
            if let Some(Device { path: path @ None, minor, .. }) = &mut volume.device {
                *path = Some(format!("/dev/drbd{minor}"));
            }
        }
    }
    ast
}

fn merge_common(resource: &mut Resource, common: &Resource) {
    merge(&mut resource.net, &common.net);
    merge(&mut resource.disk, &common.disk);
    merge(&mut resource.options, &common.options);
    merge(&mut resource.startup.opts, &common.startup.opts);
    merge(&mut resource.handlers, &common.handlers);
    merge_proxy(&mut resource.proxy, &common.proxy);
    resource.startup.stacked_timeouts |= common.startup.stacked_timeouts;
    if resource.startup.become_primary_on.is_empty() {
        resource.startup.become_primary_on.clone_from(&common.startup.become_primary_on);
    }
}

/// The entry of a list that counts.
#[must_use]
pub fn last<'a>(list: &'a [Opt], name: &str) -> Option<&'a Opt> {
    list.iter().rev().find(|o| o.name == name)
}

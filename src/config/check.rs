//! What needs more than one statement to see: missing and conflicting things.
//!
//! Takes the parsed text with resource-level volumes inherited, adds to the findings. [`check`] is the same on every host;
//! [`check_for_host`] holds what drbdadm looks at only for resources that have a section for the host it runs on.
//! Resources with syntax errors are not checked for missing things. Source: config-and-commands.md 7.2 and 7.3; the
//! warnings are our own.

use std::collections::{BTreeMap, BTreeSet};

use super::ast::{Ast, Host, HostKind, Opt, Resource, Volume};
use super::diag::{Diagnostic, Diagnostics, Pos};
use super::expand::{self, last};
use super::model::Family;
use super::values::ResyncAfter;

/// Runs the checks that need no host.
pub fn check(ast: &Ast, diagnostics: &mut Diagnostics) {
    let expanded = expand::expanded(ast);
    let mut seen = Seen::default();
    for (written, resource) in ast.resources.iter().zip(&expanded.resources) {
        for host in &resource.hosts {
            unique(&mut seen, host, &expanded, diagnostics);
        }
        lower_exists(resource, &expanded, diagnostics);
        lost_volume_options(written, resource, diagnostics);
        if !resource.damaged {
            for host in &resource.hosts {
                complete(resource, host, diagnostics);
            }
            same_volumes(resource, diagnostics);
            combinations(resource, diagnostics);
        }
    }
    resync_after(ast, diagnostics);
}

/// What a resource is checked for; drbdadm does not look at the same things each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `dump` of what was written: the common section is not merged in.
    PlainDump,
    /// `dump` with everything merged in.
    ExpandedDump,
    /// Commands that configure something.
    Use,
}

/// Checks one resource that has a section for this host. `ast` is as written for a plain dump, else expanded.
pub fn check_for_host(resource: &Resource, ast: &Ast, purpose: Purpose, diagnostics: &mut Diagnostics) {
    proxies(resource, diagnostics);
    let dual_primary_help = if purpose == Purpose::PlainDump {
        "add `allow-two-primaries;` to the net { } of this resource; plain dump does not look at the common section"
    } else {
        "add `allow-two-primaries;` to net { }, or name one host"
    };
    become_primary_on(resource, ast, dual_primary_help, diagnostics);
    if purpose == Purpose::Use {
        ambiguous_resync_after(resource, ast, diagnostics);
    }
}

/// A finding about a resource as a whole; `pos` is the statement that it is about.
fn about(resource: &Resource, pos: Pos, text: &str) -> Diagnostic {
    Diagnostic::error(resource.open, format!("in resource {}: {text}", resource.name.text)).note(pos, "said here")
}

fn complete(resource: &Resource, host: &Host, diagnostics: &mut Diagnostics) {
    let mut missing = |keyword: &str, what: &str, help: &str| {
        let message =
            format!("in resource {}, {}: {what}'{keyword}' keyword missing.", resource.name.text, host.title());
        diagnostics.push(Diagnostic::error(host.pos, message).help(help));
    };
    if host.address.is_none() {
        missing("address", "", "add `address A.B.C.D:PORT;`");
    }
    for volume in &host.volumes {
        let what = if volume.implicit { String::new() } else { format!("volume {}: ", volume.vnr) };
        if volume.device.is_none() {
            missing("device", &what, "add `device minor N;` here or at resource level");
        }
        if matches!(host.kind, HostKind::Stacked(_)) {
            continue;
        }
        if volume.disk.is_none() {
            missing("disk", &what, "add `disk PATH;` here or at resource level");
        }
        if volume.meta.is_none() {
            missing("meta-disk", &what, "add `meta-disk internal;` (or another place) here or at resource level");
        }
    }
    if let (Some(implicit), Some(explicit)) =
        (host.volumes.iter().find(|v| v.implicit), host.volumes.iter().find(|v| !v.implicit))
    {
        let message = format!("in resource {}: you must not mix implicit and explicit volumes", resource.name.text);
        let error = Diagnostic::error(host.pos, message).note(implicit.pos, "an implicit volume, 0");
        let error = error.note(explicit.pos, format!("an explicit volume, {}", explicit.vnr));
        diagnostics.push(error.help("write volume 0 { } around the statements of the implicit one"));
    }
    if let Some(proxy) = &host.proxy {
        for (keyword, address) in [("inside", &proxy.inside), ("outside", &proxy.outside)] {
            if address.is_none() {
                let title = host.title().replace(" { ... }", " { proxy on ... }");
                let message = format!("in section: {title}: '{keyword}' keyword missing.");
                diagnostics.push(Diagnostic::error(proxy.pos, message).help(format!("add `{keyword} A.B.C.D:PORT;`")));
            }
        }
    }
}

/// Every host must have the volumes of the first one, in the same form.
fn same_volumes(resource: &Resource, diagnostics: &mut Diagnostics) {
    let Some((first, others)) = resource.hosts.split_first() else { return };
    let mut differs = |has: &Host, lacks: &Host, volume: &Volume| {
        let text = format!("volume {} of {} is not defined on {}", volume.vnr, has.name(), lacks.name());
        let error = Diagnostic::error(resource.close, format!("in resource {}: {text}", resource.name.text));
        let error = error.note(volume.pos, "the volume is here").note(lacks.pos, "and missing here");
        diagnostics.push(error.help("give both hosts the same volumes"));
    };
    for other in others {
        for volume in &first.volumes {
            if !other.volumes.iter().any(|v| v.vnr == volume.vnr) {
                differs(first, other, volume);
            }
        }
        for volume in &other.volumes {
            if !first.volumes.iter().any(|v| v.vnr == volume.vnr) {
                differs(other, first, volume);
            }
        }
    }
    for other in others {
        for (a, b) in first.volumes.iter().flat_map(|a| other.volumes.iter().map(move |b| (a, b))) {
            if a.vnr == b.vnr && a.implicit != b.implicit {
                let text = format!("volume {} must not be implicit on {{}} but not on {{}}", a.vnr);
                let (implicit, explicit) = if a.implicit { (first, other) } else { (other, first) };
                let text = text.replacen("{}", &implicit.name(), 1).replacen("{}", &explicit.name(), 1);
                let error = Diagnostic::error(resource.close, format!("in resource {}: {text}", resource.name.text));
                let error = error.note(a.pos, "one is here").note(b.pos, "the other is here");
                diagnostics.push(error.help(format!("write volume {} {{ }} on both", a.vnr)));
            }
        }
    }
}

/// First uses of what must be unique.
#[derive(Default)]
struct Seen {
    hard: BTreeMap<(&'static str, String), Pos>,
    /// Pairs of places that were reported: several keys (hosts, minor and name) may conflict in the same statements.
    reported: BTreeSet<(Pos, Pos)>,
    disks: BTreeMap<String, Pos>,
}

impl Seen {
    fn once(&mut self, what: &'static str, key: String, pos: Pos, diagnostics: &mut Diagnostics) {
        if let Some(first) = self.hard.get(&(what, key.clone())) {
            if !self.reported.insert((pos, *first)) {
                return;
            }
            let error = Diagnostic::error(pos, format!("conflicting use of {what} '{key}'"));
            diagnostics.push(error.note(*first, "first used here").help("change one of them"));
        } else {
            self.hard.insert((what, key), pos);
        }
    }
}

fn unique(seen: &mut Seen, host: &Host, ast: &Ast, diagnostics: &mut Diagnostics) {
    let names = match &host.kind {
        HostKind::Stacked(lower) => host_names(ast, &lower.text, 0),
        _ => host.keys(),
    };
    if let Some(address) = &host.address {
        let text = format!("{}:{}", address.text, address.port);
        if address.ip.is_loopback() {
            for name in &names {
                seen.once("IP", format!("{name}:{text}"), address.pos, diagnostics);
            }
        } else {
            seen.once("IP", text, address.pos, diagnostics);
        }
    }
    for (name, volume) in names.iter().flat_map(|name| host.volumes.iter().map(move |v| (name, v))) {
        if let Some(device) = &volume.device {
            seen.once("device-minor", format!("device-minor:{name}:{}", device.minor), device.pos, diagnostics);
            seen.once("device", format!("device:{name}:{}", device.path()), device.pos, diagnostics);
        }
        if let Some(meta) = volume.meta.as_ref().filter(|m| m.dev != "internal") {
            let index = meta.index.map_or_else(|| "flexible".to_owned(), |i| i.to_string());
            seen.once("meta-disk", format!("{name}:{}[{index}]", meta.dev), meta.pos, diagnostics);
        }
        if let Some(disk) = &volume.disk {
            let key = format!("disk:{name}:{}", disk.text);
            if volume.disk_inherited {
                seen.once("disk", key.clone(), disk.pos, diagnostics);
            }
            match seen.disks.get(&key) {
                Some(first) if !volume.disk_inherited => {
                    let warning =
                        Diagnostic::warning(disk.pos, format!("{} is the disk of two volumes on {name}", disk.text));
                    diagnostics.push(warning.note(*first, "first used here").help("give each volume its own disk"));
                }
                Some(_) => {}
                None => drop(seen.disks.insert(key, disk.pos)),
            }
        }
    }
}

/// All host names of a resource, through stacked sections. `depth` bounds cycles.
#[must_use]
pub fn host_names(ast: &Ast, resource: &str, depth: usize) -> Vec<String> {
    let Some(resource) = ast.resources.iter().find(|r| r.name.text == resource) else { return Vec::new() };
    let mut names = Vec::new();
    for host in &resource.hosts {
        match &host.kind {
            HostKind::Stacked(lower) if depth < 4 => names.extend(host_names(ast, &lower.text, depth + 1)),
            HostKind::Stacked(_) => {}
            _ => names.extend(host.keys()),
        }
    }
    names
}

fn lower_exists(resource: &Resource, ast: &Ast, diagnostics: &mut Diagnostics) {
    for host in &resource.hosts {
        let HostKind::Stacked(lower) = &host.kind else { continue };
        let Some(below) = ast.resources.iter().find(|r| r.name.text == lower.text) else {
            let error = about(resource, lower.pos, &format!("referenced resource '{}' not defined.", lower.text));
            diagnostics.push(error.help("define it, or correct the name"));
            continue;
        };
        if below.name.text == resource.name.text {
            let error = about(resource, lower.pos, "a resource cannot be stacked on itself");
            diagnostics.push(error.help("name the lower resource"));
        }
        let numbers = volume_numbers(below);
        for volume in host.volumes.iter().filter(|v| !below.damaged && !numbers.contains(&v.vnr)) {
            let message =
                format!("in resource {}: volume {} is not defined on {}", resource.name.text, volume.vnr, lower.text);
            let error = Diagnostic::error(resource.close, message).note(volume.pos, "the volume is here");
            let error = error.note(below.open, "the lower resource is here");
            diagnostics.push(error.help("stack only volumes that the lower resource has"));
        }
        let implicit = below.hosts.iter().flat_map(|h| &h.volumes).find(|v| v.implicit);
        let explicit = below.hosts.iter().flat_map(|h| &h.volumes).find(|v| v.vnr == 0 && !v.implicit);
        for volume in host.volumes.iter().filter(|v| v.vnr == 0) {
            let other = if volume.implicit { explicit } else { implicit };
            if let Some(other) = other {
                let text = "volume 0 must not be implicit in one of the stacked resources but not in the other";
                let error = Diagnostic::error(resource.close, format!("in resource {}: {text}", resource.name.text));
                let error = error.note(volume.pos, "one is here").note(other.pos, "the other is here");
                diagnostics.push(error.help("write volume 0 { } in both"));
            }
        }
    }
}

/// A proxy belongs to both ends or to none; with more than two sections nobody can say which they are.
fn proxies(resource: &Resource, diagnostics: &mut Diagnostics) {
    if let [a, b] = resource.hosts.as_slice()
        && let (Some(proxy), None) | (None, Some(proxy)) = (&a.proxy, &b.proxy)
    {
        let text = "Either both 'on' sections must contain a proxy subsection, or none.";
        diagnostics.push(about(resource, proxy.pos, text).help("add the other one, or remove this one"));
    }
}

fn become_primary_on(resource: &Resource, ast: &Ast, dual_primary_help: &str, diagnostics: &mut Diagnostics) {
    let startup = &resource.startup;
    // Only the presence of allow-two-primaries counts in 8.4, not its value.
    let both = startup.become_primary_on.iter().find(|n| n.text == "both");
    if let Some(both) = both.filter(|_| last(&resource.net, "allow-two-primaries").is_none()) {
        let text = "become-primary-on is set to both, but allow-two-primaries is not set.";
        diagnostics.push(about(resource, both.pos, text).help(dual_primary_help));
    }
    if resource.hosts.len() != 2 {
        // 8.4 looks at the names only where it knows the peer.
        return;
    }
    let names = host_names(ast, &resource.name.text, 0);
    for name in startup.become_primary_on.iter().filter(|n| n.text != "both" && !names.contains(&n.text)) {
        let text = format!("become-primary-on contains '{}', which is not named with the 'on' sections.", name.text);
        let help = format!("hosts of {}: {}", resource.name.text, names.join(", "));
        diagnostics.push(about(resource, name.pos, &text).help(help));
    }
}

/// Combinations that the tools accept and the kernel refuses later, or that cannot work.
fn combinations(resource: &Resource, diagnostics: &mut Diagnostics) {
    let net = |name| last(&resource.net, name);
    let value = |name, default: &'static str| net(name).map_or(default, |o| o.value.as_str());
    let protocol = value("protocol", "C");
    let mut warn = |opt: Option<&Opt>, text: &str, help: &str| {
        if let Some(opt) = opt {
            diagnostics
                .push(Diagnostic::warning(opt.pos, format!("in resource {}: {text}", resource.name.text)).help(help));
        }
    };
    if value("allow-two-primaries", "no") == "yes" && protocol != "C" {
        warn(net("allow-two-primaries"), "two primaries need protocol C; connect will be refused", "set protocol C");
    }
    if value("on-congestion", "block") != "block" && protocol != "A" {
        warn(net("on-congestion"), "this needs protocol A; connect will be refused", "set protocol A, or block");
    }
    let fencing = last(&resource.disk, "fencing");
    if protocol == "A" && fencing.is_some_and(|o| o.value == "resource-and-stonith") {
        warn(fencing, "this needs protocol B or C; connect will be refused", "set protocol C, or another fencing");
    }
    if net("cram-hmac-alg").is_some_and(|o| !o.value.is_empty())
        != net("shared-secret").is_some_and(|o| !o.value.is_empty())
    {
        let opt = net("cram-hmac-alg").or_else(|| net("shared-secret"));
        warn(
            opt,
            "cram-hmac-alg and shared-secret belong together; the peer is not authenticated",
            "set both, or none",
        );
    }
}

/// `disk { }` of a resource-level volume loses against the resource's; see [`super::expand`].
fn lost_volume_options(written: &Resource, expanded: &Resource, diagnostics: &mut Diagnostics) {
    for opt in written.volumes.iter().flat_map(|v| v.disk_opts.iter()) {
        if let Some(winner) = last(&expanded.disk, opt.name).filter(|w| w.value != opt.value) {
            let text = format!(
                "{} {} has no effect here; {} of the enclosing section counts",
                opt.name, opt.value, winner.value
            );
            let warning = Diagnostic::warning(opt.pos, text).note(winner.pos, "set here");
            diagnostics.push(warning.help("set it in the volume of each host section"));
        }
    }
}

/// All options `resync-after` of a resource, with the name and perhaps the number that they hold.
fn dependencies(resource: &Resource) -> impl Iterator<Item = (&Opt, String, Option<u16>)> {
    let volumes = resource.hosts.iter().flat_map(|h| &h.volumes).chain(&resource.volumes);
    let lists = volumes.map(|v| &v.disk_opts).chain([&resource.disk]);
    lists.flatten().filter_map(|opt| match ResyncAfter::from_text(&opt.value) {
        ResyncAfter::Resource { resource, volume } if opt.name == "resync-after" => {
            Some((opt, resource, volume.map(|v| v.0)))
        }
        _ => None,
    })
}

/// A `resync-after` that leads nowhere is ignored, as drbdadm does without a terminal.
fn resync_after(ast: &Ast, diagnostics: &mut Diagnostics) {
    let volumes: BTreeMap<_, _> = ast.resources.iter().map(|r| (r.name.text.clone(), volume_numbers(r))).collect();
    for resource in ast.resources.iter().chain(&ast.common) {
        for (opt, name, number) in dependencies(resource) {
            let problem = match (volumes.get(&name), number) {
                (None, _) => format!("resource '{name}' mentioned in 'resync-after' option is not known."),
                (Some(numbers), Some(nr)) if !numbers.contains(&nr) => format!("resource '{name}' has no volume {nr}."),
                _ => continue,
            };
            let text = format!("in resource {}: {problem} The option is ignored.", resource.name.text);
            let warning = Diagnostic::warning(opt.value_pos, text);
            diagnostics.push(warning.help("correct the name, or remove the option"));
        }
    }
}

fn ambiguous_resync_after(resource: &Resource, ast: &Ast, diagnostics: &mut Diagnostics) {
    for (opt, name, number) in dependencies(resource) {
        let other = ast.resources.iter().find(|r| r.name.text == name);
        let count = other.map_or(0, |r| volume_numbers(r).len());
        if number.is_none() && count > 1 {
            let text =
                format!("resync-after contains '{}', which is ambiguous, since it contains {count} volumes", opt.value);
            diagnostics.push(about(resource, opt.value_pos, &text).help(format!("write {name}/NUMBER")));
        }
    }
}

fn volume_numbers(resource: &Resource) -> Vec<u16> {
    let mut numbers: Vec<u16> =
        resource.hosts.iter().flat_map(|h| &h.volumes).chain(&resource.volumes).map(|v| v.vnr).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Whether an address of this family can be looked for on this host; others always count as being here.
#[must_use]
pub const fn is_verified(family: Family) -> bool {
    matches!(family, Family::Ipv4 | Family::Ipv6)
}

//! From text to the typed model. Runs only on a configuration without errors, after [`super::check`].

use std::collections::BTreeMap;

use super::ast;
use super::check::host_names;
use super::diag::Sources;
use super::expand::expanded;
use super::model::{
    Address, Config, DiskOptions, Handler, Host, HostKind, MetaDisk, NetOptions, Place, Proxy, Resource,
    ResourceOptions, StartupOptions, Volume,
};
use crate::units::{Minor, VolumeNr};

/// The typed model of a checked configuration.
#[must_use]
pub fn build(ast: &ast::Ast) -> Config {
    let expanded = expanded(ast);
    Config {
        global: ast.global.as_ref().map(|(global, _)| global.clone()).unwrap_or_default(),
        resources: expanded.resources.iter().map(|r| resource(r, &expanded, &ast.sources)).collect(),
    }
}

/// Sets all options of a list, the last one of each name counts. Values were checked when they were parsed.
macro_rules! typed {
    ($type:ty, $list:expr) => {{
        let mut section = <$type>::default();
        for opt in $list {
            let result = section.set(opt.name, &opt.value);
            debug_assert!(result.is_ok(), "{result:?}");
        }
        section
    }};
}

fn resource(res: &ast::Resource, all: &ast::Ast, sources: &Sources) -> Resource {
    let mut startup = typed!(StartupOptions, &res.startup.opts);
    startup.stacked_timeouts = res.startup.stacked_timeouts;
    startup.become_primary_on = res.startup.become_primary_on.iter().map(|n| n.text.clone()).collect();
    Resource {
        name: res.name.text.clone(),
        place: Place { file: sources.path(res.open.file).to_owned(), line: res.open.line },
        options: typed!(ResourceOptions, &res.options),
        net: typed!(NetOptions, &res.net),
        disk: typed!(DiskOptions, &res.disk),
        startup,
        handlers: res.handlers.iter().filter_map(|o| Some((Handler::from_text(o.name)?, o.value.clone()))).collect(),
        proxy: proxy_options(&res.proxy),
        hosts: res.hosts.iter().filter_map(|h| host(h, all)).collect(),
    }
}

fn proxy_options(options: &ast::ProxyOptions) -> BTreeMap<String, String> {
    let mut map: BTreeMap<_, _> = options.opts.iter().map(|o| (o.name.to_owned(), o.value.clone())).collect();
    if !options.plugins.is_empty() {
        let plugins: Vec<_> = options.plugins.iter().map(|words| words.join(" ")).collect();
        map.insert("plugin".to_owned(), plugins.join("; "));
    }
    map
}

fn host(host: &ast::Host, all: &ast::Ast) -> Option<Host> {
    let kind = match &host.kind {
        ast::HostKind::On(names) => HostKind::On(names.iter().map(|n| n.text.clone()).collect()),
        ast::HostKind::Floating => HostKind::Floating,
        ast::HostKind::Stacked(lower) => {
            HostKind::Stacked { lower: lower.text.clone(), hosts: host_names(all, &lower.text, 0) }
        }
    };
    let stacked = matches!(kind, HostKind::Stacked { .. });
    Some(Host {
        kind,
        address: address(host.address.as_ref()?),
        alternate_address: host.alternate.as_ref().map(address),
        options: typed!(ResourceOptions, &host.options),
        volumes: host.volumes.iter().filter_map(|v| volume(v, stacked)).collect(),
        proxy: host.proxy.as_ref().and_then(proxy),
    })
}

fn proxy(proxy: &ast::Proxy) -> Option<Proxy> {
    Some(Proxy {
        hosts: proxy.hosts.iter().map(|n| n.text.clone()).collect(),
        inside: address(proxy.inside.as_ref()?),
        outside: address(proxy.outside.as_ref()?),
        options: proxy_options(&proxy.options),
    })
}

fn volume(volume: &ast::Volume, stacked: bool) -> Option<Volume> {
    let device = volume.device.as_ref()?;
    let (backing_disk, meta_disk) = if stacked {
        (String::new(), MetaDisk::Internal)
    } else {
        let meta = volume.meta.as_ref()?;
        let meta = match meta.index {
            Some(idx) => MetaDisk::Indexed { dev: meta.dev.clone(), idx },
            None if meta.dev == "internal" => MetaDisk::Internal,
            None => MetaDisk::Flexible { dev: meta.dev.clone() },
        };
        (volume.disk.as_ref()?.text.clone(), meta)
    };
    Some(Volume {
        vnr: VolumeNr(volume.vnr),
        implicit: volume.implicit,
        device: device.path(),
        minor: Minor(device.minor),
        backing_disk,
        meta_disk,
        disk: typed!(DiskOptions, &volume.disk_opts),
    })
}

fn address(address: &ast::Address) -> Address {
    Address { family: address.family, ip: address.ip, zone: address.zone.clone(), port: address.port }
}

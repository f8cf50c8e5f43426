//! `dump-xml`: the same as [`super::dump`] for programs.
//!
//! Implicit volumes look like explicit ones, a stacked section looks like a normal host with the lower hosts' names and the
//! lower device as disk, `alternate-link-address` is left out; all as 8.4 does. Source: config-and-commands.md 18.2.

use std::fmt::Write as _;

use super::ast::{Address, Ast, Host, HostKind, Name, Opt, ProxyOptions, Resource, Volume};
use super::check::host_names;
use super::model::Global;

/// The whole configuration.
#[must_use]
pub fn dump_xml(ast: &Ast) -> String {
    let mut out = Xml { text: String::new(), level: 0 };
    out.open(&format!("config file=\"{}\"", escaped(ast.sources.path(0))));
    if let Some((global, _)) = &ast.global {
        out.global(global);
    }
    if let Some(common) = &ast.common {
        out.open("common");
        out.sections(common);
        out.close("common");
    }
    for resource in &ast.resources {
        let file = ast.sources.path(resource.open.file);
        let place = escaped(&format!("{file}:{}", resource.open.line));
        out.open(&format!("resource name=\"{}\" conf-file-line=\"{place}\"", escaped(&resource.name.text)));
        for host in &resource.hosts {
            out.host(ast, host);
        }
        out.sections(resource);
        out.close("resource");
    }
    out.close("config");
    out.text
}

struct Xml {
    text: String,
    level: usize,
}

impl Xml {
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "{:1$}{line}", "", self.level * 4);
    }

    fn open(&mut self, tag: &str) {
        self.line(&format!("<{tag}>"));
        self.level += 1;
    }

    fn close(&mut self, tag: &str) {
        self.level -= 1;
        self.line(&format!("</{tag}>"));
    }

    fn global(&mut self, global: &Global) {
        let refresh = global.dialog_refresh.filter(|n| *n != 1);
        if !global.disable_ip_verification && global.minor_count.is_none() && refresh.is_none() {
            return;
        }
        self.open("global");
        if global.disable_ip_verification {
            self.line("<disable-ip-verification/>");
        }
        if let Some(count) = global.minor_count {
            self.line(&format!("<minor-count count=\"{count}\"/>"));
        }
        if let Some(refresh) = refresh {
            self.line(&format!("<dialog-refresh refresh=\"{refresh}\"/>"));
        }
        self.close("global");
    }

    fn host(&mut self, ast: &Ast, host: &Host) {
        let lower = match &host.kind {
            HostKind::On(names) => {
                self.open(&format!("host name=\"{}\"", escaped(&joined(names))));
                None
            }
            HostKind::Floating => {
                self.open("host floating=\"1\"");
                None
            }
            HostKind::Stacked(lower) => {
                let names = host_names(ast, &lower.text, 0).join(" ");
                self.open(&format!("host name=\"{}\"", escaped(&names)));
                ast.resources.iter().find(|r| r.name.text == lower.text).and_then(|r| r.hosts.first())
            }
        };
        self.section("options", &host.options);
        for volume in &host.volumes {
            self.volume(volume, lower);
        }
        if let Some(address) = &host.address {
            self.address("address", address);
        }
        if let Some(proxy) = &host.proxy {
            self.open(&format!("proxy hostname=\"{}\"", escaped(&joined(&proxy.hosts))));
            for (name, address) in [("inside", &proxy.inside), ("outside", &proxy.outside)] {
                if let Some(address) = address {
                    self.address(name, address);
                }
            }
            self.proxy("options", &proxy.options);
            self.close("proxy");
        }
        self.close("host");
    }

    fn volume(&mut self, volume: &Volume, lower: Option<&Host>) {
        self.open(&format!("volume vnr=\"{}\"", volume.vnr));
        self.section("disk", &volume.disk_opts);
        if let Some(device) = &volume.device {
            let path = escaped(device.path.as_deref().unwrap_or_default());
            self.line(&format!("<device minor=\"{}\">{path}</device>", device.minor));
        }
        if let Some(lower) = lower {
            let below = lower.volumes.iter().find(|v| v.vnr == volume.vnr).and_then(|v| v.device.as_ref());
            if let Some(device) = below {
                self.line(&format!("<disk>{}</disk>", escaped(&device.path())));
            }
            self.line("<meta-disk>internal</meta-disk>");
        }
        if let Some(disk) = &volume.disk {
            self.line(&format!("<disk>{}</disk>", escaped(&disk.text)));
        }
        if let Some(meta) = &volume.meta {
            let index = meta.index.map_or_else(String::new, |index| format!(" index=\"{index}\""));
            self.line(&format!("<meta-disk{index}>{}</meta-disk>", escaped(&meta.dev)));
        }
        self.close("volume");
    }

    fn address(&mut self, tag: &str, address: &Address) {
        let Address { family, port, text, .. } = address;
        self.line(&format!("<{tag} family=\"{family}\" port=\"{port}\">{}</{tag}>", escaped(text)));
    }

    fn sections(&mut self, resource: &Resource) {
        self.section("options", &resource.options);
        self.section("net", &resource.net);
        self.section("disk", &resource.disk);
        let startup = &resource.startup;
        if !startup.opts.is_empty() || startup.stacked_timeouts || !startup.become_primary_on.is_empty() {
            self.open("section name=\"startup\"");
            self.list(&startup.opts);
            if startup.stacked_timeouts {
                self.line("<option name=\"stacked-timeouts\"/>");
            }
            if !startup.become_primary_on.is_empty() {
                let names = escaped(&joined(&startup.become_primary_on));
                self.line(&format!("<option name=\"become-primary-on\" value=\"{names}\"/>"));
            }
            self.close("section");
        }
        self.proxy("proxy", &resource.proxy);
        self.section("handlers", &resource.handlers);
    }

    fn section(&mut self, name: &str, list: &[Opt]) {
        if !list.is_empty() {
            self.open(&format!("section name=\"{name}\""));
            self.list(list);
            self.close("section");
        }
    }

    fn list(&mut self, list: &[Opt]) {
        for opt in list {
            self.line(&format!("<option name=\"{}\" value=\"{}\"/>", opt.name, escaped(&opt.value)));
        }
    }

    fn proxy(&mut self, name: &str, proxy: &ProxyOptions) {
        if proxy.is_empty() {
            return;
        }
        self.open(&format!("section name=\"{name}\""));
        self.list(&proxy.opts);
        if !proxy.plugins.is_empty() {
            self.open("section name=\"plugin\"");
            for words in &proxy.plugins {
                self.line(&format!("<option name=\"{}\"/>", escaped(&words.join(" "))));
            }
            self.close("section");
        }
        self.close("section");
    }
}

fn joined(names: &[Name]) -> String {
    names.iter().map(|n| n.text.as_str()).collect::<Vec<_>>().join(" ")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            other => out.push(other),
        }
    }
    out
}

//! The canonical text, as `drbdadm dump` prints it.
//!
//! Takes what was written ([`super::ast`]), gives text that parses to the same and dumps to the same. Two differences from
//! 8.4, whose own output does not parse in these cases: strings that would read as a keyword, number or address are quoted,
//! and an implicit volume with both `disk PATH` and `disk { }` is printed as `volume 0 { }`.
//! Source: config-and-commands.md 18.1.

use std::fmt::Write as _;

use super::ast::{Address, Ast, Host, HostKind, Name, Opt, ProxyOptions, Resource, Volume};
use super::check::host_names;
use super::lexer::{Kind, Lexer};
use super::model::{Global, UsageCount};

/// Longest bare word that is printed. DRBD 8.4.
const BARE_LEN_MAX: usize = 80;
/// What 8.4's tool has when `cmd-timeout-medium` is not set, in seconds; it prints it always.
const CMD_TIMEOUT_MEDIUM: u32 = 600;
/// The same for `cmd-timeout-long`.
const CMD_TIMEOUT_LONG: u32 = 0;

/// How a resource relates to this host; printed in the comment above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation {
    /// No section is for this host.
    pub ignored: bool,
    /// This host's section is a stacked one.
    pub stacked: bool,
}

/// Header, global and common section. `verbose` prints `global { }` even when nothing is set.
#[must_use]
pub fn head(ast: &Ast, verbose: bool) -> String {
    let mut out = Writer::default();
    let _ = writeln!(out.text, "# {}", ast.sources.path(0));
    let global = ast.global.as_ref().map(|(global, _)| global.clone()).unwrap_or_default();
    out.global(&global, verbose);
    if let Some(common) = &ast.common {
        out.open(0, "common");
        out.sections(common);
        out.text.push_str("}\n\n");
    }
    out.text
}

/// One resource with its comment and the empty line behind it.
#[must_use]
pub fn resource(ast: &Ast, resource: &Resource, node: &str, relation: Relation) -> String {
    let mut out = Writer::default();
    let name = bare_or_quoted(&resource.name.text, Position::Name);
    let not = |yes| if yes { "" } else { "not " };
    let _ = writeln!(
        out.text,
        "# resource {name} on {node}: {}ignored, {}stacked\n# defined at {}:{}",
        not(relation.ignored),
        not(relation.stacked),
        ast.sources.path(resource.open.file),
        resource.open.line
    );
    out.open(0, &format!("resource {name}"));
    // The parser refuses both forms of `disk` in one implicit volume; the form must be the same in all host sections.
    let wrap = resource.hosts.iter().flat_map(|h| &h.volumes).any(|v| v.disk.is_some() && !v.disk_opts.is_empty());
    for host in &resource.hosts {
        out.host(ast, host, wrap);
    }
    out.sections(resource);
    out.text.push_str("}\n\n");
    out.text
}

#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    fn open(&mut self, level: usize, head: &str) {
        let _ = writeln!(self.text, "{:1$}{head} {{", "", level * 4);
    }

    fn close(&mut self, level: usize) {
        let _ = writeln!(self.text, "{:1$}}}", "", level * 4);
    }

    /// `name value;` with the name in the columns up to 24.
    fn statement(&mut self, level: usize, name: &str, value: &str) {
        let indent = level * 4;
        let width = 24_usize.saturating_sub(indent);
        let _ = writeln!(self.text, "{:indent$}{name:<width$} {value:>3};", "");
    }

    /// `name value;` with the name in 16 columns at any level.
    fn wide(&mut self, level: usize, name: &str, value: &str) {
        let _ = writeln!(self.text, "{:1$}{name:<16} {value};", "", level * 4);
    }

    fn global(&mut self, global: &Global, verbose: bool) {
        let usage_count = global.usage_count.filter(|u| *u != UsageCount::Ask);
        let dialog_refresh = global.dialog_refresh.filter(|n| *n != 1);
        let plain = !global.disable_ip_verification
            && global.minor_count.is_none()
            && dialog_refresh.is_none()
            && usage_count.is_none();
        if plain && !verbose {
            return;
        }
        self.open(0, "global");
        if global.disable_ip_verification {
            self.text.push_str("    disable-ip-verification;\n");
        }
        let numbers = [
            ("minor-count", global.minor_count.map(|n| n.to_string())),
            ("dialog-refresh", dialog_refresh.map(|n| n.to_string())),
            ("usage-count", usage_count.map(|u| u.text().to_owned())),
            ("cmd-timeout-short", global.cmd_timeout_short.filter(|n| *n != 5).map(|n| n.to_string())),
            ("cmd-timeout-medium", Some(global.cmd_timeout_medium.unwrap_or(CMD_TIMEOUT_MEDIUM).to_string())),
            ("cmd-timeout-long", Some(global.cmd_timeout_long.unwrap_or(CMD_TIMEOUT_LONG).to_string())),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                let _ = writeln!(self.text, "    {name} {value};");
            }
        }
        self.text.push_str("}\n\n");
    }

    fn host(&mut self, ast: &Ast, host: &Host, wrap: bool) {
        let head = match &host.kind {
            HostKind::On(names) => format!("on {}", names_text(names)),
            HostKind::Floating => format!("floating {}", host.address.as_ref().map_or_else(String::new, address_text)),
            HostKind::Stacked(lower) => {
                format!("stacked-on-top-of {}", bare_or_quoted(&lower.text, Position::Name))
            }
        };
        self.open(1, &head);
        if let HostKind::Stacked(lower) = &host.kind {
            let names: String = host_names(ast, &lower.text, 0).iter().map(|name| format!("{name} ")).collect();
            let _ = writeln!(self.text, "        # on {names}");
        }
        self.section(2, "options", &host.options);
        for volume in &host.volumes {
            if volume.implicit && !wrap {
                self.volume(2, volume);
            } else {
                self.open(2, &format!("volume {}", volume.vnr));
                self.volume(3, volume);
                self.close(2);
            }
        }
        if let Some(address) = host.address.as_ref().filter(|_| host.kind != HostKind::Floating) {
            self.wide(2, "address", &address_text(address));
        }
        if let Some(address) = &host.alternate {
            self.wide(2, "alternate-link-address", &address_text(address));
        }
        if let Some(proxy) = &host.proxy {
            self.open(2, &format!("proxy on {}", names_text(&proxy.hosts)));
            for (name, address) in [("inside", &proxy.inside), ("outside", &proxy.outside)] {
                if let Some(address) = address {
                    self.wide(3, name, &address_text(address));
                }
            }
            self.proxy(3, "options", &proxy.options);
            self.close(2);
        }
        self.close(1);
    }

    fn volume(&mut self, level: usize, volume: &Volume) {
        self.section(level, "disk", &volume.disk_opts);
        if let Some(device) = &volume.device {
            let value = match &device.path {
                Some(path) => format!("{} minor {}", bare_or_quoted(path, Position::Name), device.minor),
                None => format!("minor {}", device.minor),
            };
            self.statement(level, "device", &value);
        }
        if let Some(disk) = &volume.disk {
            self.statement(level, "disk", &bare_or_quoted(&disk.text, Position::Name));
        }
        if let Some(meta) = &volume.meta {
            let dev = bare_or_quoted(&meta.dev, Position::Name);
            match meta.index {
                Some(index) => self.wide(level, "meta-disk", &format!("{dev} [{index}]")),
                None if meta.dev == "internal" => self.statement(level, "meta-disk", &dev),
                None => self.wide(level, "meta-disk", &dev),
            }
        }
    }

    fn sections(&mut self, resource: &Resource) {
        self.section(1, "options", &resource.options);
        self.section(1, "net", &resource.net);
        self.section(1, "disk", &resource.disk);
        let startup = &resource.startup;
        if !startup.opts.is_empty() || startup.stacked_timeouts || !startup.become_primary_on.is_empty() {
            self.open(1, "startup");
            self.list(2, &startup.opts);
            if startup.stacked_timeouts {
                self.text.push_str("        stacked-timeouts;\n");
            }
            if !startup.become_primary_on.is_empty() {
                let _ = writeln!(self.text, "        become-primary-on {};", names_text(&startup.become_primary_on));
            }
            self.close(1);
        }
        self.proxy(1, "proxy", &resource.proxy);
        self.section(1, "handlers", &resource.handlers);
    }

    fn section(&mut self, level: usize, name: &str, list: &[Opt]) {
        if !list.is_empty() {
            self.open(level, name);
            self.list(level + 1, list);
            self.close(level);
        }
    }

    fn list(&mut self, level: usize, list: &[Opt]) {
        for opt in list {
            // Flags hold the keywords yes and no.
            let flag = matches!(opt.spec, Some(s) if matches!(s.kind, super::spec::Kind::Flag { .. }));
            let value = if flag { opt.value.clone() } else { bare_or_quoted(&opt.value, Position::Value) };
            self.statement(level, opt.name, &value);
        }
    }

    fn proxy(&mut self, level: usize, name: &str, proxy: &ProxyOptions) {
        if proxy.is_empty() {
            return;
        }
        self.open(level, name);
        self.list(level + 1, &proxy.opts);
        if !proxy.plugins.is_empty() {
            self.open(level + 1, "plugin");
            for words in &proxy.plugins {
                let words: Vec<_> = words.iter().map(|word| bare_or_quoted(word, Position::Any)).collect();
                let _ = writeln!(self.text, "{:1$}{2};", "", (level + 2) * 4, words.join(" "));
            }
            self.close(level + 1);
        }
        self.close(level);
    }
}

fn names_text(names: &[Name]) -> String {
    names.iter().map(|n| bare_or_quoted(&n.text, Position::Name)).collect::<Vec<_>>().join(" ")
}

fn address_text(address: &Address) -> String {
    format!("{} {}", address.family, bracketed(address))
}

fn bracketed(address: &Address) -> String {
    if address.family == super::model::Family::Ipv6 {
        format!("[{}]:{}", address.text, address.port)
    } else {
        format!("{}:{}", address.text, address.port)
    }
}

/// Where a string stands; decides what may be bare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Only plain words.
    Name,
    /// Plain words, numbers and the word `on`.
    Value,
    /// Any single token that is no operator.
    Any,
}

/// The string bare where it reads back as the same, else in quotes.
fn bare_or_quoted(text: &str, position: Position) -> String {
    let mut lexer = Lexer::new(text, 0);
    let token = lexer.next_token();
    let whole = token.text == text && lexer.next_token().kind == Kind::End && text.len() <= BARE_LEN_MAX;
    let bare = match (token.kind, position) {
        (Kind::Word, _) => true,
        (Kind::Integer, Position::Value) => true,
        (Kind::Keyword, Position::Value) => text == "on",
        (Kind::Integer | Kind::Keyword | Kind::Ipv4 | Kind::Ipv6, Position::Any) => true,
        _ => false,
    };
    if whole && bare {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

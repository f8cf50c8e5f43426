//! Host sections: `on`, `floating`, `stacked-on-top-of`, and `proxy on` inside them.

use super::resource::{Scope, implicit_volume};
use super::{Parsed, Parser};
use crate::config::ast::{Host, HostKind, Name, Proxy, ProxyOptions, Resource};
use crate::config::diag::{Diagnostic, Pos};
use crate::config::lexer::{Kind, Token};
use crate::config::spec::Section;

const HOST_STATEMENTS: &[&str] = &[
    "device",
    "disk",
    "meta-disk",
    "flexible-meta-disk",
    "address",
    "volume",
    "options",
    "proxy",
    "alternate-link-address",
];
const STACKED_STATEMENTS: &[&str] = &["device", "address", "volume", "proxy", "alternate-link-address"];

impl Parser<'_, '_, '_> {
    /// `on NAME... { }`
    pub(super) fn on_section(&mut self, res: &mut Resource, key: &str, token: &Token) -> Parsed<()> {
        let names = self.names("the name of a host")?;
        let mut first = true;
        for name in &names {
            first &= self.once("host section", format!("{key}: on {}", name.text), name.pos);
        }
        self.host_body(res, key, HostKind::On(names), token.pos, first)
    }

    /// `stacked-on-top-of RESOURCE { }`
    pub(super) fn stacked(&mut self, res: &mut Resource, key: &str, token: &Token) -> Parsed<()> {
        let lower = self.name("the name of a resource")?;
        let first = self.once("stacked-on-top-of", format!("stacked:{}", lower.text), lower.pos);
        self.host_body(res, key, HostKind::Stacked(lower), token.pos, first)
    }

    /// `floating ADDRESS;` and `floating ADDRESS { }`
    pub(super) fn floating(&mut self, res: &mut Resource, key: &str, token: &Token) -> Parsed<()> {
        let address = self.address()?;
        let mut host = new_host(HostKind::Floating, token.pos);
        let mut keep = address.is_some();
        host.address = address;
        if keep {
            keep = self.once("host section", format!("{key}: on {}", host.name()), token.pos);
        }
        if self.peek().is_op(';') {
            self.next();
        } else {
            let key = section_key(key, &host, keep);
            self.block("the floating section", false, |p, token| {
                if token.is_keyword("address") {
                    let error = Diagnostic::error(token.pos, "a floating section cannot have an address statement");
                    p.syntax(error.help("its address stands behind the word floating; remove the statement"));
                    return Err(super::Failed);
                }
                p.host_item(&mut host, &key, &token)
            })?;
        }
        if keep {
            res.hosts.push(host);
        }
        Ok(())
    }

    fn host_body(&mut self, res: &mut Resource, key: &str, kind: HostKind, pos: Pos, first: bool) -> Parsed<()> {
        let mut host = new_host(kind, pos);
        let key = section_key(key, &host, first);
        let what = host.title();
        self.block(what.trim_end_matches(" { ... }"), false, |p, token| p.host_item(&mut host, &key, &token))?;
        if first {
            res.hosts.push(host);
        } else {
            // Without it the resource looks incomplete, which it is not.
            self.syntax_errors += 1;
        }
        Ok(())
    }

    fn host_item(&mut self, host: &mut Host, key: &str, token: &Token) -> Parsed<()> {
        let stacked = matches!(host.kind, HostKind::Stacked(_));
        let statements = if stacked { STACKED_STATEMENTS } else { HOST_STATEMENTS };
        if token.kind != Kind::Keyword || !statements.contains(&token.text.as_str()) {
            return Err(self.unknown_statement(token, host.title().trim_end_matches(" { ... }"), statements));
        }
        match token.text.as_str() {
            "address" => {
                self.once("address statement", format!("{key}:address"), token.pos);
                host.address = self.address()?;
                self.semicolon()
            }
            "alternate-link-address" => {
                self.once("alt-address statement", format!("{key}:alt-address"), token.pos);
                host.alternate = self.address()?;
                self.semicolon()
            }
            "options" => self.options(Section::Options, &mut host.options),
            "proxy" => self.proxy_on(host, token),
            "volume" => self.volume(&mut host.volumes, key, true),
            "disk" if self.peek().is_op('{') => {
                // Shares its key with `disk PATH`, as in 8.4.
                self.once("disk statement", format!("{key}:disk"), token.pos);
                let volume = implicit_volume(self, &mut host.volumes, token.pos);
                self.options(Section::Disk, &mut volume.disk_opts)
            }
            _ => {
                let volume = implicit_volume(self, &mut host.volumes, token.pos);
                self.volume_statement(volume, token, &Scope { key, host: true })
            }
        }
    }

    /// `proxy on NAME... { }`
    fn proxy_on(&mut self, host: &mut Host, token: &Token) -> Parsed<()> {
        self.eat("'on' behind proxy", |t| t.is_keyword("on"))?;
        let hosts: Vec<Name> = self.names("the name of a host")?;
        let mut proxy = Proxy { hosts, pos: token.pos, inside: None, outside: None, options: ProxyOptions::default() };
        self.block("the proxy section", false, |p, token| match token.text.as_str() {
            "inside" if token.kind == Kind::Keyword => {
                proxy.inside = p.address()?;
                p.semicolon()
            }
            "outside" if token.kind == Kind::Keyword => {
                proxy.outside = p.address()?;
                p.semicolon()
            }
            "options" if token.kind == Kind::Keyword => p.proxy_options(&mut proxy.options),
            _ => Err(p.unknown_statement(&token, "proxy on", &["inside", "outside", "options"])),
        })?;
        host.proxy = Some(proxy);
        Ok(())
    }
}

/// Prefix of the keys of statements in a section; one that has been reported as a duplicate keeps to itself.
fn section_key(resource: &str, host: &Host, first: bool) -> String {
    let name = host.keys().first().cloned().unwrap_or_default();
    if first {
        format!("{resource}:{name}")
    } else {
        format!("{resource}:{name} at {}:{}", host.pos.line, host.pos.col)
    }
}

const fn new_host(kind: HostKind, pos: Pos) -> Host {
    Host { kind, pos, address: None, alternate: None, options: Vec::new(), volumes: Vec::new(), proxy: None }
}

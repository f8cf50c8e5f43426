//! `resource { }` and `common { }`: statements at resource level, volumes.

use super::{Parsed, Parser};
use crate::config::ast::{Device, Meta, Name, Resource, Volume};
use crate::config::diag::{Diagnostic, Pos};
use crate::config::lexer::{Kind, Token};
use crate::config::options;
use crate::config::spec::Section;

/// Largest minor number. Linux: 20 bits.
const MINOR_MAX: u64 = (1 << 20) - 1;
/// Largest volume number. DRBD: 16 bits.
const VOLUME_MAX: u64 = 65535;

const RESOURCE_STATEMENTS: &[&str] = &[
    "protocol",
    "on",
    "floating",
    "stacked-on-top-of",
    "net",
    "disk",
    "syncer",
    "startup",
    "handlers",
    "options",
    "proxy",
    "volume",
    "device",
    "meta-disk",
    "flexible-meta-disk",
    "ignore-on",
];
const VOLUME_STATEMENTS: &[&str] = &["device", "disk", "meta-disk", "flexible-meta-disk"];

/// Where a volume statement stands; decides what counts as said twice.
pub(super) struct Scope<'a> {
    /// Prefix of the keys: the resource, or resource and host.
    pub(super) key: &'a str,
    /// Whether a second `disk PATH`, `device` or `meta-disk` is a conflict (in host sections), or only some are.
    pub(super) host: bool,
}

impl Parser<'_, '_, '_> {
    /// The body of a resource or of the common section. Not the `first` of its name: it has been reported as a whole, and what
    /// is in it does not conflict with the first one's once more.
    pub(super) fn resource_body(&mut self, name: Name, common: bool, first: bool) -> Parsed<Resource> {
        let errors = self.syntax_errors;
        let mut res = Resource::new(name, self.peek().pos);
        let mut key = res.name.text.clone();
        let what = if common { "the common section".to_owned() } else { format!("resource {key}") };
        if !first {
            key = format!("{key} at {}:{}", res.open.file, res.open.line);
        }
        (res.open, res.close) = self.block(&what, true, |p, token| p.resource_item(&mut res, &key, &token))?;
        res.damaged = self.syntax_errors > errors;
        if common {
            for host in &res.hosts {
                let error = Diagnostic::error(host.pos, "the common section cannot have host sections");
                self.push(error.help("move it into a resource"));
            }
            if let Some(volume) = res.volumes.first() {
                let warning = Diagnostic::warning(volume.pos, "volumes in the common section have no effect");
                self.push(warning.help("move them into the resources"));
            }
            res.hosts.clear();
            res.volumes.clear();
        }
        Ok(res)
    }

    fn resource_item(&mut self, res: &mut Resource, key: &str, token: &Token) -> Parsed<()> {
        if token.kind != Kind::Keyword {
            return Err(self.unknown_statement(token, &format!("resource {}", res.name.text), RESOURCE_STATEMENTS));
        }
        match token.text.as_str() {
            "protocol" => {
                self.once("protocol statement", format!("{key}:protocol"), token.pos);
                self.protocol(res, token)
            }
            "net" => {
                self.once("net section", format!("{key}:net"), token.pos);
                self.options(Section::Net, &mut res.net)
            }
            "syncer" => {
                self.once("syncer section", format!("{key}:syncer"), token.pos);
                self.syncer(res)
            }
            "startup" => {
                self.once("startup section", format!("{key}:startup"), token.pos);
                self.startup(&mut res.startup)
            }
            "handlers" => {
                self.once("handlers section", format!("{key}:handlers"), token.pos);
                self.handlers(&mut res.handlers)
            }
            "options" => {
                self.once("resource options section", format!("{key}:options"), token.pos);
                self.options(Section::Options, &mut res.options)
            }
            "proxy" => {
                self.once("proxy section", format!("{key}:proxy"), token.pos);
                self.proxy_options(&mut res.proxy)
            }
            "disk" if self.peek().is_op('{') => {
                self.once("disk section", format!("{key}:disk"), token.pos);
                self.options(Section::Disk, &mut res.disk)
            }
            "disk" | "device" | "meta-disk" | "flexible-meta-disk" => {
                let volume = implicit_volume(self, &mut res.volumes, token.pos);
                self.volume_statement(volume, token, &Scope { key, host: false })
            }
            "volume" => self.volume(&mut res.volumes, key, false),
            "on" => self.on_section(res, key, token),
            "floating" => self.floating(res, key, token),
            "stacked-on-top-of" => self.stacked(res, key, token),
            "ignore-on" => {
                self.name("a host name")?;
                self.semicolon()?;
                let warning = Diagnostic::warning(token.pos, "the ignore-on keyword is deprecated and has no effect");
                self.push(warning.help("remove it"));
                Ok(())
            }
            _ => Err(self.unknown_statement(token, &format!("resource {}", res.name.text), RESOURCE_STATEMENTS)),
        }
    }

    fn protocol(&mut self, res: &mut Resource, token: &Token) -> Parsed<()> {
        let letter = self.name("A, B or C as the name of the protocol")?;
        self.semicolon()?;
        if let Some(spec) = options::find(Section::Net, "protocol") {
            let value = letter.text.to_ascii_uppercase();
            self.check_value(spec, &value, letter.pos);
            let opt = crate::config::ast::Opt {
                name: spec.name,
                spec: Some(spec),
                value,
                pos: token.pos,
                value_pos: letter.pos,
            };
            res.net.push(opt);
        }
        Ok(())
    }

    /// `volume N { }` of a resource or host section.
    pub(super) fn volume(&mut self, volumes: &mut Vec<Volume>, key: &str, host: bool) -> Parsed<()> {
        let (vnr, pos) = self.number("volume", 0, VOLUME_MAX)?;
        let vnr = vnr.and_then(|n| u16::try_from(n).ok());
        let mut volume = Volume::new(vnr.unwrap_or(0), false, pos);
        let mut disk_sections = 0_u32;
        let volume_key = format!("{key}:vol{}", volume.vnr);
        self.block(&format!("volume {}", volume.vnr), false, |p, token| {
            if token.is_keyword("disk") && p.peek().is_op('{') {
                disk_sections += 1;
                if disk_sections > 1 {
                    let warning = Diagnostic::warning(token.pos, "a second disk section replaces the first one");
                    p.push(warning.help("merge the two"));
                    volume.disk_opts.clear();
                }
                return p.options(Section::Disk, &mut volume.disk_opts);
            }
            p.volume_statement(&mut volume, &token, &Scope { key: &volume_key, host })
        })?;
        if vnr.is_none() {
            return Ok(());
        }
        if let Some(other) = volumes.iter().find(|v| v.vnr == volume.vnr || v.implicit) {
            let (what, help) = if other.implicit {
                (
                    "mixing explicit and implicit volumes is not allowed",
                    "write volume 0 { } around the other statements",
                )
            } else {
                ("the same volume number is used twice", "number the volumes differently")
            };
            let error = Diagnostic::error(pos, what).note(other.pos, "the other volume is here");
            self.push(error.help(help));
            return Ok(());
        }
        let at = volumes.partition_point(|v| v.vnr < volume.vnr);
        volumes.insert(at, volume);
        Ok(())
    }

    /// `device`, `disk PATH` and `meta-disk`.
    pub(super) fn volume_statement(&mut self, volume: &mut Volume, token: &Token, scope: &Scope<'_>) -> Parsed<()> {
        let statement = match (token.kind, token.text.as_str()) {
            (Kind::Keyword, "flexible-meta-disk") => "meta-disk",
            (Kind::Keyword, statement) => statement,
            _ => "",
        };
        let once = |p: &mut Self, what| p.once(what, format!("{}:{statement}", scope.key), token.pos);
        match statement {
            "device" => {
                once(self, "device statement");
                volume.device = self.device(token.pos)?;
            }
            "disk" => {
                if scope.host {
                    once(self, "disk statement");
                } else if let Some(first) = &volume.disk {
                    let warning = Diagnostic::warning(token.pos, "a second disk statement replaces the first one");
                    self.push(warning.note(first.pos, "the first one is here").help("remove one of them"));
                }
                volume.disk = Some(self.name("the path name of the backing device, or '{'")?);
                self.semicolon()?;
            }
            "meta-disk" => {
                if scope.host {
                    once(self, "meta-disk statement");
                } else if let Some(first) = &volume.meta {
                    let warning = Diagnostic::warning(token.pos, "a second meta-disk statement replaces the first one");
                    self.push(warning.note(first.pos, "the first one is here").help("remove one of them"));
                }
                volume.meta = self.meta_disk(token)?;
            }
            _ => {
                return Err(self.unknown_statement(token, &format!("volume {}", volume.vnr), VOLUME_STATEMENTS));
            }
        }
        Ok(())
    }

    fn device(&mut self, pos: Pos) -> Parsed<Option<Device>> {
        let mut path = None;
        if !self.peek().is_keyword("minor") {
            path = Some(self.name("a device name, or minor and a number")?);
        }
        let mut minor = None;
        let mut minor_pos = pos;
        let explicit = self.peek().is_keyword("minor");
        if explicit {
            self.next();
            (minor, minor_pos) = self.number("minor", 0, MINOR_MAX)?;
        }
        self.semicolon()?;
        let Some(path) = path else { return Ok(minor.map(|minor| Device { path: None, minor, pos: minor_pos })) };
        if explicit && minor.is_none() {
            return Ok(None);
        }
        Ok(self.named_device(&path, minor))
    }

    /// `/dev/drbdN`, `drbdN`, or `/dev/drbd_ANY` with a minor number.
    fn named_device(&mut self, name: &Name, minor: Option<u32>) -> Option<Device> {
        let path = if name.text.starts_with('/') { name.text.clone() } else { format!("/dev/{}", name.text) };
        let Some(tail) = path.strip_prefix("/dev/drbd") else {
            let error = Diagnostic::error(name.pos, format!("device name '{}' must start with /dev/drbd", name.text));
            self.push(
                error.help("write `device /dev/drbdN;` or `device minor N;` (/dev/ is optional, drbd is required)"),
            );
            return None;
        };
        let number = (!tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit())).then_some(tail);
        match (number, minor) {
            (Some(digits), explicit) => {
                let Some(n) = digits.parse::<u32>().ok().filter(|n| u64::from(*n) <= MINOR_MAX) else {
                    let error = Diagnostic::error(name.pos, format!("minor {digits} out of range [0..{MINOR_MAX}]"));
                    self.syntax(error.help("choose a smaller minor number"));
                    return None;
                };
                if let Some(explicit) = explicit.filter(|e| *e != n) {
                    let message =
                        format!("explicit minor number {explicit} must match with device name '{}'", name.text);
                    self.syntax(Diagnostic::error(name.pos, message).help(format!(
                        "write `device /dev/drbd{explicit} minor {explicit};`, or leave off either; other names must start \
                         with /dev/drbd_"
                    )));
                    return None;
                }
                Some(Device { path: Some(path), minor: n, pos: name.pos })
            }
            (None, Some(minor)) if tail.starts_with('_') => Some(Device { path: Some(path), minor, pos: name.pos }),
            (None, Some(_)) => {
                let message = format!("device name '{}' is neither /dev/drbdN nor /dev/drbd_NAME", name.text);
                self.syntax(Diagnostic::error(name.pos, message).help("arbitrary names must start with /dev/drbd_"));
                None
            }
            (None, None) => {
                let message = format!("no minor given nor device name '{}' contains a minor number", name.text);
                self.syntax(
                    Diagnostic::error(name.pos, message).help(format!("write `device {} minor N;`", name.text)),
                );
                None
            }
        }
    }

    fn meta_disk(&mut self, token: &Token) -> Parsed<Option<Meta>> {
        let dev = self.name("internal, or the path name of a device")?;
        let mut index = None;
        let mut broken = false;
        if token.text == "meta-disk" && dev.text != "internal" && self.peek().is_op('[') {
            self.next();
            index = self.number("the index", 0, u64::from(u32::MAX))?.0;
            broken = index.is_none();
            self.op(']')?;
        }
        self.semicolon()?;
        Ok((!broken).then_some(Meta { dev: dev.text, index, pos: dev.pos }))
    }
}

/// Volume 0 without `volume 0 { }`; made when its first statement is met.
pub(super) fn implicit_volume<'v>(
    p: &mut Parser<'_, '_, '_>,
    volumes: &'v mut Vec<Volume>,
    pos: Pos,
) -> &'v mut Volume {
    if let Some(explicit) = volumes.iter().find(|v| !v.implicit) {
        let error = Diagnostic::error(pos, "mixing explicit and implicit volumes is not allowed");
        let other = explicit.pos;
        p.push(error.note(other, "the other volume is here").help("move the statement into a volume N { }"));
    }
    let at = volumes.iter().position(|v| v.implicit).unwrap_or_else(|| {
        volumes.insert(0, Volume::new(0, true, pos));
        0
    });
    &mut volumes[at]
}

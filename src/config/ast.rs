//! What was written: sections and options in file order, with places. The form that `dump` prints.
//!
//! The parser has already distributed the 8.3 spellings: `syncer` options are in `net`, `disk` and `options`, `protocol` is
//! in `net`, aliases have their current names. Inheritance is not applied yet, except that [`super::expand`] copies
//! resource-level volumes into the hosts. Source: config-and-commands.md 3, 4 and 8.1.

use core::net::IpAddr;
use std::fmt;

use super::diag::{Pos, Sources};
use super::model::{Family, Global};
use super::spec::OptionSpec;

/// A name or path, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The text without quotes and escapes.
    pub text: String,
    /// Where.
    pub pos: Pos,
}

/// One option. `Debug` leaves the value of a shared secret out.
#[derive(Clone, PartialEq, Eq)]
pub struct Opt {
    /// Current name.
    pub name: &'static str,
    /// Its row; `None` for handlers and proxy options.
    pub spec: Option<&'static OptionSpec>,
    /// Value as written; flags have `yes` or `no`.
    pub value: String,
    /// Where the name stands.
    pub pos: Pos,
    /// Where the value stands.
    pub value_pos: Pos,
}

impl fmt::Debug for Opt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.name == "shared-secret" { "***" } else { &self.value };
        write!(f, "{} {value} at {}:{}", self.name, self.pos.line, self.pos.col)
    }
}

/// A whole configuration as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ast {
    /// The files.
    pub sources: Sources,
    /// `global { }` and where it stands.
    pub global: Option<(Global, Pos)>,
    /// `common { }`.
    pub common: Option<Resource>,
    /// The resources in order.
    pub resources: Vec<Resource>,
}

/// `resource NAME { }` or `common { }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The name; `common` for the common section.
    pub name: Name,
    /// Where its brace opens; the line that `dump` names.
    pub open: Pos,
    /// Where its brace closes, or the file ends.
    pub close: Pos,
    /// Whether a syntax error was found in it, so that checks for missing things make no sense.
    pub damaged: bool,
    /// `net { }`, with `protocol` and parts of `syncer { }`.
    pub net: Vec<Opt>,
    /// `disk { }`, with parts of `syncer { }`.
    pub disk: Vec<Opt>,
    /// `options { }`, with parts of `syncer { }`.
    pub options: Vec<Opt>,
    /// `startup { }`.
    pub startup: Startup,
    /// `handlers { }`.
    pub handlers: Vec<Opt>,
    /// `proxy { }`.
    pub proxy: ProxyOptions,
    /// Host sections in file order.
    pub hosts: Vec<Host>,
    /// Volumes at resource level, by number.
    pub volumes: Vec<Volume>,
}

impl Resource {
    /// An empty section.
    #[must_use]
    pub fn new(name: Name, open: Pos) -> Self {
        Self {
            name,
            open,
            close: open,
            damaged: false,
            net: Vec::new(),
            disk: Vec::new(),
            options: Vec::new(),
            startup: Startup::default(),
            handlers: Vec::new(),
            proxy: ProxyOptions::default(),
            hosts: Vec::new(),
            volumes: Vec::new(),
        }
    }
}

/// `startup { }`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// Its options.
    pub opts: Vec<Opt>,
    /// `stacked-timeouts`.
    pub stacked_timeouts: bool,
    /// `become-primary-on`.
    pub become_primary_on: Vec<Name>,
}

/// `proxy { }`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// Its options.
    pub opts: Vec<Opt>,
    /// `plugin { }`: one list of words per statement.
    pub plugins: Vec<Vec<String>>,
}

impl ProxyOptions {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.opts.is_empty() && self.plugins.is_empty()
    }
}

/// What opens a host section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// `on NAME...`
    On(Vec<Name>),
    /// `floating ADDRESS`
    Floating,
    /// `stacked-on-top-of RESOURCE`
    Stacked(Name),
}

/// A host section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What opens it.
    pub kind: HostKind,
    /// Where it begins.
    pub pos: Pos,
    /// Its address.
    pub address: Option<Address>,
    /// Its second address.
    pub alternate: Option<Address>,
    /// `options { }`.
    pub options: Vec<Opt>,
    /// Its volumes by number.
    pub volumes: Vec<Volume>,
    /// `proxy on NAME... { }`.
    pub proxy: Option<Proxy>,
}

impl Host {
    /// The name for messages.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.kind {
            HostKind::On(names) => join(names),
            HostKind::Floating => self.address.as_ref().map_or_else(String::new, Address::floating_name),
            HostKind::Stacked(lower) => format!("{} (stacked)", lower.text),
        }
    }

    /// The names by which keys of this section are compared: its host names, or its address.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        match &self.kind {
            HostKind::On(names) => names.iter().map(|n| n.text.clone()).collect(),
            HostKind::Floating | HostKind::Stacked(_) => vec![self.name()],
        }
    }

    /// What messages call the section: `on alpha { ... }`.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.kind {
            HostKind::On(names) => format!("on {} {{ ... }}", join(names)),
            HostKind::Floating => format!("floating {} {{ ... }}", self.name()),
            HostKind::Stacked(lower) => format!("stacked-on-top-of {} {{ ... }}", lower.text),
        }
    }
}

fn join(names: &[Name]) -> String {
    names.iter().map(|n| n.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// A volume, explicit or implicit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its number.
    pub vnr: u16,
    /// Whether its statements stood without `volume N { }`.
    pub implicit: bool,
    /// Where it begins.
    pub pos: Pos,
    /// `device`.
    pub device: Option<Device>,
    /// `disk PATH`.
    pub disk: Option<Name>,
    /// Whether `disk PATH` came from the resource level.
    pub disk_inherited: bool,
    /// `disk { }`.
    pub disk_opts: Vec<Opt>,
    /// `meta-disk`.
    pub meta: Option<Meta>,
}

impl Volume {
    /// A volume without statements.
    #[must_use]
    pub const fn new(vnr: u16, implicit: bool, pos: Pos) -> Self {
        Self { vnr, implicit, pos, device: None, disk: None, disk_inherited: false, disk_opts: Vec::new(), meta: None }
    }
}

/// `device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The configured path, if there is one.
    pub path: Option<String>,
    /// The minor number.
    pub minor: u32,
    /// Where.
    pub pos: Pos,
}

impl Device {
    /// The configured path or the one that follows from the minor number.
    #[must_use]
    pub fn path(&self) -> String {
        self.path.clone().unwrap_or_else(|| format!("/dev/drbd{}", self.minor))
    }
}

/// `meta-disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The path, or `internal`.
    pub dev: String,
    /// The slot number; `None` for internal and flexible.
    pub index: Option<u32>,
    /// Where.
    pub pos: Pos,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Family; `sci` has become `ssocks`.
    pub family: Family,
    /// The address as written, with its zone.
    pub text: String,
    /// The same as a number.
    pub ip: IpAddr,
    /// IPv6 zone.
    pub zone: Option<String>,
    /// Port.
    pub port: u16,
    /// Where.
    pub pos: Pos,
}

impl Address {
    /// `ADDR:PORT` or `ipv6 [ADDR]:PORT`.
    #[must_use]
    pub fn floating_name(&self) -> String {
        if self.family == Family::Ipv6 {
            format!("ipv6 [{}]:{}", self.text, self.port)
        } else {
            format!("{}:{}", self.text, self.port)
        }
    }
}

/// `proxy on NAME... { }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its hosts.
    pub hosts: Vec<Name>,
    /// Where.
    pub pos: Pos,
    /// `inside`.
    pub inside: Option<Address>,
    /// `outside`.
    pub outside: Option<Address>,
    /// `options { }`.
    pub options: ProxyOptions,
}

//! The typed configuration: what every other room reads, and what the control socket carries.
//!
//! Owns the types after inheritance (common -> resource -> host -> volume): a volume's `disk` holds all options that count
//! for it. What a file does not set stays `None`; the getters of the option sections fill in DRBD's defaults. Built by
//! the parser. Everything serializes with DRBD's words.
//! Source: config-and-commands.md 4 to 6.

use core::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::options::{DiskOptions, NetOptions, ResourceOptions, StartupOptions};
use super::spec::{OptionSpec, Pending};
pub use super::values::{
    AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Bytes, DeciSeconds, Family, Fencing, Handler, KibPerSecond, OnCongestion,
    OnIoError, OnNoData, Protocol, ReadBalancing, ResyncAfter, RrConflict, Seconds, Secret, UsageCount,
};
use crate::units::{Minor, VolumeNr};

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `global { }`.
    pub global: Global,
    /// All resources in the order of the files, also those that no section ties to this host.
    pub resources: Vec<Resource>,
}

/// `global { }`: settings of the tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Global {
    /// Hint for the number of minors, 1..=255.
    pub minor_count: Option<u32>,
    /// Redraw interval of the wait dialog in seconds, 0..=600; 0 = none, default 1.
    pub dialog_refresh: Option<u32>,
    /// Do not check that own addresses are configured on this host.
    pub disable_ip_verification: bool,
    /// Links by resource name end in the volume number also for implicit volumes.
    pub udev_always_use_vnr: bool,
    /// Never acted on.
    pub usage_count: Option<UsageCount>,
    /// Time limit of quick commands in seconds, 0..=900; 0 = none.
    pub cmd_timeout_short: Option<u32>,
    /// Time limit of commands that change state, in seconds, 0..=900; 0 = none.
    pub cmd_timeout_medium: Option<u32>,
    /// Time limit of commands on metadata, in seconds, 0..=900; 0 = none.
    pub cmd_timeout_long: Option<u32>,
}

/// Where something was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Path of the file, absolute where the loader knows it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One resource with the common section merged in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Name; not empty, no control characters, no `/`.
    pub name: String,
    /// Where it is defined.
    pub place: Place,
    /// Options of the resource.
    pub options: ResourceOptions,
    /// Options of its connection (the protocol is one of them).
    pub net: NetOptions,
    /// Disk options at resource level; already merged into every volume.
    pub disk: DiskOptions,
    /// Options for the start of the resource.
    pub startup: StartupOptions,
    /// Shell commands by event.
    pub handlers: BTreeMap<Handler, String>,
    /// Options of the DRBD proxy, as text; not acted on.
    pub proxy: BTreeMap<String, String>,
    /// The host sections in the order of the file.
    pub hosts: Vec<Host>,
}

/// One host section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// What ties the section to a machine.
    pub kind: HostKind,
    /// Address for replication.
    pub address: Address,
    /// Second address (`alternate-link-address`).
    pub alternate_address: Option<Address>,
    /// Resource options that only this host sets; parsed and printed, not acted on by 8.4.
    pub options: ResourceOptions,
    /// Volumes in the order of their numbers.
    pub volumes: Vec<Volume>,
    /// The proxy beside this host.
    pub proxy: Option<Proxy>,
}

/// What ties a host section to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// `on NAME...`: every machine with one of these names.
    On(Vec<String>),
    /// `floating ADDRESS`: the machine that has the address.
    Floating,
    /// `stacked-on-top-of RESOURCE`: every machine that `lower` has a section for.
    Stacked {
        /// Name of the lower resource.
        lower: String,
        /// Host names of the lower resource.
        hosts: Vec<String>,
    },
}

/// One volume of one host section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Volume number; 0 for an implicit volume.
    pub vnr: VolumeNr,
    /// Whether the statements stood directly in the host section or the resource, without `volume N { }`.
    pub implicit: bool,
    /// Device path: as configured, or `/dev/drbdMINOR`.
    pub device: String,
    /// Device minor number, 0..=1048575.
    pub minor: Minor,
    /// Path of the backing device or file.
    pub backing_disk: String,
    /// Where the metadata are.
    pub meta_disk: MetaDisk,
    /// Disk options that count for this volume, inheritance applied.
    pub disk: DiskOptions,
}

/// Where the metadata of a volume are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetaDisk {
    /// At the end of the backing device.
    Internal,
    /// A slot of 128 MiB on a device of their own.
    Indexed {
        /// Path of the metadata device.
        dev: String,
        /// Slot number, from 0.
        idx: u32,
    },
    /// The whole of a device or file of their own (`meta-disk PATH;`, `flexible-meta-disk PATH;`).
    Flexible {
        /// Path of the metadata device.
        dev: String,
    },
}

impl MetaDisk {
    /// Path of the device that holds the metadata of a volume with this backing device.
    #[must_use]
    pub fn device<'a>(&'a self, backing_disk: &'a str) -> &'a str {
        match self {
            Self::Internal => backing_disk,
            Self::Indexed { dev, .. } | Self::Flexible { dev } => dev,
        }
    }

    /// The index as drbdsetup and `sh-md-idx` say it: `internal`, `flexible` or the slot number.
    #[must_use]
    pub fn index_text(&self) -> String {
        match self {
            Self::Internal => "internal".to_owned(),
            Self::Indexed { idx, .. } => idx.to_string(),
            Self::Flexible { .. } => "flexible".to_owned(),
        }
    }

    /// The index as drbdmeta says it: `internal`, `flex-external` or the slot number.
    #[must_use]
    pub fn drbdmeta_index_text(&self) -> String {
        match self {
            Self::Flexible { .. } => "flex-external".to_owned(),
            Self::Internal | Self::Indexed { .. } => self.index_text(),
        }
    }
}

/// A replication address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Address family.
    pub family: Family,
    /// The address as written, without brackets and zone.
    pub ip: IpAddr,
    /// IPv6 zone (interface name or number) behind `%`.
    pub zone: Option<String>,
    /// Port, 1..=65535.
    pub port: u16,
}

impl Address {
    /// An IPv4 or IPv6 address without a zone.
    #[must_use]
    pub const fn new(ip: IpAddr, port: u16) -> Self {
        let family = if ip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        Self { family, ip, zone: None, port }
    }

    /// The socket address. `scope_id` is the interface number of [`Address::zone`], which the caller looks up (0 without).
    #[must_use]
    pub const fn socket_addr(&self, scope_id: u32) -> SocketAddr {
        match self.ip {
            IpAddr::V4(_) => SocketAddr::new(self.ip, self.port),
            IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, self.port, 0, scope_id)),
        }
    }

    /// Address and zone without family and port.
    #[must_use]
    pub fn host_text(&self) -> String {
        match &self.zone {
            Some(zone) => format!("{}%{zone}", self.ip),
            None => self.ip.to_string(),
        }
    }

    /// The name that a `floating` section has: `ADDR:PORT` or `ipv6 [ADDR]:PORT`.
    #[must_use]
    pub fn floating_name(&self) -> String {
        match self.ip {
            IpAddr::V4(ip) => format!("{ip}:{}", self.port),
            IpAddr::V6(_) => format!("ipv6 [{}]:{}", self.host_text(), self.port),
        }
    }
}

/// As `drbdadm dump` prints it: `ipv4 ADDR:PORT`, `ipv6 [ADDR]:PORT`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{} {ip}:{}", self.family, self.port),
            IpAddr::V6(_) => write!(f, "{} [{}]:{}", self.family, self.host_text(), self.port),
        }
    }
}

/// `proxy on HOST { }`: parsed, checked and printed; the inside address becomes the peer's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// Hosts that run this proxy.
    pub hosts: Vec<String>,
    /// Address for the DRBD side.
    pub inside: Address,
    /// Address for the other proxy.
    pub outside: Address,
    /// Options as text; not acted on.
    pub options: BTreeMap<String, String>,
}

/// A resource as one host sees it: its own section, and the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedResource {
    /// Name of the resource.
    pub name: String,
    /// Where it is defined.
    pub place: Place,
    /// Name of this host, as it was asked for.
    pub host: String,
    /// Whether this host's section is stacked on a lower resource.
    pub stacked: bool,
    /// This host's section. `resync-after` names a minor; volumes of a stacked section have their lower device.
    pub me: Host,
    /// All other sections, in the order of the file. `peer()` picks one.
    pub peers: Vec<Host>,
    /// Options of the resource.
    pub options: ResourceOptions,
    /// Options of the connection; `discard-node-NAME` has become local or remote.
    pub net: NetOptions,
    /// Options for the start.
    pub startup: StartupOptions,
    /// Shell commands by event.
    pub handlers: BTreeMap<Handler, String>,
}

/// An option that is set, and that this version does not act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotYetEffective {
    /// Name and value: `after-sb-0pri discard-zero-changes`.
    pub option: String,
    /// Where it is set: `resource r0, net`.
    pub place: String,
    /// What happens instead.
    pub why: String,
}

impl fmt::Display for NotYetEffective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} has no effect in this version: {}", self.place, self.option, self.why)
    }
}

const WHY_PROXY: &str = "there is no DRBD proxy here";
const WHY_ALTERNATE: &str = "only the first address is used for now";

impl Config {
    /// Every option that is set and that this version does not act on, in the order of the resources.
    #[must_use]
    pub fn not_yet_effective(&self) -> Vec<NotYetEffective> {
        self.resources.iter().flat_map(Resource::not_yet_effective).collect()
    }

    /// The resource with this name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.name == name)
    }
}

impl Resource {
    /// Every option of this resource that is set and that this version does not act on.
    #[must_use]
    pub fn not_yet_effective(&self) -> Vec<NotYetEffective> {
        let mut out = Vec::new();
        let place = |section: &str| format!("resource {}, {section}", self.name);
        pending(&mut out, &place("options"), self.options.values());
        pending(&mut out, &place("net"), self.net.values());
        let disk = self.disk.values();
        pending(&mut out, &place("disk"), disk.clone());
        pending(&mut out, &place("startup"), self.startup.values());
        for (option, value) in &self.proxy {
            add(&mut out, option, value, &place("proxy"), WHY_PROXY);
        }
        for host in &self.hosts {
            let place = |section: &str| format!("resource {}, on {}, {section}", self.name, host.name());
            pending(&mut out, &place("options"), host.options.values());
            for volume in &host.volumes {
                let own = volume.disk.values().into_iter().filter(|value| !disk.contains(value)).collect();
                pending(&mut out, &place(&format!("volume {}, disk", volume.vnr)), own);
            }
            if let Some(proxy) = &host.proxy {
                add(&mut out, "proxy on", &proxy.hosts.join(" "), &place("proxy"), WHY_PROXY);
            }
            if let Some(address) = &host.alternate_address {
                add(&mut out, "alternate-link-address", &address.to_string(), &place("address"), WHY_ALTERNATE);
            }
        }
        out
    }
}

fn pending(out: &mut Vec<NotYetEffective>, place: &str, values: Vec<(&'static OptionSpec, String)>) {
    for (spec, text) in values {
        if let Some(Pending { effective, why }) = spec.pending
            && !effective.contains(&text.as_str())
        {
            add(out, spec.name, &text, place, why);
        }
    }
}

fn add(out: &mut Vec<NotYetEffective>, name: &str, value: &str, place: &str, why: &str) {
    let option = if value.is_empty() { name.to_owned() } else { format!("{name} {value}") };
    out.push(NotYetEffective { option, place: place.to_owned(), why: why.to_owned() });
}

impl Host {
    /// The section's name in messages: its host names, the floating address, or the lower resource's hosts.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.kind {
            HostKind::On(names) => names.join(" "),
            HostKind::Floating => self.address.floating_name(),
            HostKind::Stacked { hosts, .. } => hosts.join(" "),
        }
    }

    /// The volume with this number.
    #[must_use]
    pub fn volume(&self, vnr: VolumeNr) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.vnr == vnr)
    }
}

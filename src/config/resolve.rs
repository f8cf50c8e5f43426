//! One host's view of the configuration: which section is "me", which is the peer.
//!
//! Takes the model and who this host is ([`LocalNode`]); gives [`ResolvedResource`]s in which nothing depends on names of
//! other resources or hosts any more. A section is this host's by one of its names (exactly, as 8.4 compares), a
//! `floating` one by its address, a stacked one through the lower resource. `--hostname 127.0.0.2` picks one of two
//! floating sections that are both on this machine.
//! Source: config-and-commands.md 1.2, 6 (rules 9 and 10) and 7.3.

use core::net::IpAddr;
use std::fmt;

use thiserror::Error;

use super::check::is_verified;
use super::model::{
    Address, AfterSb0Pri, Config, Host, HostKind, MetaDisk, ResolvedResource, Resource, ResyncAfter, Volume,
};
use crate::units::Minor;

/// How deep resources may be stacked; bounds cycles.
const STACK_DEPTH_MAX: usize = 4;

/// Who this host is.
#[derive(Clone, Copy)]
pub struct LocalNode<'a> {
    /// Host name (`uname -n`, or what `--hostname` or `__DRBD_NODE__` says), or the address of a floating section.
    pub name: &'a str,
    /// Whether an address is configured on this host.
    pub has_address: &'a dyn Fn(&IpAddr) -> bool,
}

impl<'a> LocalNode<'a> {
    /// A host that is known by its name only.
    #[must_use]
    pub fn named(name: &'a str) -> Self {
        Self { name, has_address: &|_| false }
    }
}

impl fmt::Debug for LocalNode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalNode").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a resource cannot be used on this host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// No resource of that name has a section for this host.
    #[error("'{name}' not defined in your config (for this host).{}", hint(.hosts, .me))]
    NotDefined {
        /// Name asked for.
        name: String,
        /// Hosts that the resource has sections for; empty when there is no such resource.
        hosts: Vec<String>,
        /// This host.
        me: String,
    },
    /// More than one section is this host's.
    #[error("in resource {resource}, {sections}: There are multiple host sections for this node ({me}).")]
    ManyForMe {
        /// The resource.
        resource: String,
        /// The sections.
        sections: String,
        /// Their indexes in the resource.
        indexes: Vec<usize>,
        /// This host.
        me: String,
    },
    /// There is no other section.
    #[error("in resource {resource}: Missing section 'on <PEER> {{ ... }}'.")]
    NoPeer {
        /// The resource.
        resource: String,
    },
    /// There are several others, and none was picked.
    #[error(
        "in resource {resource}: There are multiple host sections for the peer node ({peers}). \
         Use the --peer option to select which peer section to use."
    )]
    ManyPeers {
        /// The resource.
        resource: String,
        /// Their names.
        peers: String,
    },
    /// The one that was picked does not exist, is this host, or stands for several.
    #[error("in resource {resource}: --peer '{peer}' {problem}")]
    WrongPeer {
        /// The resource.
        resource: String,
        /// What was asked for.
        peer: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl ResolveError {
    /// Indexes of the host sections that it is about.
    #[must_use]
    pub fn sections(&self) -> &[usize] {
        match self {
            Self::ManyForMe { indexes, .. } => indexes,
            _ => &[],
        }
    }
}

fn hint(hosts: &[String], me: &str) -> String {
    if hosts.is_empty() {
        return String::new();
    }
    format!(" This host is {me}; the resource is for {}. Is the name in an 'on' section misspelled?", hosts.join(", "))
}

/// The addresses that a connection uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Address of this side.
    pub local: Address,
    /// Address to connect to: the peer's, or with a proxy the inside address of the local proxy.
    pub peer: Address,
    /// Second pair of addresses, when both sides have one.
    pub alternate: Option<(Address, Address)>,
}

impl Config {
    /// All resources with a section for this host, in file order. A resource without one is left out.
    ///
    /// # Errors
    /// [`ResolveError::ManyForMe`].
    pub fn resolve_all(&self, node: &LocalNode<'_>) -> Result<Vec<ResolvedResource>, ResolveError> {
        self.resources.iter().filter_map(|r| self.resolve_one(r, node).transpose()).collect()
    }

    /// The resource `name` as this host sees it.
    ///
    /// # Errors
    /// [`ResolveError::NotDefined`] or [`ResolveError::ManyForMe`].
    pub fn resolve(&self, name: &str, node: &LocalNode<'_>) -> Result<ResolvedResource, ResolveError> {
        let resource = self.resource(name);
        let resolved = resource.map(|r| self.resolve_one(r, node)).transpose()?.flatten();
        resolved.ok_or_else(|| ResolveError::NotDefined {
            name: name.to_owned(),
            hosts: resource.map(|r| r.hosts.iter().map(Host::name).collect()).unwrap_or_default(),
            me: node.name.to_owned(),
        })
    }

    /// Index of the section that is this host's.
    ///
    /// # Errors
    /// [`ResolveError::ManyForMe`].
    pub fn section_for(&self, resource: &Resource, node: &LocalNode<'_>) -> Result<Option<usize>, ResolveError> {
        self.section_at(resource, node, 0)
    }

    fn section_at(&self, res: &Resource, node: &LocalNode<'_>, depth: usize) -> Result<Option<usize>, ResolveError> {
        let pick = |wanted: &dyn Fn(&Host) -> bool| -> Vec<usize> {
            res.hosts.iter().enumerate().filter(|(_, h)| wanted(h)).map(|(i, _)| i).collect()
        };
        // A node name that is an address means that floating section alone, even if other addresses are local too.
        let mut found = pick(&|h| {
            h.kind == HostKind::Floating
                && (h.address.host_text() == node.name || h.address.floating_name() == node.name)
        });
        if found.is_empty() {
            found = pick(&|h| match &h.kind {
                HostKind::On(names) => names.iter().any(|n| n == node.name),
                HostKind::Floating => !is_verified(h.address.family) || (node.has_address)(&h.address.ip),
                HostKind::Stacked { lower, .. } => {
                    depth < STACK_DEPTH_MAX
                        && self
                            .resource(lower)
                            .is_some_and(|l| matches!(self.section_at(l, node, depth + 1), Ok(Some(_))))
                }
            });
        }
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            many => Err(ResolveError::ManyForMe {
                resource: res.name.clone(),
                sections: many
                    .iter()
                    .map(|i| format!("on {} {{ ... }}", res.hosts[*i].name()))
                    .collect::<Vec<_>>()
                    .join(" "),
                indexes: many.to_vec(),
                me: node.name.to_owned(),
            }),
        }
    }

    fn resolve_one(&self, res: &Resource, node: &LocalNode<'_>) -> Result<Option<ResolvedResource>, ResolveError> {
        let Some(index) = self.section_for(res, node)? else { return Ok(None) };
        let mut peers = res.hosts.clone();
        let mut me = peers.remove(index);
        let mut stacked = false;
        if let HostKind::Stacked { lower, .. } = &me.kind {
            stacked = true;
            let lower = self.resource(lower);
            for volume in &mut me.volumes {
                volume.meta_disk = MetaDisk::Internal;
                volume.backing_disk = lower
                    .and_then(|l| self.volume_for(l, Some(volume.vnr.0), node))
                    .map_or_else(String::new, |v| v.device.clone());
            }
        }
        for volume in &mut me.volumes {
            if let Some(ResyncAfter::Resource { resource, volume: vnr }) = &volume.disk.resync_after {
                let minor = self.dependency(resource, vnr.map(|n| n.0), node);
                volume.disk.resync_after = minor.map(ResyncAfter::Minor);
            }
        }
        let mut net = res.net.clone();
        if let Some(AfterSb0Pri::DiscardNode(name)) = &net.after_sb_0pri {
            let mine = name == node.name || me.name().split(' ').any(|n| n == name);
            net.after_sb_0pri = Some(if mine { AfterSb0Pri::DiscardLocal } else { AfterSb0Pri::DiscardRemote });
        }
        Ok(Some(ResolvedResource {
            name: res.name.clone(),
            place: res.place.clone(),
            host: node.name.to_owned(),
            stacked,
            me,
            peers,
            options: res.options.clone(),
            net,
            startup: res.startup.clone(),
            handlers: res.handlers.clone(),
        }))
    }

    /// This host's volume of another resource; without a number its only one.
    fn volume_for<'a>(&self, res: &'a Resource, vnr: Option<u16>, node: &LocalNode<'_>) -> Option<&'a Volume> {
        let host = res.hosts.get(self.section_for(res, node).ok().flatten()?)?;
        match vnr {
            Some(vnr) => host.volumes.iter().find(|v| v.vnr.0 == vnr),
            None => host.volumes.first(),
        }
    }

    fn dependency(&self, name: &str, vnr: Option<u16>, node: &LocalNode<'_>) -> Option<Minor> {
        self.volume_for(self.resource(name)?, vnr, node).map(|v| v.minor)
    }
}

impl ResolvedResource {
    /// The peer's section. With exactly two sections it is the other one, whatever `pick` says, as in 8.4.
    ///
    /// # Errors
    /// There is none, or there are several and `pick` does not name exactly one.
    pub fn peer(&self, pick: Option<&str>) -> Result<&Host, ResolveError> {
        let resource = self.name.clone();
        match (self.peers.as_slice(), pick) {
            ([], _) => Err(ResolveError::NoPeer { resource }),
            ([one], _) => Ok(one),
            (many, None) => Err(ResolveError::ManyPeers {
                resource,
                peers: many.iter().map(Host::name).collect::<Vec<_>>().join(", "),
            }),
            (many, Some(peer)) => {
                let named = |h: &&Host| match &h.kind {
                    HostKind::On(names) | HostKind::Stacked { hosts: names, .. } => names.iter().any(|n| n == peer),
                    HostKind::Floating => h.address.host_text() == peer || h.address.floating_name() == peer,
                };
                let found: Vec<&Host> = many.iter().filter(named).collect();
                let wrong = |problem| ResolveError::WrongPeer { resource, peer: peer.to_owned(), problem };
                match found.as_slice() {
                    [one] => Ok(one),
                    [] if named(&&self.me) => Err(wrong("matches this host itself")),
                    [] => Err(wrong("matches no host section")),
                    _ => Err(wrong("matches several host sections")),
                }
            }
        }
    }

    /// The addresses for the connection to that peer.
    ///
    /// # Errors
    /// As [`Self::peer`].
    pub fn link(&self, pick: Option<&str>) -> Result<Link, ResolveError> {
        let peer = self.peer(pick)?;
        let through_proxy = self.me.proxy.as_ref().filter(|_| peer.proxy.is_some());
        Ok(Link {
            local: self.me.address.clone(),
            peer: through_proxy.map_or_else(|| peer.address.clone(), |proxy| proxy.inside.clone()),
            alternate: self.me.alternate_address.clone().zip(peer.alternate_address.clone()),
        })
    }
}

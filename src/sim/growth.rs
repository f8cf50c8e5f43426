//! Devices that grow: what the drivers see of it, and from when on both nodes have the new part as data.

use super::device::PAGE;
use super::node::nr;
use super::plan::{Happening, Plan};
use super::world::World;
use crate::engine::event::Event;
use crate::units::VolumeNr;
use crate::wire::packet::Packet;

/// Sectors that each volume can have at the end of a plan.
pub(super) fn sectors(plan: &Plan) -> Vec<u64> {
    let grows = |volume: usize| -> u64 {
        let kib = plan.steps.iter().map(|step| match step.what {
            Happening::Grow { volume: which, kib, .. } if which == volume => kib,
            _ => 0,
        });
        kib.sum::<u64>() << 10
    };
    let volumes = plan.params.volumes.iter().enumerate();
    volumes.map(|(volume, [a, b])| ((*a.max(b)) + grows(volume)).div_ceil(512)).collect()
}

impl World {
    /// Bytes of a volume that both nodes use for data.
    pub(super) fn data_bytes(&self, volume: usize) -> u64 {
        // Internal metadata of devices of these sizes take less than the last MiB, of which clients use nothing.
        let first = self.params.volumes[volume].iter().min().copied().unwrap_or(0).saturating_sub(1 << 20);
        first.max(self.compared[volume])
    }

    /// A node has announced a size: what both have is data from now on.
    pub(super) fn size_announced(&mut self, volume: usize) {
        let bytes = self.nodes.iter().map(|n| n.volumes[volume].size * 512).min().unwrap_or(0);
        let old = self.data_bytes(volume);
        if self.grown[volume] && bytes > old {
            self.compared[volume] = bytes / PAGE * PAGE;
            for page in old / PAGE..bytes / PAGE {
                self.compare_page(volume, page);
            }
        }
    }

    /// A device has more room from now on.
    pub(super) fn grow(&mut self, node: usize, volume: usize, kib: u64) {
        let Some(vol) = self.nodes[node].volumes.get_mut(volume) else { return };
        // Twice within one move, and nobody remembers where the metadata are.
        let known = vol.meta.is_some() || vol.known_bytes == vol.data.len();
        if known {
            vol.data.grow(kib << 10);
            self.grown[volume] = true;
            self.fault("device grows");
        }
    }

    /// As the driver does before it hands over the peer's sizes.
    pub(super) fn look_if_sizes(&mut self, node: usize, volume: VolumeNr, packet: &Packet) {
        if matches!(packet, Packet::Sizes(_)) {
            self.look_at_sizes(node, usize::from(volume.0));
        }
    }

    /// The driver looks at the sizes of a volume's devices.
    pub(super) fn look_at_sizes(&mut self, node: usize, volume: usize) {
        let Some(vol) = self.nodes[node].volumes.get(volume).filter(|vol| vol.open) else { return };
        let sizes = vol.sizes();
        self.event(node, Event::DiskSize { volume: nr(volume), sizes });
    }
}

//! The disks of a world of crash states: sizes, and where the metadata are.

use crate::meta::create::CreateOptions;
use crate::meta::{AlStripes, DeviceSizes, Layout, LayoutError, MetaKind, Place};
use crate::units::Sectors;

/// What the disks of a world look like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Usable sectors of data.
    pub data: Sectors,
    /// Metadata on a device of its own.
    pub external: bool,
    pub al: AlStripes,
}

impl Shape {
    pub(super) fn place(self) -> Place {
        if self.external { Place { kind: MetaKind::FlexExternal, data: Some(self.data) } } else { Place::INTERNAL }
    }

    /// Bytes of the device with the metadata.
    pub(super) fn meta_bytes(self) -> u64 {
        // Enough for ring and bitmap of the sizes used here, and for the kernel's minimum.
        let room = (1 << 20) + u64::from(self.al.blocks()) * 4096 * 2;
        if self.external { room } else { self.data.bytes() + room }
    }

    /// # Errors
    /// When the sizes are impossible.
    pub(super) fn layout(self) -> Result<Layout, LayoutError> {
        let meta = Sectors::from_bytes_floor(self.meta_bytes());
        let sizes = DeviceSizes { meta, data: if self.external { self.data } else { meta } };
        Layout::new(self.place().kind, self.al, sizes)
    }

    pub(super) fn create_options(self) -> CreateOptions {
        CreateOptions { place: self.place(), al: self.al, device_uuid: 1, peer_max_bio_size: 0 }
    }
}

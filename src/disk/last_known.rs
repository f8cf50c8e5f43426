//! The size that a device with internal metadata had, remembered in a file per minor as drbdmeta does: when the device grows
//! while nobody has it attached, this is how its metadata are found (metadata.md 12.2).

use std::fs;
use std::path::{Path, PathBuf};

use crate::meta::relocate::LastKnown;
use crate::units::Minor;

/// Where drbdmeta keeps its files: read when there is no own one.
const DRBDMETA_DIR: &str = "/var/lib/drbd";

/// The file of one minor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastKnownFile {
    path: PathBuf,
    name: String,
    device: String,
    device_uuid: Option<u64>,
}

impl LastKnownFile {
    /// The file of a minor in the daemon's directory for such things.
    #[must_use]
    pub fn of(state_dir: &Path, minor: Minor) -> Self {
        let name = format!("drbd-minor-{minor}.lkbd");
        Self { path: state_dir.join(&name), name, device: String::new(), device_uuid: None }
    }

    /// What it is about, for the next writes.
    pub fn about(&mut self, device: &Path, device_uuid: u64) {
        self.device = device.display().to_string();
        self.device_uuid = (device_uuid != 0).then_some(device_uuid);
    }

    /// What is remembered, here or by drbdmeta.
    #[must_use]
    pub fn read(&self) -> Option<LastKnown> {
        let text =
            fs::read_to_string(&self.path).or_else(|_| fs::read_to_string(Path::new(DRBDMETA_DIR).join(&self.name)));
        LastKnown::parse(&text.ok()?)
    }

    /// Remembers a size. A failure costs nothing before the device grows unattended, and is only told.
    pub fn write(&self, size_bytes: u64) {
        let known = LastKnown { size_bytes, device: Some(self.device.clone()), device_uuid: self.device_uuid };
        let text = known.render();
        if fs::read_to_string(&self.path).is_ok_and(|old| old == text) {
            return;
        }
        // Whoever dies in between leaves the old file or the new one.
        let new = self.path.with_extension("lkbd.new");
        if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)) {
            tracing::warn!("cannot remember the size of {} in {}: {error}", self.device, self.path.display());
        }
    }
}

//! The size that a device with internal metadata had, remembered in a file per minor as drbdmeta does: when the device grows
//! while nobody has it attached, this is how its metadata are found (metadata.md 12.2).

use std::fs::{self, File};
use std::io::{self, Write as _};
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

    /// What is remembered, here or, where nothing is, by drbdmeta. An own file that cannot be used is said, and asks nobody else:
    /// what drbdmeta knows is older.
    #[must_use]
    pub fn read(&self) -> Option<LastKnown> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return LastKnown::parse(&fs::read_to_string(Path::new(DRBDMETA_DIR).join(&self.name)).ok()?);
            }
            other => other,
        };
        let known = text.map(|text| LastKnown::parse(&text));
        let why = match known {
            Ok(Some(known)) => return Some(known),
            Ok(None) => String::from("it says nothing that can be read"),
            Err(error) => error.to_string(),
        };
        tracing::warn!("the last known size of a device is not known: {}: {why}", self.path.display());
        None
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
        if let Err(error) = replace(&new, &self.path, &text) {
            tracing::warn!("cannot remember the size of {} in {}: {error}", self.device, self.path.display());
        }
    }
}

/// Durable before it takes the old one's place, and in its place when this returns.
fn replace(new: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

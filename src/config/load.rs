//! Driver: configuration files from the file system, and who this host is.

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, UdpSocket};

use super::parser::Loader;

/// Largest configuration file, in bytes; arbitrary, a thousand times any real one.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Files that are looked for when none is given, in order. drbdadm 8.4.
pub const DEFAULT_FILES: &[&str] =
    &["/etc/drbd-84.conf", "/etc/drbd-83.conf", "/etc/drbd-82.conf", "/etc/drbd-08.conf", "/etc/drbd.conf"];

/// Reads from the file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsLoader;

impl Loader for FsLoader {
    fn read(&mut self, path: &str) -> Result<Vec<u8>, String> {
        let file = fs::File::open(path).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        // Not by the size in the metadata: pipes have none.
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
            return Err(format!("larger than {} MiB", FILE_BYTES_MAX >> 20));
        }
        Ok(bytes)
    }

    fn list(&mut self, dir: &str) -> Option<Vec<String>> {
        let entries = fs::read_dir(if dir.is_empty() { "." } else { dir }).ok()?;
        // A name that is not UTF-8 cannot be written in a configuration either.
        Some(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
    }

    fn canonical(&mut self, path: &str) -> Option<String> {
        fs::canonicalize(path).ok()?.into_os_string().into_string().ok()
    }
}

/// The first of [`DEFAULT_FILES`] that can be opened.
#[must_use]
pub fn default_file() -> Option<&'static str> {
    DEFAULT_FILES.iter().copied().find(|path| fs::File::open(path).is_ok())
}

/// This host's name: `given` (an option), else the environment's `DRBD_HOSTNAME` or `__DRBD_NODE__`, else the kernel's.
#[must_use]
pub fn host_name(given: Option<&str>) -> String {
    let from_env = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    given
        .map(str::to_owned)
        .or_else(|| from_env("DRBD_HOSTNAME"))
        .or_else(|| from_env("__DRBD_NODE__"))
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Whether an address is configured on this host: a socket can be bound to it.
#[must_use]
pub fn has_address(ip: &IpAddr) -> bool {
    match UdpSocket::bind((*ip, 0)) {
        Ok(_) => true,
        // A link-local address needs its zone to be bound; the kernel says that in this way and not "not available".
        Err(e) => ip.is_ipv6() && e.kind() == std::io::ErrorKind::InvalidInput,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn includes_are_found_beside_the_including_file() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("drbd.d");
        fs::create_dir(&sub).unwrap();
        fs::write(dir.path().join("drbd.conf"), "include \"drbd.d/*.res\"; include \"drbd.conf\";").unwrap();
        fs::write(sub.join("b.res"), "resource b { }").unwrap();
        fs::write(sub.join("a.res"), "resource a { }\ninclude \"b.res\";").unwrap();
        fs::write(sub.join("c.res.bak"), "nonsense").unwrap();
        let path = dir.path().join("drbd.conf");
        let document = load(&mut FsLoader, path.to_str().unwrap()).unwrap();
        let names: Vec<_> = document.config().resources.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_missing_file_is_an_error_with_its_name() {
        let report = load(&mut FsLoader, "/nonexistent/drbd.conf").unwrap_err();
        assert!(report.to_string().starts_with("Can not open '/nonexistent/drbd.conf': "), "{report}");
    }

    #[test]
    fn loopback_is_configured_here_and_a_documentation_address_is_not() {
        assert!(has_address(&"127.0.0.1".parse().unwrap()));
        assert!(!has_address(&"203.0.113.77".parse().unwrap()));
    }

    #[test]
    fn the_given_name_wins() {
        assert_eq!(host_name(Some("n1")), "n1");
        assert!(!host_name(None).is_empty());
    }
}

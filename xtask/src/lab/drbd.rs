//! Kernel DRBD in a guest: one drbd.conf for both sides, the node's commands, and the comparison of replicas.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::error::{LabError, Result};
use super::{Guest, Lab, wait_until};

/// One `on` section.
#[derive(Clone, Debug)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// IPv4 address, and a port if it is not 7788.
    pub addr: String,
    /// Backing device of each volume, volume 0 first.
    pub disks: Vec<String>,
}

impl Host {
    /// Kernel node `nr`, whose volumes are `/dev/ubda`, `/dev/ubdb`, ...
    pub fn guest(nr: u8, volumes: u8) -> Self {
        Self {
            name: format!("n{nr}"),
            addr: super::node_addr(nr),
            disks: (b'a'..)
                .take(usize::from(volumes))
                .map(|letter| format!("/dev/ubd{}", char::from(letter)))
                .collect(),
        }
    }
}

/// A drbd.conf with one resource, `r0`, between two hosts.
#[derive(Clone, Debug)]
pub struct Conf {
    /// `A`, `B` or `C`.
    pub protocol: char,
    /// The two ends.
    pub hosts: [Host; 2],
    /// Further lines for the `net` section, each with its semicolon.
    pub net: Vec<String>,
    /// Lines for the `disk` section.
    pub disk: Vec<String>,
    /// Lines for the `handlers` section.
    pub handlers: Vec<String>,
}

impl Conf {
    /// Protocol C between `hosts`, and a fixed resync rate: the regulated one takes its time on small disks.
    pub fn new(hosts: [Host; 2]) -> Self {
        let disk = ["c-plan-ahead 0;", "resync-rate 200M;"].map(str::to_owned).to_vec();
        Self { protocol: 'C', hosts, net: Vec::new(), disk, handlers: Vec::new() }
    }

    /// The text of the file. A lost peer is noticed within seconds, yet no limit is so short that a busy machine trips it.
    pub fn render(&self) -> String {
        let mut text = String::from(
            "global { usage-count no; }\n\
             resource r0 {\n  \
               net {\n    \
                 cram-hmac-alg sha1;\n    shared-secret \"lab secret\";\n    verify-alg sha1;\n    \
                 timeout 25;\n    ping-int 3;\n    ping-timeout 20;\n    connect-int 3;\n",
        );
        let section = |text: &mut String, lines: &[String]| {
            for line in lines {
                let _ = writeln!(text, "    {line}");
            }
            text.push_str("  }\n");
        };
        let _ = writeln!(text, "    protocol {};", self.protocol);
        section(&mut text, &self.net);
        text.push_str("  disk {\n");
        section(&mut text, &self.disk);
        text.push_str("  handlers {\n");
        section(&mut text, &self.handlers);
        for host in &self.hosts {
            let port = if host.addr.contains(':') { "" } else { ":7788" };
            let _ = writeln!(text, "  on {} {{\n    address {}{port};", host.name, host.addr);
            for (nr, disk) in host.disks.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "    volume {nr} {{ device /dev/drbd{nr} minor {nr}; disk {disk}; meta-disk internal; }}"
                );
            }
            text.push_str("  }\n");
        }
        text.push_str("}\n");
        text
    }
}

/// A guest that runs the kernel's DRBD.
#[derive(Debug)]
pub struct KernelNode {
    /// The machine.
    pub guest: Guest,
    share: std::path::PathBuf,
}

impl KernelNode {
    /// Loads DRBD in `guest`.
    pub fn new(lab: &Lab, guest: Guest) -> Result<Self> {
        guest.sh("modprobe -q drbd || true\n\
             for module in hmac sha1_generic crc32c_generic md5; do modprobe -q $module || true; done\n\
             test -e /proc/drbd")?;
        Ok(Self { guest, share: lab.share().to_owned() })
    }

    /// Makes `conf` the node's drbd.conf.
    pub fn configure(&self, conf: &Conf) -> Result<()> {
        let name = format!("n{}-drbd.conf", self.guest.nr());
        let path = self.share.join(&name);
        fs::write(&path, conf.render()).map_err(|err| LabError::io(format_args!("write {}", path.display()), &err))?;
        self.guest.sh(&format!("cat /lab/{name} >/etc/drbd.conf"))?;
        Ok(())
    }

    /// `drbdadm ARGS`, which must succeed.
    pub fn drbdadm(&self, args: &str) -> Result<String> {
        self.guest.sh(&format!("drbdadm {args}"))
    }

    /// Fresh metadata on every volume, then `up`.
    pub fn create_and_up(&self) -> Result<()> {
        self.drbdadm("create-md --force r0")?;
        self.drbdadm("up r0").map(drop)
    }

    /// `/proc/drbd`.
    pub fn proc(&self) -> Result<String> {
        self.guest.sh("cat /proc/drbd")
    }

    /// What `drbdadm role|cstate|dstate r0` says of volume 0.
    pub fn query(&self, what: &str) -> Result<String> {
        let text = self.drbdadm(&format!("{what} r0"))?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Waits until the lines of all `volumes` in `/proc/drbd` contain every one of `words` (like `cs:Connected`).
    pub fn wait_proc(&self, volumes: usize, words: &[&str], limit: Duration) -> Result<()> {
        wait_until(&format!("n{}: {words:?} in /proc/drbd", self.guest.nr()), limit, || {
            let text = self.proc()?;
            let states: Vec<&str> = text.lines().filter(|line| line.contains(": cs:")).collect();
            let good = states.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
            Ok(if good == volumes && states.len() == volumes { Ok(()) } else { Err(text) })
        })
    }

    /// Waits until all `volumes` are connected and both sides are up to date.
    pub fn wait_synced(&self, volumes: usize) -> Result<()> {
        self.wait_proc(volumes, &["cs:Connected", "ds:UpToDate/UpToDate"], Duration::from_secs(120))
    }

    /// Writes `data` at `offset` bytes (a multiple of 4096) of volume `nr`, directly, in requests of `request` bytes, and
    /// returns when the kernel acknowledged them all. Needs the Primary role.
    pub fn write(&self, nr: usize, offset: u64, data: &[u8], request: u32) -> Result<()> {
        let name = format!("n{}-data", self.guest.nr());
        let path = self.share.join(&name);
        fs::write(&path, data).map_err(|err| LabError::io(format_args!("write {}", path.display()), &err))?;
        if !offset.is_multiple_of(u64::from(request)) {
            return Err(LabError::new(format!("offset {offset} is not a multiple of {request}")));
        }
        let seek = offset / u64::from(request);
        self.guest
            .sh(&format!(
                "dd if=/lab/{name} of=/dev/drbd{nr} oflag=direct conv=notrunc bs={request} seek={seek} status=none"
            ))
            .map(drop)
    }

    /// Reads `len` bytes at `offset` (both multiples of 4096) of volume `nr`, directly. Needs the Primary role.
    pub fn read(&self, nr: usize, offset: u64, len: u64) -> Result<Vec<u8>> {
        let name = format!("n{}-read", self.guest.nr());
        self.guest.sh(&format!(
            "dd if=/dev/drbd{nr} of=/lab/{name} iflag=direct bs=4096 skip={} count={} status=none",
            offset / 4096,
            len / 4096
        ))?;
        let path = self.share.join(&name);
        fs::read(&path).map_err(|err| LabError::io(format_args!("read {}", path.display()), &err))
    }

    /// Runs an online verify of `volumes` volumes to its end; the number of out-of-sync KiB it found. `start` starts it, here
    /// or on the peer.
    pub fn verify(&self, volumes: usize, start: impl FnOnce() -> Result<()>) -> Result<u64> {
        self.guest.sh("dmesg --clear")?;
        start()?;
        wait_until("end of the online verify", Duration::from_secs(120), || {
            let log = self.guest.sh("dmesg")?;
            let ends = log.lines().filter(|line| line.contains("Online verify done")).count();
            Ok(if ends >= volumes { Ok(()) } else { Err(format!("{log}\n{}", self.proc()?)) })
        })?;
        self.wait_proc(volumes, &["cs:Connected"], Duration::from_secs(30))?;
        Ok(out_of_sync_kib(&self.proc()?))
    }

    /// Ends the resource and forgets it, for the next user of this guest.
    pub fn down(&self) -> Result<()> {
        self.guest.sh("umount -q /dev/drbd0; drbdsetup down r0 2>/dev/null; ! grep -q ': cs:' /proc/drbd").map(drop)
    }

    /// What is worth reading when something failed: DRBD's state and the kernel's log.
    pub fn report(&self) -> String {
        let said = self.guest.exec("cat /proc/drbd; dmesg | tail -40", Duration::from_secs(20));
        match said {
            Ok(output) => output.text,
            Err(err) => format!("{err}\n{}", self.guest.console()),
        }
    }
}

/// Sum of the `oos:` counters (KiB) in a `/proc/drbd` text.
pub fn out_of_sync_kib(proc_drbd: &str) -> u64 {
    proc_drbd.split_whitespace().filter_map(|word| word.strip_prefix("oos:")?.parse::<u64>().ok()).sum()
}

/// Size in bytes of the data area of a backing file with internal v08 metadata, as agreed with the peer.
pub fn data_size(image: &Path) -> Result<u64> {
    const MAGIC: u32 = 0x8374_026b;
    const MAGIC_UNCLEAN: u32 = 0x8374_026c;
    let io = |err| LabError::io(format_args!("read the metadata of {}", image.display()), &err);
    let file = File::open(image).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut superblock = [0; 64];
    file.read_exact_at(&mut superblock, (size & !4095).saturating_sub(4096)).map_err(io)?;
    let (sectors, rest) =
        superblock.split_first_chunk().map_or((0, &[][..]), |(first, rest)| (u64::from_be_bytes(*first), rest));
    let magic = rest.get(52..).and_then(<[u8]>::first_chunk).map_or(0, |magic| u32::from_be_bytes(*magic));
    if magic != MAGIC && magic != MAGIC_UNCLEAN {
        return Err(LabError::new(format!("{}: no internal v08 metadata", image.display())));
    }
    Ok(sectors * 512)
}

/// Compares the data areas of two backing files byte for byte; the error lists where they differ.
pub fn compare_replicas(one: &Path, other: &Path) -> Result<u64> {
    let size = data_size(one)?;
    if size == 0 || size != data_size(other)? {
        return Err(LabError::new(format!(
            "{} has {size} bytes of data, {} has {}",
            one.display(),
            other.display(),
            data_size(other)?
        )));
    }
    let io = |err| LabError::io("compare replicas", &err);
    let (mut first, mut second) = (File::open(one).map_err(io)?.take(size), File::open(other).map_err(io)?.take(size));
    let mut different = Vec::new();
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(size - offset).map_or(left.len(), |rest| rest.min(left.len()));
        first.read_exact(&mut left[..len]).map_err(io)?;
        second.read_exact(&mut right[..len]).map_err(io)?;
        if left[..len] != right[..len] {
            for (index, (a, b)) in left[..len].chunks(4096).zip(right[..len].chunks(4096)).enumerate() {
                if a != b {
                    different.push(offset / 4096 + index as u64);
                }
            }
        }
        offset += len as u64;
    }
    if different.is_empty() {
        return Ok(size);
    }
    let shown = &different[..different.len().min(16)];
    Err(LabError::new(format!(
        "{} and {} differ in {} blocks of 4 KiB, the first are {shown:?}",
        one.display(),
        other.display(),
        different.len()
    )))
}

/// `len` bytes that look random and are the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    // splitmix64
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conf_names_both_hosts_and_all_volumes() {
        let conf = Conf::new([Host::guest(1, 2), Host::guest(2, 2)]).render();
        assert!(conf.contains("on n1 {\n    address 10.99.0.1:7788;"), "{conf}");
        assert!(conf.contains("volume 1 { device /dev/drbd1 minor 1; disk /dev/ubdb; meta-disk internal; }"), "{conf}");
    }

    #[test]
    fn out_of_sync_is_summed() {
        assert_eq!(out_of_sync_kib(" 0: cs:Connected\n    ns:0 wo:f oos:12\n 1: x\n  ep:1 oos:4\n"), 16);
    }

    #[test]
    fn comparison_sees_one_byte_of_data_and_ignores_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let image = |name: &str, data: u8, metadata: u8| {
            let mut bytes = vec![0; 1 << 20];
            bytes[70_000] = data;
            bytes[900_000] = metadata;
            let superblock = (1 << 20) - 4096;
            bytes[superblock..superblock + 8].copy_from_slice(&1600u64.to_be_bytes());
            bytes[superblock + 60..superblock + 64].copy_from_slice(&0x8374_026bu32.to_be_bytes());
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let (a, b, c) = (image("a", 1, 1), image("b", 1, 2), image("c", 2, 1));
        assert_eq!(compare_replicas(&a, &b), Ok(1600 * 512));
        let said = compare_replicas(&a, &c).unwrap_err().to_string();
        assert!(said.contains("1 blocks of 4 KiB, the first are [17]"), "{said}");
    }
}

//! The booted lab that all cells share, and the pairs of nodes that play them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use xtask::lab::drbd::{Conf, KernelNode};
use xtask::lab::{GuestOptions, Lab, LabError, check_available, wait_until};

use crate::side::{DISK_BYTES, Side, Told, host, kernel_image, udrbd_image};
use crate::udrbd_node::UdrbdNode;

/// Which nodes are kernels.
pub const PAIRS: [[bool; 2]; 4] = [[true, true], [true, false], [false, true], [false, false]];

/// What the table calls a pair.
pub fn pair_name(kernels: [bool; 2]) -> String {
    let name = |kernel: bool| if kernel { "kernel" } else { "udrbd" };
    format!("{}/{}", name(kernels[0]), name(kernels[1]))
}

/// How long two nodes may take to come to a decision and carry it out.
pub const DECIDED: Duration = Duration::from_secs(40);

/// The lab and two kernel nodes.
pub struct Bench {
    kernels: [KernelNode; 2],
    pub lab: Lab,
    pub udrbd_missing: Option<String>,
}

impl Bench {
    pub fn new() -> Result<Self, String> {
        if !asked("UDRBD_POLICIES") && !asked("UDRBD_HANDSHAKE") {
            return Err(String::from("played by `cargo xtask policies` and `cargo xtask handshake` only"));
        }
        check_available().map_err(|why| why.to_string())?;
        let make = || -> Result<Self, LabError> {
            let lab = Lab::new(2)?;
            let boot = |place: usize, nr: u8| {
                blank(&kernel_image(&lab, place))?;
                blank(&udrbd_image(&lab, place))?;
                KernelNode::new(&lab, lab.boot(nr, &GuestOptions::with_disks([kernel_image(&lab, place)]))?)
            };
            let (one, two) = std::thread::scope(|scope| {
                let other = scope.spawn(|| boot(1, 2));
                (boot(0, 1), other.join())
            });
            let two = two.map_err(|_panic| LabError::new("the thread that booted node 2 panicked"))?;
            Ok(Self { kernels: [one?, two?], lab, udrbd_missing: UdrbdNode::missing() })
        };
        make().map_err(|why| why.to_string())
    }

    /// The two nodes of a pair; a udrbd among them is started with `conf`.
    pub fn sides(&self, kernels: [bool; 2], conf: &Conf) -> Result<[Side<'_>; 2], LabError> {
        let side = |place: usize| -> Result<Side<'_>, LabError> {
            if kernels[place] {
                return Ok(Side::Kernel(&self.kernels[place], kernel_image(&self.lab, place)));
            }
            let node = UdrbdNode::start_as(&self.lab, ["u1", "u2"][place], conf)?;
            Ok(Side::Udrbd(Box::new(node), udrbd_image(&self.lab, place)))
        };
        Ok([side(0)?, side(1)?])
    }

    pub fn after_failure(&mut self) -> String {
        let mut text = String::new();
        for node in &self.kernels {
            let _ = write!(text, "---- n{}\n{}", node.guest.nr(), node.report());
        }
        for name in ["u1", "u2"] {
            let _ = write!(text, "---- {name}\n{}", UdrbdNode::log_tail_of(&self.lab, name));
        }
        text
    }
}

fn blank(path: &Path) -> Result<(), LabError> {
    let make = || {
        let file = std::fs::File::options().write(true).create(true).truncate(true).open(path)?;
        file.set_len(DISK_BYTES)
    };
    make().map_err(|err| LabError::io(format_args!("make {}", path.display()), &err))
}

/// The configuration of a pair, to which a cell adds its own.
pub fn conf(kernels: [bool; 2], lab: &Lab) -> Conf {
    let mut conf = Conf::new([host(kernels[0], 0, lab), host(kernels[1], 1, lab)]);
    conf.net.push(String::from("allow-two-primaries yes;"));
    conf.net.push(String::from("connect-int 1;"));
    // Otherwise half of the time of a cell is spent on looking whether two new sockets stay alive.
    conf.net.push(String::from("socket-check-timeout 5;"));
    conf
}

/// Waits until `so` holds of what both nodes say.
pub fn until(sides: &[Side<'_>; 2], what: &str, so: impl Fn(&[Told; 2]) -> bool) -> Result<[Told; 2], LabError> {
    wait_until(what, DECIDED, || {
        let told = [sides[0].told()?, sides[1].told()?];
        Ok(if so(&told) { Ok(told) } else { Err(format!("{told:?}")) })
    })
}

/// Without a peer.
pub fn alone(told: &Told) -> bool {
    matches!(told.cstate.as_str(), "StandAlone" | "WFConnection")
}

/// Both parted and one of them for good, or both connected and good.
pub fn decided(told: &[Told; 2]) -> bool {
    let together = |t: &Told| t.cstate == "Connected" && t.dstate == "UpToDate/UpToDate";
    (told.iter().all(alone) && told.iter().any(|t| t.cstate == "StandAlone")) || told.iter().all(together)
}

/// Names identifiers: those that are `known`, and letters from a on for what is new.
pub fn letters(mut known: Vec<(u64, char)>, after: &[[u64; 4]; 2]) -> [String; 2] {
    let mut next = 'a';
    [0, 1].map(|n| {
        let mut name = |id: u64| {
            if let Some((_, letter)) = known.iter().find(|(known, _)| *known == id) {
                return *letter;
            }
            let letter = next;
            known.push((id, letter));
            next = char::from(u8::try_from(next).unwrap_or(b'z').saturating_add(1));
            letter
        };
        after[n].map(&mut name).iter().collect()
    })
}

/// Whether the command behind this variable runs these tests.
pub fn asked(variable: &str) -> bool {
    std::env::var_os(variable).is_some()
}

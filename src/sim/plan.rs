//! What a run consists of: drawn parameters, and a schedule of steps.
//!
//! Owns the types only; [`super::draw`] draws them from a seed. A step says what should happen and when; whether it makes sense
//! at that moment is decided when it is played (a crash of a node that is down does nothing), so that any step can be
//! taken out of a schedule and the rest still plays. Times are nanoseconds of virtual time.

use std::fmt;

use crate::engine::options::{DiskOptions, NetOptions, ResourceOptions};

/// One node's settings.
#[derive(Clone, Debug)]
pub struct NodeParams {
    /// Settings of the connection.
    pub net: NetOptions,
    /// Settings of the disks.
    pub disk: DiskOptions,
    /// Settings of the resource.
    pub resource: ResourceOptions,
    /// Typical time of the fence-peer helper, nanoseconds.
    pub helper_ns: u64,
    /// Percent of its runs that are broken.
    pub helper_broken: u64,
    /// Percent of the others that shoot the peer, whatever it is doing.
    pub helper_shoots: u64,
    /// Metadata on a device of its own, with a cache of its own.
    pub external_meta: bool,
    /// Stripes of the activity log's ring, and their size in blocks of 4 KiB.
    pub al_stripes: (u32, u32),
    /// Newest protocol version offered.
    pub version: u32,
    /// Feature bits offered.
    pub features: u32,
    /// Our own feature of relaxed epochs is offered.
    pub relaxed: bool,
    /// The device can discard; discarded blocks read as zeroes.
    pub discard: (bool, bool),
    /// Typical time of a disk operation, nanoseconds.
    pub disk_ns: u64,
    /// Typical time of an operation on the device of external metadata, nanoseconds; `None`: as `disk_ns`.
    pub meta_ns: Option<u64>,
    /// Percent of events after which the driver ends its batch at once.
    pub eager_batches: u64,
}

/// How a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Fresh metadata, initial sync skipped.
    Skipped,
    /// Fresh metadata, one node forced Primary: full sync.
    FullSync,
    /// Both nodes went on alone before: a split brain is there from the beginning.
    SplitBrain,
    /// Node 1's metadata are odd: created again, after both were in use.
    Recreated,
    /// Node 1's superblock was left with flags that nobody expects.
    OddFlags,
}

impl Params {
    /// Both nodes are to be Primary.
    #[must_use]
    pub fn two_primaries(&self) -> bool {
        self.nodes.iter().all(|node| node.net.two_primaries)
    }
}

/// Everything that is drawn before the first step.
#[derive(Clone, Debug)]
pub struct Params {
    /// The seed.
    pub seed: u64,
    /// Seed of what is not in the schedule: delays, orders of completion, what a power cut keeps.
    pub dice: u64,
    /// Both nodes.
    pub nodes: [NodeParams; 2],
    /// Size of each volume's data device on each node, bytes.
    pub volumes: Vec<[u64; 2]>,
    /// Beginning.
    pub start: Start,
    /// Typical one-way delay of the network, nanoseconds.
    pub net_ns: u64,
    /// Bytes per second that the data socket carries; 0: as many as there are.
    pub link_rate: u64,
    /// Percent of deliveries that bring only a piece.
    pub fragments: u64,
    /// The two sockets have delays of their own.
    pub skewed_sockets: bool,
    /// Percent of the two nodes' attempts to connect that break off.
    pub failed_connects: u64,
    /// Typical time of a helper program, nanoseconds; 0: it has ended when it was started.
    pub helper_ns: u64,
    /// Percent of the helper programs that fail.
    pub helper_fails: u64,
    /// End of the phase with faults, nanoseconds.
    pub faults_until: u64,
}

/// A client's operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientOp {
    /// Read.
    Read,
    /// Write, durable or not.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// Discard.
    Discard,
    /// Write zeroes.
    Zeroes {
        /// Force unit access.
        fua: bool,
        /// May be unmapped.
        unmap: bool,
    },
}

/// How the network fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both nodes learn at once (more or less) that the connection is gone.
    Reset,
    /// Nothing passes either way until it is healed; nobody is told.
    Silent,
    /// Nothing passes from this node to the other.
    OneWay(usize),
    /// This node is told, the other is not.
    HalfOpen(usize),
}

/// What fails on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Reads of data.
    Read,
    /// Writes of data.
    Write,
    /// Flushes.
    Flush,
    /// Writes of metadata.
    Meta,
}

/// An operator's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// primary.
    Primary {
        /// --force.
        force: bool,
    },
    /// secondary, after the clients were stopped or not.
    Secondary {
        /// The clients close the device first.
        close: bool,
    },
    /// detach.
    Detach {
        /// --force.
        force: bool,
    },
    /// attach.
    Attach,
    /// connect.
    Connect {
        /// --discard-my-data.
        discard: bool,
    },
    /// disconnect.
    Disconnect {
        /// --force.
        force: bool,
    },
    /// invalidate.
    Invalidate,
    /// invalidate-remote.
    InvalidateRemote,
    /// outdate.
    Outdate,
    /// pause-sync.
    PauseSync,
    /// resume-sync.
    ResumeSync,
    /// suspend-io.
    SuspendIo,
    /// resume-io.
    ResumeIo,
    /// disk-options: keep the activity log or not.
    AlUpdates(bool),
    /// disk-options: fixed resync rate in MiB/s; 0: none.
    Rate(u32),
    /// net-options: another value for max-epoch-size and max-buffers.
    Net(u32),
    /// net-options: allow-two-primaries.
    TwoPrimaries(bool),
    /// new-current-uuid.
    NewUuid,
    /// resize.
    Resize,
    /// down, then up.
    Recycle,
}

/// What an ambush waits for, on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A resync begins, on either side of it.
    ResyncBegins,
    /// A resync has ended.
    ResyncEnds,
    /// The connection is there.
    Connects,
    /// The connection is lost.
    Disconnects,
    /// The disk is gone.
    DiskGone,
    /// Became Primary.
    Promoted,
    /// Became Secondary.
    Demoted,
    /// A client's flush was answered.
    Flushed,
}

/// Which nodes an ambush hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// The node that is watched.
    Own,
    /// The other one.
    Other,
    /// Both.
    Both,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A client asks for something, on a node where the volume is Primary.
    Client {
        /// What.
        op: ClientOp,
        /// Index of the volume.
        volume: usize,
        /// First sector.
        start: u64,
        /// Sectors.
        count: u64,
        /// The node asked if both are Primary or none is.
        node: usize,
    },
    /// The network fails.
    Cut(Cut),
    /// The network works again.
    Heal,
    /// A node dies after so many of its next actions.
    Crash {
        /// Which.
        node: usize,
        /// Its power failed, not only the process.
        power: bool,
        /// Actions that it still carries out.
        after: u32,
    },
    /// From now on a node is watched; when the moment comes, nodes die after so many of their next actions.
    Ambush {
        /// Which is watched.
        node: usize,
        /// For what.
        moment: Moment,
        /// Who dies.
        victims: Victims,
        /// The power fails, not only the process.
        power: bool,
        /// Actions that are still carried out.
        after: u32,
        /// When the nodes start again, milliseconds after the moment.
        back: [u32; 2],
    },
    /// The power of both nodes fails.
    Blackout,
    /// A node that is down starts; it dies again (power) after so many writes of its recovery.
    Restart {
        /// Which.
        node: usize,
        /// Writes until it dies again.
        fuse: Option<u32>,
        /// Connects before it attaches.
        connect_first: bool,
    },
    /// The next operations of a kind fail.
    DiskFault {
        /// Which node.
        node: usize,
        /// Index of the volume.
        volume: usize,
        /// Which operations.
        kind: DiskFault,
        /// How many.
        count: u32,
    },
    /// A volume's device grows; nobody is told.
    Grow {
        /// Which node.
        node: usize,
        /// Index of the volume.
        volume: usize,
        /// By how much.
        kib: u64,
    },
    /// A node's disks answer nothing for so many milliseconds.
    DiskStall {
        /// Which node.
        node: usize,
        /// How long.
        ms: u64,
    },
    /// A node's process stands still for so many milliseconds.
    Freeze {
        /// Which node.
        node: usize,
        /// How long.
        ms: u64,
    },
    /// A node's clock jumps ahead by so many milliseconds.
    Clock {
        /// Which node.
        node: usize,
        /// How far.
        ms: u64,
    },
    /// The operator commands something.
    Order {
        /// Where.
        node: usize,
        /// Index of the volume.
        volume: usize,
        /// What.
        order: Order,
    },
    /// The cluster manager looks after the cluster: starts what is down, promotes where nobody is Primary, attaches, connects.
    Manage {
        /// The node it prefers as Primary.
        prefer: usize,
        /// Promotes although the other node cannot be asked.
        bold: bool,
    },
    /// The clients and the Primary role move to the other node, in good order.
    SwitchOver,
}

/// A step of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: u64,
    /// What.
    pub what: Happening,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Drawn first.
    pub params: Params,
    /// In order of time.
    pub steps: Vec<Step>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.6} {:?}", Seconds(self.at), self.what)
    }
}

/// Nanoseconds, shown as seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1000);
        f.pad_integral(true, "", &text)
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}, dice {}, start {:?}, faults until {} s",
            self.seed,
            self.dice,
            self.start,
            Seconds(self.faults_until)
        )?;
        writeln!(
            f,
            "network: {} us, {} bytes/s, {} % in pieces, skewed sockets {}, {} % of connects fail",
            self.net_ns / 1000,
            self.link_rate,
            self.fragments,
            self.skewed_sockets,
            self.failed_connects
        )?;
        writeln!(f, "helpers: {} ms, {} % fail", self.helper_ns / 1_000_000, self.helper_fails)?;
        if self.two_primaries() {
            writeln!(f, "both nodes are to be Primary")?;
        }
        writeln!(f, "volumes (bytes by node): {:?}", self.volumes)?;
        for (name, node) in ["A", "B"].iter().zip(&self.nodes) {
            writeln!(
                f,
                "{name}: protocol {:?}, version {}, features {:#x}, relaxed epochs {}, external metadata {}, stripes {:?}, \
                 al-extents {}, al-updates {}, discard {:?}, disk {} us, metadata {} us, eager batches {} %",
                node.net.protocol,
                node.version,
                node.features,
                node.relaxed,
                node.external_meta,
                node.al_stripes,
                node.disk.al_extents,
                node.disk.al_updates,
                node.discard,
                node.disk_ns / 1000,
                node.meta_ns.unwrap_or(node.disk_ns) / 1000,
                node.eager_batches
            )?;
            writeln!(
                f,
                "{name}: fencing {:?}, suspends without data {}, helper {} ms, {} % broken, {} % shoot",
                node.disk.fencing,
                node.resource.suspend_without_data,
                node.helper_ns / 1_000_000,
                node.helper_broken,
                node.helper_shoots
            )?;
            writeln!(
                f,
                "{name}: on-io-error {:?}, disk-timeout {:?}, on-congestion {:?} ({}, {}), rate {:?}, max-epoch-size {}, max-buffers {}, timeout {:?}, ping {:?}/{:?}, ko-count {}, \
                 use-rle {}, integrity {:?}",
                node.disk.on_io_error,
                node.disk.disk_timeout,
                node.net.on_congestion,
                node.net.congestion_fill,
                node.net.congestion_extents,
                node.disk.resync_rate,
                node.net.max_epoch_size,
                node.net.max_buffers,
                node.net.timeout,
                node.net.ping_int,
                node.net.ping_timeout,
                node.net.ko_count,
                node.net.use_rle,
                node.net.integrity_alg
            )?;
            let net = &node.net;
            writeln!(
                f,
                "{name}: after-sb {}/{}/{}, always-asbp {}, rr-conflict {:?}",
                net.after_sb_0p.text(),
                net.after_sb_1p.text(),
                net.after_sb_2p.text(),
                net.always_asbp,
                net.rr_conflict
            )?;
        }
        Ok(())
    }
}

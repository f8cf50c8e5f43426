//! One simulated node: an engine, its disks and its timers, and how it dies and comes back.
//!
//! Owns what a daemon of one resource owns at run time. Disks outlive the process; everything else does not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use super::device::{Device, OpKind, Ticket};
use super::plan::{Moment, NodeParams, Victims};
use super::policy::Said;
use super::rng::Rng;
use crate::engine::Engine;
use crate::engine::action::{Action, CommandError};
use crate::engine::event::{CommandId, Event, Geometry, HandlerRun, LinkNr, OpId, Timer};
use crate::engine::load::DiskFacts;
use crate::engine::state::VolumeState;
use crate::meta::create::{CreateOptions, create_md};
use crate::meta::{AlStripes, DeviceSizes, MetaIo, MetaKind, Place};
use crate::units::{Sectors, Timestamp, VolumeNr};
use crate::wire::kind::Kind;
use crate::wire::state::ConnState;

/// Why an engine dropped a connection.
#[derive(Clone, Debug, Default)]
pub struct Illegal {
    /// A packet that came in a state that it does not fit.
    pub unexpected: Option<(Kind, ConnState)>,
    /// The engine's words.
    pub text: String,
}

/// What allows that a node's data be discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A command. When it is refused it names nobody, and takes nothing from what another one has named.
    Command(CommandId),
    /// Its metadata were written anew.
    Metadata,
    /// The policies of a split brain, on this link.
    Policy,
}

/// What fails next on a volume's devices.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failing {
    /// Reads of data.
    pub reads: u32,
    /// Writes of data.
    pub writes: u32,
    /// Flushes.
    pub flushes: u32,
    /// Writes of metadata.
    pub meta: u32,
}

/// One volume of one node: its devices, and what was last said of it.
#[derive(Debug)]
pub struct SimVolume {
    /// The data device.
    pub data: Device,
    /// The metadata device, where it is another.
    pub meta: Option<Device>,
    /// Size of the metadata device that is remembered for internal metadata.
    pub known_bytes: u64,
    /// The driver has the devices open.
    pub open: bool,
    /// Operations in flight: device operation, whether on the metadata device.
    pub ops: BTreeMap<OpId, (Ticket, bool)>,
    /// Injected errors.
    pub failing: Failing,
    /// Last state that the engine announced.
    pub seen: VolumeState,
    /// Size that the engine announced last, sectors.
    pub size: u64,
    /// The engine has the volume.
    pub configured: bool,
    /// Clients have it open.
    pub opened: bool,
    /// Forced promotions by the operator that have not been answered yet.
    pub forcing: u32,
    /// Why the operator allows that this node's data be discarded: each reason counts until it is refused itself, or the disk is good.
    pub named: BTreeSet<Reason>,
    /// When a write, to the data or to the metadata, failed last: the simulator's step.
    pub write_failed: u64,
    /// When it went Ahead, in the node's own time, the last few times.
    pub aheads: VecDeque<u64>,
    /// How often its disk failed or was taken away.
    pub failures: u64,
    /// What the node told the other about it.
    pub said: Said,
    /// The helper before the next resync to this node that was started last.
    pub helper_run: Option<HandlerRun>,
    /// Its exit code, once it has ended.
    pub helper_ended: Option<u8>,
    /// Its undo files.
    pub undo: super::undo::SimUndo,
}

impl SimVolume {
    /// The device that holds the metadata.
    pub const fn meta_device(&mut self) -> &mut Device {
        match &mut self.meta {
            Some(meta) => meta,
            None => &mut self.data,
        }
    }

    /// Whether the operation that ends now is one of those that fail; counts it.
    pub fn failing_op(&mut self, ticket: Ticket, on_meta: bool) -> bool {
        let kind = if on_meta { self.meta_device().kind(ticket) } else { self.data.kind(ticket) };
        let left = match (kind, on_meta) {
            (OpKind::Read, _) => &mut self.failing.reads,
            (OpKind::Flush, _) => &mut self.failing.flushes,
            (OpKind::Write, true) => &mut self.failing.meta,
            (OpKind::Write, false) => &mut self.failing.writes,
        };
        let fails = *left > 0;
        *left = left.saturating_sub(1);
        fails
    }

    /// Where the metadata are.
    #[must_use]
    pub fn place(&self) -> Place {
        match &self.meta {
            Some(_) => Place { kind: MetaKind::FlexExternal, data: Some(Sectors::from_bytes_floor(self.data.len())) },
            None => Place::INTERNAL,
        }
    }

    /// Sizes of the devices.
    #[must_use]
    pub fn sizes(&self) -> DeviceSizes {
        let data = Sectors::from_bytes_floor(self.data.len());
        DeviceSizes { data, meta: self.meta.as_ref().map_or(data, |meta| Sectors::from_bytes_floor(meta.len())) }
    }

    /// What the devices cannot say about themselves.
    #[must_use]
    pub fn facts(&self, params: &NodeParams) -> DiskFacts {
        DiskFacts {
            geometry: Geometry {
                logical_block_size: 512,
                physical_block_size: 512,
                discard: params.discard.0,
                discard_zeroes: params.discard.1,
            },
            shared_device: self.meta.is_none(),
            path: String::from("sim"),
        }
    }
}

/// A crash that waits for its moment.
#[derive(Clone, Copy, Debug)]
pub struct Ambush {
    /// The moment.
    pub moment: Moment,
    /// Who dies.
    pub victims: Victims,
    /// By a power cut.
    pub power: bool,
    /// Actions that are still carried out.
    pub after: u32,
    /// When the nodes start again, milliseconds after the moment.
    pub back: [u32; 2],
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// The engine; `None` while the node is down.
    pub engine: Option<Engine>,
    /// Its settings, as the operator changed them last.
    pub params: NodeParams,
    /// Its volumes.
    pub volumes: Vec<SimVolume>,
    /// Deadlines in the node's own time.
    pub timers: BTreeMap<Timer, Timestamp>,
    /// The driver wants a link.
    pub wants_link: bool,
    /// Number of the last link.
    pub link_nr: LinkNr,
    /// The node's clock is this much ahead.
    pub clock: u64,
    /// The process does nothing before.
    pub frozen_until: u64,
    /// The disks answer nothing before.
    pub stalled_until: u64,
    /// Counts starts and ends of the process: events of an earlier life are ignored.
    pub life: u64,
    /// Counts power cuts.
    pub powers: u64,
    /// Helper programs that run.
    pub helpers: BTreeSet<HandlerRun>,
    /// Commands under way.
    pub commands: BTreeMap<CommandId, (usize, super::plan::Order)>,
    /// Results of commands.
    pub results: BTreeMap<CommandId, Result<(), CommandError>>,
    /// A batch of events is open.
    pub batch: bool,
    /// Dies after so many more actions; true: by a power cut.
    pub doomed: Option<(u32, bool)>,
    /// What the peer sent on this link that the engine took for illegal.
    pub illegal: Option<Illegal>,
    /// State of the connection that was last announced.
    pub conn: ConnState,
    /// The engine is being called.
    pub busy: bool,
    /// Events that actions caused.
    pub queued: VecDeque<Event>,
    /// Actions of a call, while they are carried out.
    pub actions: Vec<Action>,
    /// Largest `max-buffers` of this life.
    pub max_buffers: u32,
    /// More requests than that may be under way: they were started while nothing limited them.
    pub unlimited: bool,
    /// What an ambush waits for, if there is one.
    pub ambush: Option<Ambush>,
    /// A resync needs this node to be Secondary.
    pub must_demote: bool,
    /// The peer's data were found to have no common past.
    pub unrelated: bool,
    /// The latest writes are on an Inconsistent disk, and the connection was refused.
    pub newer_inconsistent: bool,
    /// Refused its peer because one of them is too old to say who is right.
    pub unresolvable: bool,
    /// Attaches refused in this life.
    pub refused_attach: u32,
    /// Needs `--discard-my-data` at the next connect: a split brain was found.
    pub split_brain: bool,
}

impl Node {
    /// A node that is down, with blank disks.
    #[must_use]
    pub fn new(params: NodeParams, sizes: &[u64], rng: &mut Rng) -> Self {
        let volumes = sizes
            .iter()
            .map(|bytes| {
                // 32 KiB to 128 KiB of activity log, a page of superblock, the bitmap: far below 1 MiB.
                let meta = params.external_meta.then(|| Device::new(1 << 20, Rng::new(rng.next_u64())));
                SimVolume {
                    data: Device::new(*bytes, Rng::new(rng.next_u64())),
                    meta,
                    known_bytes: *bytes,
                    open: false,
                    ops: BTreeMap::new(),
                    failing: Failing::default(),
                    seen: VolumeState::default(),
                    configured: false,
                    opened: false,
                    forcing: 0,
                    named: BTreeSet::new(),
                    write_failed: 0,
                    aheads: VecDeque::new(),
                    failures: 0,
                    said: Said::default(),
                    helper_run: None,
                    helper_ended: None,
                    undo: super::undo::SimUndo::default(),
                    size: 0,
                }
            })
            .collect();
        Self {
            engine: None,
            max_buffers: params.net.max_buffers,
            unlimited: true,
            ambush: None,
            params,
            volumes,
            timers: BTreeMap::new(),
            wants_link: false,
            link_nr: LinkNr(0),
            clock: 0,
            frozen_until: 0,
            stalled_until: 0,
            life: 0,
            powers: 0,
            helpers: BTreeSet::new(),
            commands: BTreeMap::new(),
            results: BTreeMap::new(),
            batch: false,
            doomed: None,
            illegal: None,
            conn: ConnState::StandAlone,
            busy: false,
            queued: VecDeque::new(),
            actions: Vec::new(),
            unrelated: false,
            newer_inconsistent: false,
            unresolvable: false,
            must_demote: false,
            refused_attach: 0,
            split_brain: false,
        }
    }

    /// Whether the process runs.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.engine.is_some()
    }

    /// Writes fresh metadata to a volume's device.
    ///
    /// # Errors
    /// The text of the metadata room's error.
    pub fn create_md(&mut self, volume: usize, device_uuid: u64) -> Result<(), String> {
        let (stripes, size_4k) = self.params.al_stripes;
        let al = AlStripes::new(stripes, size_4k).map_err(|e| e.to_string())?;
        let vol = &mut self.volumes[volume];
        let options = CreateOptions { place: vol.place(), al, device_uuid, peer_max_bio_size: 0 };
        let mut io = DeviceIo { device: vol.meta_device(), fuse: None };
        create_md(&mut io, &options).map(drop).map_err(|e| e.to_string())
    }

    /// The process dies. Disks go on: by themselves after a crash, from what was durable after a power cut.
    /// Gives the ranges of data that may have changed, by volume.
    pub fn die(&mut self, power: bool) -> Vec<(usize, u64, u64)> {
        let mut changed = Vec::new();
        self.life += 1;
        self.engine = None;
        self.timers.clear();
        self.wants_link = false;
        self.commands.clear();
        self.helpers.clear();
        self.batch = false;
        self.doomed = None;
        self.ambush = None;
        self.unlimited = true;
        self.frozen_until = 0;
        self.conn = ConnState::StandAlone;
        self.actions.clear();
        self.queued.clear();
        if power {
            self.powers += 1;
        }
        for (volume, vol) in self.volumes.iter_mut().enumerate() {
            let ranges = if power { vol.data.power_cut() } else { vol.data.process_crash() };
            changed.extend(ranges.into_iter().map(|(start, len)| (volume, start, len)));
            if let Some(meta) = &mut vol.meta {
                let _ = if power { meta.power_cut() } else { meta.process_crash() };
            }
            vol.undo.die(power);
            vol.ops.clear();
            vol.open = false;
            vol.opened = false;
            vol.configured = false;
            vol.forcing = 0;
            vol.helper_ended = None;
            vol.aheads.clear();
            vol.seen = VolumeState::default();
        }
        changed
    }
}

/// A volume's number.
#[must_use]
pub fn nr(volume: usize) -> VolumeNr {
    VolumeNr(u16::try_from(volume).unwrap_or(u16::MAX))
}

/// A device as the metadata room wants it, outside of the engine: for create-md and attach.
#[derive(Debug)]
pub struct DeviceIo<'a> {
    /// The device.
    pub device: &'a mut Device,
    /// Writes until the node dies.
    pub fuse: Option<u32>,
}

impl MetaIo for DeviceIo<'_> {
    fn size_bytes(&self) -> u64 {
        self.device.len()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.device.len() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        self.device.read_now(offset, buf);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if let Some(fuse) = &mut self.fuse {
            if *fuse == 0 {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            *fuse -= 1;
        }
        if offset + buf.len() as u64 > self.device.len() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        self.device.write_now(offset, buf);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.device.flush_now();
        Ok(())
    }
}

//! One node of a pair: its files with their media, its shard while it runs, and what an operator does to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::PATIENCE;
use crate::control::ErrorReply;
use crate::disk::RingChoice;
use crate::disk::fault::{Counts, Faults, Medium, Mistake};
use crate::disk::meta_file::{Access, MetaFile};
use crate::engine::dirty::Bitmap;
use crate::engine::event::{Command, Geometry};
use crate::engine::load::{DiskFacts, load};
use crate::engine::options::{DiskOptions, NetOptions};
use crate::engine::state::VolumeState;
use crate::engine::status::{ResourceStatus, VolumeStatus};
use crate::link::LinkConfig;
use crate::meta::create::{CreateOptions, create_md};
use crate::meta::{AlStripes, MemIo, MetaIo, MetaKind, Place};
use crate::node::{AttachSpec, MetaPlace, Shard, ShardEnd, ShardOptions};
use crate::units::{GenId, Sectors, VolumeNr};
use crate::wire::state::ConnState;

pub const V: VolumeNr = VolumeNr(0);

/// How a machine is set up; the same for all its lives.
#[derive(Clone, Debug)]
pub struct Setup {
    pub ring: RingChoice,
    /// Metadata on a file of their own.
    pub external: bool,
    pub disk: DiskOptions,
    pub net: NetOptions,
    pub link: LinkConfig,
    pub mistake: Option<Mistake>,
}

/// What the metadata say.
pub struct Meta {
    pub current: GenId,
    pub bits: Bitmap,
}

/// Rings when something changed; counts resyncs.
#[derive(Default)]
struct Bell(Mutex<News>, Condvar);

#[derive(Default)]
struct News {
    changes: u64,
    state: Option<VolumeState>,
    resyncs: u64,
}

/// A node.
pub struct Machine {
    pub setup: Setup,
    data: PathBuf,
    meta: Option<PathBuf>,
    media: Vec<Arc<Medium>>,
    running: Option<(Shard, oneshot::Receiver<ShardEnd>)>,
    bell: Arc<Bell>,
    pub size: Sectors,
    name: String,
}

fn blank(path: &Path, bytes: u64) {
    File::create_new(path).and_then(|file| file.set_len(bytes)).expect("a file");
}

impl Machine {
    /// Fresh disks in `dir`; not running.
    pub fn new(dir: &Path, name: &str, bytes: u64, setup: Setup, seed: u64) -> Self {
        let data = dir.join(format!("{name}-data"));
        blank(&data, bytes);
        let meta = setup.external.then(|| dir.join(format!("{name}-meta")));
        if let Some(meta) = &meta {
            blank(meta, 4 << 20);
        }
        let kind = if setup.external { MetaKind::FlexExternal } else { MetaKind::Internal };
        let place = Place { kind, data: setup.external.then(|| Sectors::from_bytes_floor(bytes)) };
        let path = meta.as_ref().unwrap_or(&data);
        let mut io = MetaFile::open(path, Access::Write, false).expect("the file");
        let options = CreateOptions { place, al: AlStripes::DEFAULT, device_uuid: 1, peer_max_bio_size: 0 };
        let (layout, _) = create_md(&mut io, &options).expect("metadata");
        drop(io);
        let whole = layout.superblock_byte()..layout.superblock_byte() + 4096;
        let media = [Some(&data), meta.as_ref()].into_iter().flatten();
        let media = media.zip(seed..).map(|(path, seed)| Medium::install(path, seed, whole.clone()).expect("readable"));
        let media = media.collect();
        let name = name.to_owned();
        Self { setup, data, media, meta, running: None, bell: Arc::default(), size: layout.data_size, name }
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn shard(&self) -> &Shard {
        &self.running.as_ref().expect("the node runs").0
    }

    /// Starts the shard; the volume has no disk and no connection.
    pub fn start(&mut self, rt: &Runtime) {
        let bell = Arc::clone(&self.bell);
        let options = ShardOptions {
            name: self.name.clone(),
            ring: self.setup.ring,
            state: None,
            changed: Box::new(move |status| bell.ring(&status)),
            helper: Box::new(|_, _, end| end(0)),
        };
        let (shard, end) = rt.block_on(Shard::start(options)).expect("a shard");
        rt.block_on(shard.new_volume(V, self.setup.disk.clone())).expect("a volume");
        if let Some(mistake) = self.setup.mistake {
            shard.make_mistake(mistake);
        }
        self.running = Some((shard, end));
    }

    /// Attaches the disk, the way that an operator does.
    pub fn attach(&self, rt: &Runtime) -> Result<(), ErrorReply> {
        let meta = self.meta.clone().map_or(MetaPlace::Internal, MetaPlace::Flexible);
        let spec = AttachSpec {
            last_known: None,
            volume: V,
            backing: self.data.clone(),
            meta,
            options: self.setup.disk.clone(),
            owner: self.name.clone(),
        };
        self.ask(rt, self.shard().attach(spec))
    }

    pub fn connect(&self, rt: &Runtime) -> Result<(), ErrorReply> {
        self.ask(rt, self.shard().connect(self.setup.link.clone(), self.setup.net.clone()))
    }

    /// Connects and gives up what this node alone has.
    pub fn connect_discarding(&self, rt: &Runtime) -> Result<(), ErrorReply> {
        let net = NetOptions { discard_my_data: true, ..self.setup.net.clone() };
        self.ask(rt, self.shard().connect(self.setup.link.clone(), net))
    }

    pub fn command(&self, rt: &Runtime, command: Command) -> Result<(), ErrorReply> {
        self.ask(rt, self.shard().command(V, command))
    }

    fn ask<T>(&self, rt: &Runtime, work: impl Future<Output = Result<T, ErrorReply>>) -> Result<T, ErrorReply> {
        let limited = async { tokio::time::timeout(PATIENCE, work).await };
        rt.block_on(limited).unwrap_or_else(|_| panic!("a command of node {} was not answered", self.name))
    }

    pub fn status(&self, rt: &Runtime) -> ResourceStatus {
        rt.block_on(self.shard().status()).unwrap_or_else(|| panic!("node {} has ended by itself", self.name))
    }

    pub fn volume(&self, rt: &Runtime) -> VolumeStatus {
        self.status(rt).volumes.remove(0)
    }

    /// The generation that this node's clients have seen.
    pub fn exposed(&self, rt: &Runtime) -> GenId {
        rt.block_on(self.shard().exposed(V)).unwrap_or_else(|| panic!("node {} has ended by itself", self.name))
    }

    /// Waits until something changed, but not long.
    pub fn wait_for_news(&self, at_most: Duration) {
        let seen = self.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.changes;
        drop(self.bell.1.wait_timeout_while(seen, at_most, |now| now.changes == before));
    }

    /// Ends the shard as if the process were killed, with the power of the machine or without.
    pub fn crash(&mut self, rt: &Runtime, power: bool) {
        let Some((shard, end)) = self.running.take() else { return };
        shard.crash();
        let end = rt.block_on(async { tokio::time::timeout(PATIENCE, end).await });
        assert_eq!(end.expect("the shard ends").expect("it says how"), ShardEnd::Stopped, "node {}", self.name);
        for medium in &self.media {
            assert!(medium.wait_closed(Instant::now() + PATIENCE), "node {}: the device is still open", self.name);
            if power { medium.power_failed() } else { medium.process_died() }.expect("the file");
        }
    }

    /// Ends the shard as it is told to; nothing was taken down before.
    pub fn stop(&mut self, rt: &Runtime) {
        let Some((shard, end)) = self.running.take() else { return };
        shard.stop();
        let end = rt.block_on(async { tokio::time::timeout(PATIENCE, end).await });
        assert_eq!(end.expect("the shard ends").expect("it says how"), ShardEnd::Stopped);
    }

    /// Identifier of the data and of the bitmap, as the superblock on the disk has them.
    pub fn ids_on_disk(&self) -> (GenId, GenId) {
        let path = self.meta.as_ref().unwrap_or(&self.data);
        let mut io = MetaFile::open(path, Access::Read, false).expect("the file");
        let open = crate::meta::offline::open(&mut io, self.place()).expect("metadata");
        (open.superblock.current, open.superblock.bitmap)
    }

    fn place(&self) -> Place {
        let data = self.data.metadata().expect("the file").len();
        match self.meta {
            None => Place::INTERNAL,
            Some(_) => Place { kind: MetaKind::FlexExternal, data: Some(Sectors::from_bytes_floor(data)) },
        }
    }

    /// What a start after the crash would find. Looks at a copy, as recovery writes.
    pub fn read_meta(&self) -> Meta {
        let path = self.meta.as_ref().unwrap_or(&self.data);
        let bytes = std::fs::read(path).expect("the file");
        let mut io = MemIo::new(bytes.len() as u64);
        for (nr, block) in bytes.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
            io.write_at(nr as u64 * 4096, block).expect("inside");
        }
        let geometry =
            Geometry { logical_block_size: 512, physical_block_size: 512, discard: true, discard_zeroes: true };
        let facts = DiskFacts { geometry, shared_device: self.meta.is_none(), path: self.name.clone() };
        let loaded =
            load(&mut io, self.place(), facts).unwrap_or_else(|e| panic!("node {} cannot attach: {e}", self.name));
        Meta { current: loaded.disk.superblock.current, bits: loaded.disk.bitmap }
    }

    /// The data, as the file shows it.
    pub fn read_data(&self) -> Vec<u8> {
        let mut data = std::fs::read(&self.data).expect("the file");
        data.truncate(usize::try_from(self.size.bytes()).expect("small"));
        data
    }

    pub fn set_faults(&self, faults: Faults) {
        self.media.iter().for_each(|medium| medium.set_faults(faults));
    }

    pub fn violations(&self) -> Vec<String> {
        self.media.iter().flat_map(|medium| medium.violations()).collect()
    }

    pub fn disk_counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.media.iter().for_each(|medium| counts += medium.counts());
        counts
    }

    /// The state after the last change, also of a node that has died since.
    pub fn last_state(&self) -> Option<VolumeState> {
        self.bell.0.lock().unwrap_or_else(PoisonError::into_inner).state
    }

    /// Resyncs in which this node was the source.
    pub fn resyncs(&self) -> u64 {
        self.bell.0.lock().unwrap_or_else(PoisonError::into_inner).resyncs
    }

    pub fn describe(&self, rt: &Runtime) -> String {
        let Some((shard, _)) = &self.running else { return format!("{}: does not run", self.name) };
        let events = rt.block_on(async { tokio::time::timeout(Duration::from_secs(5), shard.story()).await });
        let events = events.ok().flatten().unwrap_or_else(|| String::from("(no answer)"));
        let status = rt.block_on(async { tokio::time::timeout(Duration::from_secs(5), shard.status()).await });
        format!("{}: {:?}\n{events}", self.name, status.ok().flatten())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((shard, end)) = self.running.take() {
            shard.crash();
            // A thread that does not end is not waited for: the test has failed.
            let deadline = Instant::now() + Duration::from_secs(5);
            let mut end = end;
            while end.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty) && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }
}

impl Bell {
    fn ring(&self, status: &ResourceStatus) {
        let mut news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        news.changes += 1;
        let state = status.volumes.first().map(|volume| volume.state);
        let conn = |state: Option<VolumeState>| state.map(|state| state.conn);
        news.resyncs += u64::from(conn(state) == Some(ConnState::SyncSource) && conn(state) != conn(news.state));
        news.state = state;
        drop(news);
        self.1.notify_all();
    }
}

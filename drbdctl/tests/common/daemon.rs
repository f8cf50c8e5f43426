//! A daemon that knows resources but no data: enough of the kernel's rules to see what drbdctl makes of them.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tokio::sync::{broadcast, oneshot};
use udrbd::control::ErrorReply;
use udrbd::control::proto::{Event, Reply, Request};
use udrbd::control::server::{Handler, Peer, Server};
use udrbd::control::status::{
    Connection, Counters, Frontend, Resource, ResyncSuspended, Status, Suspended, Volume, WaitKind,
};
use udrbd::units::{Minor, VolumeNr};
use udrbd::wire::state::{ConnState, DiskState, Role, StateResult};

/// State of the fake.
#[derive(Default)]
pub struct World {
    pub asked: Vec<Request>,
    pub resources: Vec<Resource>,
    /// Answer of every request but queries, if not the usual one.
    pub refuse: Option<ErrorReply>,
}

struct Fake {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<Event>,
}

pub struct Daemon {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<Event>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    pub fn start(path: &Path) -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let events = broadcast::channel(64).0;
        let fake = Arc::new(Fake { world: Arc::clone(&world), events: events.clone() });
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let path = path.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let server = Server::bind(&path).await.expect("bound");
                ready.send(()).expect("waited for");
                tokio::select! {
                    () = server.run(fake) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().expect("ready");
        Self { world, events, stop: Some(stop), thread: Some(thread) }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("not poisoned")
    }

    /// Everything that was asked since the last call, queries left out.
    pub fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.world().asked)
    }

    /// Changes a resource and tells the watchers.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Resource)) {
        let mut world = self.world();
        let resource = world.resources.iter_mut().find(|r| r.name == name).expect("exists");
        change(resource);
        let event = Event::Resource(Box::new(resource.clone()));
        drop(world);
        // Nobody may listen.
        let _ = self.events.send(event);
    }

    /// Waits until somebody listens for events.
    pub fn wait_for_watcher(&self) {
        let start = std::time::Instant::now();
        while self.events.receiver_count() == 0 {
            assert!(start.elapsed().as_secs() < 60, "nobody watches");
            std::thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

pub fn resource(name: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        role: Role::Secondary,
        suspended: Suspended::default(),
        write_ordering: "flush".to_owned(),
        connection_state: ConnState::StandAlone,
        connection: None,
        problem: None,
        volumes: Vec::new(),
        warnings: Vec::new(),
    }
}

pub fn volume(nr: u16, minor: u32) -> Volume {
    Volume {
        volume: VolumeNr(nr),
        minor: Minor(minor),
        device: None,
        role: Role::Secondary,
        peer_role: Role::Unknown,
        state: ConnState::StandAlone,
        disk: DiskState::Diskless,
        peer_disk: DiskState::DUnknown,
        backing: None,
        size_kib: 0,
        resync_suspended: ResyncSuspended::default(),
        blocked: "no".to_owned(),
        counters: Counters::default(),
        out_of_sync_kib: 0,
        al_suspended: false,
        open_count: 0,
        epochs: 1,
        sync: None,
        uuids: None,
        wait: WaitKind::Normal,
        frontends: vec![Frontend { kind: "nbd".into(), address: format!("nbd+unix:///{nr}?socket=s") }],
        warnings: Vec::new(),
    }
}

/// The connection and its state.
pub fn set_connection(resource: &mut Resource, state: ConnState) {
    resource.connection_state = state.min(ConnState::WfReportParams);
    let peer_role = if state >= ConnState::Connected { Role::Secondary } else { Role::Unknown };
    resource.connection = (state != ConnState::StandAlone).then_some(Connection {
        peer_name: Some("n2".into()),
        peer_role,
        protocol: 'C',
        congested: false,
        local: None,
        peer: None,
        agreed_version: None,
        agreed_features: 0,
    });
    for volume in &mut resource.volumes {
        volume.state = state;
        volume.peer_role = peer_role;
    }
}

impl Fake {
    fn answer(world: &mut World, request: &Request) -> Result<(), ErrorReply> {
        if let Some(refusal) = &world.refuse {
            return Err(refusal.clone());
        }
        let name = request.resource().unwrap_or_default().to_owned();
        if let Request::NewResource { .. } = request {
            if !world.resources.iter().any(|r| r.name == name) {
                world.resources.push(resource(&name));
            }
            return Ok(());
        }
        if let Request::Down { .. } = request {
            world.resources.retain(|r| r.name != name);
            return Ok(());
        }
        let found = world.resources.iter_mut().find(|r| r.name == name);
        let found = found.ok_or_else(|| ErrorReply::code(158).detail("unknown resource"))?;
        match request {
            Request::NewVolume { volume: nr, minor, .. } => {
                if !found.volumes.iter().any(|v| v.volume == *nr) {
                    found.volumes.push(volume(nr.0, minor.0));
                }
                return Ok(());
            }
            Request::Connect { .. } => {
                if found.connection.is_some() {
                    return Err(ErrorReply::code(102));
                }
                set_connection(found, ConnState::WfConnection);
                return Ok(());
            }
            _ => {}
        }
        let Some(nr) = request.volume() else { return Ok(()) };
        let found = found.volumes.iter_mut().find(|v| v.volume == nr);
        let found = found.ok_or_else(|| ErrorReply::code(127).detail("unknown minor"))?;
        match request {
            Request::Attach { .. } => found.disk = DiskState::Inconsistent,
            Request::Detach { .. } => found.disk = DiskState::Diskless,
            Request::Primary { force: false, .. } if found.disk < DiskState::UpToDate => {
                return Err(ErrorReply::state(StateResult::NoUpToDateDisk));
            }
            Request::Primary { .. } => {
                found.role = Role::Primary;
                found.disk = DiskState::UpToDate;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Handler for Fake {
    async fn handle(&self, request: Request, _: Peer) -> Reply {
        let mut world = self.world.lock().expect("not poisoned");
        if let Request::Status { resource } = &request {
            let all = world.resources.iter().filter(|r| resource.as_ref().is_none_or(|only| *only == r.name));
            return Reply::Status(Status::new(all.cloned().collect()));
        }
        world.asked.push(request.clone());
        Self::answer(&mut world, &request).into()
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

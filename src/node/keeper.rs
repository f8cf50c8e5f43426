//! What a resource keeps in the state directory: its memory of split brains. A thread of its own, because files block.
//!
//! Owns the file `RESOURCE.history.json` and the undo files (`undo`). Takes in notices of the engine (stamped here: the engine has no clock) and
//! questions; gives out the memory. Invariants: the file is replaced as a whole, so a crash leaves the old or the new one;
//! a file that cannot be read or written is said once in the log and costs nothing but the memory.

mod undo;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use self::undo::Undos;
use super::view::View;
use crate::control::split_brain::{Memory, Undo};
use crate::engine::divergence::Divergence;
use crate::engine::undo::{SavedBlocks, UndoAnswer, UndoOrder};
use crate::units::{GenId, VolumeNr};

/// Where things are kept that must survive a restart.
#[derive(Clone, Debug)]
pub struct StateDir {
    /// The directory; it exists.
    pub path: PathBuf,
    /// Most bytes of an undo file; 0: there are none.
    pub undo_limit: u64,
}

/// Something for the keeper.
#[derive(Debug)]
pub enum Job {
    /// A generation of this node begins.
    Generation(VolumeNr, GenId),
    /// The peer is lost.
    Parted(VolumeNr),
    /// A split brain was found.
    SplitBrain(Box<Divergence>),
    /// A resync has made both nodes equal.
    Equal(VolumeNr),
    /// The engine's order for an undo file.
    Undo(VolumeNr, UndoOrder),
    /// A disk with this current identifier is about to be attached: which blocks are saved already?
    Attach(VolumeNr, GenId, oneshot::Sender<Option<SavedBlocks>>),
    /// What is remembered.
    Ask(oneshot::Sender<Recollection>),
}

/// What a resource remembers, and its undo files.
#[derive(Clone, Debug, Default)]
pub struct Recollection {
    /// Of split brains.
    pub memory: Memory,
    /// Undo files by volume.
    pub undos: BTreeMap<VolumeNr, Undo>,
}

/// The handle; the thread ends with it, when everything is written.
#[derive(Debug)]
pub struct Keeper {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread for a resource.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(
        dir: &StateDir,
        resource: &str,
        view: Arc<View>,
        answers: UnboundedSender<(VolumeNr, UndoAnswer)>,
    ) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (path, name) = (dir.path.join(format!("{resource}.history.json")), resource.to_owned());
        let mut undos = Undos::new(dir.clone(), resource, view, answers);
        let thread = thread::Builder::new()
            .name(format!("{resource} state"))
            .spawn(move || serve(&path, &name, &inbox, &mut undos))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Hands something over.
    pub fn tell(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as this handle, or it has failed and said so.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it is in the log.
            let _ = thread.join();
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn serve(path: &Path, resource: &str, inbox: &mpsc::Receiver<Job>, undos: &mut Undos) {
    let mut memory = match load(path) {
        Ok(memory) => memory,
        Err(error) => {
            tracing::warn!(resource, "{}: {error}; what was remembered of split brains is lost", path.display());
            Memory::default()
        }
    };
    let mut said = false;
    while let Some(job) = next(inbox, undos) {
        match job {
            Job::Undo(volume, order) => {
                undos.order(volume, order);
                continue;
            }
            Job::Attach(volume, current, answer) => {
                // Whoever asked may be gone.
                let _ = answer.send(undos.attach(volume, current));
                continue;
            }
            Job::Generation(volume, id) => memory.generation(volume, id, now()),
            Job::Parted(volume) => memory.parted(volume, now()),
            Job::SplitBrain(divergence) => memory.split_brain(&divergence, now()),
            Job::Equal(volume) => memory.equal(volume, now()),
            Job::Ask(answer) => {
                // Whoever asked may be gone.
                let _ = answer.send(Recollection { memory: memory.clone(), undos: undos.all() });
                continue;
            }
        }
        if let Err(error) = save(path, &memory)
            && !std::mem::replace(&mut said, true)
        {
            tracing::warn!(resource, "{}: {error}; split brains are not remembered over a restart", path.display());
        }
    }
}

/// The next job. Saves that follow each other are written first and synced together, before anything else is done.
fn next(inbox: &mpsc::Receiver<Job>, undos: &mut Undos) -> Option<Job> {
    match inbox.try_recv() {
        Ok(job @ Job::Undo(_, UndoOrder::Save { .. })) => Some(job),
        Ok(job) => {
            undos.sync();
            Some(job)
        }
        Err(_) => {
            undos.sync();
            inbox.recv().ok()
        }
    }
}

fn load(path: &Path) -> io::Result<Memory> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(error),
    }
}

fn save(path: &Path, memory: &Memory) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(memory)?)?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    // Without this a power cut may bring the old one back.
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(state: &StateDir) -> Keeper {
        let (answers, _) = tokio::sync::mpsc::unbounded_channel();
        Keeper::start(state, "r0", Arc::default(), answers).expect("a thread")
    }

    fn ask(keeper: &Keeper) -> Memory {
        let (answer, reply) = oneshot::channel();
        keeper.tell(Job::Ask(answer));
        reply.blocking_recv().expect("an answer").memory
    }

    #[test]
    fn what_was_told_is_there_after_a_restart_and_a_torn_file_costs_only_the_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir { path: dir.path().to_owned(), undo_limit: 0 };
        let keeper = start(&state);
        keeper.tell(Job::Parted(VolumeNr(0)));
        keeper.tell(Job::Generation(VolumeNr(0), GenId(0x31)));
        let told = ask(&keeper);
        assert_eq!((told.parted.len(), told.generations[0].id.as_str()), (1, "0000000000000030"));
        drop(keeper);
        let keeper = start(&state);
        assert_eq!(ask(&keeper), told);
        drop(keeper);
        fs::write(dir.path().join("r0.history.json"), "{").expect("written");
        let keeper = start(&state);
        assert_eq!(ask(&keeper), Memory::default());
    }
}

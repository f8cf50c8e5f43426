//! Processes that never outlive their owner.
//!
//! Owns: a child process tree and the pipe that keeps it alive. The child's standard input is a pipe whose other end only
//! this process holds; a watcher beside the child kills the tree when that pipe ends, so a test that panics, is
//! interrupted or is killed with SIGKILL takes its processes with it. Standard output is handed to a reader line by line,
//! and its end is the proof that nothing of the tree is left: every process of it inherited that descriptor.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::error::{LabError, Result};

/// How long a killed tree may take to be gone. Generous: a guest may have hundreds of MiB of memory to give back.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Which processes die with the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The tree lives in a process namespace of its own and dies as one (a machine).
    Machine,
    /// Only the leader is killed; its process id is [`Leash::pid`] (a daemon).
    Process,
    /// No watcher: the leader reads the lifeline, descriptor 5, itself and ends when that ends.
    Cooperative,
}

/// What to start. See [`Leash::start`].
#[derive(Debug)]
pub struct Spec {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Network namespace to enter first, as a path that `nsenter --net=` takes.
    pub netns: Option<PathBuf>,
    /// Additional environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where standard error goes.
    pub stderr: File,
    /// What dies with the leader.
    pub scope: Scope,
    /// Shell redirections for the leader, like `3>>console 4<>fifo`, relative to `dir`.
    pub redirections: String,
    /// Working directory.
    pub dir: PathBuf,
}

/// A running process tree; killed when dropped.
#[derive(Debug)]
pub struct Leash {
    child: Child,
    lifeline: Option<ChildStdin>,
    // Never contended; the lock only makes a leash shareable between threads.
    gone: Mutex<Receiver<()>>,
    ended: Option<ExitStatus>,
}

impl Leash {
    /// Starts a process tree. `on_line` gets each line that it prints on standard output, from a thread of its own.
    pub fn start(spec: Spec, mut on_line: impl FnMut(&str) + Send + 'static) -> Result<Self> {
        // Descriptor 5 is the lifeline, read by the watcher only. The watcher keeps standard output open, which makes the
        // end of that pipe mean "leader and watcher are both gone".
        let script = match spec.scope {
            Scope::Machine => format!(
                "exec 5<&0 </dev/null; {{ cat >/dev/null; kill -s KILL -- -1 2>/dev/null; }} <&5 & \"$@\" {} 5<&-; exit $?",
                spec.redirections
            ),
            Scope::Process => format!(
                "exec 5<&0 </dev/null; {{ cat >/dev/null; kill -s KILL $$ 2>/dev/null; }} <&5 & exec \"$@\" {} 5<&-",
                spec.redirections
            ),
            Scope::Cooperative => format!("exec 5<&0 </dev/null; exec \"$@\" {}", spec.redirections),
        };
        let mut argv: Vec<OsString> = Vec::new();
        if let Some(netns) = &spec.netns {
            let mut option = OsString::from("--net=");
            option.push(netns);
            argv.extend(["nsenter".into(), option, "--".into()]);
        }
        if spec.scope == Scope::Machine {
            argv.extend(["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--"].map(OsString::from));
        }
        argv.extend(["sh", "-c"].map(OsString::from));
        argv.push(script.into());
        argv.push("leash".into());
        argv.extend(spec.argv.iter().cloned());

        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .envs(spec.env)
            .current_dir(&spec.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(spec.stderr)
            // An interrupt or a time limit signals the whole group of the test; the watcher must live to see the test end.
            .process_group(0)
            .spawn()
            .map_err(|err| LabError::io(format_args!("start {}", spec.argv[0].display()), &err))?;
        let lifeline = child.stdin.take();
        let stdout = child.stdout.take();
        let (sender, gone) = channel();
        std::thread::spawn(move || {
            if let Some(stdout) = stdout {
                let mut reader = BufReader::new(stdout);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                    on_line(String::from_utf8_lossy(&line).trim_end());
                    line.clear();
                }
            }
            // The owner may have stopped listening; then nobody needs to know.
            let _ = sender.send(());
        });
        Ok(Self { child, lifeline, gone: Mutex::new(gone), ended: None })
    }

    /// Process id of the leader (with [`Scope::Process`] the program's own).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the leader still runs.
    pub fn is_alive(&mut self) -> bool {
        self.ended.is_none() && !matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// Asks the leader to end (SIGTERM); says nothing about when it does.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until the leader ended by itself, up to `limit`; `None` if it did not.
    pub fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = std::time::Instant::now() + limit;
        while self.is_alive() {
            if std::time::Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.reap();
        self.ended
    }

    /// Kills the tree (SIGKILL) and returns when nothing of it is left. May be called again.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            // Not waited for yet, so its process id cannot be another process by now.
            self.signal(Signal::KILL);
            self.reap();
        }
    }

    fn reap(&mut self) {
        // The watcher goes when the lifeline ends; it must be gone before the leader's process id may be used again.
        drop(self.lifeline.take());
        match self.gone.get_mut().unwrap_or_else(PoisonError::into_inner).recv_timeout(GONE_WITHIN) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => {
                // A process that the leader started and that left the tree; the leader itself is dead.
            }
        }
        self.ended = self.child.wait().ok();
    }

    fn signal(&self, signal: Signal) {
        if self.ended.is_some() {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Fails only if the process is gone already.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(script: &str) -> Spec {
        Spec {
            argv: ["sh", "-c", script].map(OsString::from).to_vec(),
            netns: None,
            env: Vec::new(),
            stderr: File::options().write(true).open("/dev/null").unwrap(),
            scope: Scope::Process,
            redirections: String::new(),
            dir: PathBuf::from("/"),
        }
    }

    #[test]
    fn lines_arrive_and_a_killed_process_is_gone() {
        let (sender, lines) = channel();
        let mut leash = Leash::start(spec("echo $$; exec sleep 1000"), move |line| {
            let _ = sender.send(line.to_owned());
        })
        .unwrap();
        let pid = lines.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(pid, leash.pid().to_string());
        assert!(leash.is_alive());
        leash.kill();
        assert!(!leash.is_alive());
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn an_exit_code_is_reported() {
        let mut leash = Leash::start(spec("exit 7"), |_| {}).unwrap();
        assert_eq!(leash.wait_exit(Duration::from_secs(20)).unwrap().code(), Some(7));
    }

    #[test]
    fn an_ended_lifeline_kills() {
        let mut leash = Leash::start(spec("exec sleep 1000"), |_| {}).unwrap();
        drop(leash.lifeline.take());
        let status = leash.wait_exit(Duration::from_secs(20)).unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}

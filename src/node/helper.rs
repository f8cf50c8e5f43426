//! One run of a helper program: a shell command of the section `handlers`, as drbdadm runs it for the kernel.
//!
//! Takes in the command and its environment; gives out its exit code. Invariants: nothing of the daemon reaches the program but
//! that environment (no file descriptor, no variable, no working directory), and it is a process group of its own; its
//! output goes to the log line by line; a run always ends: after the time limit the whole group is killed, which counts as a
//! failure. What cannot be started counts as success, as in DRBD. Source: behaviour.md 8.4.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

/// Longest piece of output that becomes one line of the log; arbitrary.
const LINE_BYTES_MAX: usize = 1024;

/// How long the output of a program that has ended is waited for. What it left running in the background may hold it open for
/// as long as it likes; its lines come later.
const OUTPUT_WAIT: Duration = Duration::from_millis(200);

/// What the kernel and drbdadm give to every program.
const COMMON: [(&str, &str); 3] = [("HOME", "/"), ("TERM", "linux"), ("PATH", "/sbin:/usr/sbin:/bin:/usr/bin")];

/// How helper programs are run.
#[derive(Clone, Debug, Default)]
pub struct HelperSettings {
    /// How long one may take; `None`: for ever.
    pub timeout: Option<Duration>,
    /// Absolute path of the control socket, for a `drbdctl` that a program calls.
    pub control_socket: PathBuf,
    /// Name of this host in the configuration, for the same.
    pub host: String,
}

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it is called in the log: event and object.
    pub name: String,
    /// The resource, for the log.
    pub resource: String,
    /// For `/bin/sh -c`.
    pub command: String,
    /// DRBD's variables.
    pub env: Vec<(&'static str, String)>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// Runs a program to its end; its exit code.
pub async fn run(program: &Program) -> u8 {
    let Program { name, resource, command, env, timeout } = program;
    let spawned = Command::new("/bin/sh")
        .args(["-c", command])
        .env_clear()
        .envs(COMMON)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            tracing::error!(resource, "helper command: {name} cannot be started: {error}");
            return 0;
        }
    };
    let out = child.stdout.take().map(|pipe| tokio::spawn(log_lines(resource.clone(), name.clone(), pipe)));
    let err = child.stderr.take().map(|pipe| tokio::spawn(log_lines(resource.clone(), name.clone(), pipe)));
    let code = wait(program, *timeout, &mut child).await;
    let output = async {
        for task in [out, err].into_iter().flatten() {
            drop(task.await);
        }
    };
    let _ = tokio::time::timeout(OUTPUT_WAIT, output).await;
    code
}

async fn wait(program: &Program, timeout: Option<Duration>, child: &mut Child) -> u8 {
    // Read before it is reaped: afterwards the number may be somebody else's.
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let ended = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, child.wait()).await.ok(),
        None => Some(child.wait().await),
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            let Program { name, resource, .. } = program;
            let seconds = timeout.unwrap_or_default().as_secs();
            tracing::error!(resource, "helper command: {name} did not end within {seconds} s and is killed");
            if let Some(group) = group {
                // It may have ended just now.
                let _ = kill_process_group(group, Signal::KILL);
            }
            child.wait().await
        }
    };
    match ended {
        Ok(status) => code_of(status),
        Err(error) => {
            tracing::error!(resource = program.resource, "helper command: {}: {error}", program.name);
            u8::MAX
        }
    }
}

/// As a shell says it.
fn code_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

async fn log_lines(resource: String, name: String, mut pipe: impl AsyncRead + Unpin) {
    let say = |line: &[u8]| tracing::info!(resource, "{name}: {}", String::from_utf8_lossy(line).trim_end());
    let mut pending = Vec::new();
    let mut buffer = [0; LINE_BYTES_MAX];
    while let Ok(count) = pipe.read(&mut buffer).await
        && count > 0
    {
        pending.extend_from_slice(&buffer[..count]);
        while let Some(at) = pending.iter().position(|byte| *byte == b'\n') {
            say(&pending[..at]);
            pending.drain(..=at);
        }
        if pending.len() >= LINE_BYTES_MAX {
            say(&pending);
            pending.clear();
        }
    }
    if !pending.is_empty() {
        say(&pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(command: &str) -> Program {
        Program {
            name: "split-brain minor-0".to_owned(),
            resource: "r0".to_owned(),
            command: command.to_owned(),
            env: vec![("DRBD_RESOURCE", "r0".to_owned())],
            timeout: Some(Duration::from_secs(60)),
        }
    }

    fn code(program: &Program) -> u8 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(program))
    }

    #[test]
    fn the_exit_code_is_the_shells() {
        assert_eq!(code(&program("exit 7")), 7);
        assert_eq!(code(&program("kill -TERM $$")), 128 + 15);
        assert_eq!(code(&program("/nowhere/to/be/found")), 127);
    }

    #[test]
    fn a_program_finds_drbds_variables_and_nothing_of_the_daemon() {
        // What dash sets by itself is PWD.
        let all = "test \"$(env | grep -v '^_=' | grep -v ^PWD= | cut -d= -f1 | sort | tr '\\n' ' ')\" \
                   = 'DRBD_RESOURCE HOME PATH TERM ' && test \"$PATH\" = /sbin:/usr/sbin:/bin:/usr/bin \
                   && test \"$(pwd)\" = / && test \"$(readlink /proc/self/fd/0)\" = /dev/null";
        assert_eq!(code(&program(all)), 0);
        assert_eq!(code(&program("test -n \"$CARGO_PKG_NAME\"")), 1);
    }

    #[test]
    fn the_whole_group_is_killed_when_the_time_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid = dir.path().join("pid");
        let mut slow = program(&format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait", pid.display()));
        slow.timeout = Some(Duration::from_millis(500));
        assert_eq!(code(&slow), 128 + 9);
        let Ok(pid) = std::fs::read_to_string(&pid) else { return };
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.rsplit(')').next().unwrap_or_default().trim().chars().next()
        };
        // Killed is killed; only the entry may stay until somebody reaps it.
        for _ in 0..1000 {
            if matches!(state(), None | Some('Z' | 'X')) {
                return;
            }
            std::thread::yield_now();
        }
        assert!(matches!(state(), None | Some('Z' | 'X')), "{:?}", state());
    }

    #[test]
    fn what_stays_in_the_background_is_not_waited_for() {
        let mut patient = program("sleep 20 & exit 3");
        patient.timeout = None;
        let begin = std::time::Instant::now();
        assert_eq!(code(&patient), 3);
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }
}

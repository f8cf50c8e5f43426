//! `cargo xtask lab ...`: the kernel lab by hand.
//!
//! `start` holds a lab until it is interrupted, and serves a unix socket beside the build products; the other commands talk to
//! it, one JSON object a line each way.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xtask::lab::{Cable, Guest, GuestOptions, Kernel, Lab, LabError, check_available, selftest};

/// Size of a disk that `start` and `run` make.
const DISK_BYTES: u64 = 256 << 20;

#[derive(Debug, clap::Subcommand)]
pub enum LabCommand {
    /// Two kernel DRBD nodes: first sync, cut cable, crash, verify, equal replicas
    Selftest {
        /// Kernel to boot (default: Debian's, and the one that UDRBD_LAB_KERNEL names)
        #[arg(long)]
        kernel: Option<PathBuf>,
    },
    /// Boot node 1, run a script in it, power off; its output and exit code
    Run {
        #[arg(long)]
        kernel: Option<PathBuf>,
        /// Disk images (default: one blank disk); the first is /dev/ubda
        #[arg(long)]
        disk: Vec<PathBuf>,
        /// Seconds that the script may take
        #[arg(long, default_value_t = 300)]
        timeout: u64,
        /// Host path of the script
        script: PathBuf,
    },
    /// Boot nodes 1..N, each with a blank disk, and hold them until interrupted (foreground)
    Start {
        #[arg(long)]
        kernel: Option<PathBuf>,
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Run a shell command in a node of a started lab
    Exec {
        node: u8,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a shell command on the host side of a started lab's network (10.99.0.254)
    Ns {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Boot a node of a started lab that is off, over its old disk
    Boot { node: u8 },
    /// Power a node off in order
    Stop { node: u8 },
    /// Power cut: kill all of a node at once
    Crash { node: u8 },
    /// Cut or plug a node's cable
    Link {
        node: u8,
        #[arg(value_parser = ["up", "down"])]
        what: String,
    },
    /// Print the end of a node's console
    Console { node: u8 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    Exec { node: u8, command: String },
    Netns,
    Boot { node: u8 },
    Stop { node: u8 },
    Crash { node: u8 },
    Link { node: u8, up: bool },
    Console { node: u8 },
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    code: i32,
    text: String,
}

/// Runs one command.
pub fn run(command: LabCommand) -> Result<ExitCode, LabError> {
    match command {
        LabCommand::Selftest { kernel } => run_selftest(kernel),
        LabCommand::Run { kernel, disk, timeout, script } => run_script(kernel, disk, timeout, &script),
        LabCommand::Start { kernel, nodes } => hold(kernel, nodes),
        LabCommand::Exec { node, command } => ask(&Request::Exec { node, command: command.join(" ") }),
        LabCommand::Ns { command } => run_in_namespace(&command),
        LabCommand::Boot { node } => ask(&Request::Boot { node }),
        LabCommand::Stop { node } => ask(&Request::Stop { node }),
        LabCommand::Crash { node } => ask(&Request::Crash { node }),
        LabCommand::Link { node, what } => ask(&Request::Link { node, up: what == "up" }),
        LabCommand::Console { node } => ask(&Request::Console { node }),
    }
}

fn chosen(kernel: Option<PathBuf>) -> Kernel {
    kernel.map_or_else(Kernel::debian, Kernel::at)
}

fn run_selftest(kernel: Option<PathBuf>) -> Result<ExitCode, LabError> {
    check_available()?;
    let kernels = match kernel {
        Some(path) => vec![Kernel::at(path)],
        None => std::iter::once(Kernel::debian()).chain(Kernel::from_environment()).collect(),
    };
    for kernel in kernels {
        println!("{}:", kernel.path().display());
        selftest::run(&kernel, &mut |line| println!("  {line}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_script(
    kernel: Option<PathBuf>,
    mut disks: Vec<PathBuf>,
    timeout: u64,
    script: &std::path::Path,
) -> Result<ExitCode, LabError> {
    check_available()?;
    let lab = Lab::new(1)?;
    if disks.is_empty() {
        disks.push(lab.blank_image("disk", DISK_BYTES)?);
    }
    for path in &mut disks {
        *path = path.canonicalize().map_err(|err| LabError::io(format_args!("find {}", path.display()), &err))?;
    }
    std::fs::copy(script, lab.share().join("script"))
        .map_err(|err| LabError::io(format_args!("read {}", script.display()), &err))?;
    let guest = lab.boot(1, &GuestOptions { kernel: chosen(kernel), ..GuestOptions::with_disks(disks) })?;
    let output = guest.exec("bash /lab/script", Duration::from_secs(timeout))?;
    print!("{}", output.text);
    guest.power_off()?;
    Ok(exit_code(output.code))
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn socket_path() -> PathBuf {
    xtask::tidy::root().join("target").join("lab.sock")
}

struct Held {
    nodes: Mutex<Vec<Option<Arc<Guest>>>>,
    kernel: Kernel,
    lab: Lab,
}

fn hold(kernel: Option<PathBuf>, nodes: u8) -> Result<ExitCode, LabError> {
    check_available()?;
    let socket = socket_path();
    if UnixStream::connect(&socket).is_ok() {
        return Err(LabError::new(format!("a lab is already held at {}", socket.display())));
    }
    // A holder that was killed leaves its socket.
    let _ = std::fs::remove_file(&socket);
    let held = Held { nodes: Mutex::default(), kernel: chosen(kernel), lab: Lab::new(nodes)? };
    for node in 1..=nodes {
        held.lab.blank_image(&format!("d{node}"), DISK_BYTES)?;
        let guest = held.boot(node)?;
        held.lock().push(Some(guest));
    }
    let listener = UnixListener::bind(&socket)
        .map_err(|err| LabError::io(format_args!("listen at {}", socket.display()), &err))?;
    println!("nodes 1 to {nodes} run; shared directory {} is /lab; interrupt to end", held.lab.share().display());
    std::thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            // A client that hangs up early is its own business.
            scope.spawn(|| drop(held.serve(stream)));
        }
    });
    Ok(ExitCode::SUCCESS)
}

impl Held {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Arc<Guest>>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn boot(&self, node: u8) -> Result<Arc<Guest>, LabError> {
        let disk = self.lab.dir().join(format!("d{node}"));
        let options = GuestOptions { kernel: self.kernel.clone(), ..GuestOptions::with_disks([disk]) };
        Ok(Arc::new(self.lab.boot(node, &options)?))
    }

    fn guest(&self, node: u8) -> Result<Arc<Guest>, LabError> {
        let index = usize::from(node).wrapping_sub(1);
        let guest = self.lock().get(index).cloned().flatten();
        guest.ok_or_else(|| LabError::new(format!("node {node} does not run")))
    }

    fn serve(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        let request: Request = serde_json::from_str(&line)?;
        let reply = self.answer(request).unwrap_or_else(|err| Reply { code: 2, text: format!("{err}\n") });
        writeln!(stream, "{}", serde_json::to_string(&reply)?)
    }

    fn answer(&self, request: Request) -> Result<Reply, LabError> {
        let mut text = String::new();
        let mut code = 0;
        match request {
            Request::Exec { node, command } => {
                let output = self.guest(node)?.exec(&command, Duration::from_secs(3600))?;
                (code, text) = (output.code, output.text);
            }
            Request::Netns => text = self.lab.netns().display().to_string(),
            Request::Boot { node } => {
                if self.guest(node).is_ok_and(|guest| guest.is_alive()) {
                    return Err(LabError::new(format!("node {node} runs already")));
                }
                let guest = self.boot(node)?;
                match self.lock().get_mut(usize::from(node).wrapping_sub(1)) {
                    Some(place) => *place = Some(guest),
                    None => return Err(LabError::new(format!("there is no node {node}"))),
                }
            }
            Request::Stop { node } => self.guest(node)?.power_off()?,
            Request::Crash { node } => self.guest(node)?.crash(),
            Request::Link { node, up } => self.lab.cable(node, if up { Cable::Plugged } else { Cable::Cut })?,
            Request::Console { node } => text = self.guest(node)?.console() + "\n",
        }
        Ok(Reply { code, text })
    }
}

fn converse(request: &Request) -> Result<Reply, LabError> {
    let socket = socket_path();
    let talk = || -> std::io::Result<Reply> {
        let mut stream = UnixStream::connect(&socket)?;
        writeln!(stream, "{}", serde_json::to_string(request)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    talk().map_err(|err| LabError::new(format!("no lab is held here ({err}); run `cargo xtask lab start`")))
}

fn ask(request: &Request) -> Result<ExitCode, LabError> {
    let reply = converse(request)?;
    print!("{}", reply.text);
    Ok(exit_code(reply.code))
}

fn run_in_namespace(command: &[String]) -> Result<ExitCode, LabError> {
    let netns = converse(&Request::Netns)?.text;
    let status = std::process::Command::new("nsenter").arg(format!("--net={netns}")).arg("--").args(command).status();
    let status = status.map_err(|err| LabError::io("run nsenter", &err))?;
    Ok(exit_code(status.code().unwrap_or(1)))
}

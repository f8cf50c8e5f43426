//! udrbd under test: the daemon on the host side of the lab's network, driven by drbdctl, its device used over NBD.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use xtask::lab::drbd::Conf;
use xtask::lab::{Lab, LabError, Leash, Scope, Spec, wait_until};

/// How long anything may take that the daemon should do soon.
const SOON: Duration = Duration::from_secs(60);

const PYTHON: &str = "/usr/bin/python3";

pub struct UdrbdNode {
    holder: Option<Leash>,
    daemon: Option<Leash>,
    netns: PathBuf,
    dir: PathBuf,
    conf: PathBuf,
    name: String,
    /// Further arguments of the daemon.
    arguments: Vec<String>,
    /// Bytes of the log that do not count any more.
    log_from: AtomicUsize,
}

/// The two programs: cargo names the daemon, the admin tool lies beside it.
fn programs() -> (PathBuf, PathBuf) {
    let daemon = PathBuf::from(env!("CARGO_BIN_EXE_udrbd"));
    let tool = daemon.with_file_name("drbdctl");
    (daemon, tool)
}

impl UdrbdNode {
    /// Our host name in the configuration.
    pub const NAME: &str = "u1";

    /// Why udrbd cannot be tested here, if it cannot.
    pub fn missing() -> Option<String> {
        let (daemon, tool) = programs();
        for (program, make) in [(&daemon, "udrbd"), (&tool, "drbdctl")] {
            let version = Command::new(program).arg("--version").stdin(Stdio::null()).output();
            if !version.is_ok_and(|out| out.status.success() && !out.stdout.is_empty()) {
                return Some(format!("`{make} --version` does not run (cargo build --workspace --bins)"));
            }
        }
        if !Path::new("/usr/bin/fio").exists() {
            return Some("fio is missing (cargo xtask test installs it)".to_owned());
        }
        let python =
            Command::new(PYTHON).args(["-c", "import nbd"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
        let usable = python.is_ok_and(|status| status.success());
        (!usable).then(|| "package python3-libnbd is missing (cargo xtask test installs it)".to_owned())
    }

    /// Starts the daemon with `conf`; nothing is configured in it yet.
    pub fn start(lab: &Lab, conf: &Conf) -> Result<Self, LabError> {
        Self::start_as(lab, Self::NAME, conf)
    }

    /// [`UdrbdNode::start`] under another host name.
    pub fn start_as(lab: &Lab, name: &str, conf: &Conf) -> Result<Self, LabError> {
        Self::start_with(lab, name, conf, &[])
    }

    /// The same with further arguments for the daemon.
    pub fn start_with(lab: &Lab, name: &str, conf: &Conf, arguments: &[&str]) -> Result<Self, LabError> {
        let dir = lab.dir().join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|err| LabError::io("remove the old run directory", &err))?;
        }
        std::fs::create_dir(&dir).map_err(|err| LabError::io("make the run directory", &err))?;
        let file = dir.join("drbd.conf");
        std::fs::write(&file, conf.render()).map_err(|err| LabError::io("write drbd.conf", &err))?;
        let mut node = Self {
            holder: None,
            daemon: None,
            netns: lab.netns().to_owned(),
            dir,
            conf: file,
            name: name.to_owned(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            log_from: AtomicUsize::new(0),
        };
        node.run_daemon()?;
        Ok(node)
    }

    /// Makes `conf` the node's drbd.conf.
    pub fn configure(&self, conf: &Conf) -> Result<(), LabError> {
        std::fs::write(&self.conf, conf.render()).map_err(|err| LabError::io("write drbd.conf", &err))
    }

    /// The same with a text.
    pub fn configure_text(&self, conf: &str) -> Result<(), LabError> {
        std::fs::write(&self.conf, conf).map_err(|err| LabError::io("write drbd.conf", &err))
    }

    /// What the daemon has logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// What is logged from here on is what [`UdrbdNode::log_since`] gives.
    pub fn forget_log(&self) {
        self.log_from.store(self.log_text().len(), Ordering::Relaxed);
    }

    /// What the daemon has logged since [`UdrbdNode::forget_log`].
    pub fn log_since(&self) -> String {
        self.log_text().get(self.log_from.load(Ordering::Relaxed)..).unwrap_or_default().to_owned()
    }

    /// Opens volume 0 and keeps it open until told otherwise.
    pub fn hold(&mut self, open: bool) -> Result<(), LabError> {
        if !open {
            self.holder = None;
            return wait_until("the NBD client's end", SOON, || {
                let said = self.drbdctl("status r0 --json")?;
                Ok(if said.contains("\"open-count\": 1") { Err(said) } else { Ok(()) })
            });
        }
        let ready = self.dir.join("holding");
        let _ = std::fs::remove_file(&ready);
        let log = File::create(self.dir.join("holder.log")).map_err(|err| LabError::io("create a log", &err))?;
        let program = "import nbd, sys, time\nh = nbd.NBD()\nh.connect_uri(sys.argv[1])\nopen(sys.argv[2], 'w').close()\n\
                       time.sleep(1000)\n";
        let argv = vec![PYTHON.into(), "-c".into(), program.into(), self.uri(0).into(), ready.clone().into()];
        let spec = Spec {
            argv,
            netns: None,
            env: Vec::new(),
            stderr: log,
            scope: Scope::Process,
            redirections: String::new(),
            dir: self.dir.clone(),
        };
        self.holder = Some(Leash::start(spec, |_| {})?);
        wait_until("an open device", SOON, || Ok(if ready.exists() { Ok(()) } else { Err("not open".to_owned()) }))
    }

    /// Starts the daemon again after [`UdrbdNode::kill`], over the same run directory.
    pub fn run_daemon(&mut self) -> Result<(), LabError> {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.dir.join("log"))
            .map_err(|err| LabError::io("open the daemon's log", &err))?;
        let (daemon, _) = programs();
        let mut copy = log.try_clone().map_err(|err| LabError::io("share the daemon's log", &err))?;
        let mut argv = vec![daemon.into_os_string(), "--run-dir".into(), self.dir.clone().into()];
        argv.extend(["--config".into(), self.conf.clone().into()]);
        argv.extend(["--hostname", &self.name, "--frontend", "nbd"].map(Into::into));
        argv.extend(self.arguments.iter().map(Into::into));
        let daemon = Leash::start(
            Spec {
                argv,
                netns: Some(self.netns.clone()),
                env: Vec::new(),
                stderr: log,
                scope: Scope::Process,
                redirections: String::new(),
                dir: self.dir.clone(),
            },
            move |line| drop(writeln!(copy, "{line}")),
        )?;
        let daemon = self.daemon.insert(daemon);
        let socket = self.dir.join("control.sock");
        wait_until("the daemon's control socket", SOON, || {
            if !daemon.is_alive() {
                return Err(LabError::new("the daemon ended at once"));
            }
            let connected = std::os::unix::net::UnixStream::connect(&socket);
            Ok(connected.map(drop).map_err(|err| err.to_string()))
        })
    }

    /// Kills the daemon (SIGKILL).
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// `drbdctl ARGS` (words without blanks), which must succeed.
    pub fn drbdctl(&self, args: &str) -> Result<String, LabError> {
        run(&mut self.command(args), &format!("drbdctl {args}"))
    }

    fn command(&self, args: &str) -> Command {
        let (_, tool) = programs();
        // In the lab's network: drbdctl checks, as drbdadm does, that this host has the configured address.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns.display()))
            .args(["timeout", "60"])
            .arg(tool)
            .arg("-c")
            .arg(&self.conf)
            .args(["--hostname", &self.name]);
        command.arg("--socket").arg(self.dir.join("control.sock")).args(args.split_whitespace());
        command
    }

    /// `drbdctl ARGS`, whatever comes of it: its exit code, and what it said.
    pub fn try_drbdctl(&self, args: &str) -> Result<(i32, String), LabError> {
        let output = self.command(args).stdin(Stdio::null()).output();
        let output = output.map_err(|err| LabError::io(format_args!("run drbdctl {args}"), &err))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        Ok((output.status.code().unwrap_or(-1), text))
    }

    /// Waits until `drbdctl role|cstate|dstate r0` answers `should` for each volume.
    pub fn wait(&self, what: &str, should: &str, volumes: usize) -> Result<(), LabError> {
        wait_until(&format!("udrbd: {what} {should}"), SOON, || {
            let text = self.drbdctl(&format!("{what} r0"))?;
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            Ok(if lines.len() == volumes && lines.iter().all(|line| *line == should) { Ok(()) } else { Err(text) })
        })
    }

    /// The NBD address of volume `nr`.
    pub fn uri(&self, nr: usize) -> String {
        let export = if nr == 0 { "r0".to_owned() } else { format!("r0/{nr}") };
        format!("nbd+unix:///{export}?socket={}", self.dir.join("nbd.sock").display())
    }

    /// Runs a Python program with `h` connected to volume `nr`; what it printed. Debian's own Python, because that is what
    /// the package python3-libnbd is for.
    fn nbd(&self, nr: usize, program: &str) -> Result<String, LabError> {
        let program = format!("import nbd, sys\nh = nbd.NBD()\nh.connect_uri(sys.argv[1])\n{program}h.shutdown()\n");
        let mut command = Command::new("timeout");
        command.args(["60", PYTHON, "-c", &program, &self.uri(nr)]);
        run(&mut command, "an NBD client")
    }

    /// Writes `data` at `offset` bytes of volume `nr` in requests of `request` bytes, up to 16 in flight, then flushes.
    pub fn write(&self, nr: usize, offset: u64, data: &[u8], request: u32) -> Result<(), LabError> {
        let file = self.dir.join("nbd-data");
        std::fs::write(&file, data).map_err(|err| LabError::io("write a data file", &err))?;
        self.nbd(
            nr,
            &format!(
                "data = open('{}', 'rb').read()\n\
                 pending = []\n\
                 def settle(cookie):\n\
                 \x20   while not h.aio_command_completed(cookie): h.poll(-1)\n\
                 for at in range(0, len(data), {request}):\n\
                 \x20   pending.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data[at:at+{request}])), {offset} + at))\n\
                 \x20   if len(pending) > 15: settle(pending.pop(0))\n\
                 for cookie in pending: settle(cookie)\n\
                 h.flush()\n",
                file.display()
            ),
        )
        .map(drop)
    }

    /// Reads `len` bytes at `offset` of volume `nr`.
    pub fn read(&self, nr: usize, offset: u64, len: u64) -> Result<Vec<u8>, LabError> {
        let file = self.dir.join("nbd-read");
        self.nbd(
            nr,
            &format!(
                "out = open('{}', 'wb')\n\
                 for at in range(0, {len}, 262144): out.write(h.pread(min(262144, {len} - at), {offset} + at))\n\
                 out.close()\n",
                file.display()
            ),
        )?;
        std::fs::read(&file).map_err(|err| LabError::io("read a data file", &err))
    }

    /// Writes `writes` times at random places of the first `sectors` sectors of volume 0, with up to `depth` requests in
    /// flight: data, zeroes and discards of random sizes.
    pub fn storm(&self, seed: u32, writes: u32, depth: u32, sectors: u32) -> Result<(), LabError> {
        self.nbd(
            0,
            &format!(
                "import random\n\
                 r = random.Random({seed})\n\
                 pending = []\n\
                 def settle(cookie):\n\
                 \x20   while not h.aio_command_completed(cookie): h.poll(-1)\n\
                 for i in range({writes}):\n\
                 \x20   count = r.choice([1, 1, 2, 8, 8, 16, 32])\n\
                 \x20   start = r.randrange({sectors} - count + 1)\n\
                 \x20   kind = r.randrange(20)\n\
                 \x20   if kind == 0: pending.append(h.aio_zero(count * 512, start * 512))\n\
                 \x20   elif kind == 1: pending.append(h.aio_trim(count * 512, start * 512))\n\
                 \x20   else: pending.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([r.randrange(256)]) * (count * 512)), start * 512))\n\
                 \x20   if len(pending) >= {depth}: settle(pending.pop(0))\n\
                 for cookie in pending: settle(cookie)\n\
                 h.flush()\n"
            ),
        )
        .map(drop)
    }

    /// Zeroes `len` bytes at `offset` of volume `nr`.
    pub fn zero(&self, nr: usize, offset: u64, len: u64) -> Result<(), LabError> {
        self.nbd(nr, &format!("h.zero({len}, {offset})\nh.flush()\n")).map(drop)
    }

    /// Size of volume `nr` in bytes.
    pub fn size(&self, nr: usize) -> Result<u64, LabError> {
        let text = self.nbd(nr, "print(h.get_size())\n")?;
        text.trim().parse().map_err(|_err| LabError::new(format!("the NBD client says the size is {text:?}")))
    }

    /// Starts fio on volume 0 with verification; `job` is its further options.
    pub fn fio(&self, job: &str) -> Result<Load, LabError> {
        let log = self.dir.join("fio.log");
        let out = File::create(&log).map_err(|err| LabError::io("create fio's log", &err))?;
        let mut copy = out.try_clone().map_err(|err| LabError::io("share fio's log", &err))?;
        let mut argv: Vec<OsString> =
            ["/usr/bin/fio", "--name=load", "--ioengine=nbd", "--thread", "--group_reporting"].map(Into::into).to_vec();
        argv.push(format!("--uri={}", self.uri(0)).into());
        argv.extend(job.split_whitespace().map(Into::into));
        let leash = Leash::start(
            Spec {
                argv,
                netns: None,
                env: Vec::new(),
                stderr: out,
                scope: Scope::Process,
                redirections: String::new(),
                dir: self.dir.clone(),
            },
            move |line| drop(writeln!(copy, "{line}")),
        )?;
        Ok(Load { leash, log })
    }

    /// The end of the daemon's log.
    pub fn log_tail(lab: &Lab) -> String {
        Self::log_tail_of(lab, Self::NAME)
    }

    /// The end of the log of the daemon with this host name.
    pub fn log_tail_of(lab: &Lab, name: &str) -> String {
        let text = std::fs::read_to_string(lab.dir().join(name).join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

fn run(command: &mut Command, what: &str) -> Result<String, LabError> {
    let out = command.stdin(Stdio::null()).output().map_err(|err| LabError::io(format_args!("run {what}"), &err))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(LabError::new(format!("`{what}` ended with {}:\n{}{}", out.status, text, said.trim_end())))
}

/// A running fio; killed when dropped.
pub struct Load {
    leash: Leash,
    log: PathBuf,
}

impl Load {
    /// Fails if fio ended already, with what it complained about.
    pub fn assert_running(&mut self) -> Result<(), LabError> {
        if self.leash.is_alive() { Ok(()) } else { Err(self.complaint("ended early")) }
    }

    /// Waits for its end, which must be a success.
    pub fn finish(mut self) -> Result<(), LabError> {
        match self.leash.wait_exit(Duration::from_secs(180)) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.complaint(&format!("ended with {status}"))),
            None => Err(self.complaint("does not end")),
        }
    }

    fn complaint(&self, what: &str) -> LabError {
        LabError::new(format!("fio {what}:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default()))
    }
}

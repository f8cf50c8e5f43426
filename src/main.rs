//! The daemon's command line and start-up, nothing else.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;
use udrbd::config::load::host_name;
use udrbd::disk::RingChoice;
use udrbd::frontend::nbd::access::{Access, Cidr};
use udrbd::frontend::nbd::server::Listen;
use udrbd::node::run::{RunOptions, run};
use udrbd::node::startup::Which;

/// A userspace DRBD: mirrors block devices to a peer and exports them over NBD.
#[derive(Debug, Parser)]
#[command(name = "udrbd", version)]
struct Args {
    /// Directory of the sockets control.sock and nbd.sock [default: /run/udrbd]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Directory for what must survive a restart [default: /var/lib/udrbd, or state in the run directory if that is given]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Most room in the state directory for undoing the resolution of a split brain, for each volume; K, M, G or T may
    /// follow; 0: none
    #[arg(long, value_name = "SIZE", default_value = "16G", value_parser = size)]
    undo_limit: u64,
    /// Path of the control socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file [default: DRBD's places, at last /etc/drbd.conf]
    #[arg(long, short = 'c', value_name = "FILE", env = "DRBD_CONF")]
    config: Option<PathBuf>,
    /// Name of this host in the configuration [default: DRBD_HOSTNAME, or the kernel's]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Bring resources up at start: all, or one by name
    #[arg(long, value_name = "RES|all")]
    up: Option<String>,
    /// How applications reach the data
    #[arg(long, value_enum, default_value_t = Frontend::Auto)]
    frontend: Frontend,
    /// Serve NBD over TCP, too
    #[arg(long, value_name = "ADDR:PORT")]
    nbd_listen: Option<SocketAddr>,
    /// Networks whose hosts may use NBD over TCP, besides this host itself
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    nbd_allow: Vec<Cidr>,
    /// TLS for NBD over TCP
    #[arg(long, value_enum, default_value_t = Tls::Off)]
    nbd_tls: Tls,
    /// Directory of certificates and keys
    #[arg(long, value_name = "DIR")]
    nbd_tls_dir: Option<PathBuf>,
    /// Prometheus endpoint
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// How disks are accessed
    #[arg(long, value_enum, default_value_t = DiskIo::Auto)]
    disk_io: DiskIo,
    /// Seconds that a program of the section handlers may take; 0: no limit
    #[arg(long, value_name = "SECONDS", default_value_t = HANDLER_SECONDS)]
    handler_timeout: u64,
}

/// As long as drbdadm waits for such a program (cmd-timeout-long).
const HANDLER_SECONDS: u64 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Frontend {
    /// The best that this host and this build can do
    Auto,
    /// /dev/ublkbN
    Ublk,
    /// /dev/nbdN, attached by the daemon
    KernelNbd,
    /// The NBD socket only
    Nbd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tls {
    Off,
    On,
    Require,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DiskIo {
    /// io_uring where the host allows it, else threads
    Auto,
    /// io_uring or nothing
    Uring,
    /// Threads
    Portable,
}

fn main() -> ExitCode {
    let args = Args::parse();
    start_logging();
    let ran = options(args).and_then(|options| run(options).map_err(|error| error.to_string()));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options(args: Args) -> Result<RunOptions, String> {
    let not_yet = |what: &str| Err(format!("{what} is not in this version"));
    match args.frontend {
        Frontend::Ublk => return not_yet("--frontend ublk"),
        Frontend::KernelNbd => return not_yet("--frontend kernel-nbd"),
        Frontend::Auto => tracing::info!("frontend: NBD socket only, block devices are not in this version"),
        Frontend::Nbd => {}
    }
    if args.nbd_tls != Tls::Off || args.nbd_tls_dir.is_some() {
        return not_yet("TLS for NBD");
    }
    if args.metrics_listen.is_some() {
        return not_yet("--metrics-listen");
    }
    let state_dir = args.state_dir.unwrap_or_else(|| match &args.run_dir {
        Some(run_dir) => run_dir.join("state"),
        None => PathBuf::from("/var/lib/udrbd"),
    });
    Ok(RunOptions {
        run_dir: args.run_dir.unwrap_or_else(|| PathBuf::from("/run/udrbd")),
        control_socket: args.socket,
        state_dir,
        undo_limit: args.undo_limit,
        config: args.config,
        hostname: host_name(args.hostname.as_deref()),
        up: args.up.map(|up| if up == "all" { Which::All } else { Which::One(up) }),
        nbd: Listen { unix: None, tcp: args.nbd_listen, access: Access::new(args.nbd_allow) },
        ring: match args.disk_io {
            DiskIo::Auto => RingChoice::Auto,
            DiskIo::Uring => RingChoice::Uring,
            DiskIo::Portable => RingChoice::Portable,
        },
        handler_timeout: (args.handler_timeout > 0).then(|| Duration::from_secs(args.handler_timeout)),
        lock_memory: true,
    })
}

/// A number of bytes with a unit.
fn size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text} is not a size, as 512M or 16G are"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

/// To stderr; the journal has its own clock.
fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() { log.without_time().init() } else { log.init() }
}

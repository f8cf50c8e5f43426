//! What one run of the tool knows: the configuration as this host sees it, and the daemon.
//!
//! Both are only opened when a command needs them. Errors are told here; callers pass the exit code on.

use std::env;
use std::path::PathBuf;

use udrbd::config::load::{FsLoader, default_file, has_address, host_name};
use udrbd::config::{self, Document, LocalNode, Report, ResolvedResource};
use udrbd::control::client::{Client, ClientError};
use udrbd::control::status::Status;
use udrbd::control::{Reply, Request};

use crate::args::Call;
use crate::out;
use crate::report::{Attempt, Done, Exit, refused};

/// Where the daemon listens unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/udrbd/control.sock";

/// The configuration of this host.
#[derive(Debug)]
pub struct Configured {
    /// Path of the file, for messages.
    pub path: String,
    /// What was read.
    pub document: Document,
    /// Resources with a section for this host, in file order.
    pub resources: Vec<ResolvedResource>,
}

/// See the module.
#[derive(Debug)]
pub struct Context {
    config_file: Option<String>,
    /// Name of this host.
    pub node: String,
    /// Which peer to use where there are several.
    pub peer: Option<String>,
    /// Work on stacked resources.
    pub stacked: bool,
    socket: PathBuf,
    configured: Option<Configured>,
    client: Option<Client>,
}

fn from_env(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

impl Context {
    /// Takes the options and the environment; opens nothing.
    pub fn new(call: &Call) -> Self {
        let option = |name: &str| call.option(name).map(str::to_owned);
        let socket = option("socket").or_else(|| from_env("UDRBD_SOCKET")).unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
        Self {
            config_file: option("config").or_else(|| from_env("DRBD_CONF")),
            node: host_name(call.option("hostname")),
            peer: option("peer"),
            stacked: call.flag("stacked"),
            socket: PathBuf::from(socket),
            configured: None,
            client: None,
        }
    }

    /// Whether a configuration was named or can be found.
    pub fn has_config(&self) -> bool {
        self.config_file.is_some() || default_file().is_some()
    }

    /// The configuration.
    pub fn config(&mut self) -> Done<&Configured> {
        if self.configured.is_none() {
            self.configured = Some(self.load()?);
        }
        // Just filled.
        self.configured.as_ref().ok_or(Exit(42))
    }

    fn load(&self) -> Done<Configured> {
        let path = match (&self.config_file, default_file()) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path.to_owned(),
            (None, None) => {
                out::say("Can not open '/etc/drbd.conf': No such file or directory");
                out::say("drbdctl: there is no configuration; write /etc/drbd.conf, or name one with --config");
                return Err(Exit(10));
            }
        };
        let invalid = |report: Box<Report>| {
            out::say(&report.to_string());
            Exit(10)
        };
        let document = if path == "-" {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut std::io::stdin(), &mut text).map_err(|error| {
                out::say(&format!("Can not read the configuration from standard input: {error}"));
                Exit(20)
            })?;
            config::parse_with("STDIN", &text, &mut FsLoader)
        } else {
            if let Err(error) = std::fs::File::open(&path) {
                out::say(&format!("Can not open '{path}': {error}"));
                return Err(Exit(20));
            }
            config::load(&mut FsLoader, &path)
        }
        .map_err(invalid)?;
        for warning in document.warnings() {
            out::say(warning);
        }
        let resources = document.resolve_all(&self.local_node()).map_err(invalid)?;
        Ok(Configured { path, document, resources })
    }

    /// Who this host is.
    pub fn local_node(&self) -> LocalNode<'_> {
        LocalNode { name: &self.node, has_address: &has_address }
    }

    /// Hosts that this resource is for, if this host is none of them.
    pub fn configured_elsewhere(&self, resource: &str) -> Vec<String> {
        if self.configured.as_ref().is_some_and(|c| c.resources.iter().any(|r| r.name == resource)) {
            return Vec::new();
        }
        let found = self.configured.as_ref().and_then(|c| c.document.config().resource(resource));
        found.map(|r| r.hosts.iter().map(config::model::Host::name).collect()).unwrap_or_default()
    }

    /// Checks that the addresses of these resources are configured on this host.
    pub fn verify_addresses(&mut self, names: &[String]) -> Done {
        let node = self.node.clone();
        let configured = self.config()?;
        let selected = |ip: &core::net::IpAddr| {
            // Only the resources that the command works on.
            has_address(ip) || !configured.resources.iter().any(|r| names.contains(&r.name) && r.me.address.ip == *ip)
        };
        let local = LocalNode { name: &node, has_address: &selected };
        configured.document.verify_addresses(&local).map_err(|report| {
            out::say(&report.to_string());
            Exit(10)
        })
    }

    /// The connection to the daemon.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`]; nothing has been told.
    pub fn client(&mut self) -> Result<&mut Client, ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket)?,
        };
        Ok(self.client.insert(client))
    }

    /// A connection of its own.
    pub fn new_client(&self) -> Done<Client> {
        Client::connect(&self.socket).map_err(|error| unreachable_daemon(&error))
    }

    /// Asks the daemon for something.
    pub fn request(&mut self, attempt: &Attempt, request: Request) -> Done {
        let reply =
            self.client().and_then(|client| client.call(request)).map_err(|error| unreachable_daemon(&error))?;
        match reply {
            Reply::Done => Ok(()),
            Reply::Error(error) => Err(refused(attempt, &error)),
            Reply::Status(_) | Reply::SplitBrain(_) | Reply::Version(_) => {
                out::say(&format!("{}: {}: the daemon gave an answer to something else", attempt.label, attempt.word));
                Err(Exit(20))
            }
        }
    }

    /// Asks the daemon; gives its answer as it is.
    pub fn call(&mut self, request: Request) -> Done<Reply> {
        self.client().and_then(|client| client.call(request)).map_err(|error| unreachable_daemon(&error))
    }

    /// As [`Self::request`], where a refusal means that there is nothing to do.
    pub fn request_silently(&mut self, request: Request) -> Done {
        let reply = self.client().and_then(|client| client.call(request));
        reply.map(drop).map_err(|error| unreachable_daemon(&error))
    }

    /// Where the daemon keeps what outlives it: beside its socket (`--run-dir`), else the default place.
    pub fn state_dir(&self) -> PathBuf {
        let beside = self.socket.parent().map(|dir| dir.join("state")).filter(|dir| dir.is_dir());
        beside.unwrap_or_else(|| PathBuf::from("/var/lib/udrbd"))
    }

    /// As [`Self::request`], for what is done anyhow when no daemon runs.
    pub fn request_if_running(&mut self, attempt: &Attempt, request: Request) -> Done {
        if let Err(error @ ClientError::NotRunning { .. }) = self.client()
            && !is_permission(&error)
        {
            out::say(&format!("{}: nothing to do: udrbd does not run ({})", attempt.label, self.socket.display()));
            return Ok(());
        }
        self.request(attempt, request)
    }

    /// What there is to see.
    pub fn status(&mut self, resource: Option<&str>) -> Done<Status> {
        self.client().and_then(|client| client.status(resource)).map_err(|error| unreachable_daemon(&error))
    }

    /// What there is to see; `None` when no daemon runs.
    pub fn status_if_running(&mut self) -> Done<Option<Status>> {
        match self.client().and_then(|client| client.status(None)) {
            Ok(status) => Ok(Some(status)),
            Err(ref error @ ClientError::NotRunning { .. }) if !is_permission(error) => Ok(None),
            Err(error) => Err(unreachable_daemon(&error)),
        }
    }
}

fn is_permission(error: &ClientError) -> bool {
    matches!(error, ClientError::NotRunning { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
}

fn unreachable_daemon(error: &ClientError) -> Exit {
    out::say(&format!("drbdctl: {error}"));
    Exit(20)
}

//! `status`, as drbdsetup 8.4 prints it (config-and-commands.md 14.1).

use std::fmt::Write as _;

use super::{
    connection_word, done_percent, is_connected, is_stand_alone, replication_word, resync_suspended, suspended, yes_no,
};
use crate::control::status::{Resource, Status, Volume};
use crate::wire::state::{ConnState, DiskState, Role};

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct TextOptions {
    /// All fields, also those with their usual values.
    pub verbose: bool,
    /// Counters.
    pub statistics: bool,
    /// With colours.
    pub color: bool,
    /// Columns of the terminal; lines are broken before fields that would pass it.
    pub width: usize,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { verbose: false, statistics: false, color: false, width: 80 }
    }
}

/// All resources, each followed by an empty line.
#[must_use]
pub fn status(status: &Status, options: &TextOptions) -> String {
    status.resources.iter().map(|r| resource(r, options)).collect()
}

/// One resource, followed by an empty line.
#[must_use]
pub fn resource(resource: &Resource, options: &TextOptions) -> String {
    let mut page = Page { out: String::new(), column: 0, indent: 0, options };
    page.resource(resource);
    page.out.push('\n');
    page.out
}

struct Page<'a> {
    out: String,
    column: usize,
    /// Of continuation lines.
    indent: usize,
    options: &'a TextOptions,
}

impl Page<'_> {
    fn line(&mut self, first: usize, indent: usize) {
        self.out.push_str(&" ".repeat(first));
        self.column = first;
        self.indent = indent;
    }

    fn end(&mut self) {
        self.out.push('\n');
        self.column = 0;
    }

    /// The rest goes on a line of its own.
    fn break_line(&mut self) {
        self.end();
        let indent = self.indent;
        self.line(indent, indent);
    }

    fn field(&mut self, name: &str, value: &str) {
        self.colored(name, value, "");
    }

    /// A field whose value is wrapped in a colour; `color` is the middle of the escape sequence, empty for none.
    fn colored(&mut self, name: &str, value: &str, color: &str) {
        let text_len = name.len() + value.len() + usize::from(!name.is_empty() && !value.is_empty());
        let at_start = self.column == 0 || self.out.ends_with("  ") || self.out.ends_with('\n');
        if !at_start && self.column + 1 + text_len > self.options.width {
            self.break_line();
        } else if !at_start {
            self.out.push(' ');
            self.column += 1;
        }
        self.out.push_str(name);
        if !name.is_empty() && !value.is_empty() {
            self.out.push(':');
        }
        if color.is_empty() || !self.options.color {
            self.out.push_str(value);
        } else {
            // Writing into a String cannot fail.
            let _ = write!(self.out, "\x1b[{color}m{value}\x1b[0m");
        }
        self.column += text_len;
    }

    fn number(&mut self, name: &str, value: u64) {
        self.field(name, &value.to_string());
    }

    fn resource(&mut self, resource: &Resource) {
        let TextOptions { verbose, statistics, .. } = *self.options;
        self.line(0, 4);
        self.field(&resource.name, "");
        self.colored("role", resource.role.text(), role_color(resource.role, true));
        let suspended = suspended(resource.suspended);
        if verbose || suspended != "no" {
            self.field("suspended", &suspended);
        }
        if verbose && statistics {
            self.break_line();
            self.field("write-ordering", &resource.write_ordering);
        }
        self.end();
        let numbered = verbose || resource.volumes.len() > 1 || resource.volumes.iter().any(|v| v.volume.0 != 0);
        for volume in &resource.volumes {
            self.device(volume, numbered);
        }
        if !is_stand_alone(resource) {
            self.connection(resource, numbered);
        }
    }

    fn device(&mut self, volume: &Volume, numbered: bool) {
        let TextOptions { verbose, statistics, .. } = *self.options;
        self.line(2, 6);
        if numbered {
            self.number("volume", u64::from(volume.volume.0));
        }
        if verbose {
            self.number("minor", u64::from(volume.minor.0));
        }
        self.colored("disk", volume.disk.text(), disk_color(volume.disk, true));
        let counters = &volume.counters;
        if statistics {
            self.break_line();
            if verbose {
                self.number("size", volume.size_kib);
            }
            self.number("read", counters.read_kib);
            self.number("written", counters.written_kib);
            if verbose {
                self.number("al-writes", counters.al_writes);
                self.number("bm-writes", counters.bm_writes);
                self.number("upper-pending", counters.upper_pending);
                self.number("lower-pending", counters.lower_pending);
                self.field("al-suspended", yes_no(volume.al_suspended));
            }
        }
        if verbose || volume.blocked != "no" {
            self.field("blocked", &volume.blocked);
        }
        self.end();
    }

    fn connection(&mut self, resource: &Resource, numbered: bool) {
        let TextOptions { verbose, statistics, .. } = *self.options;
        let connected = is_connected(resource);
        let (peer_role, congested) =
            resource.connection.as_ref().map_or((Role::Unknown, false), |c| (c.peer_role, c.congested));
        self.line(2, 6);
        self.field("peer", "");
        if verbose || !connected {
            let word = connection_word(resource);
            self.colored("connection", word, connection_color(word));
        }
        if verbose || connected {
            self.colored("role", peer_role.text(), role_color(peer_role, false));
        }
        if verbose || congested {
            self.field("congested", yes_no(congested));
        }
        self.end();
        if connected || verbose || statistics {
            for volume in &resource.volumes {
                self.peer_device(volume, numbered);
            }
        }
    }

    fn peer_device(&mut self, volume: &Volume, numbered: bool) {
        let TextOptions { verbose, statistics, .. } = *self.options;
        self.line(4, 8);
        if numbered {
            self.number("volume", u64::from(volume.volume.0));
        }
        let replication = replication_word(volume);
        let off = replication == "Off";
        if verbose || !off {
            self.colored("replication", replication, replication_color(volume.state));
        }
        if verbose || !off || volume.peer_disk != DiskState::DUnknown {
            self.colored("peer-disk", volume.peer_disk.text(), disk_color(volume.peer_disk, false));
        }
        if let Some(done) = done_percent(volume) {
            self.field("done", &format!("{done:.2}"));
        }
        let paused = resync_suspended(volume.resync_suspended);
        if verbose || paused != "no" {
            self.field("resync-suspended", &paused);
        }
        if statistics {
            let counters = &volume.counters;
            self.break_line();
            self.number("received", counters.received_kib);
            self.number("sent", counters.sent_kib);
            if verbose || volume.out_of_sync_kib > 0 {
                self.number("out-of-sync", volume.out_of_sync_kib);
            }
            if verbose {
                self.number("pending", counters.pending);
                self.number("unacked", counters.unacked);
            }
        }
        self.end();
    }
}

const fn role_color(role: Role, local: bool) -> &'static str {
    match (role, local) {
        (Role::Primary, true) => "1;36",
        (Role::Primary, false) => "36",
        _ => "",
    }
}

const fn disk_color(disk: DiskState, local: bool) -> &'static str {
    match (disk, local) {
        (DiskState::UpToDate, true) => "1;32",
        (DiskState::UpToDate, false) => "32",
        (DiskState::Diskless | DiskState::Inconsistent | DiskState::Outdated, true) => "1;31",
        (DiskState::Diskless | DiskState::Inconsistent | DiskState::Outdated, false) => "31",
        (DiskState::Attaching | DiskState::Negotiating | DiskState::Failed, _) => "1",
        _ => "",
    }
}

fn connection_color(word: &str) -> &'static str {
    match word {
        "Connected" => "",
        "StandAlone" | "Connecting" => "31",
        _ => "1",
    }
}

const fn replication_color(state: ConnState) -> &'static str {
    match state {
        ConnState::SyncSource | ConnState::SyncTarget | ConnState::PausedSyncT => "31",
        ConnState::StartingSyncS
        | ConnState::StartingSyncT
        | ConnState::WfBitMapS
        | ConnState::WfBitMapT
        | ConnState::WfSyncUuid => "1",
        _ => "",
    }
}

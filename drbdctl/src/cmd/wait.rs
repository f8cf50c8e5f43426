//! `wait-connect` and `wait-sync` (behaviour.md 9.1).
//!
//! All volumes are waited for at the same time, by events; a progress bar on a terminal shows how far a resync is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use udrbd::config::model::StartupOptions;
use udrbd::control::client::{Client, ClientError};
use udrbd::control::proto::Event;
use udrbd::control::status::{Resource, Volume, WaitKind};
use udrbd::units::VolumeNr;
use udrbd::wire::state::{ConnState, DiskState};

use super::simple::no_such_minor;
use crate::args::Call;
use crate::context::Context;
use crate::out;
use crate::report::{Attempt, Done, Exit};
use crate::target::select;

/// How often the progress bar moves.
const REDRAW: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Connected,
    Synced,
}

impl Goal {
    /// Whether there is nothing left to wait for.
    fn is_reached(self, state: ConnState, wait_after_sb: bool) -> bool {
        let given_up = state < ConnState::Unconnected && !wait_after_sb;
        given_up
            || match self {
                Self::Connected => state >= ConnState::Connected,
                Self::Synced => state == ConnState::Connected,
            }
    }
}

/// `wait-connect`
pub fn connect(ctx: &mut Context, call: &Call) -> Done {
    wait(ctx, call, Goal::Connected)
}

/// `wait-sync`
pub fn sync(ctx: &mut Context, call: &Call) -> Done {
    wait(ctx, call, Goal::Synced)
}

/// The three timeouts in seconds, 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timeouts {
    wfc: u32,
    degraded: u32,
    outdated: u32,
}

impl Timeouts {
    fn of(self, kind: WaitKind) -> Option<Duration> {
        let seconds = match kind {
            WaitKind::Normal => self.wfc,
            WaitKind::Degraded => self.degraded,
            WaitKind::PeerOutdated => self.outdated,
        };
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// Puts them in the order that makes sense, and tells what was changed, in drbdsetup's words.
    fn ordered(mut self) -> (Self, String) {
        let mut told = String::new();
        if self.wfc > 0 && (self.wfc < self.degraded || self.degraded == 0) {
            self.degraded = self.wfc;
            told += "degr-wfc-timeout has to be shorter than wfc-timeout\n";
            told += &format!("degr-wfc-timeout implicitly set to wfc-timeout ({}s)\n", self.degraded);
        }
        if self.degraded > 0 && (self.degraded < self.outdated || self.outdated == 0) {
            told += "outdated-wfc-timeout has to be shorter than degr-wfc-timeout\n";
            told += &format!("outdated-wfc-timeout implicitly set to degr-wfc-timeout ({}s)\n", self.degraded);
            self.outdated = self.wfc;
        }
        (self, told)
    }
}

fn timeouts(call: &Call, startup: &StartupOptions) -> Done<Timeouts> {
    if let Some(seconds) = call.number("timeout")? {
        return Ok(Timeouts { wfc: seconds, degraded: seconds, outdated: seconds });
    }
    let (ordered, told) = Timeouts {
        wfc: call.number("wfc-timeout")?.unwrap_or_else(|| startup.wfc_timeout().0),
        degraded: call.number("degr-wfc-timeout")?.unwrap_or_else(|| startup.degr_wfc_timeout().0),
        outdated: call.number("outdated-wfc-timeout")?.unwrap_or_else(|| startup.outdated_wfc_timeout().0),
    }
    .ordered();
    out::hint(&told);
    Ok(ordered)
}

/// One volume that is waited for.
struct Waiting {
    resource: String,
    volume: VolumeNr,
    attempt: Attempt,
    wait_after_sb: bool,
    deadline: Option<Instant>,
    done: bool,
    /// Connected with one good disk: until then a resync may still begin.
    grace: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Waiting {
    fn find<'a>(&self, known: &'a BTreeMap<String, Resource>) -> Option<&'a Volume> {
        known.get(&self.resource)?.volumes.iter().find(|v| v.volume == self.volume)
    }
}

/// How long a resync may take to begin after a promotion; the nodes exchange a few packets first.
const SYNC_START: Duration = Duration::from_secs(3);

/// Whether one node has good data and the other has not: right after `primary --force` the resync is yet to begin. After a
/// resync with unreadable blocks it stays so, and nothing more comes.
fn sync_is_due(volume: &Volume) -> bool {
    let disks = (volume.disk, volume.peer_disk);
    matches!(disks, (DiskState::UpToDate, DiskState::Inconsistent) | (DiskState::Inconsistent, DiskState::UpToDate))
}

fn wait(ctx: &mut Context, call: &Call, goal: Goal) -> Done {
    let targets = select(ctx, call, false)?;
    let broken = |error: &ClientError| {
        out::say(&format!("drbdctl: {error}"));
        Exit(20)
    };
    let (status, mut watcher) = ctx.new_client()?.watch(None).map_err(|e| broken(&e))?;
    let start = Instant::now();
    let mut known: BTreeMap<String, Resource> = status.resources.into_iter().map(|r| (r.name.clone(), r)).collect();
    let bars = out::stderr_is_terminal().then(MultiProgress::new);
    let mut waiting = Vec::new();
    for target in &targets {
        let timeouts = timeouts(call, &target.resource.startup)?;
        for volume in &target.volumes {
            let mut one = Waiting {
                resource: target.resource.name.clone(),
                volume: volume.vnr,
                attempt: target.volume_attempt(volume, call.row.name),
                wait_after_sb: call.flag("wait-after-sb") || target.resource.startup.wait_after_sb(),
                deadline: None,
                done: false,
                grace: None,
                bar: None,
            };
            let kind = one.find(&known).map_or(WaitKind::Normal, |v| v.wait);
            one.deadline = timeouts.of(kind).map(|timeout| start + timeout);
            waiting.push(one);
        }
    }
    let mut poll = match &bars {
        Some(_) => Some(ctx.new_client()?),
        None => None,
    };
    loop {
        for one in waiting.iter_mut().filter(|one| !one.done) {
            let Some(volume) = one.find(&known) else { return Err(no_such_minor(&one.attempt)) };
            one.done = goal.is_reached(volume.state, one.wait_after_sb);
            if one.done && goal == Goal::Synced && sync_is_due(volume) {
                let until = *one.grace.get_or_insert_with(|| Instant::now() + SYNC_START);
                one.done = until <= Instant::now();
            } else {
                one.grace = None;
            }
            show(one, volume, bars.as_ref());
        }
        let now = Instant::now();
        let left: Vec<_> = waiting.iter().filter(|one| !one.done).collect();
        if left.is_empty() {
            return Ok(());
        }
        if left.iter().any(|one| one.deadline.is_some_and(|deadline| deadline <= now)) {
            return Err(Exit(5));
        }
        let mut until = left.iter().flat_map(|one| [one.deadline, one.grace]).flatten().min();
        if poll.is_some() {
            until = Some(until.map_or(now + REDRAW, |until| until.min(now + REDRAW)));
        }
        match watcher.next(until).map_err(|e| broken(&e))? {
            Some(Event::Resource(resource)) => {
                known.insert(resource.name.clone(), *resource);
            }
            Some(Event::Removed { resource }) => {
                known.remove(&resource);
            }
            // After lost events those of everything follow.
            Some(Event::Helper { .. } | Event::Skipped { .. }) => {}
            None => refresh(&mut known, poll.as_mut()).map_err(|e| broken(&e))?,
        }
    }
}

/// Progress causes no event.
fn refresh(known: &mut BTreeMap<String, Resource>, poll: Option<&mut Client>) -> Result<(), ClientError> {
    if let Some(client) = poll {
        *known = client.status(None)?.resources.into_iter().map(|r| (r.name.clone(), r)).collect();
    }
    Ok(())
}

fn show(one: &mut Waiting, volume: &Volume, bars: Option<&MultiProgress>) {
    let Some(bars) = bars else { return };
    let label = &one.attempt.label;
    let bar = one.bar.get_or_insert_with(|| {
        let bar = bars.add(ProgressBar::new(1000));
        // A template of ours is valid; without it the bar has the default looks.
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:40}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(label.clone());
        bar
    });
    match &volume.sync {
        Some(sync) if volume.state > ConnState::Connected => {
            bar.set_position(u64::from(sync.permille));
            let mib = |kib: u64| kib / 1024;
            bar.set_message(format!(
                "{} {}.{}% {}/{} MiB, {} MiB/s, {} s left",
                volume.state,
                sync.permille / 10,
                sync.permille % 10,
                mib(sync.total_kib.saturating_sub(sync.left_kib)),
                mib(sync.total_kib),
                mib(sync.speed_kib),
                sync.finish_seconds
            ));
        }
        _ => bar.set_message(volume.state.text()),
    }
    if one.done {
        bar.set_position(1000);
        bar.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_ordered_as_drbdsetup_does_it() {
        let (ordered, told) = Timeouts { wfc: 15, degraded: 0, outdated: 0 }.ordered();
        assert_eq!(ordered, Timeouts { wfc: 15, degraded: 15, outdated: 15 });
        // tests/data/cli: drbdadm wait-connect with wfc-timeout 15.
        assert_eq!(
            told,
            "degr-wfc-timeout has to be shorter than wfc-timeout\n\
             degr-wfc-timeout implicitly set to wfc-timeout (15s)\n\
             outdated-wfc-timeout has to be shorter than degr-wfc-timeout\n\
             outdated-wfc-timeout implicitly set to degr-wfc-timeout (15s)\n"
        );
        let given = Timeouts { wfc: 9, degraded: 2, outdated: 1 };
        assert_eq!(given.ordered(), (given, String::new()));
        let forever = Timeouts { wfc: 0, degraded: 0, outdated: 0 };
        assert_eq!(forever.ordered(), (forever, String::new()));
        assert_eq!(forever.of(WaitKind::Degraded), None);
        let (ordered, _) = Timeouts { wfc: 0, degraded: 5, outdated: 0 }.ordered();
        assert_eq!(ordered, Timeouts { wfc: 0, degraded: 5, outdated: 0 }, "outdated takes wfc's value, as in 8.4");
    }

    #[test]
    fn what_is_waited_for() {
        use ConnState::*;
        for (goal, state, after_sb, reached) in [
            (Goal::Connected, WfConnection, false, false),
            (Goal::Connected, WfReportParams, false, false),
            (Goal::Connected, SyncTarget, false, true),
            (Goal::Connected, StandAlone, false, true),
            (Goal::Connected, StandAlone, true, false),
            (Goal::Synced, SyncSource, false, false),
            (Goal::Synced, PausedSyncS, false, false),
            (Goal::Synced, Connected, false, true),
            (Goal::Synced, Disconnecting, false, true),
            (Goal::Synced, Disconnecting, true, false),
        ] {
            assert_eq!(goal.is_reached(state, after_sb), reached, "{goal:?} {state}");
        }
    }
}

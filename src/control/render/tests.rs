//! The texts against recorded outputs of DRBD 8.4.11 and drbd-utils 9.22 (`tests/data/cli/phases`). The model is read
//! from each recording's own `/proc/drbd`; what that does not say (sizes) comes from its `status`.

use std::collections::BTreeMap;

use super::events::{changes, exists};
use super::text::{TextOptions, resource as render_resource};
use super::{json, proc, text, words};
use crate::control::status::{
    Connection, Counters, Resource, ResyncSuspended, Status, Suspended, Sync, Volume, WaitKind,
};
use crate::units::{Minor, VolumeNr};
use crate::wire::state::{ConnState, DiskState, Role};

macro_rules! phases {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../tests/data/cli/phases/", $name, ".txt")))),*]
    };
}

/// Recordings in which nothing moved between two commands.
const STILL: &[(&str, &str)] = phases!(
    "01-alone-wfconnection.n1" "02-connected-inconsistent.n1" "02-connected-inconsistent.n2"
    "04-diskless-primary-user-pause.n2" "05-dual-primary.n1" "05-dual-primary.n2"
    "07-disconnected-primary.n1" "07-disconnected-primary.n2" "08-outdated-secondary.n2" "09-reconnected.n1" "09-reconnected.n2"
    "10-both-primary-disconnected.n1" "10-both-primary-disconnected.n2"
    "11-split-brain-standalone.n1" "11-split-brain-standalone.n2" "12-split-brain-solved.n1" "12-split-brain-solved.n2"
    "15-diskless-primary.n1" "15-diskless-primary.n2"
    "17-standalone-forced-primary-multi-volume.n1" "17-standalone-forced-primary-multi-volume.n2"
    "18-paused-sync.n1" "18-paused-sync.n2" "21-network-failure-fenced.n1" "21-network-failure-fenced.n2"
    "22-split-brain-outdated-peer.n1" "22-split-brain-outdated-peer.n2"
);

/// Recordings of running resyncs and verifies, where each command saw another moment, and two whose `/proc/drbd` says less
/// than their `status`.
const MOVING: &[(&str, &str)] = phases!(
    "03-initial-sync-then-done.n1" "03-initial-sync-then-done.n2" "04-diskless-primary-user-pause.n1"
    "06-sync-target-primary.n1" "06-sync-target-primary.n2"
    "14-three-resources-multi-volume.n1" "14-three-resources-multi-volume.n2" "16-sync-after-invalidate.n1"
    "16-sync-after-invalidate.n2" "19-sync-resumed.n1" "19-sync-resumed.n2" "20-online-verify.n1" "20-online-verify.n2"
    "13-detached-disconnected.n1" "13-detached-disconnected.n2" "24-resync-after-verify.n1" "24-resync-after-verify.n2"
);

/// Output of one recorded command.
fn section(file: &str, command: &str) -> Option<String> {
    let start = file.find(&format!("$ {command}\n"))? + command.len() + 3;
    let rest = &file[start..];
    let end = ["[exit ", "\n$ "].iter().filter_map(|mark| rest.find(mark)).min().unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

/// Value of a `key:` field.
fn field<'a>(text: &'a str, key: &str) -> &'a str {
    let at = text.find(&format!("{key}:")).unwrap_or_else(|| panic!("{key} in {text}")) + key.len() + 1;
    text[at..].split_whitespace().next().unwrap_or("")
}

fn number(text: &str, key: &str) -> u64 {
    field(text, key).parse().expect(key)
}

const fn place(minor: u32) -> (&'static str, u16) {
    match minor {
        0 => ("r0", 0),
        10 => ("r1", 0),
        11 => ("r1", 1),
        _ => ("r2", 0),
    }
}

/// The model of a `/proc/drbd` text; `sizes` by minor.
fn model(proc: &str, sizes: &BTreeMap<u32, u64>) -> Status {
    let mut resources: Vec<Resource> = Vec::new();
    let mut lines = proc.lines().skip(2).peekable();
    while let Some(head) = lines.next() {
        let Some((minor, states)) = head.split_once(": ") else { continue };
        let minor: u32 = minor.trim().parse().expect("minor");
        let unconfigured = states == "cs:Unconfigured";
        let states =
            if unconfigured { "cs:StandAlone ro:Secondary/Unknown ds:Diskless/DUnknown   r-----" } else { states };
        let pair = |key| field(states, key).split_once('/').expect("pair");
        let (role, peer_role) = pair("ro");
        let (disk, peer_disk) = pair("ds");
        let flags: Vec<char> = states[states.len() - 6..].chars().collect();
        let protocol = states.chars().rev().nth(7).expect("protocol");
        let idle = "ns:0 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0";
        let counters = if unconfigured { idle } else { lines.next().expect("counters") };
        let mut progress = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
            progress.push_str(line);
            progress.push('\n');
        }
        let state = ConnState::from_text(field(states, "cs")).expect("state");
        let (name, volume) = place(minor);
        let volume = Volume {
            volume: VolumeNr(volume),
            minor: Minor(minor),
            device: None,
            role: Role::from_text(role).expect("role"),
            peer_role: Role::from_text(peer_role).expect("role"),
            state,
            disk: DiskState::from_text(disk).expect("disk"),
            peer_disk: DiskState::from_text(peer_disk).expect("disk"),
            backing: None,
            size_kib: sizes.get(&minor).copied().unwrap_or(0),
            resync_suspended: ResyncSuspended {
                dependency: flags[1] == 'a',
                peer: flags[2] == 'p',
                user: flags[3] == 'u',
            },
            blocked: if flags[0] == 's' { "upper" } else { "no" }.to_owned(),
            counters: Counters {
                sent_kib: number(counters, "ns"),
                received_kib: number(counters, "nr"),
                written_kib: number(counters, "dw"),
                read_kib: number(counters, "dr"),
                al_writes: number(counters, "al"),
                bm_writes: number(counters, "bm"),
                lower_pending: number(counters, "lo"),
                pending: number(counters, "pe"),
                unacked: number(counters, "ua"),
                upper_pending: number(counters, "ap"),
            },
            out_of_sync_kib: number(counters, "oos"),
            al_suspended: flags[5] == 's',
            open_count: 0,
            epochs: number(counters, "ep"),
            sync: (!progress.is_empty()).then_some(Sync {
                total_kib: 0,
                left_kib: 0,
                permille: 0,
                finish_seconds: 0,
                speed_kib: 0,
                average_kib: 0,
                proc_lines: progress,
            }),
            uuids: None,
            wait: WaitKind::Normal,
            frontends: Vec::new(),
            warnings: Vec::new(),
        };
        let index = resources.iter().position(|r| r.name == name).unwrap_or_else(|| {
            resources.push(Resource {
                name: name.to_owned(),
                role: Role::Secondary,
                suspended: Suspended { user: flags[0] == 's', ..Suspended::default() },
                write_ordering: if field(counters, "wo") == "f" { "flush" } else { "drain" }.to_owned(),
                connection_state: state.min(ConnState::WfReportParams),
                connection: (state != ConnState::StandAlone).then_some(Connection {
                    peer_name: None,
                    peer_role: volume.peer_role,
                    protocol,
                    congested: false,
                    local: None,
                    peer: None,
                    agreed_version: None,
                    agreed_features: 0,
                }),
                problem: None,
                volumes: Vec::new(),
                warnings: Vec::new(),
            });
            resources.len() - 1
        });
        if volume.role == Role::Primary {
            resources[index].role = Role::Primary;
        }
        resources[index].volumes.push(volume);
    }
    Status::new(resources)
}

/// Sizes by minor, from `status --verbose --statistics`.
fn sizes(verbose: &str) -> BTreeMap<u32, u64> {
    verbose
        .split("minor:")
        .skip(1)
        .map(|part| (part.split_whitespace().next().and_then(|m| m.parse().ok()).expect("minor"), number(part, "size")))
        .collect()
}

fn without_build(proc: &str) -> String {
    proc.lines().filter(|line| !line.starts_with("srcversion")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn proc_drbd_is_the_kernels() {
    for (name, file) in STILL.iter().chain(MOVING) {
        let recorded = section(file, "cat /proc/drbd").expect("proc");
        let rendered = proc::proc_drbd(&model(&recorded, &BTreeMap::new()));
        assert_eq!(without_build(&rendered), without_build(&recorded), "{name}");
    }
}

#[test]
fn status_is_drbdsetups() {
    for (name, file) in STILL {
        let verbose = section(file, "drbdsetup status --verbose --statistics");
        let sizes = verbose.as_deref().map(sizes).unwrap_or_default();
        let status = model(&section(file, "cat /proc/drbd").expect("proc"), &sizes);
        let options = TextOptions { verbose: true, statistics: true, ..TextOptions::default() };
        if let Some(verbose) = verbose {
            assert_eq!(text::status(&status, &options), verbose, "{name}");
        }
        if let Some(plain) = section(file, "drbdsetup status") {
            assert_eq!(text::status(&status, &TextOptions::default()), plain, "{name}");
        }
        for (command, statistics) in
            [("drbdsetup events2 --now --statistics", true), ("drbdsetup events2 --now", false)]
        {
            if let Some(recorded) = section(file, command) {
                let mut lines = exists(&status, statistics);
                lines.push("exists -".to_owned());
                let mut recorded: Vec<_> = recorded.lines().collect();
                if name.starts_with("17") {
                    // The kernel lists resources in the order in which they were made.
                    lines.sort_unstable();
                    recorded.sort_unstable();
                }
                assert_eq!(lines, recorded, "{name}: {command}");
            }
        }
        for (command, word) in
            [("role", words::role as fn(&Volume) -> String), ("cstate", words::cstate), ("dstate", words::dstate)]
        {
            if let Some(recorded) = section(file, &format!("drbdadm {command} all   (first line, resource r0)")) {
                assert_eq!(word(&status.resources[0].volumes[0]), recorded.trim_end(), "{name}: {command}");
            }
        }
    }
}

#[test]
fn progress_is_drbdsetups() {
    // The counters of the verbose recording, put in by hand.
    let file = MOVING[0].1;
    let verbose = section(file, "drbdsetup status --verbose --statistics").expect("status");
    let mut status = model(&section(file, "cat /proc/drbd").expect("proc"), &sizes(&verbose));
    let volume = &mut status.resources[0].volumes[0];
    volume.out_of_sync_kib = number(&verbose, "out-of-sync");
    volume.counters.sent_kib = number(&verbose, "sent");
    volume.counters.read_kib = number(&verbose, "read");
    volume.counters.pending = 0;
    let options = TextOptions { verbose: true, statistics: true, ..TextOptions::default() };
    assert_eq!(text::status(&status, &options), verbose);
}

fn pair() -> Resource {
    let proc = "\n\n 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----\n    \
                ns:1 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0\n";
    model(proc, &BTreeMap::from([(0, 65496)])).resources.remove(0)
}

#[test]
fn statistics_without_verbose_and_colors() {
    let options = TextOptions { statistics: true, color: true, ..TextOptions::default() };
    assert_eq!(
        render_resource(&pair(), &options),
        "r0 role:\x1b[1;36mPrimary\x1b[0m\n  disk:\x1b[1;32mUpToDate\x1b[0m\n      read:0 written:0\n  \
         peer role:Secondary\n    replication:Established peer-disk:\x1b[32mUpToDate\x1b[0m\n        \
         received:0 sent:1\n\n"
    );
}

#[test]
fn sh_status_is_what_the_resource_agent_evaluates() {
    let r = pair();
    let recorded = section(MOVING[0].1, "drbdadm sh-status").expect("sh-status");
    let own = recorded.split_once("_conf_volume=0\n").expect("volume").1;
    assert_eq!(words::sh_status(0, Some((&r, &r.volumes[0]))).trim_end(), own.trim_end());
    assert!(words::sh_status(7, None).starts_with("_minor=7\n_res_name=\n_volume=-1\n_known=NA # not available"));
}

#[test]
fn connect_and_disconnect_make_and_destroy_the_connection() {
    let up = pair();
    let mut down = up.clone();
    down.connection_state = ConnState::StandAlone;
    down.connection = None;
    down.volumes[0].state = ConnState::StandAlone;
    down.volumes[0].peer_disk = DiskState::DUnknown;
    assert_eq!(
        changes(Some(&up), Some(&down), false).join("\n"),
        "change connection name:r0 peer-node-id:0 conn-name:peer connection:StandAlone role:Unknown\n\
         change peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 replication:Off peer-disk:DUnknown\n\
         destroy peer-device name:r0 peer-node-id:0 conn-name:peer volume:0\n\
         destroy connection name:r0 peer-node-id:0 conn-name:peer"
    );
    let mut connecting = up.clone();
    connecting.connection_state = ConnState::WfConnection;
    if let Some(connection) = &mut connecting.connection {
        connection.peer_role = Role::Unknown;
    }
    connecting.volumes[0].state = ConnState::WfConnection;
    connecting.volumes[0].peer_disk = DiskState::DUnknown;
    assert_eq!(
        changes(Some(&down), Some(&connecting), false).join("\n"),
        "create connection name:r0 peer-node-id:0 conn-name:peer connection:StandAlone role:Unknown\n\
         change connection name:r0 peer-node-id:0 conn-name:peer connection:Connecting\n\
         create peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 replication:Off peer-disk:DUnknown \
         resync-suspended:no"
    );
    let gone = changes(Some(&down), None, false);
    assert_eq!(gone, ["destroy device name:r0 volume:0 minor:0", "destroy resource name:r0"]);
    assert!(changes(Some(&up), Some(&up), true).is_empty());
}

#[test]
fn json_has_drbdsetups_keys() {
    let text = json::status(&Status::new(vec![pair()]));
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let resource = &value[0];
    assert_eq!(resource["devices"][0]["disk-state"], "UpToDate");
    assert_eq!(resource["connections"][0]["connection-state"], "Connected");
    assert_eq!(resource["connections"][0]["peer_devices"][0]["replication-state"], "Established");
    assert_eq!(resource["connections"][0]["peer_devices"][0]["percent-in-sync"], 100.0);
    assert!(
        text.starts_with("[\n  {\n    \"name\": \"r0\",\n    \"node-id\": 0,\n    \"role\": \"Primary\""),
        "{text}"
    );
    assert_eq!(json::status(&Status::new(Vec::new())), "[]");
}

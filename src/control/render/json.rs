//! `status --json`: the array that drbdsetup 9 prints, filled with what 8.4 knows (config-and-commands.md 14.2).
//!
//! Keys come in drbdsetup's order; what DRBD does not have (`frontends`, `problem`, `warnings`, `protocol`) comes behind them. 8.4 has
//! no node ids: they are 0 and 1.

use serde::Serialize;

use super::{connection_word, done_percent, is_stand_alone, replication_word, resync_suspended};
use crate::config::model::Address;
use crate::control::problem::Problem;
use crate::control::status::{Frontend, Resource, Status, Volume};
use crate::wire::state::{ConnState, DiskState, Role};

/// The text, indented, without a line feed at its end.
#[must_use]
pub fn status(status: &Status) -> String {
    let all: Vec<_> = status.resources.iter().map(resource).collect();
    // Plain structs with string keys always serialize.
    serde_json::to_string_pretty(&all).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ResourceJson<'a> {
    name: &'a str,
    node_id: u32,
    role: Role,
    suspended: bool,
    suspended_user: bool,
    suspended_no_data: bool,
    suspended_fencing: bool,
    suspended_quorum: bool,
    force_io_failures: bool,
    write_ordering: &'a str,
    devices: Vec<DeviceJson<'a>>,
    connections: Vec<ConnectionJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a Problem>,
    warnings: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct DeviceJson<'a> {
    volume: u16,
    minor: u32,
    disk_state: DiskState,
    client: bool,
    open: bool,
    quorum: bool,
    size: u64,
    read: u64,
    written: u64,
    al_writes: u64,
    bm_writes: u64,
    upper_pending: u64,
    lower_pending: u64,
    backing_dev: Option<&'a str>,
    device: Option<&'a str>,
    frontends: &'a [Frontend],
    warnings: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ConnectionJson<'a> {
    peer_node_id: u32,
    name: &'a str,
    connection_state: &'a str,
    congested: bool,
    peer_role: Role,
    ap_in_flight: u64,
    rs_in_flight: u64,
    paths: Vec<PathJson>,
    #[serde(rename = "peer_devices")]
    peer_devices: Vec<PeerDeviceJson>,
    protocol: char,
    agreed_version: Option<u32>,
}

#[derive(Serialize)]
struct PathJson {
    this_host: EndpointJson,
    remote_host: EndpointJson,
    established: bool,
}

#[derive(Serialize)]
struct EndpointJson {
    address: String,
    port: u16,
    family: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct PeerDeviceJson {
    volume: u16,
    replication_state: &'static str,
    peer_disk_state: DiskState,
    peer_client: bool,
    resync_suspended: String,
    received: u64,
    sent: u64,
    out_of_sync: u64,
    pending: u64,
    unacked: u64,
    has_sync_details: bool,
    has_online_verify_details: bool,
    percent_in_sync: f64,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    sync: Option<SyncJson>,
}

#[derive(Serialize)]
struct SyncJson {
    /// Sectors.
    #[serde(rename = "rs-total")]
    total: u64,
    #[serde(rename = "db1/dt1 [MiB/s]")]
    recent: f64,
    #[serde(rename = "estimated-seconds-to-finish")]
    finish: u64,
    #[serde(rename = "db/dt [MiB/s]")]
    average: f64,
    #[serde(rename = "percent-resync-done")]
    done: f64,
}

fn resource(r: &Resource) -> ResourceJson<'_> {
    let s = r.suspended;
    ResourceJson {
        name: &r.name,
        node_id: 0,
        role: r.role,
        suspended: s.user || s.no_data || s.fencing,
        suspended_user: s.user,
        suspended_no_data: s.no_data,
        suspended_fencing: s.fencing,
        suspended_quorum: false,
        force_io_failures: false,
        write_ordering: &r.write_ordering,
        devices: r.volumes.iter().map(device).collect(),
        connections: r.connection.iter().filter(|_| !is_stand_alone(r)).map(|c| connection(r, c)).collect(),
        problem: r.problem.as_ref(),
        warnings: &r.warnings,
    }
}

fn device(v: &Volume) -> DeviceJson<'_> {
    let c = &v.counters;
    DeviceJson {
        volume: v.volume.0,
        minor: v.minor.0,
        disk_state: v.disk,
        client: false,
        open: v.open_count > 0,
        quorum: true,
        size: v.size_kib,
        read: c.read_kib,
        written: c.written_kib,
        al_writes: c.al_writes,
        bm_writes: c.bm_writes,
        upper_pending: c.upper_pending,
        lower_pending: c.lower_pending,
        backing_dev: v.backing.as_deref(),
        device: v.device.as_deref(),
        frontends: &v.frontends,
        warnings: &v.warnings,
    }
}

fn connection<'a>(r: &'a Resource, c: &'a crate::control::status::Connection) -> ConnectionJson<'a> {
    let established = r.connection_state >= ConnState::WfReportParams;
    let path = c.local.as_ref().zip(c.peer.as_ref()).map(|(local, peer)| PathJson {
        this_host: endpoint(local),
        remote_host: endpoint(peer),
        established,
    });
    ConnectionJson {
        peer_node_id: 1,
        name: c.peer_name.as_deref().unwrap_or("peer"),
        connection_state: connection_word(r),
        congested: c.congested,
        peer_role: c.peer_role,
        ap_in_flight: 0,
        rs_in_flight: 0,
        paths: path.into_iter().collect(),
        peer_devices: r.volumes.iter().map(peer_device).collect(),
        protocol: c.protocol,
        agreed_version: c.agreed_version,
    }
}

fn endpoint(address: &Address) -> EndpointJson {
    EndpointJson { address: address.host_text(), port: address.port, family: address.family.to_string() }
}

fn peer_device(v: &Volume) -> PeerDeviceJson {
    let c = &v.counters;
    let verifying = matches!(v.state, ConnState::VerifyS | ConnState::VerifyT);
    PeerDeviceJson {
        volume: v.volume.0,
        replication_state: replication_word(v),
        peer_disk_state: v.peer_disk,
        peer_client: false,
        resync_suspended: resync_suspended(v.resync_suspended),
        received: c.received_kib,
        sent: c.sent_kib,
        out_of_sync: v.out_of_sync_kib,
        pending: c.pending,
        unacked: c.unacked,
        has_sync_details: v.sync.is_some() && !verifying,
        has_online_verify_details: v.sync.is_some() && verifying,
        percent_in_sync: percent_in_sync(v),
        sync: v.sync.as_ref().map(|sync| SyncJson {
            total: sync.total_kib.saturating_mul(2),
            recent: mib(sync.speed_kib),
            finish: sync.finish_seconds,
            average: mib(sync.average_kib),
            done: f64::from(sync.permille) / 10.0,
        }),
    }
}

fn percent_in_sync(v: &Volume) -> f64 {
    let in_sync = |v: &Volume| done_percent(v).map_or(100.0, |done| (done * 100.0).round() / 100.0);
    // The same arithmetic whatever the state is.
    in_sync(&Volume { state: ConnState::SyncSource, ..v.clone() })
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn mib(kib: u64) -> f64 {
    (kib as f64 / 1024.0 * 100.0).round() / 100.0
}

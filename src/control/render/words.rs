//! `role`, `cstate`, `dstate` and `sh-status` of one volume (config-and-commands.md 17.2, 17.3).

use crate::control::status::{Resource, Volume};
use crate::wire::state::{ConnState, DiskState, Role};

fn is_unconfigured(volume: &Volume) -> bool {
    volume.state == ConnState::StandAlone && volume.disk == DiskState::Diskless
}

/// `Primary/Secondary`, or `Unconfigured`.
#[must_use]
pub fn role(volume: &Volume) -> String {
    if is_unconfigured(volume) {
        return "Unconfigured".to_owned();
    }
    format!("{}/{}", volume.role, volume.peer_role)
}

/// `Connected`, or `Unconfigured`.
#[must_use]
pub fn cstate(volume: &Volume) -> String {
    if is_unconfigured(volume) { "Unconfigured".to_owned() } else { volume.state.to_string() }
}

/// `UpToDate/Inconsistent`, or `Unconfigured`.
#[must_use]
pub fn dstate(volume: &Volume) -> String {
    if is_unconfigured(volume) {
        return "Unconfigured".to_owned();
    }
    format!("{}/{}", volume.disk, volume.peer_disk)
}

/// The part of `sh-status` for one volume; `None` for a minor that does not exist.
#[must_use]
pub fn sh_status(minor: u32, found: Option<(&Resource, &Volume)>) -> String {
    let Some((resource, volume)) = found else {
        return format!(
            "_minor={minor}\n_res_name=\n_volume=-1\n_known=NA # not available or not yet created\n\n\
             _cstate=Unconfigured\n_role=\n_peer=\n_disk=\n_pdsk=\n_flags_susp=\n_flags_aftr_isp=\n_flags_peer_isp=\n\
             _flags_user_isp=\n_resynced_percent=\n\n_sh_status_process\n\n\n"
        );
    };
    let head = format!("_minor={minor}\n_res_name={}\n_volume={}\n", resource.name, volume.volume);
    let unconfigured = is_unconfigured(volume) && volume.role != Role::Primary;
    if unconfigured {
        return format!(
            "{head}_known=Unconfigured\n\n_cstate=Unconfigured\n_role=\n_peer=\n_disk=\n_pdsk=\n\n_flags_susp=\n\
             _flags_aftr_isp=\n_flags_peer_isp=\n_flags_user_isp=\n\n_resynced_percent=\n\n_sh_status_process\n\n\n"
        );
    }
    let flag = |on: bool| if on { "1" } else { "" };
    let s = resource.suspended;
    let percent = volume.sync.as_ref().map_or_else(String::new, |sync| {
        let permille = sync.permille;
        format!("{}.{}", permille / 10, permille % 10)
    });
    format!(
        "{head}_known=Configured\n\n_cstate={}\n_role={}\n_peer={}\n_disk={}\n_pdsk={}\n\n_flags_susp={}\n\
         _flags_aftr_isp={}\n_flags_peer_isp={}\n_flags_user_isp={}\n\n_resynced_percent={percent}\n\n\
         _sh_status_process\n\n\n",
        volume.state,
        volume.role,
        volume.peer_role,
        volume.disk,
        volume.peer_disk,
        flag(s.user || s.no_data || s.fencing),
        flag(volume.resync_suspended.dependency),
        flag(volume.resync_suspended.peer),
        flag(volume.resync_suspended.user),
    )
}

//! What drbdctl asks a daemon, and what it makes of the answers.

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::daemon::{Daemon, resource, set_connection, volume};
use common::{Place, Ran};
use udrbd::config::model::MetaDisk;
use udrbd::control::status::Uuids;
use udrbd::control::{ErrorReply, Request};
use udrbd::meta::MdFlags;
use udrbd::units::{GenId, VolumeNr};
use udrbd::wire::state::{ConnState, DiskState, Role, StateResult};

fn started() -> (Place, Daemon) {
    let place = Place::new(0);
    let daemon = Daemon::start(&place.socket());
    (place, daemon)
}

fn names(requests: &[Request]) -> Vec<String> {
    requests
        .iter()
        .map(|request| {
            let value = serde_json::to_value(request).expect("JSON");
            format!("{} {}", value["command"].as_str().expect("a word"), request.resource().unwrap_or_default())
        })
        .collect()
}

#[test]
fn up_makes_attaches_and_connects_in_stages() {
    let (place, daemon) = started();
    place.run("create-md all").ok();
    let ran = place.run("up all");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""), "{ran:?}");
    let asked = daemon.asked();
    assert_eq!(
        names(&asked),
        [
            "new-resource r0",
            "new-volume r0",
            "new-resource r1",
            "new-volume r1",
            "attach r0",
            "attach r1",
            "connect r0",
            "connect r1"
        ]
    );
    let Request::Attach { backing, meta_disk, .. } = &asked[5] else { panic!("{asked:?}") };
    let absolute = |name| std::path::absolute(place.path(name)).expect("a path").to_str().expect("text").to_owned();
    assert_eq!(*backing, absolute("disk1"));
    assert_eq!(*meta_disk, MetaDisk::Flexible { dev: absolute("meta1") });
    let Request::Connect { local, peer, peer_name, options, .. } = &asked[6] else { panic!("{asked:?}") };
    assert_eq!((local.to_string(), peer.to_string()), ("ipv4 127.0.0.1:7790".into(), "ipv4 127.0.0.2:7790".into()));
    assert_eq!((peer_name.as_deref(), options.congestion_fill.is_some()), (Some("n2"), true));

    // A second time, as drbdadm: the disk is configured already.
    let ran = place.run("up r1");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.starts_with("Device '1' is configured!\n"), "{ran:?}");
    assert_eq!(names(&daemon.asked()), ["new-resource r1", "new-volume r1"]);
    place.run("connect r1").fails(10, "r1: Failure: (102) Local address(port) already in use.\n");
    place.run("create-md --force r0").fails(20, "Device '0' is configured!\n");
}

#[test]
fn up_without_metadata_leaves_the_resource_without_disk_and_connection() {
    let (place, daemon) = started();
    place.run("up r1").fails(1, "No valid meta data found\n");
    assert_eq!(names(&daemon.asked()), ["new-resource r1", "new-volume r1"]);
    place.run("status r1").expect(0, "r1 role:Secondary\n  disk:Diskless\n\n", "");
    place.run("proc").ok();
    place.run("role r1").expect(0, "Unconfigured\n", "");
    place.run("down r1").expect(0, "", "");
    place.run("down r1").expect(0, "", "");
    place.run("status r1").expect(10, "", "r1: No such resource\n");
}

#[test]
fn refusals_are_drbdsetups_and_say_what_to_do() {
    let (place, daemon) = started();
    place
        .run("primary r0")
        .fails(10, "0: Failure: (158) Unknown resource\nadditional info from kernel:\nunknown resource\n");
    daemon.world().resources.push(resource("r0"));
    place
        .run("primary r0")
        .fails(10, "0: Failure: (127) Device minor not allocated\nadditional info from kernel:\nunknown minor\n");
    place
        .run("role r0")
        .fails(10, "0: Failure: (127) Device minor not allocated\nadditional info from kernel:\nunknown minor\n");
    daemon.world().resources[0].volumes.push(volume(0, 0));
    let ran = place.run("primary r0");
    assert_eq!(ran.code, 17);
    assert_eq!(
        ran.stderr,
        "0: State change failed: (-2) Need access to UpToDate data\n\
         r0: primary failed: Need access to UpToDate data; attach a disk with good data or connect to a peer that has one; \
         if the data of this node are the ones to keep: drbdctl primary --force r0\n"
    );
    daemon.asked();
    place.run("-- --overwrite-data-of-peer primary r0").expect(0, "", "");
    assert_eq!(daemon.asked(), [Request::Primary { resource: "r0".into(), volume: VolumeNr(0), force: true }]);
    daemon.asked();
    place.run("suspend-io r0").expect(0, "", "");
    place.run("resume-io r0").expect(0, "", "");
    let (resource, volume) = (String::from("r0"), VolumeNr(0));
    let suspend = Request::SuspendIo { resource: resource.clone(), volume };
    assert_eq!(daemon.asked(), [suspend, Request::ResumeIo { resource, volume }]);
    for (refusal, words, code, line) in [
        (
            ErrorReply::state(StateResult::DeviceInUse).detail("failed to demote"),
            "down r0",
            11,
            "r0: State change failed: (-12) Device is held open by someone\nadditional info from kernel:\nfailed to demote\n",
        ),
        (
            ErrorReply::code(162).detail("unknown connection"),
            "disconnect r0",
            10,
            "??: Failure: (162) Invalid configuration request\nadditional info from kernel:\nunknown connection\n",
        ),
        (ErrorReply::code(134), "pause-sync r0", 10, "0: Failure: (134) Sync-pause flag is already set\n"),
        (
            ErrorReply::code(151),
            "-- --clear-bitmap new-current-uuid r0/0",
            10,
            "0: Failure: (151) Need to be StandAlone\n",
        ),
        (ErrorReply::state(StateResult::LowerThanOutdated), "secondary r0", 5, "0: State change failed: (-16) "),
        (ErrorReply::usage("nonsense"), "resume-sync r0", 20, "0: nonsense\n"),
    ] {
        daemon.world().refuse = Some(refusal);
        place.run(words).fails(code, line);
    }
}

#[test]
fn the_first_failing_volume_ends_its_resource_and_the_largest_code_counts() {
    let (place, daemon) = started();
    for name in ["r0", "r1"] {
        let mut made = resource(name);
        made.volumes.push(volume(0, u32::from(name == "r1")));
        daemon.world().resources.push(made);
    }
    daemon.world().resources[0].volumes[0].disk = DiskState::UpToDate;
    place.run("primary r1 r0").fails(17, "1: State change failed: (-2)");
    assert_eq!(names(&daemon.asked()), ["primary r1", "primary r0"]);
    daemon.world().refuse = Some(ErrorReply::usage("broken"));
    place.run("primary all").fails(20, "0: broken");
    assert_eq!(names(&daemon.asked()), ["primary r0"], "20 and more end everything");
}

#[test]
fn states_are_shown_in_words_and_json() {
    let (place, daemon) = started();
    let mut made = resource("r0");
    made.volumes.push(volume(0, 0));
    made.volumes[0].disk = DiskState::UpToDate;
    made.volumes[0].uuids = Some(Uuids {
        current: GenId(5),
        bitmap: GenId(0),
        history: [GenId(0x59CB_ABBD_42E4_8FB6), GenId(0)],
        flags: MdFlags::CONSISTENT
            .with(MdFlags::WAS_UP_TO_DATE)
            .with(MdFlags::PRIMARY_IND)
            .with(MdFlags::CONNECTED_IND),
    });
    set_connection(&mut made, ConnState::Connected);
    daemon.world().resources.push(made);
    place.run("status").fails(10, "r1: No such resource\n");
    place.run("status r0").expect(
        0,
        "r0 role:Secondary\n  disk:UpToDate\n  peer role:Secondary\n    replication:Established peer-disk:DUnknown\n\n",
        "",
    );
    let json: serde_json::Value = serde_json::from_str(&place.run("status --json").ok()).expect("JSON");
    assert_eq!((&json[0]["name"], &json[0]["connections"][0]["name"]), (&"r0".into(), &"n2".into()));
    assert_eq!(json[0]["devices"][0]["frontends"][0]["address"], "nbd+unix:///0?socket=s");
    place.run("role r0").expect(0, "Secondary/Secondary\n", "");
    place.run("cstate r0").expect(0, "Connected\n", "");
    place.run("dstate r0").expect(0, "UpToDate/DUnknown\n", "");
    place.run("frontends").expect(0, "r0/0 nbd nbd+unix:///0?socket=s\n", "");
    let gi = "0000000000000005:0000000000000000:59CBABBD42E48FB6:0000000000000000:1:1:1:1:0:0:0\n";
    place.run("get-gi r0").expect(0, gi, "");
    assert!(
        place.run("show-gi r0").ok().ends_with("\nflags: Primary, Connected, UpToDate\nmeta-data: need apply-al\n")
    );
    let sh = place.run("sh-status").ok();
    assert!(sh.contains("_known=Configured\n\n_cstate=Connected\n_role=Secondary\n"), "{sh}");
    assert!(sh.contains("_known=NA # not available"), "{sh}");
}

#[test]
fn waiting_ends_with_the_event() {
    let (place, daemon) = started();
    let mut made = resource("r0");
    made.volumes.push(volume(0, 0));
    set_connection(&mut made, ConnState::SyncSource);
    daemon.world().resources.push(made);
    place.run("wait-connect r0 --timeout 0").expect(0, "", "");
    let waiting = place.command("wait-sync r0 --timeout 60").stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let waiting = waiting.expect("drbdctl runs");
    daemon.wait_for_watcher();
    daemon.change("r0", |r| set_connection(r, ConnState::Connected));
    Ran::of("wait-sync", &waiting.wait_with_output().expect("ended")).expect(0, "", "");

    daemon.change("r0", |r| set_connection(r, ConnState::WfConnection));
    // wfc-timeout of the configuration, one second, and drbdsetup's words about the other two.
    place.run("wait-connect r0").expect(
        5,
        "",
        "degr-wfc-timeout has to be shorter than wfc-timeout\n\
         degr-wfc-timeout implicitly set to wfc-timeout (1s)\n\
         outdated-wfc-timeout has to be shorter than degr-wfc-timeout\n\
         outdated-wfc-timeout implicitly set to degr-wfc-timeout (1s)\n",
    );
    daemon.change("r0", |r| set_connection(r, ConnState::StandAlone));
    place.run("wait-connect r0 --timeout 60").expect(0, "", "");
    place.run("wait-connect r1 --timeout 60").fails(10, "1: Failure: (127) Device minor not allocated\n");
}

#[test]
fn events_come_line_by_line() {
    let (place, daemon) = started();
    place.run("events2 --now").expect(0, "exists -\n", "");
    let mut made = resource("r0");
    made.volumes.push(volume(0, 0));
    set_connection(&mut made, ConnState::Connected);
    daemon.world().resources.push(made);
    let mut child = place.command("events2 r0").stdout(Stdio::piped()).spawn().expect("drbdctl runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
    let start: Vec<_> = lines.by_ref().take(5).collect();
    assert_eq!(start[0], "exists resource name:r0 role:Secondary suspended:no");
    assert_eq!(start[4], "exists -");
    daemon.change("r0", |r| {
        r.role = Role::Primary;
        r.volumes[0].disk = DiskState::UpToDate;
    });
    assert_eq!(lines.next().as_deref(), Some("change resource name:r0 role:Primary"));
    assert_eq!(lines.next().as_deref(), Some("change device name:r0 volume:0 minor:0 disk:UpToDate"));
    // The daemon ends: so does the stream.
    drop(daemon);
    assert_eq!(lines.next(), None);
    assert_eq!(child.wait().expect("ended").code(), Some(20));
}

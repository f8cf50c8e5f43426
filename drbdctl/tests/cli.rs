//! The command line without a daemon: usage, configuration, metadata of unattached disks. Exit codes and texts are
//! those that were recorded with drbdadm and drbdmeta, where they have some.

mod common;

use std::fs::File;

use common::Place;
use udrbd::disk::{BackingDevice, OpenOptions};

#[test]
fn usage_errors_end_with_1() {
    let place = Place::new(0);
    place.run("frobnicate r0").fails(1, "drbdctl: Unknown command 'frobnicate'");
    place.run("primary --nosuch r0").fails(1, "drbdctl: unrecognized option '--nosuch'\ntry 'drbdctl help'\n");
    place.run("up").fails(1, "No resource names specified");
    place.run("up nosuch").expect(1, "", "'nosuch' not defined in your config (for this host).\n");
    place.run("up other").fails(1, "other: this host is n1, the resource is for a, b");
    place.run("primary r0/7").expect(1, "", "'r0/7' not defined in your config (for this host).\n");
    place.run("dstate 11").expect(1, "", "'11' not defined in your config (for this host).\n");
    place
        .run("new-current-uuid all")
        .fails(1, "new-current-uuid requires a specific volume id, but none is specified.");
    place.run("").fails(1, "No command specified");
    assert!(place.run("help").ok().contains("create-md"));
}

#[test]
fn configuration_errors_end_with_10_and_a_missing_file_with_20() {
    let place = Place::new(0);
    place.write_config("resource r0 { on n1 { disk /x; } }");
    place.run("up r0").fails(10, "drbd.conf");
    place.write_config("resource r0 { frob; }");
    place.run("sh-nop").fails(10, "drbd.conf:1:15: unknown statement 'frob' in resource r0\n");
    std::fs::remove_file(place.path("drbd.conf")).expect("was there");
    place.run("up r0").expect(20, "", "Can not open 'drbd.conf': No such file or directory (os error 2)\n");
}

#[test]
fn an_address_that_this_host_does_not_have_is_refused_before_anything_happens() {
    let place = Place::new(0);
    place.write_config(
        "resource r0 { device minor 0; disk disk0; meta-disk internal;\n\
         on n1 { address 203.0.113.7:7790; } on n2 { address 127.0.0.2:7790; } }",
    );
    place.run("up r0").fails(10, "IP 203.0.113.7 not found on this host.");
    place.run("sh-dev r0").expect(0, "/dev/drbd0\n", "");
}

#[test]
fn scripts_get_one_line_a_volume() {
    let place = Place::new(3);
    for (words, stdout) in [
        ("sh-resources", "r0 r1\n"),
        ("sh-resource minor-4", "r1\n"),
        ("sh-mod-parms", "minor_count=32\n"),
        ("sh-dev all", "/dev/drbd3\n/dev/drbd4\n"),
        ("sh-minor r1 r0", "4\n3\n"),
        ("sh-ll-dev r1/0", "disk1\n"),
        ("sh-md-dev all", "disk0\nmeta1\n"),
        ("sh-md-idx all", "internal\nflexible\n"),
        ("sh-ip r0", "127.0.0.1\n"),
        ("sh-udev minor-3", "RESOURCE=r0\nDEVICE=drbd3\nDISK=disk0\n"),
    ] {
        place.run(words).expect(0, stdout, "");
    }
    place.run("sh-nop r0").expect(0, "", "This command will ignore resource names!\n");
    assert!(place.run("dump r0").ok().starts_with("# resource r0 on n1: not ignored, not stacked\n"));
    let version = place.command("").arg("--version").output().expect("runs");
    assert_eq!(version.status.code(), Some(1), "options of drbdctl do not go with --version");
}

#[test]
fn the_environment_says_where_things_are() {
    let place = Place::new(0);
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_drbdctl"));
        command.args(words).env("DRBD_CONF", place.path("drbd.conf")).env("UDRBD_SOCKET", place.path("elsewhere.sock"));
        command.env("DRBD_HOSTNAME", "n2").env("__DRBD_NODE__", "n1").env_remove("HOSTNAME");
        common::Ran::of("", &command.output().expect("drbdctl runs"))
    };
    run(&["sh-ip", "r0"]).expect(0, "127.0.0.2\n", "");
    run(&["--hostname", "n1", "sh-ip", "r0"]).expect(0, "127.0.0.1\n", "");
    run(&["proc"]).fails(20, "elsewhere.sock");
}

#[test]
fn sh_status_of_what_is_not_up() {
    let place = Place::new(10);
    let text = place.run("sh-status").ok();
    let head = text.find("_conf_res_name=r1").expect("r1");
    assert!(
        text.starts_with("_drbd_version=9.22.0\n_drbd_api=1\n_config_file=drbd.conf\n\n\n_conf_res_name=r0\n"),
        "{text}"
    );
    // As drbdadm says it of a resource that the kernel does not have.
    let rest = text[head..].split_once('\n').expect("lines").1.split_once('\n').expect("lines").1;
    assert_eq!(
        rest,
        "\n_stacked_on=\n_stacked_on_device=\n_stacked_on_minor=\n_conf_volume=0\n_minor=11\n_res_name=\n_volume=-1\n\
         _known=NA # not available or not yet created\n\n_cstate=Unconfigured\n_role=\n_peer=\n_disk=\n_pdsk=\n\
         _flags_susp=\n_flags_aftr_isp=\n_flags_peer_isp=\n_flags_user_isp=\n_resynced_percent=\n\n\
         _sh_status_process\n\n\n"
    );
}

#[test]
fn what_is_not_available_says_so() {
    let place = Place::new(0);
    place.run("adjust r0").fails(20, "r0: adjust failed: it is not available in this version; ");
    place.run("verify r0").fails(20, "r0: verify failed: it is not available in this version; ");
}

#[test]
fn without_a_daemon_what_is_so_anyhow_succeeds() {
    let place = Place::new(0);
    for words in ["down all", "secondary r0", "disconnect r0", "detach --force r0"] {
        assert_eq!(place.run(words).code, 0, "{words}");
    }
    for words in ["up r0", "primary r0", "status", "role r0", "proc", "wait-connect r0", "events2 --now", "connect r0"]
    {
        place.run(words).fails(20, "udrbd does not run: nobody answers at");
    }
}

const CREATED: &str =
    "initializing activity log\nWriting meta data...\nNew drbd meta data block successfully created.\n";

#[test]
fn metadata_is_created_once_and_overwritten_only_when_confirmed() {
    let place = Place::new(0);
    let bitmap = "initializing bitmap (4 KB) to all zero\n";
    place.run("create-md r0").expect(0, CREATED, bitmap);
    let question = "You want me to create a v08 style flexible-size internal meta data block.\n\
                    There appears to be a v08 flexible-size internal meta data block\n\
                    already in place on disk0 at byte offset 67104768\n\n\
                    Do you really want to overwrite the existing meta-data?\n";
    let no_terminal = "stdin not a TTY, not waiting for confirmation\n";
    place.run("create-md r0").expect(1, "Operation cancelled.\n", &format!("{question}{no_terminal}"));
    let forced = format!("{question}*** confirmation forced via --force option ***\n{bitmap}");
    place.run("create-md --force r0").expect(0, CREATED, &forced);
    place.run("-- --force create-md r0").expect(0, CREATED, &forced);

    place.run("create-md r1").expect(0, CREATED, bitmap);
    let question = "\nValid meta data seems to be in place.\nDo you really want to overwrite?\n";
    place.run("create-md r1").expect(1, "Operation cancelled.\n", &format!("{question}{no_terminal}"));
}

#[test]
fn a_file_system_in_the_way_is_never_overwritten() {
    let place = Place::new(0);
    let mut head = vec![0; 2048];
    head[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    head[0x418] = 2;
    head[0x404..0x408].copy_from_slice(&16_384_u32.to_le_bytes());
    let file = File::options().write(true).open(place.path("disk0")).expect("file");
    std::os::unix::fs::FileExt::write_all_at(&file, &head, 0).expect("written");
    let ran = place.run("create-md --force r0");
    assert_eq!(ran.code, 40);
    assert!(ran.stdout.contains("Found ext2 filesystem\n       65536 kB data area apparently used\n"), "{ran:?}");
    assert!(ran.stdout.ends_with("Operation refused.\n\n"), "{ran:?}");
    place.run("dump-md r0").fails(1, "No valid meta data found\n");
}

#[test]
fn identifiers_states_and_the_log_without_a_daemon() {
    let place = Place::new(0);
    place.run("get-gi r0").expect(1, "", "");
    place.run("show-gi r0").expect(1, "", "");
    place.run("dstate r0").fails(1, "No valid meta data found\n");
    place.run("apply-al r0").fails(1, "No valid meta data found\n");
    place.run("create-md all").ok();
    let fresh = "0000000000000004:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:0:0:0\n";
    place.run("get-gi all").expect(0, &fresh.repeat(2), "");
    assert!(place.run("show-gi r0").ok().ends_with(
        "flags: Secondary, StandAlone, Inconsistent\nmeta-data: clean\nzero size device -- never seen peer yet?\n"
    ));
    place.run("dstate r0 r1").expect(0, "Inconsistent\nInconsistent\n", "");
    place.run("outdate r0").expect(5, "", "Device is inconsistent.\n");
    place.run("invalidate r0").expect(0, "", "");
    place.run("get-gi r0").expect(0, &fresh.replace(":0:0:0:0:0:0:0", ":0:0:0:0:1:0:0"), "");
    place.run("apply-al r1").expect(0, "", "");
}

#[test]
fn metadata_is_wiped_only_when_confirmed() {
    let place = Place::new(0);
    place.run("create-md r0").ok();
    let question = "\nDo you really want to wipe out the DRBD meta data?\n";
    place.run("wipe-md r0").expect(
        1,
        "Operation cancelled.\n",
        &format!("{question}stdin not a TTY, not waiting for confirmation\n"),
    );
    place.run("-- --force wipe-md r0").expect(
        0,
        "Wiping meta data...\nDRBD meta data block successfully wiped out.\n",
        &format!("{question}*** confirmation forced via --force option ***\n"),
    );
    place.run("wipe-md r0").expect(0, "", "There appears to be no drbd meta data to wipe out?\n");
}

#[test]
fn a_disk_in_use_is_not_written_to_whatever_force_says() {
    let place = Place::new(0);
    place.run("create-md r0").ok();
    let device =
        BackingDevice::open(place.path("disk0"), &OpenOptions { owner: "r0/0".into(), ..OpenOptions::default() });
    let device = device.expect("free");
    for words in ["create-md --force r0", "wipe-md --force r0", "apply-al r0", "invalidate r0"] {
        place.run(words).fails(20, "open(disk0) failed: Device or resource busy\n");
    }
    let ran = place.run("dump-md r0");
    assert_eq!((ran.code, ran.stdout.as_str()), (20, "Operation canceled.\n"), "{ran:?}");
    assert!(ran.stderr.contains("\nExclusive open failed. Do it anyways?\n"), "{ran:?}");
    assert!(place.run("dump-md --force r0").ok().contains("la-size-sect 0;\n"));
    drop(device);
    place.run("apply-al r0").expect(0, "", "");
}

#[test]
fn devices_that_cannot_be() {
    let place = Place::new(0);
    File::options().write(true).open(place.path("disk0")).and_then(|file| file.set_len(10_240)).expect("file");
    place.run("create-md r0").expect(10, "", "disk0 is only 10240 bytes. That's not enough.\n");
    std::fs::remove_file(place.path("disk0")).expect("was there");
    place.run("create-md r0").expect(20, "", "open(disk0) failed: No such file or directory\n");
    std::fs::create_dir(place.path("disk0")).expect("free");
    place.run("create-md r0").fails(20, "open(disk0) failed: ");
    place.run("create-md --al-stripes=1 --al-stripe-size-kB=4 r1").fails(10, "invalid activity log striping");
    place.run("create-md --al-stripes=x r1").fails(20, "x is not a valid number");
}

//! GFS2 with the kernel's DLM: corosync and dlm_controld in both guests.

use std::time::Duration;

use xtask::lab::{node_addr, wait_until};

use crate::bench::{Bench, DEVICE, Outcome};

const DIR: &str = "/mnt/shared";

pub fn on_both_nodes(bench: &mut Bench) -> Outcome {
    bench.need(&["mkfs.gfs2", "fsck.gfs2", "corosync", "corosync-quorumtool", "dlm_controld", "dlm_tool"])?;
    let cluster = bench.cluster()?;
    let conf = format!(
        "totem {{\n version: 2\n cluster_name: lab\n transport: udpu\n}}\n\
         nodelist {{\n node {{\n  ring0_addr: {}\n  name: n1\n  nodeid: 1\n }}\n\
         \x20node {{\n  ring0_addr: {}\n  name: n2\n  nodeid: 2\n }}\n}}\n\
         quorum {{\n provider: corosync_votequorum\n two_node: 1\n wait_for_all: 0\n}}\n\
         logging {{\n to_stderr: no\n to_syslog: no\n to_logfile: yes\n logfile: /run/corosync.log\n}}\n\
         system {{\n sched_rr: no\n}}\n",
        node_addr(1),
        node_addr(2)
    );
    let up = format!(
        "set -e\nmkdir -p /etc/corosync /dev/misc /var/lib/corosync /run/corosync /run/dlm_controld {DIR}\n\
         modprobe -q dlm || true\nmodprobe -q gfs2 || true\n\
         printf %s '{conf}' >/etc/corosync/corosync.conf\n\
         mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config\n\
         # Without udev nobody puts them where dlm_controld looks.\n\
         for d in dlm-control dlm-monitor dlm_plock; do ln -sf ../$d /dev/misc/$d; done\n\
         corosync\n"
    );
    cluster.both(&up, Duration::from_secs(60))?;
    for nr in 0..2 {
        wait_until("two votes", Duration::from_secs(60), || {
            let output = cluster.guest(nr).exec("corosync-quorumtool -s", Duration::from_secs(20))?;
            let votes = output
                .text
                .lines()
                .any(|line| line.strip_prefix("Total votes:").is_some_and(|votes| votes.trim() == "2"));
            Ok(if votes { Ok(()) } else { Err(output.text) })
        })?;
    }
    cluster.both("dlm_controld --enable_fencing=0", Duration::from_secs(30))?;
    for nr in 0..2 {
        wait_until("dlm_controld", Duration::from_secs(30), || {
            let output = cluster.guest(nr).exec("dlm_tool status", Duration::from_secs(20))?;
            Ok(if output.code == 0 { Ok(()) } else { Err(output.text) })
        })?;
    }
    let limit = Duration::from_secs(120);
    let mount = format!("mount -t gfs2 {DEVICE} {DIR}");
    cluster.each([&format!("mkfs.gfs2 -q -O -p lock_dlm -t lab:fs -j 2 -J 8 {DEVICE} && {mount}"), "true"], limit)?;
    cluster.each(["true", &mount], limit)?;
    cluster.use_by_both(DIR)?;
    cluster.both(&format!("umount {DIR}"), limit)?;
    cluster.each([&format!("fsck.gfs2 -n {DEVICE} >/dev/null"), "true"], limit)?;
    cluster.finish()
}

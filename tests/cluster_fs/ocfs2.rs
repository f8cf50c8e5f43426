//! OCFS2 with its own cluster stack (o2cb): heartbeat on the device, locks over the guests' network.

use std::fmt::Write as _;
use std::time::Duration;

use crate::bench::{Bench, DEVICE, Outcome};

const DIR: &str = "/mnt/cluster";

pub fn on_both_nodes(bench: &mut Bench) -> Outcome {
    bench.need(&["mkfs.ocfs2", "fsck.ocfs2", "mount.ocfs2", "o2cb", "nbd-client"])?;
    let cluster = bench.cluster()?;
    let mut conf = String::from("cluster:\n\tnode_count = 2\n\tname = lab\n\theartbeat_mode = local\n");
    for nr in [1, 2] {
        let _ = write!(
            conf,
            "\nnode:\n\tip_port = 7777\n\tip_address = {}\n\tnumber = {nr}\n\tname = n{nr}\n\tcluster = lab\n",
            xtask::lab::node_addr(nr)
        );
    }
    let up = format!(
        "set -e\nmodprobe -q ocfs2_stack_o2cb || true\nmodprobe -q ocfs2 || true\nmkdir -p /etc/ocfs2 {DIR}\n\
         printf %s '{conf}' >/etc/ocfs2/cluster.conf\n\
         echo o2cb >/sys/fs/ocfs2/cluster_stack 2>/dev/null || true\n\
         mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config\n\
         o2cb register-cluster lab\n\
         echo 7 >/sys/kernel/config/cluster/lab/heartbeat/dead_threshold\n"
    );
    cluster.both(&up, Duration::from_secs(60))?;
    let limit = Duration::from_secs(120);
    let make = format!(
        "yes | mkfs.ocfs2 -q -F -N 2 -J size=8M --cluster-stack=o2cb --cluster-name=lab -b 4096 -C 4096 -T datafiles {DEVICE}"
    );
    cluster.each([&make, "true"], limit)?;
    cluster.both(&format!("mount -t ocfs2 {DEVICE} {DIR}"), limit)?;
    cluster.use_by_both(DIR)?;
    cluster.both(&format!("umount {DIR}"), limit)?;
    cluster.each([&format!("fsck.ocfs2 -fn {DEVICE}"), "true"], limit)?;
    cluster.finish()
}

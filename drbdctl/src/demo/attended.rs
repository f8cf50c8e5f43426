//! The demo for people who want to try it themselves: first sync, then it waits for Ctrl-C.

use super::cluster::{Cluster, HOSTS, RESOURCE};
use super::{Failure, story};
use crate::out;

/// Brings both nodes up, syncs, promotes, says where everything is, and waits.
pub fn run(cluster: &mut Cluster) -> Result<(), Failure> {
    story::first_sync(cluster)?;
    let node = |node: usize| {
        format!(
            "drbdctl -c {} --hostname {} --socket {}",
            cluster.config().display(),
            HOSTS[node],
            cluster.control_socket(node).display()
        )
    };
    out::line(&format!("\n{} is Primary, {} is Secondary. The data, for any NBD client:\n", HOSTS[0], HOSTS[1]));
    for (index, host) in HOSTS.iter().enumerate() {
        let uri = format!("nbd+unix:///{RESOURCE}?socket={}", cluster.nbd_socket(index).display());
        out::line(&format!("  {host:6} {uri}"));
    }
    out::line("\nEach node answers to:\n");
    out::line(&format!("  {} status {RESOURCE}", node(0)));
    out::line(&format!("  {} status {RESOURCE}", node(1)));
    out::line("\nCtrl-C ends the demo and removes its files.");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    out::line("");
    Ok(())
}

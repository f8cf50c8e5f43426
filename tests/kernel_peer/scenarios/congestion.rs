//! Links that are too slow: each side pulls ahead of the other, and comes back.

use std::time::Duration;

use xtask::lab::drbd::{Conf, noise};
use xtask::lab::{LabError, wait_until};

use super::ensure;
use crate::bench::{Bench, Outcome, Pair};

const SOON: Duration = Duration::from_secs(60);
/// Well above the threshold, and more than sockets and queues hold at once.
const LEN: usize = 8 << 20;

fn pull_ahead(bench: &Bench) -> Conf {
    let mut conf = bench.conf(1);
    conf.protocol = 'A';
    conf.net = ["on-congestion pull-ahead;", "congestion-fill 100K;", "sndbuf-size 1M;", "ko-count 0;"]
        .map(str::to_owned)
        .to_vec();
    conf
}

/// The host side's end of the kernel's cable: what udrbd sends.
fn shape(pair: &Pair<'_>, on: bool) -> Result<(), LabError> {
    let mut command = pair.lab.command("tc");
    command.args(["qdisc", if on { "replace" } else { "del" }, "dev", "tap1", "root"]);
    if on {
        command.args(["tbf", "rate", "8mbit", "burst", "32k", "limit", "1m"]);
    }
    let out = command.output().map_err(|err| LabError::io("run tc", &err))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(LabError::new(format!("tc: {}", said.trim()))) }
}

fn entered(log: &str, step: &str) -> usize {
    log.lines().filter(|line| line.contains(step)).count()
}

pub fn udrbd_pulls_ahead(bench: &mut Bench) -> Outcome {
    let conf = pull_ahead(bench);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    shape(&pair, true)?;
    let data = noise(1, LEN);
    let written = pair.udrbd.write(0, 8 << 20, &data, 4096);
    // Wherever it is by now: it was Ahead, and the kernel Behind.
    let log = wait_until("the kernel is Behind", SOON, || {
        let log = pair.kernel.guest.sh("dmesg")?;
        Ok(if log.contains("conn( Connected -> Behind )") { Ok(log) } else { Err(log) })
    });
    shape(&pair, false)?;
    written?;
    log?;
    pair.wait_synced()?;
    let log = pair.kernel.guest.sh("dmesg")?;
    ensure(entered(&log, "conn( Behind -> SyncTarget )") >= 1, || format!("no resync without a handshake:\n{log}"))?;
    ensure(entered(&log, "-> Behind )") <= 4, || format!("Ahead and Behind take turns:\n{log}"))?;
    ensure(!log.contains("WFBitMapT"), || format!("bitmaps were exchanged:\n{log}"))?;
    pair.assert_holds(0, 8 << 20, &data)?;
    // Both are in one generation.
    pair.udrbd.drbdctl("disconnect r0")?;
    pair.udrbd.drbdctl("connect r0")?;
    pair.wait_synced()?;
    pair.compare()
}

pub fn kernel_pulls_ahead(bench: &mut Bench) -> Outcome {
    let conf = pull_ahead(bench);
    let pair = bench.synced_pair(&conf)?;
    let dev = "$(ls /sys/class/net | grep -v lo)";
    let guest = &pair.kernel.guest;
    guest.sh(&format!("modprobe sch_tbf; tc qdisc replace dev {dev} root tbf rate 8mbit burst 32k limit 1m"))?;
    let data = noise(2, LEN);
    let written = pair.kernel.write(0, 8 << 20, &data, 4096);
    let log = wait_until("the kernel is Ahead", SOON, || {
        let log = pair.kernel.guest.sh("dmesg")?;
        Ok(if log.contains("conn( Connected -> Ahead )") { Ok(log) } else { Err(log) })
    });
    guest.sh(&format!("tc qdisc del dev {dev} root"))?;
    written?;
    log?;
    pair.wait_synced()?;
    let log = pair.kernel.guest.sh("dmesg")?;
    ensure(log.contains("conn( Ahead -> SyncSource )"), || format!("it did not come back by itself:\n{log}"))?;
    pair.assert_holds(0, 8 << 20, &data)?;
    pair.compare()
}

pub fn udrbd_disconnects(bench: &mut Bench) -> Outcome {
    let mut conf = pull_ahead(bench);
    conf.net[0] = "on-congestion disconnect;".to_owned();
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    shape(&pair, true)?;
    let data = noise(3, LEN);
    let written = pair.udrbd.write(0, 8 << 20, &data, 4096);
    let alone = pair.udrbd.wait("cstate", "StandAlone", 1);
    shape(&pair, false)?;
    written?;
    alone?;
    pair.udrbd.drbdctl("connect r0")?;
    pair.wait_synced()?;
    pair.assert_holds(0, 8 << 20, &data)?;
    pair.compare()
}

//! The kernel's data survive a split brain; what udrbd had can be looked at and put back.

use std::time::Duration;

use xtask::lab::drbd::noise;

use super::ensure;
use crate::bench::{Bench, Outcome};

/// The data area, as far as the scenario writes to it.
const LEN: u64 = 40 << 20;

pub fn the_victims_data_come_back(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.kernel.write(0, 0, &noise(1, 8 << 20), 256 << 10)?;
    pair.udrbd.wait("dstate", "UpToDate/UpToDate", 1)?;

    // Both go on alone, the kernel as the Primary that it is.
    pair.udrbd.drbdctl("disconnect r0")?;
    pair.udrbd.wait("cstate", "StandAlone", 1)?;
    pair.kernel.drbdadm("disconnect r0")?;
    pair.kernel.wait_proc(1, &["cs:StandAlone"], Duration::from_secs(30))?;
    pair.kernel.write(0, 4 << 20, &noise(2, 3 << 20), 64 << 10)?;
    pair.udrbd.drbdctl("primary r0")?;
    pair.udrbd.write(0, 5 << 20, &noise(3, 5 << 20), 64 << 10)?;
    let victim = pair.udrbd.read(0, 0, LEN)?;
    pair.udrbd.drbdctl("secondary r0")?;

    // udrbd's data are given up; the kernel's applications write while they are replaced.
    pair.udrbd.drbdctl("connect --discard-my-data r0")?;
    pair.kernel.drbdadm("connect r0")?;
    pair.kernel.write(0, 20 << 20, &noise(4, 2 << 20), 64 << 10)?;
    pair.wait_synced()?;
    let told = pair.udrbd.drbdctl("split-brain r0")?;
    ensure(told.contains("it is complete"), || format!("the undo file is not complete:\n{told}"))?;

    let image = pair.lab.dir().join("victim.img");
    pair.udrbd.drbdctl(&format!("split-brain export r0 {}", image.display()))?;
    let found = std::fs::read(&image).map_err(|error| xtask::lab::LabError::io("read the exported image", &error))?;
    let whole = usize::try_from(LEN).unwrap_or(usize::MAX);
    // What was written after the resync is no part of it; where it began before, it is.
    let same = |from: usize, to: usize| found.get(from..to) == victim.get(from..to);
    ensure(same(0, 20 << 20) && same(22 << 20, whole), || "the image is not what the victim had".to_owned())?;

    pair.udrbd.drbdctl("disconnect r0")?;
    pair.udrbd.wait("cstate", "StandAlone", 1)?;
    pair.udrbd.drbdctl("split-brain undo r0")?;
    pair.udrbd.drbdctl("primary r0")?;
    let restored = pair.udrbd.read(0, 0, LEN)?;
    let same = |from: usize, to: usize| restored.get(from..to) == victim.get(from..to);
    ensure(same(0, 20 << 20) && same(22 << 20, whole), || "the disk is not what the victim had".to_owned())?;
    pair.udrbd.drbdctl("secondary r0")?;

    // The kernel takes neither for the newer one: somebody has to choose again, and all of it is copied.
    pair.udrbd.drbdctl("connect r0")?;
    pair.udrbd.wait("cstate", "StandAlone", 1)?;
    let told = pair.udrbd.drbdctl("status r0 --json")?;
    ensure(told.contains("\"split-brain\""), || format!("no split brain is told of:\n{told}"))?;
    pair.udrbd.drbdctl("connect --discard-my-data r0")?;
    // It saw the connection drop, or is StandAlone.
    let _ = pair.kernel.drbdadm("connect r0");
    pair.wait_synced()?;
    pair.compare()
}

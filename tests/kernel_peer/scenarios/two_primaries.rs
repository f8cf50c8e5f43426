//! The kernel and udrbd both Primary, and writers on both sides that meet.

use std::time::Duration;

use xtask::harness::Verdict;
use xtask::lab::drbd::{noise, out_of_sync_kib};
use xtask::lab::{Cable, LabError, wait_until};

use super::ensure;
use crate::bench::{Bench, Outcome, Pair};

/// Sectors at the beginning of the device on which everybody writes.
const SECTORS: u32 = 96;
/// Writers on the kernel's side, and requests in flight on ours. One each, because more is beyond the kernel itself: a pair of two
/// kernel nodes with four writers on each side parts by itself ("BAD! BarrierAck #26 received, expected #25!", an assertion that the
/// current epoch's list is not empty, then a split brain), and with one writer on each side stays connected and equal.
///
/// "ASSERT( req->rq_state & RQ_NET_PENDING ) in restart_conflicting_writes" in the kernel's log is harmless: a postponed request is
/// met a second time while it is still on the list of those to be sent again.
const THREADS: u32 = 1;
const DEPTH: u32 = 1;
const SOON: Duration = Duration::from_secs(60);
/// How many connections are tried until each node had the last word once.
const CONNECTIONS: u32 = 6;

/// Writes from a guest: threads with direct I/O, each with a seed of its own, random places and sizes.
fn guest_writers(seed: u32, threads: u32, writes: u32) -> String {
    format!(
        "python3 - <<'END'\n\
         import mmap, os, random, threading\n\
         fd = os.open('/dev/drbd0', os.O_RDWR | os.O_DIRECT)\n\
         bad = []\n\
         def work(seed):\n\
         \x20   r = random.Random(seed)\n\
         \x20   m = mmap.mmap(-1, 32768)\n\
         \x20   for i in range({writes}):\n\
         \x20       count = r.choice([1, 1, 2, 8, 8, 16, 32])\n\
         \x20       start = r.randrange({SECTORS} - count + 1)\n\
         \x20       m[:count * 512] = bytes([r.randrange(256)]) * (count * 512)\n\
         \x20       with memoryview(m) as view, view[:count * 512] as part:\n\
         \x20           try:\n\
         \x20               if os.pwritev(fd, [part], start * 512) != count * 512: bad.append('short')\n\
         \x20           except OSError as error: bad.append(str(error))\n\
         all = [threading.Thread(target=work, args=({seed} * 100 + n,)) for n in range({threads})]\n\
         for t in all: t.start()\n\
         for t in all: t.join()\n\
         assert not bad, bad\n\
         END"
    )
}

fn two(bench: &Bench) -> xtask::lab::drbd::Conf {
    let mut conf = bench.conf(1);
    conf.net.push("allow-two-primaries yes;".to_owned());
    conf
}

/// Writers on both sides at the same time, until both are done.
fn storm(pair: &Pair<'_>, seed: u32) -> Outcome {
    let script = guest_writers(seed, THREADS, 200);
    let guest = pair.kernel.guest.begin(&script)?;
    let ours = pair.udrbd.storm(seed, 300, DEPTH, SECTORS);
    let theirs = pair.kernel.guest.finish(&guest, Duration::from_secs(180))?;
    ours?;
    ensure(theirs.code == 0, || format!("the kernel's writers: {theirs:?}"))
}

/// Whose word counted in the kernel's log since it was cleared: (the kernel's, ours).
fn conflicts(pair: &Pair<'_>) -> Result<(usize, usize), Verdict> {
    let log = pair.kernel.guest.sh("dmesg")?;
    let lines = log.lines().filter(|line| line.contains("Concurrent writes detected"));
    let (kernel, ours): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.contains("came first"));
    Ok((kernel.len(), ours.len()))
}

fn both_primary(pair: &Pair<'_>) -> Outcome {
    pair.udrbd.drbdctl("primary r0")?;
    pair.udrbd.wait("role", "Primary/Primary", 1)?;
    pair.kernel.wait_proc(1, &["cs:Connected", "ro:Primary/Primary"], Duration::from_secs(30))?;
    Ok(())
}

/// Nothing was lost on the way: connected all the time, no block marked, equal disks.
fn quiet(pair: &Pair<'_>) -> Outcome {
    let log = pair.kernel.guest.sh("dmesg")?;
    ensure(!log.contains("conn( Connected ->"), || format!("the connection was lost:\n{log}"))?;
    pair.kernel.wait_proc(
        1,
        &["cs:Connected", "ro:Primary/Primary", "ds:UpToDate/UpToDate"],
        Duration::from_secs(30),
    )?;
    let proc = pair.kernel.proc()?;
    ensure(out_of_sync_kib(&proc) == 0, || format!("blocks are out of sync:\n{proc}"))?;
    pair.compare()
}

/// Overlapping writes of random sizes and places from both sides, as often as it takes until the kernel had the last word and
/// udrbd had it: that is who connects to a node that waits.
pub fn concurrent_writers(bench: &mut Bench) -> Outcome {
    let conf = two(bench);
    let pair = bench.synced_pair(&conf)?;
    let mut words = (0, 0);
    for round in 0..CONNECTIONS {
        both_primary(&pair)?;
        pair.kernel.guest.sh("dmesg --clear")?;
        storm(&pair, round)?;
        quiet(&pair)?;
        let (kernel, ours) = conflicts(&pair)?;
        words = (words.0 + kernel, words.1 + ours);
        if words.0 > 0 && words.1 > 0 {
            return Ok(());
        }
        pair.udrbd.drbdctl("secondary r0")?;
        if round % 2 == 0 {
            pair.kernel.drbdadm("disconnect r0")?;
            pair.udrbd.wait("cstate", "WFConnection", 1)?;
            pair.kernel.drbdadm("connect r0")?;
        } else {
            pair.udrbd.drbdctl("disconnect r0")?;
            pair.kernel.wait_proc(1, &["cs:WFConnection"], Duration::from_secs(60))?;
            pair.udrbd.drbdctl("connect r0")?;
        }
        pair.kernel.wait_proc(1, &["cs:Connected"], Duration::from_secs(60))?;
        pair.wait_synced()?;
    }
    let (kernel, ours) = words;
    Err(Verdict::Failed(format!("conflicts that the kernel decided: {kernel}, that udrbd decided: {ours}")))
}

/// The cable is cut while both write: two generations, a split brain when it is back, and only the node that an operator names
/// loses what it wrote alone.
pub fn cut_and_resolved(bench: &mut Bench) -> Outcome {
    let conf = two(bench);
    let pair = bench.synced_pair(&conf)?;
    for round in 0..2 {
        both_primary(&pair)?;
        let guest = pair.kernel.guest.begin(&guest_writers(50 + round, THREADS, 400))?;
        let cut = || -> Outcome {
            pair.udrbd.storm(50 + round, 100, DEPTH, SECTORS)?;
            pair.lab.cable(1, Cable::Cut)?;
            pair.udrbd.storm(60 + round, 200, DEPTH, SECTORS)?;
            Ok(())
        };
        let ours = cut();
        let theirs = pair.kernel.guest.finish(&guest, Duration::from_secs(240))?;
        ours?;
        ensure(theirs.code == 0, || format!("the kernel's writers: {theirs:?}"))?;
        pair.wait_apart()?;
        pair.lab.cable(1, Cable::Plugged)?;
        pair.udrbd.wait("cstate", "StandAlone", 1)?;
        let log = pair.kernel.guest.sh("dmesg")?;
        ensure(log.contains("Split-Brain detected"), || format!("no split brain in the kernel's log:\n{log}"))?;
        if round == 0 {
            pair.udrbd.drbdctl("secondary r0")?;
            pair.udrbd.drbdctl("connect --discard-my-data r0")?;
            pair.kernel.guest.sh("drbdadm connect r0 || true")?;
        } else {
            pair.kernel.drbdadm("secondary r0")?;
            pair.kernel.guest.sh("drbdadm disconnect r0 || true; drbdadm connect --discard-my-data r0")?;
            pair.udrbd.drbdctl("connect r0")?;
        }
        pair.kernel.wait_proc(1, &["cs:Connected"], Duration::from_secs(60))?;
        pair.wait_synced()?;
        pair.compare()?;
        if round == 1 {
            pair.kernel.drbdadm("primary r0")?;
        }
    }
    both_primary(&pair)?;
    pair.kernel.guest.sh("dmesg --clear")?;
    storm(&pair, 70)?;
    quiet(&pair)
}

/// Both wait for fencing when the cable is cut under their writers, and go on where they were when it is back: nothing is a new
/// generation, and what each sends again the other one takes. (Not to the same blocks: a kernel sends again what this node had
/// acknowledged, over what it has written there since.)
pub fn both_freeze_and_go_on(bench: &mut Bench) -> Outcome {
    let mut conf = super::fencing::with_helper(bench, "resource-and-stonith");
    conf.net.push("allow-two-primaries yes;".to_owned());
    let pair = bench.synced_pair(&conf)?;
    let code = pair.lab.share().join("fence-code");
    std::fs::write(&code, "1").map_err(|err| LabError::io("write the exit code", &err))?;
    both_primary(&pair)?;
    for round in 0..3u64 {
        pair.kernel.guest.sh("dmesg --clear")?;
        let (theirs, ours) = (noise(200 + round, 4 << 20), noise(300 + round, 4 << 20));
        let before = pair.kernel.proc()?;
        std::thread::scope(|scope| {
            let kernel = scope.spawn(|| pair.kernel.write(0, 8 << 20, &theirs, 16 << 10));
            let udrbd = scope.spawn(|| pair.udrbd.write(0, 16 << 20, &ours, 16 << 10));
            wait_until("the kernel's counters move", SOON, || {
                let now = pair.kernel.proc()?;
                Ok(if now == before { Err(now) } else { Ok(()) })
            })?;
            pair.lab.cable(1, Cable::Cut)?;
            pair.wait_apart()?;
            pair.lab.cable(1, Cable::Plugged)?;
            for writer in [kernel, udrbd] {
                writer.join().map_err(|_panic| Verdict::Failed("a writer panicked".to_owned()))??;
            }
            Ok::<(), Verdict>(())
        })?;
        pair.kernel.wait_proc(1, &["cs:Connected", "ro:Primary/Primary", "ds:UpToDate/UpToDate"], SOON)?;
        let (proc, log) = (pair.kernel.proc()?, pair.kernel.guest.sh("dmesg")?);
        ensure(out_of_sync_kib(&proc) == 0, || format!("blocks are out of sync:\n{proc}"))?;
        ensure(!log.contains("new current UUID"), || format!("a generation began:\n{log}"))?;
        pair.assert_holds(0, 8 << 20, &theirs)?;
        pair.assert_holds(0, 16 << 20, &ours)?;
    }
    quiet_end(&pair)
}

/// Both step down, so nobody waits for anything, and the disks are equal.
fn quiet_end(pair: &Pair<'_>) -> Outcome {
    pair.udrbd.drbdctl("secondary r0")?;
    pair.kernel.drbdadm("secondary r0")?;
    pair.compare()
}

//! I/O that waits, and nodes that outdate each other: suspend-io, on-no-data-accessible, and disconnects under a fencing policy.

use std::time::Duration;

use xtask::harness::Verdict;
use xtask::lab::drbd::{Conf, noise};
use xtask::lab::{Cable, LabError, wait_until};

use super::ensure;
use crate::bench::{Bench, Outcome, Pair};

/// Number of the cable between the two sides.
const KERNEL_CABLE: u8 = 1;
const SOON: Duration = Duration::from_secs(60);

fn policy(bench: &Bench, fencing: &str) -> Conf {
    let mut conf = bench.conf(1);
    conf.disk.push(format!("fencing {fencing};"));
    conf
}

/// Waits until udrbd's status has this word.
fn wait_status(pair: &Pair<'_>, word: &str) -> Outcome {
    wait_until(&format!("udrbd: {word}"), SOON, || {
        let text = pair.udrbd.drbdctl("status --verbose r0")?;
        Ok(if text.contains(word) { Ok(()) } else { Err(text) })
    })?;
    Ok(())
}

pub fn suspended_by_the_administrator(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    pair.udrbd.drbdctl("suspend-io r0")?;
    pair.udrbd.drbdctl("suspend-io r0")?;
    wait_status(&pair, "suspended:user")?;
    let proc = pair.udrbd.drbdctl("proc")?;
    ensure(proc.contains(" C s---"), || format!("no flag for suspended I/O:\n{proc}"))?;
    let data = noise(5, 1 << 20);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| pair.udrbd.write(0, 8 << 20, &data, 64 << 10));
        // A whole resync meanwhile.
        pair.udrbd.drbdctl("invalidate-remote r0")?;
        pair.wait_synced()?;
        ensure(!write.is_finished(), || "a write ended while I/O was suspended".to_owned())?;
        pair.udrbd.drbdctl("resume-io r0")?;
        pair.udrbd.drbdctl("resume-io r0")?;
        write.join().map_err(|_panic| Verdict::Failed("the writer panicked".to_owned()))??;
        Ok::<(), Verdict>(())
    })?;
    pair.assert_holds(0, 8 << 20, &data)?;
    pair.compare()
}

pub fn a_diskless_udrbd_primary_waits_for_the_kernel(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    pair.udrbd.drbdctl("resource-options --on-no-data-accessible=suspend-io r0")?;
    pair.udrbd.drbdctl("detach r0")?;
    pair.udrbd.wait("dstate", "Diskless/UpToDate", 1)?;
    let job = "--rw=randrw --bsrange=4k-64k --iodepth=8 --size=12M --verify=crc32c --verify_fatal=1 --do_verify=1 \
               --loops=4 --serialize_overlap=1";
    let mut load = pair.udrbd.fio(job)?;
    pair.lab.cable(KERNEL_CABLE, Cable::Cut)?;
    wait_status(&pair, "suspended:no-data")?;
    load.assert_running()?;
    pair.lab.cable(KERNEL_CABLE, Cable::Plugged)?;
    wait_status(&pair, "suspended:no\n")?;
    load.finish()?;
    pair.udrbd.drbdctl("attach r0")?;
    pair.wait_synced()?;
    pair.compare()
}

/// Under a fencing policy whoever disconnects leaves the Secondary outdated, without any helper.
pub fn the_secondary_is_outdated_by_a_disconnect(bench: &mut Bench) -> Outcome {
    let conf = policy(bench, "resource-only");
    let pair = bench.synced_pair(&conf)?;
    for kernel_goes in [false, true] {
        for kernel_is_primary in [true, false] {
            if kernel_is_primary {
                pair.promote_kernel()?;
            } else {
                pair.promote_udrbd()?;
            }
            if kernel_goes {
                pair.kernel.drbdadm("disconnect r0")?;
            } else {
                pair.udrbd.drbdctl("disconnect r0")?;
            }
            let (kernel, udrbd) = if kernel_is_primary {
                ("ds:UpToDate/Outdated", "Outdated/DUnknown")
            } else {
                ("ds:Outdated/DUnknown", "UpToDate/Outdated")
            };
            pair.kernel.wait_proc(1, &[kernel], SOON)?;
            pair.udrbd.wait("dstate", udrbd, 1)?;
            if kernel_goes {
                pair.kernel.drbdadm("connect r0")?;
            } else {
                pair.udrbd.drbdctl("connect r0")?;
            }
            pair.wait_synced()?;
        }
    }
    pair.compare()
}

/// A configuration whose fence-peer helper ends with what the file `fence-code` says, on both sides.
pub(super) fn with_helper(bench: &Bench, fencing: &str) -> Conf {
    let mut conf = policy(bench, fencing);
    let file = bench.lab.share().join("fence-code");
    conf.handlers.push(format!("fence-peer \"exit $(cat /lab/fence-code 2>/dev/null || cat {})\";", file.display()));
    conf
}

/// A node's line in `/proc/drbd` from the roles to the flags, and its current and bitmap identifier without the Primary bit.
struct Seen {
    line: String,
    current: u64,
    bitmap: u64,
}

/// A Primary, the kernel or udrbd, that is cut off.
struct Alone<'a> {
    pair: &'a Pair<'a>,
    kernel: bool,
}

impl Alone<'_> {
    fn admin(&self, words: &str) -> Result<String, LabError> {
        if self.kernel { self.pair.kernel.drbdadm(words) } else { self.pair.udrbd.drbdctl(words) }
    }

    fn look(&self) -> Result<Seen, LabError> {
        let proc = if self.kernel { self.pair.kernel.proc()? } else { self.admin("proc")? };
        let line = proc.lines().find_map(|line| line.split_once(" ro:")).map_or("", |(_, rest)| rest);
        let gi = self.admin("get-gi r0")?;
        let mut ids = gi.trim().split(':').map(|id| u64::from_str_radix(id, 16).unwrap_or(0) & !1);
        let (current, bitmap) = (ids.next().unwrap_or(0), ids.next().unwrap_or(0));
        Ok(Seen { line: line.to_owned(), current, bitmap })
    }

    /// Waits until the node is in this state, under a generation that follows `old` or under `old` itself.
    fn wait(&self, line: &str, fresh: bool, old: &Seen) -> Outcome {
        let name = if self.kernel { "kernel" } else { "udrbd" };
        wait_until(&format!("{name}: {line}, new generation: {fresh}"), SOON, || {
            let now = self.look()?;
            let follows = now.current != old.current && now.bitmap == old.current;
            let good = now.line.starts_with(line) && if fresh { follows } else { now.current == old.current };
            Ok(if good { Ok(()) } else { Err(format!("{} {:X}:{:X}", now.line, now.current, now.bitmap)) })
        })?;
        Ok(())
    }
}

/// An exit code, the peer's disk after it, whether I/O stays frozen.
type Row = (u8, &'static str, bool);

/// The same exit code does the same to the kernel's Primary and to udrbd's: states, frozen I/O, the moment of the generation.
fn exit_codes(bench: &mut Bench, fencing: &str, rows: &[Row]) -> Outcome {
    let conf = with_helper(bench, fencing);
    let pair = bench.synced_pair(&conf)?;
    let code = pair.lab.share().join("fence-code");
    for kernel in [true, false] {
        if kernel {
            pair.promote_kernel()?;
        } else {
            pair.promote_udrbd()?;
        }
        let alone = Alone { pair: &pair, kernel };
        for (nr, (exit, pdsk, frozen)) in (0u64..).zip(rows) {
            std::fs::write(&code, exit.to_string()).map_err(|err| LabError::io("write the exit code", &err))?;
            let old = alone.look()?;
            pair.lab.cable(KERNEL_CABLE, Cable::Cut)?;
            let line = |flag: char| format!("Primary/Unknown ds:UpToDate/{pdsk} C {flag}");
            // Every second time the peer comes back before anybody resumes, and nothing new has begun at all.
            let waits = *frozen && nr % 2 == 1;
            if *frozen {
                alone.wait(&line('s'), false, &old)?;
            }
            if *frozen && !waits {
                alone.admin("resume-io r0")?;
            }
            if !waits {
                alone.wait(&line('r'), true, &old)?;
            }
            let data = noise(u64::from(*exit) + 100, 1 << 20);
            let at = (8 + nr) << 20;
            std::thread::scope(|scope| {
                let write = scope.spawn(|| match kernel {
                    true => pair.kernel.write(0, at, &data, 64 << 10),
                    false => pair.udrbd.write(0, at, &data, 64 << 10),
                });
                pair.lab.cable(KERNEL_CABLE, Cable::Plugged)?;
                write.join().map_err(|_panic| Verdict::Failed("the writer panicked".to_owned()))??;
                Ok::<(), Verdict>(())
            })?;
            pair.wait_synced()?;
            let now = alone.look()?;
            ensure((now.current == old.current) == waits, || {
                format!("exit code {exit}: {:X} became {:X}", old.current, now.current)
            })?;
            pair.assert_holds(0, at, &data)?;
        }
    }
    pair.compare()
}

pub fn exit_codes_under_resource_only(bench: &mut Bench) -> Outcome {
    let rows = [(3, "Inconsistent", false), (4, "Outdated", false), (6, "DUnknown", false), (1, "DUnknown", false)];
    exit_codes(bench, "resource-only", &rows)
}

pub fn exit_codes_under_stonith(bench: &mut Bench) -> Outcome {
    let rows = [
        (1, "DUnknown", true),
        (0, "DUnknown", true),
        (3, "Inconsistent", false),
        (6, "DUnknown", true),
        (5, "Outdated", false),
        (7, "Outdated", false),
        (4, "Outdated", false),
    ];
    exit_codes(bench, "resource-and-stonith", &rows)
}

/// A disconnected Secondary that is to be promoted: refused, or not, for the same reasons.
pub fn a_promotion_asks_the_helper(bench: &mut Bench) -> Outcome {
    let conf = with_helper(bench, "resource-only");
    let pair = bench.synced_pair(&conf)?;
    let code = pair.lab.share().join("fence-code");
    for kernel in [true, false] {
        // The other node is the Primary that goes away.
        if kernel {
            pair.promote_udrbd()?;
        } else {
            pair.promote_kernel()?;
        }
        let node = Alone { pair: &pair, kernel };
        pair.lab.cable(KERNEL_CABLE, Cable::Cut)?;
        pair.wait_apart()?;
        for (exit, words, disks) in [
            (1, "(-7) Refusing to be Primary while peer is not outdated", "Secondary/Unknown ds:UpToDate/DUnknown"),
            (6, "(-2) Need access to UpToDate data", "Secondary/Unknown ds:Outdated/DUnknown"),
        ] {
            std::fs::write(&code, exit.to_string()).map_err(|err| LabError::io("write the exit code", &err))?;
            let refused = node.admin("primary r0");
            let said = refused.err().map(|err| err.to_string()).unwrap_or_default();
            ensure(said.contains(words), || format!("exit code {exit}: {said}"))?;
            let now = node.look()?;
            ensure(now.line.starts_with(disks), || format!("exit code {exit}: {}", now.line))?;
        }
        pair.lab.cable(KERNEL_CABLE, Cable::Plugged)?;
        pair.wait_synced()?;
    }
    pair.compare()
}

//! Connections that come and go, the bitmap resync after them, and online verify.

use xtask::lab::Cable;
use xtask::lab::drbd::noise;

use super::ensure;
use crate::bench::{Bench, Outcome, Pair};

/// Number of the cable between the two sides.
const KERNEL_CABLE: u8 = 1;
/// Written while apart.
const LEN: usize = 3 << 20;
/// The blocks of [`LEN`], and a little more: metadata of nobody is in there, but an activity-log extent may be.
const BITS_MAX: u64 = (LEN as u64) / 4096 + 1024;

fn assert_partial_resync(pair: &Pair<'_>) -> Outcome {
    let bits = pair.last_resync_bits()?;
    ensure((LEN as u64 / 4096..=BITS_MAX).contains(&bits), || {
        format!("the resync started with {bits} bits, should be {} to {BITS_MAX}", LEN / 4096)
    })
}

pub fn kernel_is_source_after_a_cut(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.kernel.write(0, 0, &noise(1, 1 << 20), 64 << 10)?;
    pair.lab.cable(KERNEL_CABLE, Cable::Cut)?;
    pair.wait_apart()?;
    let data = noise(2, LEN);
    pair.kernel.write(0, 16 << 20, &data, 64 << 10)?;
    pair.lab.cable(KERNEL_CABLE, Cable::Plugged)?;
    pair.wait_synced()?;
    assert_partial_resync(&pair)?;
    pair.assert_holds(0, 16 << 20, &data)?;
    pair.compare()
}

pub fn udrbd_is_source_after_a_cut(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    pair.udrbd.write(0, 0, &noise(1, 1 << 20), 64 << 10)?;
    pair.lab.cable(KERNEL_CABLE, Cable::Cut)?;
    pair.wait_apart()?;
    let data = noise(2, LEN);
    pair.udrbd.write(0, 16 << 20, &data, 64 << 10)?;
    pair.lab.cable(KERNEL_CABLE, Cable::Plugged)?;
    pair.wait_synced()?;
    assert_partial_resync(&pair)?;
    pair.assert_holds(0, 16 << 20, &data)?;
    pair.compare()
}

/// By command instead of by cable, once from each side.
pub fn disconnect_and_connect_both_ways(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;

    pair.udrbd.drbdctl("disconnect r0")?;
    pair.udrbd.wait("cstate", "StandAlone", 1)?;
    let data = noise(3, LEN);
    pair.kernel.write(0, 8 << 20, &data, 64 << 10)?;
    pair.udrbd.drbdctl("connect r0")?;
    pair.wait_synced()?;
    pair.assert_holds(0, 8 << 20, &data)?;
    pair.compare()?;

    pair.promote_udrbd()?;
    pair.kernel.drbdadm("disconnect r0")?;
    pair.kernel.wait_proc(1, &["cs:StandAlone"], std::time::Duration::from_secs(30))?;
    let data = noise(4, LEN);
    pair.udrbd.write(0, 24 << 20, &data, 64 << 10)?;
    pair.kernel.drbdadm("connect r0")?;
    pair.wait_synced()?;
    pair.assert_holds(0, 24 << 20, &data)?;
    pair.compare()
}

/// Started on either side.
pub fn verify_finds_nothing(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.kernel.write(0, 0, &noise(1, 8 << 20), 256 << 10)?;
    pair.promote_udrbd()?;
    pair.udrbd.write(0, 16 << 20, &noise(2, 8 << 20), 256 << 10)?;
    let found = pair.kernel.verify(1, || pair.kernel.drbdadm("verify r0").map(drop))?;
    ensure(found == 0, || format!("the kernel's verify found {found} KiB out of sync"))?;
    pair.udrbd.wait("cstate", "Connected", 1)?;
    pair.compare()
}

/// The same verify with two blocks changed below udrbd, so that finding nothing means something; a reconnect repairs them.
pub fn verify_finds_what_changed_underneath(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    let data = noise(1, 2 << 20);
    pair.kernel.write(0, 0, &data, 256 << 10)?;
    let image = std::fs::File::options().write(true).open(Bench::udrbd_image(pair.lab, 0))?;
    for block in [3, 100] {
        std::os::unix::fs::FileExt::write_all_at(&image, b"changed", block * 4096 + 512)?;
    }
    let found = pair.kernel.verify(1, || pair.kernel.drbdadm("verify r0").map(drop))?;
    ensure(found == 8, || format!("verify found {found} KiB out of sync, should find 8"))?;
    pair.kernel.drbdadm("disconnect r0")?;
    pair.kernel.drbdadm("connect r0")?;
    pair.wait_synced()?;
    pair.assert_holds(0, 0, &data)?;
    pair.compare()
}

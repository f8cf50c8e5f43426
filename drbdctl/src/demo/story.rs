//! The unattended story: sync, write, cut, write on, reconnect, crash, fail over, compare.
//!
//! Every step checks what it claims; the first claim that does not hold ends the story. What is measured is wall time of
//! this step on this machine, with everything on one disk.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use udrbd::wire::state::{ConnState, DiskState, Role};

use super::cluster::{Cluster, HOSTS, PATIENCE, RESOURCE};
use super::model::{BLOCK_BYTES, Dice, Model};
use super::nbd_client::NbdClient;
use super::{CORRUPT_VARIABLE, Failure, fail};
use crate::out;

const ALPHA: usize = 0;
const BETA: usize = 1;
/// Requests that the demo's application keeps in flight.
const DEPTH: usize = 32;
/// The application works on the first part of the device, one in so many; the rest is never hot.
const WORKING_SET: u64 = 4;
/// Blocks written while both nodes are there.
const BLOCKS_TOGETHER: usize = 8192;
/// Blocks written while one node is cut off.
const BLOCKS_ALONE: usize = 1000;
/// Acknowledged blocks after which the Primary is killed, in the middle of the next ones.
const BLOCKS_UNTIL_CRASH: usize = 3000;
/// Blocks written after the fail-over.
const BLOCKS_AFTER: usize = 2000;
/// Bytes compared at a time.
const COMPARE_BYTES: usize = 1 << 20;
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(50);

const MIB: f64 = 1_048_576.0;

/// Tells the story.
pub fn tell(cluster: &mut Cluster) -> Result<(), Failure> {
    let begin = Instant::now();
    first_sync(cluster)?;
    let mut model = Model::new(cluster.data_size);
    let mut dice = Dice::new(1);
    write_together(cluster, &mut model, &mut dice)?;
    cut_and_heal(cluster, &mut model, &mut dice)?;
    crash_and_fail_over(cluster, &mut model, &mut dice)?;
    come_back(cluster)?;
    compare(cluster, &mut model)?;
    done(&format!("all of it held ({:.1} s)", begin.elapsed().as_secs_f64()));
    Ok(())
}

fn step(text: &str) {
    out::line(&format!("* {text}"));
}

fn done(text: &str) {
    out::line(&format!("  {text}"));
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn rate(bytes: u64, time: Duration) -> String {
    let (mib, seconds) = (bytes as f64 / MIB, time.as_secs_f64().max(1e-9));
    format!("{mib:.1} MiB in {seconds:.2} s, {:.0} MiB/s", mib / seconds)
}

fn bytes_of(blocks: usize) -> u64 {
    (blocks * BLOCK_BYTES) as u64
}

/// Starts both nodes, makes the first one Primary, and waits until the second one has its data.
pub fn first_sync(cluster: &mut Cluster) -> Result<(), Failure> {
    let size = cluster.data_size.bytes();
    step(&format!(
        "two nodes, {} and {}, each with a disk of {} MiB and fresh metadata",
        HOSTS[0],
        HOSTS[1],
        size >> 20
    ));
    for node in [ALPHA, BETA] {
        cluster.start(node)?;
    }
    for node in [ALPHA, BETA] {
        cluster.wait(node, "connecting", |v| v.state >= ConnState::Connected)?;
    }
    done("connected; both disks Inconsistent: nobody knows yet whose data are good");
    step(&format!("{} becomes Primary by force, the first sync runs", HOSTS[ALPHA]));
    let begin = Instant::now();
    cluster.promote(ALPHA, true)?;
    let bar = progress_bar(size);
    let deadline = begin + PATIENCE;
    loop {
        let volume = cluster.volume(BETA)?;
        if volume.disk == DiskState::UpToDate && volume.state == ConnState::Connected {
            break;
        }
        if Instant::now() > deadline {
            return fail("the first sync does not end");
        }
        bar.set_position(size.saturating_sub(volume.out_of_sync_kib << 10));
        std::thread::sleep(LOOK);
    }
    let time = begin.elapsed();
    bar.finish_and_clear();
    cluster.wait(ALPHA, "the end of the sync", both_up_to_date)?;
    done(&format!("both UpToDate: {}", rate(size, time)));
    Ok(())
}

fn progress_bar(size: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    let style = "  {bar:40} {percent:>3}% {bytes}/{total_bytes} {binary_bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

fn both_up_to_date(volume: &udrbd::control::status::Volume) -> bool {
    volume.state == ConnState::Connected
        && volume.disk == DiskState::UpToDate
        && volume.peer_disk == DiskState::UpToDate
}

/// Writes `count` random blocks and gives how many different ones they were.
fn write_blocks(
    client: &mut NbdClient,
    model: &mut Model,
    dice: &mut Dice,
    count: usize,
    mut acknowledged: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let mut in_flight = std::collections::BTreeMap::new();
    let mut busy = std::collections::BTreeSet::new();
    let mut touched = std::collections::BTreeSet::new();
    let (mut sent, mut answered) = (0, 0);
    while answered < count {
        while sent < count && in_flight.len() < DEPTH {
            let block = usize::try_from(dice.roll() % (model.blocks() as u64 / WORKING_SET)).unwrap_or(0);
            // Two writes of a block at a time would have no order.
            if !busy.insert(block) {
                continue;
            }
            let write = model.begin(block);
            let cookie = client.send_write(write.offset(), &write.contents())?;
            in_flight.insert(cookie, write);
            touched.insert(block);
            sent += 1;
        }
        let answer = client.receive()?;
        if let Some(write) = in_flight.remove(&answer.cookie) {
            busy.remove(&write.block);
            model.acknowledged(write);
            answered += 1;
            acknowledged(answered)?;
        }
    }
    Ok(touched.len())
}

fn open(cluster: &Cluster, node: usize) -> Result<NbdClient, Failure> {
    let client = NbdClient::open(&cluster.nbd_socket(node), RESOURCE)
        .map_err(|error| Failure(format!("cannot open the export on {}: {error}", HOSTS[node])))?;
    if client.size_bytes() != cluster.data_size.bytes() {
        return fail(format!("the export on {} has {} bytes", HOSTS[node], client.size_bytes()));
    }
    Ok(client)
}

fn write_together(cluster: &Cluster, model: &mut Model, dice: &mut Dice) -> Result<(), Failure> {
    step("an application writes over NBD; every write is on both disks before it is acknowledged");
    if open(cluster, BETA).is_ok() {
        return fail(format!("{} is Secondary and lets a client in", HOSTS[BETA]));
    }
    let mut client = open(cluster, ALPHA)?;
    let begin = Instant::now();
    write_blocks(&mut client, model, dice, BLOCKS_TOGETHER, |_| Ok(()))?;
    client.flush()?;
    let time = begin.elapsed();
    client.close()?;
    done(&format!("{BLOCKS_TOGETHER} random blocks of 4 KiB: {}", rate(bytes_of(BLOCKS_TOGETHER), time)));
    Ok(())
}

fn cut_and_heal(cluster: &Cluster, model: &mut Model, dice: &mut Dice) -> Result<(), Failure> {
    step(&format!("the link is cut: {} is frozen (SIGSTOP), so that neither of its sockets answers", HOSTS[BETA]));
    let mut alpha = cluster.watch(ALPHA)?;
    let mut client = open(cluster, ALPHA)?;
    cluster.freeze(BETA)?;
    let begin = Instant::now();
    let touched = write_blocks(&mut client, model, dice, BLOCKS_ALONE, |_| Ok(()))?;
    alpha.until("noticing the cut", |v| v.state < ConnState::Connected && v.state != ConnState::NetworkFailure)?;
    client.flush()?;
    client.close()?;
    let alone = cluster.volume(ALPHA)?;
    let marked = usize::try_from(alone.out_of_sync_kib / 4).unwrap_or(0);
    done(&format!(
        "the application noticed nothing but a pause; {BLOCKS_ALONE} writes to {touched} blocks took {:.2} s",
        begin.elapsed().as_secs_f64()
    ));
    done(&format!("{} remembers {marked} blocks as out of sync: {} KiB", HOSTS[ALPHA], alone.out_of_sync_kib));
    if alone.role != Role::Primary || marked < touched || marked > touched + DEPTH {
        return fail(format!("{touched} blocks were written, {marked} are marked"));
    }
    step(&format!("{} goes on, the nodes reconnect, and only what changed is sent", HOSTS[BETA]));
    cluster.thaw(BETA)?;
    let mut total_kib = 0;
    let mut started = None;
    alpha.until("the resync", |v| {
        if let Some(sync) = &v.sync {
            total_kib = total_kib.max(sync.total_kib);
            started.get_or_insert_with(Instant::now);
        }
        both_up_to_date(v)
    })?;
    let time = started.map(|at| at.elapsed()).unwrap_or_default();
    cluster.wait(BETA, "the end of the resync", both_up_to_date)?;
    done(&format!(
        "resync of {total_kib} KiB of {} MiB in {:.2} s",
        cluster.data_size.bytes() >> 20,
        time.as_secs_f64()
    ));
    if total_kib != alone.out_of_sync_kib {
        return fail(format!("{} KiB were marked, the resync had {total_kib} KiB", alone.out_of_sync_kib));
    }
    Ok(())
}

fn crash_and_fail_over(cluster: &mut Cluster, model: &mut Model, dice: &mut Dice) -> Result<(), Failure> {
    step(&format!("{} is killed in the middle of writes (SIGKILL)", HOSTS[ALPHA]));
    let mut client = open(cluster, ALPHA)?;
    let mut killed = false;
    let ended = write_blocks(&mut client, model, dice, usize::MAX, |acknowledged| {
        if acknowledged == BLOCKS_UNTIL_CRASH {
            killed = true;
            cluster.crash(ALPHA)?;
        }
        Ok(())
    });
    if !killed {
        return Err(ended.err().unwrap_or_else(|| Failure("the writes ended before the crash".to_owned())));
    }
    done(&format!("{BLOCKS_UNTIL_CRASH} writes were acknowledged, {} were in flight", client.in_flight()));
    drop(client);
    step(&format!("{} takes over", HOSTS[BETA]));
    let begin = Instant::now();
    cluster.wait(BETA, "noticing the crash", |v| v.state < ConnState::Connected)?;
    cluster.promote(BETA, false)?;
    let mut client = open(cluster, BETA)?;
    let time = begin.elapsed();
    let blocks = model.blocks();
    let mut block = 0;
    while block < blocks {
        let count = (COMPARE_BYTES / BLOCK_BYTES).min(blocks - block);
        let bytes = client.read(bytes_of(block), count * BLOCK_BYTES)?;
        for (index, piece) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            model.check(block + index, piece).map_err(Failure)?;
        }
        block += count;
    }
    done(&format!(
        "Primary after {:.0} ms; all {blocks} blocks hold what was acknowledged",
        time.as_secs_f64() * 1000.0
    ));
    write_blocks(&mut client, model, dice, BLOCKS_AFTER, |_| Ok(()))?;
    client.flush()?;
    client.close()?;
    done(&format!("and {BLOCKS_AFTER} more writes"));
    Ok(())
}

fn come_back(cluster: &mut Cluster) -> Result<(), Failure> {
    step(&format!("{} is started again", HOSTS[ALPHA]));
    let mut beta = cluster.watch(BETA)?;
    cluster.start(ALPHA)?;
    let mut total_kib = 0;
    beta.until("the resync", |v| {
        total_kib = total_kib.max(v.sync.as_ref().map_or(0, |sync| sync.total_kib));
        both_up_to_date(v)
    })?;
    cluster.wait(ALPHA, "the end of the resync", both_up_to_date)?;
    done(&format!("resync of {total_kib} KiB: what was hot when it died, and what it missed"));
    if total_kib >= cluster.data_size.bytes() >> 10 {
        return fail("the resync had the whole device");
    }
    Ok(())
}

fn compare(cluster: &mut Cluster, model: &mut Model) -> Result<(), Failure> {
    step("both nodes stop, and their disks are compared byte for byte");
    cluster.demote(BETA)?;
    // The peer of the last good copy must not leave first.
    cluster.stop(ALPHA)?;
    cluster.stop(BETA)?;
    if std::env::var_os(CORRUPT_VARIABLE).is_some() {
        corrupt(cluster)?;
    }
    let files = [File::open(cluster.disk(ALPHA))?, File::open(cluster.disk(BETA))?];
    let size = usize::try_from(cluster.data_size.bytes())?;
    let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut at = 0;
    while at < size {
        let len = COMPARE_BYTES.min(size - at);
        files[ALPHA].read_exact_at(&mut left[..len], at as u64)?;
        files[BETA].read_exact_at(&mut right[..len], at as u64)?;
        if let Some(differ) = left[..len].iter().zip(&right[..len]).position(|(a, b)| a != b) {
            return fail(format!("the replicas differ at byte {}", at + differ));
        }
        for (index, piece) in left[..len].chunks_exact(BLOCK_BYTES).enumerate() {
            model.check(at / BLOCK_BYTES + index, piece).map_err(Failure)?;
        }
        at += len;
    }
    done(&format!("{size} bytes are equal, and every block holds what was acknowledged"));
    Ok(())
}

/// Changes one byte behind everybody's back.
fn corrupt(cluster: &Cluster) -> Result<(), Failure> {
    let file = File::options().read(true).write(true).open(cluster.disk(BETA))?;
    let at = cluster.data_size.bytes() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(())
}

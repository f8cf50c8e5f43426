//! Two daemons, both Primary, and writers through both exports that meet: the history of every sector is kept, and what was
//! read and what is left has to fit it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::harness::{Node, Pair, net};
use crate::model::Dice;

/// Sectors on which everybody works.
const SECTORS: usize = 64;
const SECTOR: usize = 512;
/// Clients of each node, and what each of them does in a round.
const CLIENTS: u64 = 3;
const REQUESTS: u64 = 60;
/// In round 0 and after a resolution: what was there before anybody wrote.
const BEFORE: u64 = 0;

/// Something that a client did to one sector, between two moments.
#[derive(Clone, Copy, Debug)]
struct Step {
    sector: usize,
    value: u64,
    write: bool,
    node: usize,
    began: u64,
    ended: u64,
}

/// One history of the first sectors, and the moments in it.
struct History {
    clock: AtomicU64,
    round: u64,
    before: Vec<u8>,
}

impl History {
    fn moment(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// The value that a sector's bytes stand for.
    fn value(&self, sector: usize, bytes: &[u8]) -> u64 {
        if bytes == &self.before[sector * SECTOR..(sector + 1) * SECTOR] {
            return BEFORE;
        }
        let value = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        assert!(bytes == stamp(value), "sector {sector} is torn: {:?}", &bytes[..32]);
        value
    }

    /// One client's requests, one after the other.
    fn client(&self, node: usize, on: &Node, seed: u64) -> Vec<Step> {
        let mut client = on.open().expect("an export");
        let mut dice = Dice::new(seed);
        let mut steps = Vec::new();
        for nr in 0..REQUESTS {
            let count = [1, 1, 2, 5, 8, 16][below(&mut dice, 6)];
            let first = below(&mut dice, SECTORS - count + 1);
            let offset = (first * SECTOR) as u64;
            let write = !dice.roll().is_multiple_of(3);
            let value = self.round << 32 | seed << 16 | (nr + 1);
            let began = self.moment();
            let values = if write {
                client.send_write(offset, &stamp(value).repeat(count)).expect("sent");
                client.receive().expect("written");
                vec![value; count]
            } else {
                let bytes = client.read(offset, count * SECTOR).expect("data");
                bytes.chunks(SECTOR).enumerate().map(|(i, b)| self.value(first + i, b)).collect()
            };
            let ended = self.moment();
            let sectors = values.into_iter().enumerate();
            steps.extend(sectors.map(|(i, value)| Step { sector: first + i, value, write, node, began, ended }));
        }
        client.flush().expect("flushed");
        client.close().expect("closed");
        steps
    }
}

fn below(dice: &mut Dice, limit: usize) -> usize {
    usize::try_from(dice.roll() % limit as u64).expect("small")
}

fn stamp(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(SECTOR / 8)
}

/// All clients of both nodes at once.
fn storm(pair: &Pair, round: u64) -> (History, Vec<Step>) {
    let before = pair.a.open().and_then(|mut client| client.read(0, SECTORS * SECTOR)).expect("data");
    let history = History { clock: AtomicU64::new(1), round, before };
    let steps = std::thread::scope(|scope| {
        let start = |nr: u64| {
            let (history, node) = (&history, usize::from(nr.is_multiple_of(2)));
            let on = [&pair.a, &pair.b][node];
            scope.spawn(move || history.client(node, on, round * 100 + nr + 1))
        };
        let threads: Vec<_> = (0..2 * CLIENTS).map(start).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
    });
    (history, steps)
}

/// What was read fits the writes: a value is written before it is read, and no other write lies wholly between its own and the read.
/// Of two reads one after the other the later one does not see a write that ended before the earlier one's value began.
fn check_reads(steps: &[Step]) {
    for read in steps.iter().filter(|step| !step.write) {
        let of_sector = || steps.iter().filter(|step| step.sector == read.sector);
        let written = of_sector().find(|step| step.write && step.value == read.value);
        assert!(written.is_some() || read.value == BEFORE, "nobody wrote {read:?}");
        let written_end = written.map_or(0, |step| step.ended);
        assert!(written.is_none_or(|step| step.began < read.ended), "read before it was written: {read:?}");
        let between = of_sector()
            .find(|step| step.write && step.value != read.value && step.began > written_end && step.ended < read.began);
        assert!(between.is_none(), "{read:?} does not see {between:?}, which followed {written:?}");
        let newer = of_sector().filter(|step| !step.write && step.node == read.node && step.ended < read.began);
        for earlier in newer {
            let value = of_sector().find(|step| step.write && step.value == earlier.value);
            assert!(
                value.is_none_or(|value| value.began <= written_end),
                "{read:?} goes back behind {earlier:?}, which saw {value:?}"
            );
        }
    }
}

/// Every sector holds one of its last writes.
fn check_end(history: &History, steps: &[Step], disk: &[u8]) {
    for (sector, bytes) in disk.chunks(SECTOR).take(SECTORS).enumerate() {
        let value = history.value(sector, bytes);
        let writes = || steps.iter().filter(|step| step.write && step.sector == sector);
        let written = writes().find(|step| step.value == value);
        assert!(written.is_some() || value == BEFORE, "nobody wrote {value:#x} to sector {sector}");
        let ended = written.map_or(0, |step| step.ended);
        let later = writes().find(|step| step.began > ended);
        assert!(later.is_none(), "sector {sector} holds {written:?}, and {later:?} came later");
    }
}

fn export(on: &Node) -> Vec<u8> {
    let mut client = on.open().expect("an export");
    let data = client.read(0, SECTORS * SECTOR).expect("data");
    client.close().expect("closed");
    data
}

fn connected_storm(pair: &Pair, round: u64) {
    let (history, steps) = storm(pair, round);
    check_reads(&steps);
    let (a, b) = (export(&pair.a), export(&pair.b));
    assert!(a == b, "the exports differ");
    check_end(&history, &steps, &a);
}

/// Two Primaries under six clients; then they lose each other, go on alone, and the one that is named gives up what it wrote
/// since; and again.
#[test]
fn writers_on_both_nodes_and_splits_in_between() {
    let options = net(&[("allow-two-primaries", "yes")]);
    let mut pair = Pair::synced(&[], &options);
    pair.b.ok(pair.b.primary(false));
    for round in 0..2 {
        connected_storm(&pair, 3 * round);
        pair.a.ok(pair.a.disconnect(true));
        let (survivor, victim) = if round == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        // Alone: two histories, of which one stays.
        let _ = storm(&pair, 3 * round + 1);
        let kept = export(survivor);
        // The other side may try already, and finds the split brain.
        victim.ok(victim.secondary(true));
        for node in [survivor, victim] {
            let _ = node.call(node.disconnect(true));
        }
        victim.ok(victim.connect(&net(&[("allow-two-primaries", "yes"), ("discard-my-data", "yes")])));
        survivor.ok(survivor.connect(&options));
        pair.wait_in_sync();
        victim.ok(victim.primary(false));
        assert!(export(victim) == kept && export(survivor) == kept, "the survivor's data are not what is left");
    }
    connected_storm(&pair, 9);
    pair.b.ok(pair.b.secondary(true));
    pair.a.ok(pair.a.secondary(true));
    pair.down_and_compare();
}

//! An application under load: random block writes whose acknowledgements are remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::model::{BLOCK_BYTES, Dice, Model, Write};
use crate::nbd_client::NbdClient;

/// Requests in flight.
const DEPTH: usize = 16;

/// Writes on one connection.
pub struct Load {
    client: NbdClient,
    in_flight: BTreeMap<u64, Write>,
    busy: BTreeSet<usize>,
}

impl Load {
    pub fn new(client: NbdClient) -> Self {
        Self { client, in_flight: BTreeMap::new(), busy: BTreeSet::new() }
    }

    /// Waits for `count` more acknowledgements and keeps new writes coming.
    pub fn run(&mut self, model: &mut Model, dice: &mut Dice, count: usize) -> io::Result<()> {
        for _ in 0..count {
            while self.in_flight.len() < DEPTH {
                let block = usize::try_from(dice.roll() % model.blocks() as u64).expect("small");
                if self.busy.insert(block) {
                    let write = model.begin(block);
                    let cookie = self.client.send_write(write.offset(), &write.contents())?;
                    self.in_flight.insert(cookie, write);
                }
            }
            self.receive(model)?;
        }
        Ok(())
    }

    fn receive(&mut self, model: &mut Model) -> io::Result<()> {
        let answer = self.client.receive()?;
        let write = self.in_flight.remove(&answer.cookie).expect("an answer to a write");
        self.busy.remove(&write.block);
        model.acknowledged(write);
        Ok(())
    }

    /// Waits for all answers, makes them durable and leaves.
    pub fn finish(mut self, model: &mut Model) -> io::Result<()> {
        while !self.in_flight.is_empty() {
            self.receive(model)?;
        }
        self.client.flush()?;
        self.client.close()
    }
}

/// Reads the whole device and compares it with what was acknowledged.
pub fn check_export(client: &mut NbdClient, model: &mut Model) {
    for block in (0..model.blocks()).step_by(64) {
        let count = 64.min(model.blocks() - block);
        let bytes = client.read((block * BLOCK_BYTES) as u64, count * BLOCK_BYTES).expect("data");
        check_blocks(&bytes, block, model);
    }
}

/// Compares data from block `first` on.
pub fn check_blocks(bytes: &[u8], first: usize, model: &mut Model) {
    for (index, piece) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
        if let Err(why) = model.check(first + index, piece) {
            panic!("{why}");
        }
    }
}

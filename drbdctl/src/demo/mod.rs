//! `drbdctl demo`: two nodes on this machine, over loopback, with file-backed disks in a temporary directory.
//!
//! The nodes are child processes: this program runs itself with hidden words, and the child is a whole daemon out of the
//! library. `cluster` owns disks, configuration and children; `nbd_client` is an application; `story` is what happens
//! unattended; `attended` waits for Ctrl-C; `model` knows what every block must hold.

mod attended;
mod cluster;
mod model;
mod nbd_client;
mod story;

use crate::out;

/// First of the hidden words that make this program a node.
const NODE_WORD: &str = "demo-node";
/// Set to make the last comparison fail: a test that the demo can tell a difference.
const CORRUPT_VARIABLE: &str = "UDRBD_DEMO_CORRUPT";

/// Why the demo failed, for people.
#[derive(Debug)]
pub struct Failure(String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// A failure with these words.
fn fail<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(text.into()))
}

/// Runs the demo; gives the exit code. `once`: unattended; `keep`: leave the files.
pub fn run(once: bool, keep: bool) -> u8 {
    let cluster = match cluster::Cluster::create() {
        Ok(cluster) => cluster,
        Err(Failure(why)) => {
            out::say(&format!("demo: {why}"));
            return 1;
        }
    };
    let mut cluster = cluster;
    let result = if once { story::tell(&mut cluster) } else { attended::run(&mut cluster) };
    if let Err(Failure(why)) = &result {
        out::say(&format!("demo: FAILED: {why}"));
        cluster.show_logs();
    }
    cluster.end(keep || result.is_err());
    u8::from(result.is_err())
}

/// Runs this program as one of the demo's nodes if `words` (without the program's name) ask for that.
pub fn run_hidden(words: &[String]) -> Option<u8> {
    match words {
        [word, dir, host] if word == NODE_WORD => Some(cluster::run_node(dir.as_ref(), host)),
        _ => None,
    }
}

//! Who may use what, within this process and against others.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::*;
use crate::disk::{ClaimScope, DiskErrorKind};

const CHILD_PATH: &str = "UDRBD_TEST_CLAIM_PATH";

/// Another process that holds a claim until it is dropped.
pub(super) struct Holder {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Holder {
    /// `None` if it could not claim `path`.
    pub(super) fn start(path: &Path) -> Option<Self> {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "disk::tests::claims::child_that_holds_a_claim", "--nocapture"])
            .env(CHILD_PATH, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self { child, output };
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(holder.output.read_line(&mut line).unwrap(), 0, "the child ends without an answer");
            match line.trim() {
                "claimed" => return Some(holder),
                "in use" => return None,
                _ => {}
            }
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // To the end, or the child dies of a broken pipe.
        let _ = self.output.read_to_end(&mut Vec::new());
        let _ = self.child.wait();
    }
}

/// Not a test of its own: what [`Holder`] runs.
#[test]
fn child_that_holds_a_claim() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    match BackingDevice::open(path, &OpenOptions::default()) {
        Ok(_dev) => {
            println!("\nclaimed");
            // Until the parent closes the pipe, or dies.
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        Err(error) => {
            assert_eq!(error.kind(), DiskErrorKind::InUse);
            println!("\nin use");
        }
    }
}

fn owner(owner: &str, claim: ClaimScope) -> OpenOptions {
    OpenOptions { owner: owner.to_owned(), claim, ..Default::default() }
}

#[test]
fn a_device_has_one_user_in_the_daemon() {
    let file = file(1 << 20);
    let first = BackingDevice::open(file.path(), &owner("r0/0 (data)", ClaimScope::Whole)).unwrap();
    let link = file.path().with_extension("link");
    std::fs::hard_link(file.path(), &link).unwrap();
    let error = BackingDevice::open(&link, &OpenOptions::default()).unwrap_err();
    std::fs::remove_file(&link).unwrap();
    assert_eq!(error.kind(), DiskErrorKind::InUse);
    assert_eq!(error.to_string(), format!("claim of {} failed: in use by r0/0 (data) of this daemon", link.display()));
    // A look without a claim is allowed, but only a look.
    let look = OpenOptions { read_only: true, claim: ClaimScope::Nothing, ..Default::default() };
    BackingDevice::open(file.path(), &look).unwrap();
    let touch = OpenOptions { claim: ClaimScope::Nothing, ..Default::default() };
    assert_eq!(BackingDevice::open(file.path(), &touch).unwrap_err().kind(), DiskErrorKind::Unsupported);
    // Clones share the claim; it ends with the last of them.
    let second = first.clone();
    drop(first);
    assert!(BackingDevice::open(file.path(), &OpenOptions::default()).is_err());
    drop(second);
    BackingDevice::open(file.path(), &OpenOptions::default()).unwrap();
}

#[test]
fn slots_are_shared_and_each_has_one_user() {
    let file = file(1 << 20);
    let slot = |start, len| ClaimScope::Range { start, len };
    let a = BackingDevice::open(file.path(), &owner("r0/0 (metadata)", slot(0, 4096))).unwrap();
    let _b = BackingDevice::open(file.path(), &owner("r1/0 (metadata)", slot(4096, 4096))).unwrap();
    let error = BackingDevice::open(file.path(), &owner("r2/0", slot(4095, 2))).unwrap_err();
    assert!(error.to_string().ends_with("in use by r0/0 (metadata) of this daemon"), "{error}");
    let error = BackingDevice::open(file.path(), &owner("r2/0", ClaimScope::Whole)).unwrap_err();
    assert_eq!(error.kind(), DiskErrorKind::InUse);
    for (start, len) in [(0, 0), (u64::MAX, 2), (1 << 62, 1 << 62)] {
        let error = BackingDevice::open(file.path(), &owner("r2/0", slot(start, len))).unwrap_err();
        assert_eq!(error.kind(), DiskErrorKind::OutOfRange);
    }
    drop(a);
    BackingDevice::open(file.path(), &owner("r2/0", slot(0, 4096))).unwrap();
}

#[test]
fn another_process_is_noticed_and_named() {
    let file = file(1 << 20);
    let holder = Holder::start(file.path()).unwrap();
    let error = BackingDevice::open(file.path(), &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), DiskErrorKind::InUse);
    assert!(error.to_string().contains(&format!("(process {})", holder.id())), "{error}");
    drop(holder);
    let mine = BackingDevice::open(file.path(), &OpenOptions::default()).unwrap();
    assert!(Holder::start(file.path()).is_none());
    drop(mine);
    assert!(Holder::start(file.path()).is_some());
}

#[test]
fn only_block_devices_and_files_are_devices() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path(), Path::new("/dev/null")] {
        let error = BackingDevice::open(path, &OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), DiskErrorKind::NotADevice);
    }
    let missing = dir.path().join("missing");
    let error = BackingDevice::open(&missing, &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), DiskErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!("open of {} failed: No such file or directory (os error 2)", missing.display())
    );
}

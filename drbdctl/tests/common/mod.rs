//! A directory with a configuration and disks, and `drbdctl` run in it.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod daemon;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// See the file.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A resource `r0` with internal and a resource `r1` with external metadata; minors from `minor`.
    pub fn new(minor: u32) -> Self {
        let place = Self { dir: tempfile::tempdir().expect("temporary directory") };
        for name in ["disk0", "disk1", "meta1"] {
            File::create(place.path(name)).and_then(|file| file.set_len(64 << 20)).expect("file");
        }
        place.write_config(&format!(
            "resource r0 {{\n  net {{ protocol C; congestion-fill 1M; }}\n  startup {{ wfc-timeout 1; }}\n  \
             device minor {minor}; disk disk0; meta-disk internal;\n  \
             on n1 {{ address 127.0.0.1:7790; }}\n  on n2 {{ address 127.0.0.2:7790; }}\n}}\n\
             resource r1 {{\n  device minor {}; disk disk1; meta-disk meta1;\n  \
             on n1 {{ address 127.0.0.1:7791; }}\n  on n2 {{ address 127.0.0.2:7791; }}\n}}\n\
             resource other {{ on a {{ device minor 9; disk /x; meta-disk internal; address 10.0.0.1:1; }}\n  \
             on b {{ device minor 9; disk /x; meta-disk internal; address 10.0.0.2:1; }} }}\n",
            minor + 1
        ));
        place
    }

    pub fn write_config(&self, text: &str) {
        std::fs::write(self.path("drbd.conf"), text).expect("file");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("control.sock")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `drbdctl` with these words on node n1, stdin closed.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drbdctl"));
        command.args(["-c", "drbd.conf", "--hostname", "n1", "--socket"]).arg(self.socket());
        command.args(words.split_whitespace()).current_dir(self.dir()).stdin(Stdio::null());
        for variable in ["DRBD_CONF", "DRBD_HOSTNAME", "__DRBD_NODE__", "UDRBD_SOCKET"] {
            command.env_remove(variable);
        }
        command
    }

    pub fn run(&self, words: &str) -> Ran {
        Ran::of(words, &self.command(words).output().expect("drbdctl runs"))
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    pub words: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(words: &str, output: &Output) -> Self {
        Self {
            words: words.to_owned(),
            code: output.status.code().expect("not killed"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Checks everything; gives stdout.
    #[track_caller]
    pub fn expect(self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (code, stdout, stderr), "{}", self.words);
    }

    /// Checks the exit code; gives stdout.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Checks the exit code and that stderr has this text.
    #[track_caller]
    pub fn fails(self, code: i32, stderr: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(stderr), "{stderr:?} in {self:?}");
    }
}

//! Commands that must be refused: one table, played by the kernel and by udrbd, each with the other as its peer. Code and words
//! are those of the kernel; what it says in other ways is not in the table.

use std::time::Duration;

use xtask::harness::Verdict;
use xtask::lab::wait_until;

use super::ensure;
use crate::bench::{Bench, Outcome, Pair};

/// How long a refusal may take.
const SOON: Duration = Duration::from_secs(60);

/// Who does something: the node that is looked at, or the one beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// The node that the table is about.
    Me,
    /// Its peer.
    Peer,
}
use Who::{Me, Peer};

/// What is done, one after the other.
enum Step {
    /// A command, its exit code, and words that it says on the first line of standard error (none: nothing to compare).
    Says(Who, &'static str, i32, &'static str),
    /// The node's `dstate` (own and peer's disk) becomes this.
    Disks(Who, &'static str),
    /// The node's `cstate` becomes this.
    Connection(Who, &'static str),
    /// Holds the device open, as a file system would.
    Open(Who, bool),
}
use Step::{Connection, Disks, Open, Says};

const STONITH_AND_A: &str = "(154) Fencing policy resource-and-stonith only with prot B or C allowed";
const UNKNOWN_MINOR: &str = "(127) Device minor not allocated";

/// Before anything is configured.
const NOTHING: &[Step] = &[
    Says(Me, "primary r0", 10, UNKNOWN_MINOR),
    Says(Me, "secondary r0", 10, UNKNOWN_MINOR),
    Says(Me, "detach r0", 10, UNKNOWN_MINOR),
    Says(Me, "pause-sync r0", 10, UNKNOWN_MINOR),
    Says(Me, "resume-sync r0", 10, UNKNOWN_MINOR),
    Says(Me, "resize r0", 10, UNKNOWN_MINOR),
    Says(Me, "disk-options --resync-rate=4M r0", 10, UNKNOWN_MINOR),
    Says(Me, "new-current-uuid r0/0", 10, UNKNOWN_MINOR),
    Says(Me, "invalidate-remote r0", 10, UNKNOWN_MINOR),
    Says(Me, "del-minor r0", 10, UNKNOWN_MINOR),
    Says(Me, "connect r0", 10, "(158) Unknown resource"),
    Says(Me, "del-resource r0", 10, "(158) Unknown resource"),
    Says(Me, "resource-options --on-no-data-accessible=io-error r0", 10, "(158) Unknown resource"),
    Says(Me, "disconnect r0", 10, "(162) Invalid configuration request"),
    Says(Me, "net-options --ping-int=3 r0", 10, "(162) Invalid configuration request"),
    Says(Me, "down r0", 0, ""),
];

/// Connected, nobody has good data. (`invalidate` is not among it: the kernel makes the source's disk good by the way, udrbd as
/// the source refuses.)
const FRESH: &[Step] = &[
    Connection(Me, "Connected"),
    Disks(Me, "Inconsistent/Inconsistent"),
    Says(Me, "primary r0", 17, "(-2) Need access to UpToDate data"),
    Says(Me, "resize r0", 10, "(131) Need one Primary node to resize."),
    Says(Me, "new-current-uuid r0/0", 10, "(151) Need to be StandAlone"),
    Says(Me, "connect r0", 10, "(102) Local address(port) already in use."),
    Says(Me, "attach r0", 20, "Device '0' is configured!"),
    Says(Me, "del-minor r0", 10, "(160) Minor still configured (down it first)"),
    Says(Me, "del-resource r0", 10, "(125) Device has a net-config (use disconnect first)"),
    Says(Me, "pause-sync r0", 0, ""),
    Says(Me, "pause-sync r0", 10, "(134) Sync-pause flag is already set"),
    Says(Me, "resume-sync r0", 0, ""),
    Says(Me, "resume-sync r0", 10, "(135) Sync-pause flag is already cleared"),
    Says(Me, "net-options --protocol=B --allow-two-primaries=yes r0", 10, "(139) Protocol C required"),
    Says(
        Me,
        "net-options --on-congestion=pull-ahead r0",
        10,
        "(155) on-congestion policy pull-ahead only with prot A allowed",
    ),
    Says(Me, "disk-options --fencing=resource-and-stonith r0", 0, ""),
    Says(Me, "net-options --protocol=A r0", 10, STONITH_AND_A),
    Says(Me, "disk-options --fencing=dont-care r0", 0, ""),
    Says(Me, "net-options --protocol=A r0", 0, ""),
    // Only changes of `net` are looked at once there is a connection.
    Says(Me, "disk-options --fencing=resource-and-stonith r0", 0, ""),
    Says(Me, "disk-options --fencing=dont-care r0", 0, ""),
    Says(Me, "net-options --protocol=C r0", 0, ""),
    // The same again is no mistake.
    Says(Me, "new-minor r0", 0, ""),
    Says(Me, "secondary r0", 0, ""),
];

/// This node Primary, both good.
const PRIMARY: &[Step] = &[
    Says(Me, "primary --force r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
    Connection(Me, "Connected"),
    Connection(Peer, "Connected"),
    Says(Me, "new-current-uuid r0/0", 10, "(151) Need to be StandAlone"),
    Open(Me, true),
    Says(Me, "secondary r0", 11, "(-12) Device is held open by someone"),
    Says(Me, "down r0", 11, "(-12) Device is held open by someone"),
    Open(Me, false),
    Says(Me, "resize --al-stripes=1 --al-stripe-size-kB=16 r0", 10, "(168) Resulting AL are too small"),
    Says(Me, "resize --al-stripes=1024 --al-stripe-size-kB=1048576 r0", 10, "(167) Resulting AL area too big"),
    Says(
        Me,
        "resize --al-stripes=4 --al-stripe-size-kB=32 r0",
        10,
        "(170) Implicit device shrinking not allowed. See kernel log.",
    ),
    // The peer's disk goes; this one is the last.
    Says(Peer, "detach r0", 0, ""),
    Disks(Me, "UpToDate/Diskless"),
    Says(Peer, "attach --size=10G r0", 10, "(111) Low.dev. smaller than requested DRBD-dev. size."),
    Says(Me, "detach r0", 17, "(-2) Need access to UpToDate data"),
    // Nothing to do, as it says.
    Says(Me, "invalidate-remote r0", 0, ""),
    Says(Peer, "attach r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
    // Its own goes; the peer's is the last.
    Says(Me, "detach r0", 0, ""),
    Disks(Me, "Diskless/UpToDate"),
    Says(Me, "detach r0", 0, ""),
    Says(Me, "disk-options --resync-rate=40M r0", 10, "(138) Device does not have a disk-config"),
    Says(Me, "resize r0", 10, "(138) Device does not have a disk-config"),
    Says(Me, "disconnect r0", 17, "(-2) Need access to UpToDate data"),
    Says(Me, "attach r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
    // A resync that does not go on.
    Says(Me, "pause-sync r0", 0, ""),
    Says(Peer, "invalidate r0", 0, ""),
    Connection(Me, "PausedSyncS"),
    Says(Me, "invalidate-remote r0", 11, "(-8) Can not start OV/resync since it is already active"),
    Says(Me, "resize r0", 10, "(130) Resize not allowed during resync."),
    Says(Me, "resume-sync r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
];

/// This node beside a Primary.
const SECONDARY: &[Step] = &[
    Says(Me, "secondary r0", 0, ""),
    Says(Peer, "primary r0", 0, ""),
    Says(Me, "primary r0", 11, "(-1) Multiple primaries not allowed by config"),
    Says(Me, "primary --force r0", 11, "(-1) Multiple primaries not allowed by config"),
    Says(Peer, "detach r0", 0, ""),
    Disks(Me, "UpToDate/Diskless"),
    Says(Me, "detach r0", 11, "(-10) State change was refused by peer node"),
    Says(Me, "disconnect r0", 11, "(-10) State change was refused by peer node"),
    Says(Me, "invalidate r0", 0, ""),
    Says(Peer, "attach r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
    Says(Peer, "pause-sync r0", 0, ""),
    Says(Me, "invalidate r0", 0, ""),
    Connection(Me, "PausedSyncT"),
    Says(Me, "invalidate r0", 11, "(-8) Can not start OV/resync since it is already active"),
    Says(Me, "resume-sync r0", 10, "(157) Sync-pause flag is already cleared."),
    Says(Peer, "resume-sync r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
    Connection(Me, "Connected"),
    // The Primary goes away, this one waits.
    Says(Peer, "disconnect r0", 0, ""),
    Connection(Me, "WFConnection"),
    Says(Me, "invalidate r0", 11, "(-15) Need a connection to start verify or resync"),
    Says(Me, "invalidate-remote r0", 11, "(-15) Need a connection to start verify or resync"),
    Says(Me, "new-current-uuid r0/0", 10, "(151) Need to be StandAlone"),
    Says(
        Me,
        "resize --al-stripes=4 --al-stripe-size-kB=32 r0",
        10,
        "(166) DRBD need to be connected for online MD layout change",
    ),
    Says(Me, "outdate r0", 0, ""),
    Disks(Me, "Outdated/DUnknown"),
    Says(Me, "primary r0", 17, "(-2) Need access to UpToDate data"),
    Says(Peer, "connect r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
];

/// Both Primary, then only this one.
const TWO: &[Step] = &[
    Says(Me, "net-options --allow-two-primaries=yes r0", 0, ""),
    Says(Me, "primary r0", 0, ""),
    Says(
        Me,
        "net-options --allow-two-primaries=no r0",
        10,
        "(164) Can not clear allow_two_primaries as long as\nthere a primaries on both sides",
    ),
    Says(Peer, "secondary r0", 0, ""),
    Says(Me, "net-options --allow-two-primaries=no r0", 0, ""),
    Says(Peer, "primary r0", 11, "(-1) Multiple primaries not allowed by config"),
];

/// This node Primary and StandAlone.
const ALONE: &[Step] = &[
    Says(Me, "disconnect r0", 0, ""),
    Connection(Me, "StandAlone"),
    Says(Me, "disconnect r0", 10, "(162) Invalid configuration request"),
    Says(Me, "invalidate r0", 11, "(-15) Need a connection to start verify or resync"),
    Says(Me, "detach r0", 17, "(-2) Need access to UpToDate data"),
    Says(Me, "outdate r0", 17, ""),
    Says(Me, "connect --discard-my-data r0", 10, "(123) --discard-my-data not allowed when primary."),
    Says(Me, "secondary r0", 0, ""),
    Says(Me, "invalidate-remote r0", 11, "(-15) Need a connection to start verify or resync"),
    Says(Me, "del-minor r0", 10, "(160) Minor still configured (down it first)"),
    Says(Me, "connect r0", 0, ""),
    Disks(Me, "UpToDate/UpToDate"),
];

/// The two nodes, as the table sees them.
struct Table<'a> {
    pair: Pair<'a>,
    me_is_udrbd: bool,
    /// What was otherwise than the table says.
    wrong: Vec<String>,
}

impl Table<'_> {
    fn is_udrbd(&self, who: Who) -> bool {
        (who == Me) == self.me_is_udrbd
    }

    fn run(&self, who: Who, args: &str) -> Result<(i32, String), Verdict> {
        if self.is_udrbd(who) {
            return Ok(self.pair.udrbd.try_drbdctl(args)?);
        }
        let (verb, _) = args.split_once(' ').unwrap_or((args, ""));
        let command = match verb {
            // drbdadm of this line hands options of the back end over behind two dashes, and does not know these commands.
            "del-minor" => "drbdsetup del-minor 0".to_owned(),
            "del-resource" => "drbdsetup del-resource r0".to_owned(),
            "new-minor" => "drbdsetup new-minor r0 0 0".to_owned(),
            "attach" if args.contains("size") => {
                // drbdadm knows no size here; what it does before an attach has to be done as well.
                format!(
                    "drbdadm apply-al r0 && drbdsetup {}",
                    args.replace(" r0", "").replace("attach", "attach 0 /dev/ubda /dev/ubda internal")
                )
            }
            "resize" => format!("drbdsetup {}", args.replace(" r0", "").replace("resize", "resize 0")),
            "connect" if args.contains("discard") => "drbdadm -- --discard-my-data connect r0".to_owned(),
            _ => format!("drbdadm {args}"),
        };
        let output = self.pair.kernel.guest.exec(&command, SOON)?;
        Ok((output.code, output.text))
    }

    fn wait(&self, who: Who, what: &str, wanted: &str) -> Outcome {
        if self.is_udrbd(who) {
            return Ok(self.pair.udrbd.wait(what, wanted, 1)?);
        }
        Ok(wait_until(&format!("kernel: {what} {wanted}"), Duration::from_secs(60), || {
            let is = self.pair.kernel.query(what)?;
            Ok(if is == wanted { Ok(()) } else { Err(is) })
        })?)
    }

    fn open(&mut self, who: Who, open: bool) -> Outcome {
        if self.is_udrbd(who) {
            return Ok(self.pair.udrbd.hold(open)?);
        }
        let script = if open {
            "sleep 1000 </dev/drbd0 >/dev/null 2>&1 & echo $! >/tmp/holder"
        } else {
            "kill $(cat /tmp/holder); while grep -qs '^State:.[^Z]' /proc/$(cat /tmp/holder)/status; do :; done"
        };
        self.pair.kernel.guest.sh(script)?;
        Ok(())
    }

    fn play(&mut self, steps: &[Step]) -> Outcome {
        for step in steps {
            match step {
                Says(who, args, code, words) => {
                    let (got, text) = self.run(*who, args)?;
                    if got != *code || !text.contains(words) {
                        self.wrong.push(format!("{who:?} {args}: should be {code} {words:?}, is {got} {text:?}"));
                    }
                }
                Disks(who, wanted) => self.wait(*who, "dstate", wanted)?,
                Connection(who, wanted) => self.wait(*who, "cstate", wanted)?,
                Open(who, open) => self.open(*who, *open)?,
            }
        }
        Ok(())
    }
}

fn play_all(bench: &mut Bench, me_is_udrbd: bool) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.pair(&conf)?;
    let mut table = Table { pair, me_is_udrbd, wrong: Vec::new() };
    let down = table.run(Me, "down r0")?;
    ensure(down.0 == 0, || format!("down: {down:?}"))?;
    table.play(NOTHING)?;
    let up = table.run(Me, "up r0")?;
    ensure(up.0 == 0, || format!("up: {up:?}"))?;
    for steps in [FRESH, PRIMARY, SECONDARY, TWO, ALONE] {
        table.play(steps)?;
    }
    table.pair.compare()?;
    ensure(table.wrong.is_empty(), || table.wrong.join("\n"))
}

pub fn of_udrbd(bench: &mut Bench) -> Outcome {
    play_all(bench, true)
}

pub fn of_the_kernel(bench: &mut Bench) -> Outcome {
    play_all(bench, false)
}

/// A line of `net` that only udrbd has, and what the log of whoever notices says.
const SETTINGS: &[(&str, &str)] = &[
    ("protocol B;", "incompatible protocol settings"),
    ("after-sb-0pri discard-zero-changes;", "incompatible after-sb-0pri settings"),
    ("after-sb-1pri consensus;", "incompatible after-sb-1pri settings"),
    ("allow-two-primaries yes;", "incompatible allow-two-primaries settings"),
    ("data-integrity-alg md5;", "incompatible data-integrity-alg settings"),
    ("verify-alg md5;", "Different verify-alg settings."),
    ("shared-secret \"another one\";", "Authentication of peer failed"),
];

/// Whoever notices first is StandAlone; the other one is as well, or sees a closed socket and waits.
pub fn settings_that_differ(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.pair(&conf)?;
    for (line, words) in SETTINGS {
        pair.kernel.guest.sh("dmesg --clear")?;
        pair.udrbd.drbdctl("disconnect r0")?;
        let (name, _) = line.split_once(' ').unwrap_or((line, ""));
        let text = conf.render();
        let kept = text.lines().filter(|old| !old.trim_start().starts_with(&format!("{name} ")));
        let other = kept.collect::<Vec<_>>().join("\n").replacen("net {", &format!("net {{\n{line}"), 1);
        pair.udrbd.configure_text(&other)?;
        pair.udrbd.drbdctl("connect r0")?;
        let mut states = (String::new(), String::new());
        wait_until(&format!("{line}: one of both gives up"), Duration::from_secs(60), || {
            states = (pair.udrbd.drbdctl("cstate r0")?.trim().to_owned(), pair.kernel.query("cstate")?);
            let (ours, theirs) = (states.0.as_str(), states.1.as_str());
            let apart = ["StandAlone", "WFConnection", "Unconfigured"];
            let done =
                (ours == "StandAlone" || theirs == "StandAlone") && apart.contains(&ours) && apart.contains(&theirs);
            Ok(if done { Ok(()) } else { Err(format!("{states:?}")) })
        })?;
        let (kernel, udrbd) = (pair.kernel.guest.sh("dmesg")?, pair.udrbd.log_text());
        let said = |states: &str, log: &str| states != "StandAlone" || log.contains(words);
        ensure(said(&states.0, &udrbd) && said(&states.1, &kernel), || {
            format!("{line}: {states:?}, and not {words:?} in the log of who is StandAlone:\n{kernel}\n{udrbd}")
        })?;
        pair.udrbd.configure_text(&text)?;
        for command in ["disconnect --force r0", "connect r0"] {
            // The one or the other is so already.
            pair.udrbd.try_drbdctl(command)?;
            pair.kernel.guest.exec(&format!("drbdadm {command}"), SOON)?;
        }
        pair.kernel.wait_proc(1, &["cs:Connected"], Duration::from_secs(60))?;
    }
    Ok(())
}

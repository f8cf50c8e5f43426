//! The commands: one table, and one file per group of them.

pub mod bring_up;
mod config;
mod options;
mod resize;
mod scripts;
mod show;
mod simple;
mod split_brain;
mod wait;

use udrbd::config::spec::Section;

use crate::args::{Opt, Per, Row};
use crate::offline;

const FORCE_MD: Opt = Opt::Flag("force", None, &[], "Answer all questions with yes");
const SET_DEFAULTS: Opt =
    Opt::Flag("set-defaults", None, &[], "Options that are not named fall back to their defaults");
const WAIT: &[Opt] = &[
    Opt::Value("timeout", None, "SECONDS", "Give up after this time (0: never); default: the timeouts of 'startup'"),
    Opt::Value("wfc-timeout", Some('t'), "SECONDS", "Give up after this time"),
    Opt::Value("degr-wfc-timeout", Some('d'), "SECONDS", "The same, if this node was degraded before"),
    Opt::Value("outdated-wfc-timeout", Some('o'), "SECONDS", "The same, if the peer's data are outdated"),
    Opt::Flag("wait-after-sb", Some('w'), &[], "Go on waiting after a split brain"),
];

const fn row(
    name: &'static str,
    per: Per,
    options: &'static [Opt],
    run: fn(&mut crate::context::Context, &crate::args::Call) -> crate::report::Done,
    about: &'static str,
) -> Row {
    Row { name, aliases: &[], about, per, hidden: false, options, run }
}

const fn alias(row: Row, aliases: &'static [&'static str]) -> Row {
    Row { aliases, ..row }
}

const fn hidden(row: Row) -> Row {
    Row { hidden: true, ..row }
}

use Per::{Nothing, Resource, Volume};

/// Every command, in the order of the help.
pub const TABLE: &[Row] = &[
    row(
        "create-md",
        Volume,
        &[
            FORCE_MD,
            Opt::Value("al-stripes", Some('s'), "N", "Stripes of the activity log"),
            Opt::Value("al-stripe-size-kB", Some('z'), "KIB", "Size of a stripe of the activity log"),
            Opt::Value("peer-max-bio-size", None, "BYTES", "Assume that the peer takes requests of this size"),
        ],
        offline::create::run,
        "Create metadata on a disk that is not attached",
    ),
    row("up", Resource, &[], bring_up::up, "Create, attach and connect a resource"),
    row(
        "down",
        Resource,
        &[Opt::Flag("force", None, &[], "End the sessions of clients")],
        bring_up::down,
        "Take a resource down: demote, disconnect, detach, remove",
    ),
    row("attach", Volume, &[Opt::Section(Section::Disk)], bring_up::attach, "Attach the disk"),
    row(
        "detach",
        Volume,
        &[Opt::Flag("force", None, &[], "Even the last good copy, and without waiting for it")],
        simple::detach,
        "Give the disk up",
    ),
    row("connect", Resource, &[Opt::Section(Section::Net)], bring_up::connect, "Connect to the peer"),
    row(
        "disconnect",
        Resource,
        &[Opt::Flag("force", None, &[], "Do not ask the peer")],
        simple::disconnect,
        "Drop the connection",
    ),
    row(
        "primary",
        Volume,
        &[Opt::Flag(
            "force",
            None,
            &["overwrite-data-of-peer", "do-what-I-say"],
            "Even without access to good data: what is here counts as good",
        )],
        simple::primary,
        "Become Primary",
    ),
    row(
        "secondary",
        Volume,
        &[Opt::Flag("force", None, &[], "End the sessions of clients")],
        simple::secondary,
        "Become Secondary",
    ),
    row("invalidate", Volume, &[], simple::invalidate, "Replace the data of this node by the peer's"),
    row("invalidate-remote", Volume, &[], simple::invalidate_remote, "Replace the peer's data by those of this node"),
    row("outdate", Volume, &[], simple::outdate, "Mark the data of this node as outdated"),
    row("pause-sync", Volume, &[], simple::pause_sync, "Pause resync"),
    row("resume-sync", Volume, &[], simple::resume_sync, "Resume resync"),
    row("suspend-io", Volume, &[], simple::suspend_io, "Let all I/O of the resource wait"),
    row("resume-io", Volume, &[], simple::resume_io, "Let I/O go on that waits: for this, for fencing, or for data"),
    row(
        "new-current-uuid",
        Volume,
        &[Opt::Flag("clear-bitmap", None, &[], "Consider both nodes equal: skips the first sync")],
        simple::new_current_uuid,
        "Start a new data generation",
    ),
    row(
        "resize",
        Volume,
        &[
            Opt::Value("size", None, "SIZE", "So large, instead of as large as both nodes' disks allow"),
            Opt::Flag("assume-peer-has-space", None, &[], "Grow without a connection as well"),
            Opt::Flag("assume-clean", None, &[], "The new part needs no resync"),
            Opt::Value("al-stripes", Some('s'), "N", "Stripes of the activity log"),
            Opt::Value("al-stripe-size-kB", Some('z'), "KIB", "Size of a stripe of the activity log"),
        ],
        resize::run,
        "Take over the size that the disks have now",
    ),
    row(
        "check-resize",
        Volume,
        &[Opt::Value("state-dir", None, "DIR", "The daemon's state directory, where the last size is remembered")],
        resize::check,
        "Find the metadata of a disk that has grown, and move them to its end",
    ),
    row(
        "status",
        Resource,
        &[
            Opt::Flag("json", None, &[], "As JSON"),
            Opt::Flag("verbose", Some('v'), &[], "All fields"),
            Opt::Flag("statistics", Some('s'), &[], "With counters"),
            Opt::Value("color", None, "always|auto|never", "With colours"),
        ],
        show::status,
        "Show states",
    ),
    row(
        "split-brain",
        Resource,
        &[
            Opt::Flag("json", None, &[], "As JSON"),
            Opt::Flag("all", None, &[], "All ranges that differ, not only the first ones"),
            Opt::Flag("force", None, &[], "undo, export: ask nothing, and use an incomplete undo file too"),
            Opt::Value("state-dir", None, "DIR", "undo, export, forget: the daemon's state directory"),
        ],
        split_brain::run,
        "Explain a split brain (RES), take its resolution back (undo RES, export RES FILE, forget RES)",
    ),
    row("proc", Nothing, &[], show::proc, "Print what /proc/drbd says in the kernel's DRBD"),
    row(
        "events2",
        Resource,
        &[
            Opt::Flag("now", Some('n'), &[], "Stop after the present state"),
            Opt::Flag("statistics", Some('s'), &[], "With counters"),
            Opt::Flag("timestamps", Some('T'), &[], "With the time in front of each line"),
        ],
        show::events2,
        "Print states, then every change",
    ),
    alias(row("role", Volume, &[], show::role, "Show the roles"), &["state"]),
    row("cstate", Volume, &[], show::cstate, "Show the connection state"),
    row("dstate", Volume, &[], show::dstate, "Show the disk states"),
    row("frontends", Resource, &[], show::frontends, "Show where the data can be reached"),
    row("wait-connect", Volume, WAIT, wait::connect, "Wait for the connection"),
    row("wait-sync", Volume, WAIT, wait::sync, "Wait for the end of a resync"),
    row(
        "net-options",
        Resource,
        &[SET_DEFAULTS, Opt::Section(Section::Net)],
        options::net,
        "Change connection options",
    ),
    row("disk-options", Volume, &[SET_DEFAULTS, Opt::Section(Section::Disk)], options::disk, "Change disk options"),
    row(
        "resource-options",
        Resource,
        &[SET_DEFAULTS, Opt::Section(Section::Options)],
        options::resource,
        "Change resource options",
    ),
    row("get-gi", Volume, &[], offline::gi::get, "Print generation identifiers"),
    row("show-gi", Volume, &[], offline::gi::show, "Explain generation identifiers"),
    row("dump-md", Volume, &[FORCE_MD], offline::dump::run, "Print metadata as text"),
    row("apply-al", Volume, &[], offline::edit::apply_al, "Apply the activity log to the bitmap"),
    row("wipe-md", Volume, &[FORCE_MD], offline::edit::wipe, "Remove metadata"),
    row(
        "dump",
        Resource,
        &[
            Opt::Flag("dry-run", Some('d'), &[], "With the common section merged in"),
            Opt::Flag("verbose", Some('v'), &[], "The same, with an empty global section too"),
        ],
        config::dump,
        "Print the configuration in canonical form",
    ),
    row(
        "demo",
        Nothing,
        &[
            Opt::Flag("once", None, &[], "Run the whole story unattended"),
            Opt::Flag("keep", None, &[], "Leave the files behind"),
        ],
        config::demo,
        "Two nodes on this machine, to look at",
    ),
    row("new-resource", Resource, &[Opt::Section(Section::Options)], bring_up::new_resource, "Create a resource only"),
    alias(row("new-minor", Volume, &[], bring_up::new_minor, "Create a volume only"), &["sh-new-minor"]),
    row("del-minor", Volume, &[], simple::del_minor, "Remove a volume that is not in use"),
    row("del-resource", Resource, &[], simple::del_resource, "Remove a resource that is not in use"),
    hidden(row("sh-nop", Nothing, &[], scripts::nop, "Check the configuration")),
    hidden(row("sh-resources", Nothing, &[], scripts::resources, "Names of the resources of this host")),
    hidden(row("sh-resource", Volume, &[], scripts::resource, "Name of the resource")),
    hidden(row("sh-mod-parms", Nothing, &[], scripts::mod_parms, "Parameters for a kernel module")),
    hidden(row("sh-dev", Volume, &[], scripts::dev, "Device path")),
    hidden(row("sh-minor", Volume, &[], scripts::minor, "Minor number")),
    hidden(row("sh-ll-dev", Volume, &[], scripts::ll_dev, "Backing device")),
    hidden(row("sh-md-dev", Volume, &[], scripts::md_dev, "Metadata device")),
    hidden(row("sh-md-idx", Volume, &[], scripts::md_idx, "Index of the metadata")),
    hidden(row("sh-ip", Volume, &[], scripts::ip, "Address of this host")),
    hidden(row("sh-udev", Volume, &[], scripts::udev, "Names for udev")),
    hidden(row("adjust", Resource, &[], config::unavailable, "Not available in this version")),
    hidden(row("adjust-with-progress", Resource, &[], config::unavailable, "Not available in this version")),
    hidden(row("verify", Volume, &[], config::unavailable, "Not available in this version")),
    hidden(row("set-gi", Volume, &[], config::unavailable, "Not available in this version")),
    hidden(row("dump-xml", Resource, &[], config::unavailable, "Not available in this version")),
    hidden(row("wait-con-int", Nothing, &[], config::unavailable, "Not available in this version")),
    hidden(row("sh-status", Nothing, &[], scripts::status, "States for the shell")),
];

//! `split-brain`: what two nodes have that differs, and how to choose; and the words that take a resolution back, whose work
//! is in [`offline::undo`].

use std::fmt::Write as _;

use udrbd::config::model::Host;
use udrbd::control::split_brain::{Explanation, Side, SplitBrain, Undo, UndoState, VolumeExplanation, Winner, json};
use udrbd::control::{Reply, Request};
use udrbd::wire::state::{ConnState, Role};

use crate::args::Call;
use crate::context::Context;
use crate::report::{Done, Exit, refused};
use crate::target::{Target, for_resources, select};
use crate::{offline, out, time};

/// Bytes of a block.
const BLOCK: u64 = 4096;

/// `split-brain`
pub fn run(ctx: &mut Context, call: &Call) -> Done {
    match call.names.split_first() {
        Some((verb, rest)) if verb == "undo" || verb == "forget" => {
            let targets = select(ctx, &call.with_names(rest), false)?;
            let work = if verb == "undo" { offline::undo::undo } else { offline::undo::forget };
            return work(ctx, call, &targets);
        }
        Some((verb, rest)) if verb == "export" => {
            let Some((image, rest)) = rest.split_last() else {
                call.say_usage("No resource and no file specified");
                return Err(Exit(1));
            };
            let targets = select(ctx, &call.with_names(rest), false)?;
            return offline::undo::export(ctx, call, &targets, image);
        }
        _ => {}
    }
    let targets = select(ctx, call, false)?;
    let mut all = Vec::new();
    let result = for_resources(ctx, &targets, |ctx, target| {
        let explanation = ask(ctx, target, call.flag("all"))?;
        if call.flag("json") {
            all.push(explanation);
        } else {
            out::print(&text(ctx, target, &explanation));
        }
        Ok(())
    });
    if call.flag("json") {
        out::line(&json(&all));
    }
    result
}

fn ask(ctx: &mut Context, target: &Target, all: bool) -> Done<Explanation> {
    let attempt = target.attempt("split-brain");
    let request = Request::SplitBrain { resource: target.resource.name.clone(), all };
    match ctx.call(request)? {
        Reply::SplitBrain(explanation) => Ok(*explanation),
        Reply::Error(error) => Err(refused(&attempt, &error)),
        _ => {
            out::say(&format!("{}: split-brain: the daemon gave an answer to something else", attempt.label));
            Err(Exit(20))
        }
    }
}

/// Names of the two nodes.
struct Names {
    own: String,
    peer: String,
}

fn text(ctx: &Context, target: &Target, explanation: &Explanation) -> String {
    let peer = target.resource.peer(ctx.peer.as_deref()).ok().map(Host::name);
    let names = Names { own: ctx.node.clone(), peer: peer.unwrap_or_else(|| "the peer".to_owned()) };
    let mut page = String::new();
    let mut open = false;
    for volume in &explanation.volumes {
        let label = format!("{}/{}", explanation.resource, volume.volume);
        match &volume.split_brain {
            None => {
                // Writing into a String cannot fail.
                let _ = writeln!(page, "{label}: no split brain is known.");
            }
            Some(found) => {
                open |= found.resolved.is_none() && found.winner == Winner::Nobody;
                describe(&mut page, &label, volume, found, &names);
            }
        }
        if let Some(undo) = &volume.undo {
            tell_undo(&mut page, &explanation.resource, undo);
        }
    }
    if open && explanation.connection_state < ConnState::WfReportParams {
        choose(&mut page, explanation, &names);
    }
    page
}

fn describe(page: &mut String, label: &str, volume: &VolumeExplanation, found: &SplitBrain, names: &Names) {
    let winner = |winner| match winner {
        Winner::ThisNode => names.own.as_str(),
        Winner::Peer => names.peer.as_str(),
        Winner::Nobody => "nobody",
    };
    let how = if found.automatic { "by the configured policy" } else { "by hand" };
    let state = match (found.winner, found.resolved) {
        (Winner::Nobody, None) => "It is not resolved: the nodes do not connect.".to_owned(),
        (Winner::Nobody, Some(at)) => format!("It is over: the nodes are equal since {}.", time::date(at)),
        (side, None) => format!("Resolved {how}: the data of {} are kept; the resync is not over.", winner(side)),
        (side, Some(at)) => {
            format!(
                "Resolved {how}: the data of {} were kept; the nodes are equal since {}.",
                winner(side),
                time::date(at)
            )
        }
    };
    let _ = writeln!(page, "{label}: split brain, found {}. {state}", time::date(found.found));
    let unresolved = found.resolved.is_none() && found.winner == Winner::Nobody;
    // While it lasts the bitmap knows best; afterwards the memory does.
    let (changed, runs, total) = if unresolved {
        (volume.out_of_sync_blocks, &volume.runs, volume.runs_total)
    } else {
        (found.own.changed_blocks, &found.runs, found.runs_total)
    };
    side(page, &format!("{} (this node)", names.own), &found.own, changed, "");
    for [first, behind] in runs {
        let _ = writeln!(page, "      bytes {} to {}", first * BLOCK, behind * BLOCK - 1);
    }
    if total > runs.len() as u64 {
        let _ = writeln!(page, "      and {} more ranges (--all shows them)", total - runs.len() as u64);
    }
    side(page, &names.peer, &found.peer, found.peer.changed_blocks, " (as it said when the nodes met)");
    if !found.described {
        let _ = writeln!(page, "  The counts do not describe all that differs: resolving it copies the whole device.");
    }
    if let Some(first) = found.policies.first() {
        let _ = writeln!(page, "  What {} would do:", first.option);
    }
    for policy in &found.policies {
        let outcome = match policy.winner {
            Winner::Nobody => "nothing: the nodes do not connect".to_owned(),
            side => format!("keep the data of {}", winner(side)),
        };
        let set = if policy.set { "  <- set" } else { "" };
        let _ = writeln!(page, "    {:<26} {outcome}{set}", policy.policy);
    }
}

/// What can be done with an undo file.
fn tell_undo(page: &mut String, resource: &str, undo: &Undo) {
    let what = if undo.redo { "an undo replaced" } else { "the resolution discarded" };
    let state = match undo.state {
        UndoState::Saving => "is being filled while the resync runs",
        UndoState::Complete => "is complete",
        UndoState::Incomplete => "is INCOMPLETE: it ran out of room, not everything can be restored",
    };
    let _ = writeln!(
        page,
        "  Undo file: what {what} on {} is kept in {} ({} blocks, {} bytes); it {state}.",
        time::date(undo.made),
        undo.path,
        undo.blocks,
        undo.bytes
    );
    if undo.lost_blocks > 0 {
        let _ = writeln!(page, "    {} blocks could not be read before they were overwritten.", undo.lost_blocks);
    }
    let _ = writeln!(page, "    as an image to copy files from: drbdctl split-brain export {resource} FILE");
    let _ = writeln!(page, "    back onto the disk (StandAlone, Secondary): drbdctl split-brain undo {resource}");
    let _ = writeln!(page, "    when it is not needed any more: drbdctl split-brain forget {resource}");
    let _ =
        writeln!(page, "    Blocks that both nodes had in common are not in it: what is written to them later stays.");
}

fn side(page: &mut String, name: &str, side: &Side, changed: u64, note: &str) {
    let since = match (side.alone_since, side.not_before) {
        (Some(at), _) => format!("alone since {}", time::date(at)),
        (None, Some(at)) => format!("alone since some time after {}", time::date(at)),
        (None, None) => "since when it went on alone is not known here".to_owned(),
    };
    let _ = writeln!(page, "  {name}: {}, {}, {since}", side.role, side.disk);
    let _ = writeln!(page, "    changed: {changed} blocks, {} bytes{note}", changed * BLOCK);
}

/// The commands for either choice, in the order in which they work.
fn choose(page: &mut String, explanation: &Explanation, names: &Names) {
    let resource = &explanation.resource;
    let peer_role = explanation.volumes.iter().filter_map(|v| v.split_brain.as_ref()).map(|found| found.peer.role);
    let peer_is_primary = peer_role.into_iter().any(|role| role == Role::Primary);
    let own = (names.own.as_str(), explanation.role == Role::Primary, explanation.connection_state);
    // How the peer is now is not known here; disconnecting what is disconnected does no harm.
    let peer = (names.peer.as_str(), peer_is_primary, ConnState::WfConnection);
    for (keep, lose) in [(own, peer), (peer, own)] {
        let _ = writeln!(page, "To keep the data of {} and give up the changes of {}:", keep.0, lose.0);
        let mut step = |node: &str, command: &str| {
            let _ = writeln!(page, "    on {node}: drbdctl {command} {resource}");
        };
        if lose.1 {
            step(lose.0, "secondary");
        }
        if lose.2 != ConnState::StandAlone {
            step(lose.0, "disconnect");
        }
        step(lose.0, "connect --discard-my-data");
        if keep.2 == ConnState::StandAlone || keep.0 == peer.0 {
            step(keep.0, "connect");
        }
    }
    let _ = writeln!(
        page,
        "(On a node with the kernel's DRBD the word is drbdadm. A node that is connecting already says so.)"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use udrbd::units::VolumeNr;
    use udrbd::wire::state::DiskState;

    fn explanation(own: Role, state: ConnState) -> Explanation {
        let side = |role, changed_blocks| Side {
            current: "1".into(),
            bitmap: "2".into(),
            history: ["0".into(), "0".into()],
            changed_blocks,
            role,
            disk: DiskState::UpToDate,
            alone_since: Some(1_795_159_012),
            not_before: None,
        };
        let found = SplitBrain {
            volume: VolumeNr(0),
            found: 1_795_159_013,
            seen: 1_795_159_013,
            rule: 90,
            described: true,
            winner: Winner::Nobody,
            automatic: false,
            resolved: None,
            own: side(own, 2),
            peer: side(Role::Primary, 7),
            runs: vec![[0, 2]],
            runs_total: 1,
            policies: Vec::new(),
        };
        let volume = VolumeExplanation {
            volume: VolumeNr(0),
            size_kib: 1024,
            split_brain: Some(found),
            runs: vec![[0, 2]],
            runs_total: 3,
            out_of_sync_blocks: 4,
            undo: None,
        };
        Explanation { resource: "r0".into(), role: own, connection_state: state, volumes: vec![volume] }
    }

    #[test]
    fn the_commands_say_where_and_in_which_order() {
        let names = Names { own: "n1".into(), peer: "n2".into() };
        let mut page = String::new();
        choose(&mut page, &explanation(Role::Secondary, ConnState::StandAlone), &names);
        let expected = "To keep the data of n1 and give up the changes of n2:\n    \
            on n2: drbdctl secondary r0\n    on n2: drbdctl disconnect r0\n    \
            on n2: drbdctl connect --discard-my-data r0\n    on n1: drbdctl connect r0\n\
            To keep the data of n2 and give up the changes of n1:\n    \
            on n1: drbdctl connect --discard-my-data r0\n    on n2: drbdctl connect r0\n";
        assert!(page.starts_with(expected), "{page}");
    }

    #[test]
    fn ranges_that_are_left_out_are_counted() {
        let names = Names { own: "n1".into(), peer: "n2".into() };
        let told = explanation(Role::Secondary, ConnState::StandAlone);
        let found = told.volumes[0].split_brain.as_ref().expect("one");
        let mut page = String::new();
        describe(&mut page, "r0/0", &told.volumes[0], found, &names);
        assert!(
            page.contains("changed: 4 blocks, 16384 bytes\n      bytes 0 to 8191\n      and 2 more ranges"),
            "{page}"
        );
        assert!(page.contains("n1 (this node): Secondary, UpToDate, alone since 2026-11-20 07:16:52 UTC"), "{page}");
    }
}

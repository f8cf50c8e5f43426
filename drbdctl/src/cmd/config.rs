//! Commands about the configuration, and those that need nothing.

use crate::args::Call;
use crate::context::Context;
use crate::report::{Done, Exit};
use crate::target::select;
use crate::{demo as demo_room, out};

/// `dump`
pub fn dump(ctx: &mut Context, call: &Call) -> Done {
    let verbose = call.flag("verbose");
    let expanded = verbose || call.flag("dry-run");
    let invalid = |report: Box<udrbd::config::Report>| {
        out::say(&report.to_string());
        Exit(10)
    };
    if call.names.is_empty() || call.names == ["all"] {
        ctx.config()?;
        let node = ctx.node.clone();
        let local = udrbd::config::LocalNode { name: &node, has_address: &udrbd::config::load::has_address };
        let text = ctx.config()?.document.dump(&local, expanded, verbose).map_err(invalid)?;
        out::print(&text);
        return Ok(());
    }
    let targets = select(ctx, call, false)?;
    let node = ctx.node.clone();
    let local = udrbd::config::LocalNode { name: &node, has_address: &udrbd::config::load::has_address };
    for target in targets {
        let document = &ctx.config()?.document;
        if let Some(text) = document.dump_resource(&target.resource.name, &local, expanded).map_err(invalid)? {
            out::print(&text);
        }
    }
    Ok(())
}

/// `demo`
pub fn demo(_: &mut Context, call: &Call) -> Done {
    match demo_room::run(call.flag("once"), call.flag("keep")) {
        0 => Ok(()),
        code => Err(Exit(code)),
    }
}

/// Commands of drbdadm that this version does not have.
pub fn unavailable(_: &mut Context, call: &Call) -> Done {
    let names = if call.names.is_empty() { "drbdctl".to_owned() } else { call.names.join(" ") };
    let word = call.row.name;
    let instead = match word {
        "adjust" | "adjust-with-progress" => format!(
            "change single options with net-options and disk-options, or use drbdctl down {names} and drbdctl up {names}"
        ),
        "resize" | "check-resize" => "devices keep their size for now".to_owned(),
        "verify" => "drbdadm verify on a peer with the kernel's DRBD works".to_owned(),
        "wait-con-int" => "use drbdctl wait-connect".to_owned(),
        _ => "see drbdctl help".to_owned(),
    };
    out::say(&format!("{names}: {word} failed: it is not available in this version; {instead}"));
    Err(Exit(20))
}

//! `create-md`

use udrbd::config::model::Volume;
use udrbd::disk::meta_file::Access;
use udrbd::meta::create::{CreateOptions, check_create, create_md};
use udrbd::meta::layout::BLOCK_BYTES;
use udrbd::meta::text::human_kib;
use udrbd::meta::{AlStripes, Finding, MetaIo, Verdict, bitmap, offline};

use super::device::{self, failed};
use crate::args::Call;
use crate::context::Context;
use crate::report::{Done, Exit};
use crate::target::{Target, for_volumes, select};
use crate::{ask, out};

/// `create-md`
pub fn run(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let al = stripes(call)?;
    let peer_max_bio_size = call.number("peer-max-bio-size")?.unwrap_or(0);
    for_volumes(ctx, &targets, |ctx, target, volume| {
        create(ctx, target, volume, al, peer_max_bio_size, call.flag("force"))
    })
}

fn stripes(call: &Call) -> Done<AlStripes> {
    let stripes = call.number("al-stripes")?;
    let size_kib: Option<u32> = call.number("al-stripe-size-kB")?;
    if stripes.is_none() && size_kib.is_none() {
        return Ok(AlStripes::DEFAULT);
    }
    let size_kib = size_kib.unwrap_or(AlStripes::DEFAULT.stripe_size_4k() * 4);
    if !size_kib.is_multiple_of(4) {
        out::say("al-stripe-size-kB must be a multiple of 4");
        return Err(Exit(10));
    }
    AlStripes::new(stripes.unwrap_or(1), size_kib / 4).map_err(|error| {
        out::say(&error.to_string());
        Exit(10)
    })
}

fn create(
    ctx: &mut Context,
    target: &Target,
    volume: &Volume,
    al: AlStripes,
    peer_max_bio_size: u32,
    force: bool,
) -> Done {
    let mut device = device::open(ctx, target, volume, Access::Write, force)?;
    let io = &mut device.io;
    let known = offline::open(io, device.place).map_or(0, |meta| meta.superblock.device_uuid);
    let device_uuid = if known == 0 { random()? } else { known };
    let options = CreateOptions { place: device.place, al, device_uuid, peer_max_bio_size };
    let told = |error| failed(target, volume, &error);
    for finding in check_create(io, &options).map_err(told)? {
        settle(&finding, &device.path, force)?;
    }
    let layout = options.layout(io).map_err(told)?;
    let pages = bitmap::pages_for(layout.data_size.bm_bits()).min(layout.bm_pages());
    out::print("initializing activity log\n");
    out::say(&format!("initializing bitmap ({}) to all zero", human_kib(pages * BLOCK_BYTES as u64 / 1024)));
    out::print("Writing meta data...\n");
    create_md(io, &options).map_err(told)?;
    io.flush().map_err(|source| told(udrbd::meta::MetaError::Io { what: "flush", offset: 0, source }))?;
    out::print("New drbd meta data block successfully created.\n");
    Ok(())
}

/// Deals with something that stands in the way, as drbdmeta does.
fn settle(finding: &Finding, path: &str, force: bool) -> Done {
    out::hint(&finding.stderr_text(path));
    out::print(&finding.stdout_text());
    match finding.verdict() {
        Verdict::Ask { question, canceled } => {
            if !ask::confirm(question, force) {
                out::print(canceled);
                return Err(Exit(1));
            }
        }
        Verdict::AskToStop { question, refusal, exit_code } => {
            if ask::confirm(question, force) {
                out::hint(refusal);
                return Err(Exit(exit_code));
            }
        }
        Verdict::Refuse { exit_code } => return Err(Exit(exit_code)),
    }
    Ok(())
}

fn random() -> Done<u64> {
    getrandom::u64().map_err(|error| {
        out::say(&format!("drbdctl: no random numbers: {error}"));
        Exit(20)
    })
}

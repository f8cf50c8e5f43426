//! `resize` and `check-resize`.

use udrbd::config::model::{DiskOptions, Volume};
use udrbd::control::Request;
use udrbd::units::Sectors;

use crate::args::Call;
use crate::context::Context;
use crate::offline;
use crate::out;
use crate::report::{Done, Exit};
use crate::target::{Target, for_volumes, select};

/// What the command line asks for, beside the volume.
#[derive(Clone, Copy, Default)]
struct Wanted {
    size: Option<Sectors>,
    assume_clean: bool,
    assume_peer_has_space: bool,
    al_stripes: Option<u32>,
    al_stripe_size_kib: Option<u32>,
}

impl Wanted {
    fn request(self, target: &Target, volume: &Volume) -> Request {
        Request::Resize {
            resource: target.resource.name.clone(),
            volume: volume.vnr,
            size: self.size.unwrap_or_else(|| volume.disk.size()),
            assume_clean: self.assume_clean,
            assume_peer_has_space: self.assume_peer_has_space,
            al_stripes: self.al_stripes,
            al_stripe_size_kib: self.al_stripe_size_kib,
        }
    }
}

/// `resize`
pub fn run(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    let wanted = Wanted {
        size: call.option("size").map(size).transpose()?,
        assume_clean: call.flag("assume-clean"),
        assume_peer_has_space: call.flag("assume-peer-has-space"),
        al_stripes: call.number("al-stripes")?,
        al_stripe_size_kib: call.number("al-stripe-size-kB")?,
    };
    for_volumes(ctx, &targets, |ctx, target, volume| {
        ctx.request(&target.volume_attempt(volume, "resize"), wanted.request(target, volume))
    })
}

fn size(text: &str) -> Done<Sectors> {
    let mut options = DiskOptions::default();
    match options.set("size", text) {
        Ok(()) => Ok(options.size()),
        Err(error) => {
            out::say(&format!("Option --size: {}", error.message));
            Err(Exit(20))
        }
    }
}

/// `check-resize`: what is attached takes over its size, as far as it may; on disk where the daemon does not have it.
pub fn check(ctx: &mut Context, call: &Call) -> Done {
    let targets = select(ctx, call, false)?;
    for_volumes(ctx, &targets, |ctx, target, volume| {
        if offline::device::attached(ctx, target, volume)?.is_none() {
            return offline::resize::check(ctx, call, target, volume);
        }
        ctx.request_silently(Wanted::default().request(target, volume))
    })
}

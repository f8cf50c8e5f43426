//! Two real daemons on one machine, driven over their control sockets, used over NBD.

#[path = "../../drbdctl/src/demo/model.rs"]
mod model;
#[allow(dead_code, reason = "the demo uses more of it")]
#[path = "../../drbdctl/src/demo/nbd_client.rs"]
mod nbd_client;

mod crashes;
mod harness;
mod helpers;
mod load;
mod refusals;
mod resize;
mod starts;
mod two_primaries;
mod whole_life;

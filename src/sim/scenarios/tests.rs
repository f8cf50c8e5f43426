use super::super::scenario::Scenario;
use super::super::world::{A,B};
use crate::engine::fault::Fault;
use super::*;
fn save(name: &str, k: u32, f: impl FnOnce(&mut Option<Story>)) {
    let mut s = None;
    let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&mut s)));
    if let Some(s) = s { std::fs::write(format!("/tmp/dbg_{name}_{k}_{}", r.is_err()), s.trace()).unwrap(); }
}
#[test]
fn dbg_s12() {
    for k in [9, 15, 21] {
    save("s12", k, |o| {
        *o = Some(primary(Scenario::new().seed(1+u64::from(k)).inject(Some(Fault::EpochsNotReset)).nodes(|n| n.net.max_epoch_size = 2).node(B, |n| n.disk_ns = 5_000_000)));
        let s = o.as_mut().unwrap();
        for n in 0..12 {
            s.a().start_write(n * 16, 8);
        }
        s.packets(k);
        s.reset();
        for n in 12..18 {
            s.a().start_write(n * 16, 8);
        }
        s.a().becomes("WF");
        s.a().meets();
        for n in 18..24 {
            s.a().start_write(n * 16, 8);
        }
        s.settle();
        s.a().flush();
    }); }
}
#[test]
fn dbg_s32() {
    save("s32", 0, |o| {
        *o = Some(Scenario::new().inject(Some(Fault::ClearedPageWithoutFlush)).external_meta().rate(2).fresh());
        let s = o.as_mut().unwrap();
    s.cut();
    s.a().becomes("WFConnection");
    s.a().force();
    for n in 0..6 {
        s.a().write(n * 2048, 512);
    }
    s.heal();
    s.a().becomes("SyncSource");
    s.wait(2900);
    s.b().power_cut();
    s.b().restart();
    s.settle();
    });
}

use super::super::scenario::Scenario;
use super::super::world::{A,B};
use super::super::plan::*;
use crate::engine::fault::Fault;
use super::*;
fn save(name: &str, k: u32, f: impl FnOnce(&mut Option<Story>)) {
    let mut s = None;
    let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&mut s)));
    if let Some(s) = s { std::fs::write(format!("/tmp/dbg_{name}_{k}_{}", r.is_err()), s.trace()).unwrap(); }
}
#[test]
fn dbg_s04() {
    for k in 0..6 {
    save("s04", k, |o| {
        *o = Some(primary(Scenario::new().seed(37+u64::from(k)).external_meta().volumes(&[[44<<20;2]]).inject(Some(Fault::MetaErrorIgnored))));
        let s = o.as_mut().unwrap();
        for extent in 0..3 { s.a().write(extent * 8192, 8); }
        s.one_way_cut(A);
            s.a().fail(DiskFault::Meta, 1);
        for extent in 3..5 {
            s.a().start_write(extent * 8192, 8);
        }
        s.wait(20);
        s.a().power_cut();
        s.heal();
        s.a().restart();
        s.recover();
    }); }
}
#[test]
fn dbg_s13() {
    for k in 0..6 {
    save("s13", k, |o| {
        *o = Some(primary(Scenario::new().seed(37+u64::from(k)).inject(Some(Fault::BarrierAckBeforeFlush)).nodes(|n| n.net.max_epoch_size = 4).node(B, |n| n.disk_ns = 5_000_000)));
        let s = o.as_mut().unwrap();
        s.a().start_write(0, 16);
        for n in 0..6 {
            s.a().start_write(n % 2 * 4, 12);
        }
            s.a().flush();
        s.b().power_cut();
        s.b().restart();
        s.settle();
        s.same_data();
    }); }
}
#[test]
fn dbg_s39() {
    for k in 0..3 {
    save("s39", k, |o| {
        *o = Some(primary(Scenario::new().seed(37+u64::from(k)).inject(Some(Fault::CrashRuleIgnored))));
        let s = o.as_mut().unwrap();
        s.a().write_fua(0, 8);
            s.one_way_cut(A);
            s.a().start_write(128, 8);
            s.events(30 + k);
            s.a().crash();
            s.b().crash();
            s.heal();
        s.a().restart();
        s.b().restart();
        s.settle();
    }); }
}

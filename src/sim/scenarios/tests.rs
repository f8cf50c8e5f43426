
use super::super::scenario::Scenario;
use super::super::world::{A,B};
use super::super::plan::*;
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;
use super::*;
#[test]
fn dbg_s40() {
        let mut s = parted(Scenario::new().on_io_error(OnIoError::PassOn).rate(4), 256);
        s.heal();
        s.a().becomes("SyncSource");
        s.a().fail(DiskFault::Read, 1);
        s.wait(1500);
        std::fs::write("/tmp/dbg_s40", s.trace()).unwrap();
}
#[test]
fn dbg_s04() {
        let mut s = primary(Scenario::new().seed(37).external_meta().inject(Some(Fault::MetaErrorIgnored)));
        s.one_way_cut(A);
            s.a().fail(DiskFault::Meta, 1);
        for extent in 0..2 {
            s.a().start_write(extent * 8192, 8);
        }
        s.a().dies(36, true);
        s.wait(200);
        s.a().power_cut();
        s.heal();
        s.a().restart();
        s.wait(3000);
        std::fs::write("/tmp/dbg_s04", s.trace()).unwrap();
}
#[test]
fn dbg_s31() {
        let mut s = resyncing(Scenario::new().inject(Some(Fault::CursorNeverBack)).on_io_error(OnIoError::PassOn).rate(1), 512);
        s.packets(20);
        s.b().fail(DiskFault::Write, 1);
        let behind = s.a().start_write(0, 8);
        s.wait(5000);
        std::fs::write("/tmp/dbg_s31", s.trace()).unwrap();
}

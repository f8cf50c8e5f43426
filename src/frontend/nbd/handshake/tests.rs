//! Negotiations spelled out in bytes, and any bytes at all.

use std::cell::Cell;
use std::rc::Rc;

use hex_literal::hex;
use proptest::prelude::*;

use super::*;
use crate::frontend::nbd::export::ExportHandle;
use crate::frontend::nbd::proto::OPTION_REPLY_MAGIC;
use crate::units::Sectors;

/// Counts what is open, as the node would.
#[derive(Clone, Debug)]
struct Opening(Rc<Cell<u32>>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

struct Table {
    infos: Vec<ExportInfo>,
    open: Rc<Cell<u32>>,
}

impl Exports for Table {
    type HandOver = Opening;

    fn list(&self) -> Vec<ExportInfo> {
        self.infos.clone()
    }

    fn open(&self, name: &str) -> Result<ExportHandle<Opening>, Refusal> {
        assert!(!name.is_empty());
        match self.infos.iter().find(|info| info.name == name) {
            Some(info) if info.description == "Secondary" => {
                Err(Refusal::Policy(format!("{name} is Secondary on this node")))
            }
            Some(info) => {
                self.open.set(self.open.get() + 1);
                Ok(ExportHandle { info: info.clone(), hand_over: Opening(Rc::clone(&self.open)) })
            }
            None => Err(Refusal::Unknown(format!("no export {name}"))),
        }
    }
}

fn info(name: &str) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: String::new(),
        size: Sectors(2048),
        read_only: false,
        trim: true,
        multi_conn: true,
    }
}

fn table(infos: &[ExportInfo]) -> Table {
    Table { infos: infos.to_vec(), open: Rc::default() }
}

fn option(option: Opt, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&OPTION_MAGIC.to_be_bytes()[..], &option.0.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn go(name: &str, wanted: &[Info]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u16::try_from(wanted.len()).unwrap().to_be_bytes());
    data.extend(wanted.iter().flat_map(|info| info.0.to_be_bytes()));
    data
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend_from_slice(&u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// What came out of a negotiation.
#[derive(Debug)]
struct Talk {
    out: Vec<u8>,
    end: Result<Option<Agreed<Opening>>, HandshakeEnd>,
}

impl Talk {
    /// Sends `sizes`-sized pieces of `bytes` to a fresh handshake.
    fn pieces<'a>(exports: &Table, pieces: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut out = Vec::new();
        let mut handshake = Handshake::start(&mut out);
        let mut pieces = pieces.peekable();
        let end = 'talk: {
            loop {
                match handshake.step(exports, &mut out) {
                    Ok(Step::Again) => {}
                    Ok(Step::NeedBytes) => {
                        let Some(piece) = pieces.next() else { break 'talk Ok(None) };
                        if let Err(end) = handshake.receive(piece) {
                            break 'talk Err(end);
                        }
                    }
                    Ok(Step::Agreed(mut agreed)) => {
                        agreed.leftover.extend(pieces.flatten());
                        break 'talk Ok(Some(*agreed));
                    }
                    Err(end) => break 'talk Err(end),
                }
            }
        };
        Self { out, end }
    }

    fn new(exports: &Table, flags: u32, options: &[Vec<u8>]) -> Self {
        let bytes = [flags.to_be_bytes().to_vec(), options.concat()].concat();
        Self::pieces(exports, std::iter::once(bytes.as_slice()))
    }

    /// The replies behind the greeting.
    fn replies(&self) -> Vec<(Opt, Rep, Vec<u8>)> {
        let mut reader = Reader::new(&self.out[18..]);
        let mut replies = Vec::new();
        while reader.left() > 0 {
            assert_eq!(reader.u64("magic"), Ok(OPTION_REPLY_MAGIC));
            let (option, rep) = (Opt(reader.u32("option").unwrap()), Rep(reader.u32("reply").unwrap()));
            let len = reader.u32("length").unwrap() as usize;
            replies.push((option, rep, reader.bytes(len, "data").unwrap().to_vec()));
        }
        replies
    }

    /// The replies' types.
    fn reps(&self) -> Vec<Rep> {
        self.replies().into_iter().map(|(_, rep, _)| rep).collect()
    }

    fn texts(&self) -> Vec<String> {
        self.replies().into_iter().map(|(_, _, data)| String::from_utf8_lossy(&data).into_owned()).collect()
    }

    fn agreed(self) -> Agreed<Opening> {
        self.end.unwrap().unwrap()
    }
}

#[test]
fn a_modern_client_gets_what_it_asks_for() {
    let exports = table(&[info("r0"), ExportInfo { description: "two".to_owned(), ..info("r0/1") }]);
    let talk = Talk::new(
        &exports,
        3,
        &[
            option(Opt::EXTENDED_HEADERS, &[]),
            option(Opt::STRUCTURED_REPLY, &[]),
            option(Opt::SET_META_CONTEXT, &meta("r0/1", &["base:allocation", "qemu:dirty-bitmap:x"])),
            option(Opt::GO, &go("r0/1", &[Info::NAME, Info::DESCRIPTION, Info::BLOCK_SIZE, Info(99)])),
            b"leftover".to_vec(),
        ],
    );
    assert_eq!(&talk.out[..18], hex!("4e42444d41474943 49484156454f5054 0003"));
    assert_eq!(
        talk.replies()[1..],
        [
            (Opt::STRUCTURED_REPLY, Rep::ACK, vec![]),
            (Opt::SET_META_CONTEXT, Rep::META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()),
            (Opt::SET_META_CONTEXT, Rep::ACK, vec![]),
            // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, FAST_ZERO
            (Opt::GO, Rep::INFO, hex!("0000 0000000000100000 09ed").to_vec()),
            (Opt::GO, Rep::INFO, hex!("0003 00000200 00001000 02000000").to_vec()),
            (Opt::GO, Rep::INFO, b"\0\x01r0/1".to_vec()),
            (Opt::GO, Rep::INFO, b"\0\x02two".to_vec()),
            (Opt::GO, Rep::ACK, vec![]),
        ]
    );
    assert_eq!(talk.reps()[0], Rep::ERR_UNSUP);
    let agreed = talk.agreed();
    assert_eq!(agreed.leftover, b"leftover");
    assert_eq!(exports.open.get(), 1);
    let Negotiated { export, structured, base_allocation, .. } = agreed.negotiated;
    assert_eq!((export.name.as_str(), structured, base_allocation), ("r0/1", true, true));
    drop(agreed.hand_over);
    assert_eq!(exports.open.get(), 0);
}

#[test]
fn an_old_client_gets_size_flags_and_padding() {
    let exports = table(&[ExportInfo { read_only: true, trim: false, multi_conn: false, ..info("r0") }]);
    let talk = Talk::new(&exports, 0, &[option(Opt::EXPORT_NAME, b"r0")]);
    assert_eq!(talk.out[18..28], hex!("0000000000100000 084f"));
    assert_eq!(talk.out[28..], [0; 124]);
    let negotiated = talk.agreed().negotiated;
    assert_eq!((negotiated.structured, negotiated.base_allocation), (false, false));
    // Without padding, and by the default name.
    let talk = Talk::new(&exports, 2, &[option(Opt::EXPORT_NAME, b"")]);
    assert_eq!(talk.out.len(), 28);
    // No way to say no.
    let talk = Talk::new(&exports, 0, &[option(Opt::EXPORT_NAME, b"r1")]);
    assert_eq!(talk.end.unwrap_err(), HandshakeEnd::Refused(Refusal::Unknown("no export r1".to_owned())));
    let talk = Talk::new(&exports, 0, &[option(Opt::LIST, b"")]);
    assert_eq!(talk.end.unwrap_err(), HandshakeEnd::NotFixedNewstyle(Opt::LIST));
}

#[test]
fn a_refusal_is_told_and_the_negotiation_goes_on() {
    let exports = table(&[ExportInfo { description: "Secondary".to_owned(), ..info("r0") }, info("r1")]);
    let talk = Talk::new(
        &exports,
        3,
        &[
            option(Opt::GO, &go("r0", &[])),
            option(Opt::INFO, &go("r7", &[])),
            option(Opt::GO, &go("", &[])),
            option(Opt::STARTTLS, &[]),
            option(Opt(4711), b"whatever"),
            option(Opt::LIST, &[]),
            option(Opt::ABORT, b"ignored"),
        ],
    );
    use Rep as R;
    assert_eq!(
        talk.reps(),
        [
            R::ERR_POLICY,
            R::ERR_UNKNOWN,
            R::ERR_UNKNOWN,
            R::ERR_UNSUP,
            R::ERR_UNSUP,
            R::SERVER,
            R::SERVER,
            R::ACK,
            R::ACK
        ]
    );
    assert_eq!(talk.texts()[0], "r0 is Secondary on this node");
    assert_eq!(talk.texts()[2], "there are 2 exports on this node, so name one, e.g. r0");
    assert_eq!(talk.texts()[5], "\0\0\0\x02r0Secondary");
    assert_eq!(talk.end.unwrap_err(), HandshakeEnd::Aborted);
    assert_eq!(exports.open.get(), 0);
}

#[test]
fn info_opens_nothing_for_longer_than_the_answer() {
    let exports = table(&[info("r0")]);
    let talk = Talk::new(&exports, 3, &[option(Opt::INFO, &go("", &[Info::NAME]))]);
    assert_eq!(talk.reps(), [Rep::INFO, Rep::INFO, Rep::INFO, Rep::ACK]);
    assert!(talk.end.unwrap().is_none());
    assert_eq!(exports.open.get(), 0);
}

#[test]
fn contexts_need_structured_replies_and_the_right_export() {
    let exports = table(&[info("r0"), info("r1")]);
    let structured = option(Opt::STRUCTURED_REPLY, &[]);
    let set = |name: &str, queries: &[&str]| option(Opt::SET_META_CONTEXT, &meta(name, queries));
    let list = |queries: &[&str]| option(Opt::LIST_META_CONTEXT, &meta("r0", queries));
    let reps = |options: &[Vec<u8>]| Talk::new(&exports, 3, options).reps();
    assert_eq!(reps(&[set("r0", &["base:allocation"])]), [Rep::ERR_INVALID]);
    assert_eq!(reps(&[structured.clone(), list(&[])])[1..], [Rep::META_CONTEXT, Rep::ACK]);
    assert_eq!(reps(&[structured.clone(), list(&["base:"])])[1..], [Rep::META_CONTEXT, Rep::ACK]);
    assert_eq!(reps(&[structured.clone(), list(&["other:"])])[1..], [Rep::ACK]);
    assert_eq!(reps(&[structured.clone(), set("r0", &["base:"])])[1..], [Rep::ACK]);
    assert_eq!(reps(&[structured.clone(), set("r0", &["nocolon"])])[1..], [Rep::ERR_INVALID]);
    assert_eq!(reps(&[structured.clone(), set("r9", &["base:allocation"])])[1..], [Rep::ERR_UNKNOWN]);
    for (steps, selected) in [
        (vec![set("r0", &["base:allocation"])], true),
        (vec![set("r1", &["base:allocation"])], false),
        (vec![set("r0", &["base:allocation"]), set("r0", &[])], false),
        (vec![set("r0", &["base:allocation"]), set("r9", &[])], false),
        (vec![], false),
    ] {
        let options = [vec![structured.clone()], steps, vec![option(Opt::GO, &go("r0", &[]))]].concat();
        assert_eq!(Talk::new(&exports, 3, &options).agreed().negotiated.base_allocation, selected);
    }
}

#[test]
fn malformed_options_are_invalid_but_not_fatal() {
    let exports = table(&[info("r0")]);
    let bad = [
        (Opt::LIST, b"x".to_vec()),
        (Opt::STRUCTURED_REPLY, b"x".to_vec()),
        (Opt::GO, vec![]),
        (Opt::GO, hex!("ffffffff 7230 0000").to_vec()),
        (Opt::GO, hex!("00000002 7230 0001").to_vec()),
        (Opt::GO, hex!("00000002 7230 0000 00").to_vec()),
        (Opt::GO, go("r\u{0}", &[])),
        (Opt::GO, hex!("00000002 ff30 0000").to_vec()),
    ];
    for (opt, data) in bad {
        let talk = Talk::new(&exports, 3, &[option(opt, &data), option(Opt::GO, &go("r0", &[]))]);
        assert_eq!(talk.reps()[0], Rep::ERR_INVALID, "{opt} {data:x?}");
        talk.agreed();
    }
    let long = go(&"n".repeat(4097), &[]);
    assert_eq!(Talk::new(&exports, 3, &[option(Opt::GO, &long)]).reps(), [Rep::ERR_TOO_BIG]);
    let skipped = option(Opt(99), &vec![0; 20_000]);
    let talk = Talk::new(&exports, 3, &[skipped, option(Opt::GO, &go("r0", &[]))]);
    assert_eq!(talk.reps()[0], Rep::ERR_TOO_BIG);
    talk.agreed();
}

#[test]
fn budgets_and_nonsense_end_the_negotiation() {
    let exports = table(&[info("r0")]);
    let end = |flags, options: &[Vec<u8>]| Talk::new(&exports, flags, options).end.unwrap_err();
    assert_eq!(end(4, &[]), HandshakeEnd::ClientFlags(4));
    assert_eq!(end(3, &[vec![0x55; 16]]), HandshakeEnd::OptionMagic(0x5555_5555_5555_5555));
    let huge = [&OPTION_MAGIC.to_be_bytes()[..], &Opt::GO.0.to_be_bytes(), &[0xff; 4]].concat();
    assert_eq!(end(3, &[huge]), HandshakeEnd::OptionTooLong { option: Opt::GO, len: u32::MAX });
    let name = [0; 20_000];
    assert_eq!(
        end(3, &[option(Opt::EXPORT_NAME, &name)]),
        HandshakeEnd::OptionTooLong { option: Opt::EXPORT_NAME, len: 20_000 }
    );
    let list = option(Opt::LIST, &[]);
    assert_eq!(end(3, &[list.repeat(4097)]), HandshakeEnd::TooManyOptions);
    assert_eq!(end(3, &[vec![0; 300_000]]), HandshakeEnd::TooManyBytes);
}

#[test]
fn a_long_text_is_cut_at_a_character() {
    let exports = table(&[ExportInfo { description: "ä".repeat(4000), ..info("r0") }]);
    let talk = Talk::new(&exports, 3, &[option(Opt::LIST, &[])]);
    assert_eq!(talk.replies()[0].2.len(), 4 + 2 + 4096);
    assert!(std::str::from_utf8(&talk.replies()[0].2[6..]).is_ok());
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("r0".to_owned()), Just(String::new()), Just("r1".to_owned()), ".{0,8}"];
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(Vec::new()),
        (name.clone(), proptest::collection::vec(0_u16..5, 0..4))
            .prop_map(|(name, wanted)| go(&name, &wanted.into_iter().map(Info).collect::<Vec<_>>())),
        (name, proptest::collection::vec("(base:|x:)?(allocation)?", 0..3))
            .prop_map(|(name, q)| meta(&name, &q.iter().map(String::as_str).collect::<Vec<_>>())),
    ];
    (0_u32..13, data).prop_map(|(number, data)| option(Opt(number), &data))
}

proptest! {
    /// The result does not depend on how the bytes are cut, and what was opened is given back unless agreed.
    #[test]
    fn any_fragmentation_gives_the_same_talk(
        flags in prop_oneof![9 => Just(3_u32), 1 => 0_u32..8],
        options in proptest::collection::vec(any_option(), 0..6),
        cuts in proptest::collection::vec(1_usize..50, 1..20),
    ) {
        let exports = table(&[info("r0"), info("r1")]);
        let whole = Talk::new(&exports, flags, &options);
        let bytes = [flags.to_be_bytes().to_vec(), options.concat()].concat();
        let mut rest = bytes.as_slice();
        let mut cuts = cuts.iter().cycle();
        let pieces = std::iter::from_fn(|| {
            let (piece, tail) = rest.split_at(rest.len().min(*cuts.next()?));
            rest = tail;
            (!piece.is_empty()).then_some(piece)
        });
        let cut = Talk::pieces(&exports, pieces);
        prop_assert_eq!(&whole.out, &cut.out);
        match (whole.end, cut.end) {
            (Ok(Some(a)), Ok(Some(b))) => {
                prop_assert_eq!(a.negotiated, b.negotiated);
                prop_assert_eq!(a.leftover, b.leftover);
                prop_assert_eq!(exports.open.get(), 2);
            }
            (Ok(None), Ok(None)) => {}
            (Err(a), Err(b)) => prop_assert_eq!(a, b),
            (a, b) => prop_assert!(false, "{:?} against {:?}", a, b),
        }
        prop_assert_eq!(exports.open.get(), 0);
    }

    /// Noise ends or waits, it never panics.
    #[test]
    fn any_bytes_are_survived(noise in proptest::collection::vec(any::<u8>(), 0..300), good_start: bool) {
        let exports = table(&[info("r0")]);
        let start = if good_start { [&[0, 0, 0, 3][..], &OPTION_MAGIC.to_be_bytes()].concat() } else { Vec::new() };
        let bytes = [start, noise].concat();
        let _ = Talk::pieces(&exports, bytes.chunks(7));
    }
}

//! The parser of a dump, for `restore-md` and `verify-dump`.
//!
//! Takes in the text; gives out a [`Dump`] whose bitmap is still a list of runs, so that its size is bounded by the
//! text, or the error in drbdmeta's words. Spec: metadata.md 10.2. Stricter than drbdmeta: negative numbers, numbers
//! that do not fit their field, and granularities other than 4096 are refused.

use std::fmt;

use crate::meta::layout::AlStripes;
use crate::meta::superblock::{BYTES_PER_BIT, MdFlags};
use crate::units::{GenId, Sectors};

/// What a dump says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Current, bitmap, younger and older history identifier.
    pub uuids: [GenId; 4],
    /// The flags; drbdmeta 9.22 always dumps none.
    pub flags: MdFlags,
    /// Agreed size.
    pub effective_size: Sectors,
    /// Label of the metadata.
    pub device_uuid: u64,
    /// Largest request of the peer, in bytes.
    pub la_peer_max_bio_size: u32,
    /// The activity log's ring.
    pub al: AlStripes,
    /// The bitmap's words from its start: how often, which.
    pub runs: Vec<(u64, u64)>,
}

impl Dump {
    /// Number of words that the bitmap has in the dump; saturates.
    #[must_use]
    pub fn word_count(&self) -> u64 {
        self.runs.iter().fold(0, |sum: u64, (count, _)| sum.saturating_add(*count))
    }

    /// The first `count_max` words.
    pub fn words(&self, count_max: u64) -> impl Iterator<Item = u64> {
        let mut left = count_max;
        self.runs.iter().flat_map(move |&(count, word)| {
            let count = count.min(left);
            left -= count;
            (0..count).map(move |_| word)
        })
    }
}

/// Why a text is no dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line in the text, from 1; 0 when the error is about no line.
    pub line: u32,
    text: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ParseError {}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    Mark(char),
    Number(u64),
    U64(u64),
    U32(u32),
    Text(&'a str),
    Word(&'a str),
    /// Something malformed, with the lexer's words about it.
    Bad(String),
    End,
}

const KEYWORDS: [&str; 11] = [
    "version",
    "uuid",
    "flags",
    "la-size-sect",
    "bm-byte-per-bit",
    "device-uuid",
    "la-peer-max-bio-size",
    "al-stripes",
    "al-stripe-size-4k",
    "bm",
    "times",
];
const STRING_MAX: usize = 20;
const DIGITS_MAX: usize = 19;
const NUMBER: &str = "number ([0-9], up to 20 digits)";

struct Parser<'a> {
    rest: &'a str,
    line: u32,
}

/// Splits `text` behind its first characters for which `inside` holds.
fn take_while(text: &str, inside: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !inside(c)).unwrap_or(text.len());
    text.split_at(end)
}

const fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

impl<'a> Parser<'a> {
    fn skip_blanks(&mut self) {
        loop {
            let (blank, rest) = take_while(self.rest, |c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            self.line += u32::try_from(blank.matches('\n').count()).unwrap_or(0);
            self.rest = rest;
            if !rest.starts_with('#') {
                return;
            }
            self.rest = take_while(rest, |c| c != '\n').1;
        }
    }

    fn next(&mut self) -> Token<'a> {
        self.skip_blanks();
        let mut chars = self.rest.chars();
        let Some(first) = chars.next() else { return Token::End };
        if first == '"' {
            return self.string(chars.as_str());
        }
        if !is_word(first) {
            self.rest = chars.as_str();
            return Token::Mark(first);
        }
        let (word, rest) = take_while(self.rest, is_word);
        self.rest = rest;
        if let Some(hex) = word.strip_prefix("0x") {
            let plain = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
            return match (hex.len(), u64::from_str_radix(hex, 16), u32::from_str_radix(hex, 16)) {
                (16, Ok(value), _) if plain => Token::U64(value),
                (8, _, Ok(value)) if plain => Token::U32(value),
                _ => self.bad("invalid hex number (only 8 or 16 hex digits accepted)", word),
            };
        }
        let digits = word.strip_prefix('-').unwrap_or(word);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return match word.parse() {
                Ok(value) if digits.len() <= DIGITS_MAX => Token::Number(value),
                Err(_) if word.starts_with('-') => self.bad("negative number", word),
                _ => self.bad("number too big", word),
            };
        }
        if KEYWORDS.contains(&word) { Token::Word(word) } else { self.bad("unknown token", word) }
    }

    fn string(&mut self, rest: &'a str) -> Token<'a> {
        let (text, rest) = take_while(rest, |c| c != '"' && c != '\n');
        if rest.starts_with('"') && (1..=STRING_MAX).contains(&text.len()) {
            self.rest = rest.strip_prefix('"').unwrap_or(rest);
            return Token::Text(text);
        }
        self.rest = rest;
        let shown: String = text.chars().take(STRING_MAX).collect();
        self.bad("invalid string", &format!("\"{shown}"))
    }

    fn bad(&self, what: &str, token: &str) -> Token<'a> {
        Token::Bad(format!("line {}: {what}: {token} ...\n", self.line))
    }

    fn error(&self, expected: &str, found: &Token<'a>) -> ParseError {
        let line = self.line;
        let (before, after) = match found {
            Token::Bad(text) => (text.as_str(), String::new()),
            Token::Mark(c @ ('{' | '}' | ';' | '[' | ']')) => ("", format!(", not '{c}'")),
            Token::Mark(c) => ("", format!("; got invalid input character '\\x{:02x}' [{c}]", u32::from(*c))),
            Token::Number(_) | Token::U64(_) | Token::U32(_) => ("", ", not some number".to_owned()),
            Token::Text(text) | Token::Word(text) => ("", format!(", not '{text}'")),
            Token::End => ("", ", but end of file encountered".to_owned()),
        };
        ParseError { line, text: format!("{before}Parse error in line {line}: {expected} expected{after}") }
    }

    fn mark(&mut self, wanted: char) -> Result<(), ParseError> {
        let name = match wanted {
            '{' => "opening brace ({)",
            '}' => "closing brace (})",
            _ => "semicolon (;)",
        };
        match self.next() {
            Token::Mark(c) if c == wanted => Ok(()),
            other => Err(self.error(name, &other)),
        }
    }

    fn keyword(&mut self, wanted: &str) -> Result<(), ParseError> {
        match self.next() {
            Token::Word(word) if word == wanted => Ok(()),
            other => Err(self.error(&format!("keyword '{wanted}'"), &other)),
        }
    }

    fn u64_end(&mut self) -> Result<u64, ParseError> {
        match self.next() {
            Token::U64(value) => self.mark(';').map(|()| value),
            other => Err(self.error("a 16-digit hex number", &other)),
        }
    }

    fn number_field<T: TryFrom<u64>>(&mut self, keyword: &str) -> Result<T, ParseError> {
        self.keyword(keyword)?;
        let value = match self.next() {
            Token::Number(value) => value,
            other => return Err(self.error(NUMBER, &other)),
        };
        let line = self.line;
        self.mark(';')?;
        T::try_from(value).map_err(|_| ParseError { line, text: format!("line {line}: {keyword}: {value} is too big") })
    }

    fn runs(&mut self) -> Result<Vec<(u64, u64)>, ParseError> {
        self.keyword("bm")?;
        self.mark('{')?;
        let mut runs = Vec::new();
        loop {
            match self.next() {
                Token::Mark('}') => return Ok(runs),
                Token::U64(word) => {
                    self.mark(';')?;
                    runs.push((1, word));
                }
                Token::Number(count) => {
                    self.keyword("times")?;
                    runs.push((count, self.u64_end()?));
                }
                other => {
                    return Err(self.error("repeat count, 16-digit hex number, or closing brace (})", &other));
                }
            }
        }
    }
}

fn whole(text: String) -> ParseError {
    ParseError { line: 0, text }
}

/// Parses a dump of v08 metadata.
///
/// # Errors
/// [`ParseError`]; the dump of unclean metadata is one on purpose.
pub fn parse(text: &str) -> Result<Dump, ParseError> {
    let mut parser = Parser { rest: text, line: 1 };
    parser.keyword("version")?;
    match parser.next() {
        Token::Text("v08") => {}
        Token::Text(other) => return Err(whole(format!("dump is '{other}' you requested 'v08'."))),
        other => return Err(parser.error("short quoted string (\"..up to 20 characters, no newline..\")", &other)),
    }
    parser.mark(';')?;
    parser.keyword("uuid")?;
    parser.mark('{')?;
    let mut uuids = [GenId::UNSET; 4];
    for uuid in &mut uuids {
        *uuid = GenId(parser.u64_end()?);
    }
    parser.keyword("flags")?;
    let flags = match parser.next() {
        Token::U32(bits) => MdFlags::from_bits(bits),
        other => return Err(parser.error("an 8-digit hex number", &other)),
    };
    parser.mark(';')?;
    parser.mark('}')?;
    let effective_size = Sectors(parser.number_field("la-size-sect")?);
    let bytes_per_bit: u64 = parser.number_field("bm-byte-per-bit")?;
    if bytes_per_bit < u64::from(BYTES_PER_BIT) || !bytes_per_bit.is_power_of_two() {
        let text = "Invalid value for bm-byte-per-bit: value must be a power-of-two multiple of 4096";
        return Err(whole(text.to_owned()));
    }
    if bytes_per_bit != u64::from(BYTES_PER_BIT) {
        return Err(whole(format!("Invalid value for bm-byte-per-bit: {bytes_per_bit}, v08 has 4096 only")));
    }
    parser.keyword("device-uuid")?;
    let device_uuid = parser.u64_end()?;
    let la_peer_max_bio_size = parser.number_field("la-peer-max-bio-size")?;
    let (stripes, stripe_size_4k) = (parser.number_field("al-stripes")?, parser.number_field("al-stripe-size-4k")?);
    let al = match (stripes, stripe_size_4k) {
        (0, 0) => Ok(AlStripes::DEFAULT),
        (stripes, size) => AlStripes::new(stripes, size),
    };
    let al = al.map_err(|error| whole(error.to_string()))?;
    let runs = parser.runs()?;
    match parser.next() {
        Token::End => Ok(Dump { uuids, flags, effective_size, device_uuid, la_peer_max_bio_size, al, runs }),
        other => Err(parser.error("end of file", &other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "# DRBD meta data dump\n\nversion \"v08\";\n\n# md_size_sect 80\n\nuuid {\n\
        \x20   0x33B1C8B05663EE5A; 0x0000000000000000; 0x0000000000000001; 0x00000000000000ff;\n    flags 0x00000097;\n}\n\
        # al-extents 67;\nla-size-sect 130992;\nbm-byte-per-bit 4096;\ndevice-uuid 0xD439DA5582E96DE9;\n\
        la-peer-max-bio-size 1048576;\nal-stripes 1;\nal-stripe-size-4k 8;\n# bm-bytes 4096;\nbm {\n   # at 0kB\n\
        \x20   508 times 0x0000000000000000;\n    0x0000000000000002; 0x0000000000000000;\n}\n# bits-set 1;\n";

    #[test]
    fn a_dump_parses() {
        let dump = parse(GOOD).expect("valid");
        assert_eq!(dump.uuids.map(|u| u.0), [0x33B1_C8B0_5663_EE5A, 0, 1, 0xff]);
        assert_eq!((dump.flags.bits(), dump.effective_size), (0x97, Sectors(130_992)));
        assert_eq!((dump.device_uuid, dump.la_peer_max_bio_size), (0xD439_DA55_82E9_6DE9, 1_048_576));
        assert_eq!((dump.al, dump.word_count()), (AlStripes::DEFAULT, 510));
        assert_eq!(dump.words(509).filter(|&word| word != 0).count(), 1);
        assert_eq!(dump.words(508).filter(|&word| word != 0).count(), 0);
    }

    /// Replacement in the good dump, expected error; texts of drbdmeta but for the last five.
    #[test]
    fn errors_are_drbdmetas() {
        for (from, to, text) in [
            (
                "130992;",
                "12x;",
                "line 12: unknown token: 12x ...\nParse error in line 12: number ([0-9], up to 20 digits) expected",
            ),
            (
                "device-uuid 0xD439DA5582E96DE9;\n",
                "",
                "Parse error in line 14: keyword 'device-uuid' expected, not 'la-peer-max-bio-size'",
            ),
            (
                "0x33B1C8B05663EE5A",
                "0x33B1",
                "line 8: invalid hex number (only 8 or 16 hex digits accepted): 0x33B1 ...\nParse error in line 8: a 16-digit hex number expected",
            ),
            (
                "0x33B1C8B05663EE5A",
                "0x33B1C8B0",
                "Parse error in line 8: a 16-digit hex number expected, not some number",
            ),
            (
                "0x00000097",
                "0x0000000000000097",
                "Parse error in line 9: an 8-digit hex number expected, not some number",
            ),
            ("# bits-set 1;\n", "foo", "line 24: unknown token: foo ...\nParse error in line 24: end of file expected"),
            ("# bits-set 1;\n", ";", "Parse error in line 24: end of file expected, not ';'"),
            ("\"v08\"", "\"v09\"", "dump is 'v09' you requested 'v08'."),
            (
                "\"v08\"",
                "\"v08xxxxxxxxxxxxxxxxxxxxxx\"",
                "line 3: invalid string: \"v08xxxxxxxxxxxxxxxxx ...\nParse error in line 3: short quoted string (\"..up to 20 characters, no newline..\") expected",
            ),
            (
                "4096;\nd",
                "4097;\nd",
                "Invalid value for bm-byte-per-bit: value must be a power-of-two multiple of 4096",
            ),
            (
                "stripes 1",
                "stripes 99999999999999999999",
                "line 16: number too big: 99999999999999999999 ...\nParse error in line 16: number ([0-9], up to 20 digits) expected",
            ),
            (
                "508 times",
                "508 foo",
                "line 21: unknown token: foo ...\nParse error in line 21: keyword 'times' expected",
            ),
            (
                "508 times",
                "times",
                "Parse error in line 21: repeat count, 16-digit hex number, or closing brace (}) expected, not 'times'",
            ),
            (
                "uuid {",
                "uuid @",
                "Parse error in line 7: opening brace ({) expected; got invalid input character '\\x40' [@]",
            ),
            (
                "uuid {\n ",
                "uuid-x {\n ",
                "line 7: unknown token: uuid-x ...\nParse error in line 7: keyword 'uuid' expected",
            ),
            (
                "uuid {\n ",
                "This_is_an_unclean_meta_data_dump._Don't",
                "line 7: unknown token: This_is_an_unclean_meta_data_dump ...\nParse error in line 7: keyword 'uuid' expected",
            ),
            ("4096;\nd", "8192;\nd", "Invalid value for bm-byte-per-bit: 8192, v08 has 4096 only"),
            ("stripes 1", "stripes 9999999999", "line 16: al-stripes: 9999999999 is too big"),
            (
                "stripes 1",
                "stripes -1",
                "line 16: negative number: -1 ...\nParse error in line 16: number ([0-9], up to 20 digits) expected",
            ),
            ("stripes 1", "stripes 0", "invalid activity log striping: al_stripes=0, al_stripe_size_4k=8"),
            (
                "}\n# bits-set 1;\n",
                "",
                "Parse error in line 23: repeat count, 16-digit hex number, or closing brace (}) expected, but end of file encountered",
            ),
        ] {
            let broken = GOOD.replacen(from, to, 1);
            assert_ne!(broken, GOOD, "{from}");
            assert_eq!(parse(&broken).map_err(|e| e.to_string()), Err(text.to_owned()));
        }
    }

    #[test]
    fn a_huge_run_costs_nothing() {
        let dump = parse(&GOOD.replace("508 times", "9223372036854775807 times")).expect("valid");
        assert_eq!(dump.word_count(), (1 << 63) + 1);
        assert_eq!(dump.words(5).count(), 5);
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_mutilated_dump_never_panics(at in 0_usize..GOOD.len(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}

//! Text into tokens, by DRBD 8.4's scanner rules: longest match, then the earlier rule.
//!
//! Takes one file's text, gives tokens with places; never fails: what is no token is a [`Kind::Stray`] or [`Kind::Bad`] one,
//! and after the end there are only [`Kind::End`]s. Source: config-and-commands.md 2.

use super::diag::Pos;
use super::options::{self, DEAD_OPTIONS, PROXY_OPTIONS};
use super::values::Handler;

/// Longest unquoted word, in bytes. DRBD 8.4.
pub const WORD_LEN_MAX: usize = 128;
/// Longest quoted string, in characters between the quotes. DRBD 8.4.
pub const QUOTED_LEN_MAX: usize = 255;

/// Words with a fixed meaning besides the option names.
const STRUCTURAL: &[&str] = &[
    "global",
    "common",
    "resource",
    "skip",
    "include",
    "on",
    "ignore-on",
    "stacked-on-top-of",
    "floating",
    "net",
    "disk",
    "syncer",
    "startup",
    "handlers",
    "options",
    "proxy",
    "device",
    "minor",
    "volume",
    "meta-disk",
    "flexible-meta-disk",
    "address",
    "alternate-link-address",
    "inside",
    "outside",
    "plugin",
    "sci",
    "ssocks",
    "sdp",
    "ipv4",
    "ipv6",
    "yes",
    "no",
    "ask",
    "_this_host",
    "_remote_host",
    "protocol",
    "minor-count",
    "disable-ip-verification",
    "udev-always-use-vnr",
    "dialog-refresh",
    "usage-count",
    "cmd-timeout-short",
    "cmd-timeout-medium",
    "cmd-timeout-long",
    "become-primary-on",
    "stacked-timeouts",
    "outdate-peer",
];

/// Whether an unquoted word has a fixed meaning, so that it cannot be a name.
#[must_use]
pub fn is_keyword(word: &str) -> bool {
    STRUCTURAL.contains(&word)
        || PROXY_OPTIONS.contains(&word)
        || DEAD_OPTIONS.contains(&word)
        || Handler::WORDS.contains(&word)
        || options::all().any(|s| s.in_file && (s.name == word || s.alias == Some(word) || s.negated == Some(word)))
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of `{ } ; [ ] :`.
    Op(char),
    /// A word with a fixed meaning.
    Keyword,
    /// An unquoted word.
    Word,
    /// A quoted string; the token's text is what it stands for.
    Quoted,
    /// One to eight digits, then perhaps `M`, `K`, `G` or `s`.
    Integer,
    /// Four groups of digits.
    Ipv4,
    /// Something with two colons or more.
    Ipv6,
    /// A character that begins no token.
    Stray,
    /// A string or word that breaks the rules.
    Bad(Flaw),
    /// The end of the file.
    End,
}

/// What is wrong with a string or word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// No closing quote before the line end.
    Unterminated,
    /// More than [`QUOTED_LEN_MAX`] characters.
    QuotedTooLong,
    /// More than [`WORD_LEN_MAX`] characters.
    WordTooLong,
    /// A NUL or a byte that is not UTF-8.
    NotText,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Its text; of a quoted string the text that it stands for.
    pub text: String,
    /// Where it is.
    pub pos: Pos,
}

impl Token {
    /// Whether it is a name: a quoted string, or an unquoted word without a fixed meaning.
    #[must_use]
    pub fn is_string(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::Quoted)
    }

    /// Whether it is this operator.
    #[must_use]
    pub fn is_op(&self, op: char) -> bool {
        self.kind == Kind::Op(op)
    }

    /// Whether it is this keyword.
    #[must_use]
    pub fn is_keyword(&self, word: &str) -> bool {
        self.kind == Kind::Keyword && self.text == word
    }

    /// For messages: `'text'`, cut to 20 characters, or "the end of the file".
    #[must_use]
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::End => "the end of the file".to_owned(),
            _ if self.text.chars().count() > 20 => format!("'{}...'", self.text.chars().take(20).collect::<String>()),
            _ => format!("'{}'", self.text),
        }
    }
}

/// Reads one file token by token.
#[derive(Debug)]
pub struct Lexer<'a> {
    rest: &'a str,
    file: usize,
    line: u32,
    col: u32,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-')
}

impl<'a> Lexer<'a> {
    /// A scanner at the begin of `text`, which is the file with number `file`.
    #[must_use]
    pub const fn new(text: &'a str, file: usize) -> Self {
        Self { rest: text, file, line: 1, col: 1 }
    }

    /// The next token.
    pub fn next_token(&mut self) -> Token {
        self.skip_blanks();
        let Some(first) = self.rest.chars().next() else { return self.token(Kind::End, 0, String::new()) };
        if matches!(first, '{' | '}' | ';' | '[' | ']' | ':') {
            // `::1` begins with an operator character, but is longer.
            let ipv6 = if first == ':' { ipv6_len(self.rest) } else { 0 };
            if ipv6 == 0 {
                return self.token(Kind::Op(first), 1, first.to_string());
            }
            return self.plain(Kind::Ipv6, ipv6);
        }
        if first == '"' {
            return self.quoted();
        }
        if !is_word(first) {
            return self.plain(Kind::Stray, first.len_utf8());
        }
        let len = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let ipv6 = ipv6_len(self.rest);
        if ipv6 > len {
            return self.plain(Kind::Ipv6, ipv6);
        }
        let word = &self.rest[..len];
        let kind = if is_integer(word) {
            Kind::Integer
        } else if is_ipv4(word) {
            Kind::Ipv4
        } else if len > WORD_LEN_MAX {
            Kind::Bad(Flaw::WordTooLong)
        } else if is_keyword(word) {
            Kind::Keyword
        } else {
            Kind::Word
        };
        self.plain(kind, len)
    }

    fn skip_blanks(&mut self) {
        loop {
            let Some(c) = self.rest.chars().next() else { return };
            match c {
                ' ' | '\t' | '\r' => self.advance(1),
                '\n' => {
                    self.rest = &self.rest[1..];
                    self.line = self.line.saturating_add(1);
                    self.col = 1;
                }
                '#' => self.advance(self.rest.find('\n').unwrap_or(self.rest.len())),
                _ => return,
            }
        }
    }

    /// Steps over `len` bytes, which hold no line end.
    fn advance(&mut self, len: usize) {
        let (passed, rest) = self.rest.split_at(len);
        self.col = self.col.saturating_add(u32::try_from(passed.chars().count()).unwrap_or(u32::MAX));
        self.rest = rest;
    }

    fn plain(&mut self, kind: Kind, len: usize) -> Token {
        let text = self.rest[..len].to_owned();
        self.token(kind, len, text)
    }

    fn token(&mut self, kind: Kind, len: usize, text: String) -> Token {
        let col = self.col;
        self.advance(len);
        Token { kind, text, pos: Pos { file: self.file, line: self.line, col, len: (self.col - col).max(1) } }
    }

    fn quoted(&mut self) -> Token {
        let mut text = String::new();
        let mut escaped = false;
        let mut flaw = None;
        for (raw_chars, (at, c)) in self.rest.char_indices().skip(1).enumerate() {
            if c == '\n' {
                let mut token = self.plain(Kind::Bad(Flaw::Unterminated), at);
                token.text = token.text.trim_end_matches('\r').to_owned();
                return token;
            }
            if c == '"' && !escaped {
                if raw_chars > QUOTED_LEN_MAX {
                    flaw = Some(Flaw::QuotedTooLong);
                }
                return match flaw {
                    Some(flaw) => self.plain(Kind::Bad(flaw), at + 1),
                    None => self.token(Kind::Quoted, at + 1, text),
                };
            }
            if c == '\0' || c == char::REPLACEMENT_CHARACTER {
                flaw = Some(Flaw::NotText);
            }
            escaped = c == '\\' && !escaped;
            if !escaped {
                text.push(c);
            }
        }
        self.plain(Kind::Bad(Flaw::Unterminated), self.rest.len())
    }
}

fn is_integer(word: &str) -> bool {
    let digits = word.strip_suffix(['M', 'K', 'G', 's']).unwrap_or(word);
    (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

fn is_ipv4(word: &str) -> bool {
    word.split('.').count() == 4
        && word.split('.').all(|group| (1..=3).contains(&group.len()) && group.bytes().all(|b| b.is_ascii_digit()))
}

/// Length of the IPv6 address (with its zone) at the begin of `text`; 0 if there is none.
fn ipv6_len(text: &str) -> usize {
    // 13 groups of 4 and their colons are the longest that the rule can match.
    let run = text.bytes().take(70).take_while(|b| b.is_ascii_hexdigit() || *b == b':').count();
    let mut len = (2..=run).rev().find(|len| is_ipv6(&text[..*len])).unwrap_or(0);
    if text.get(..7).is_some_and(|head| head.eq_ignore_ascii_case("::ffff:")) {
        let tail = &text[7..];
        let end = tail.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(tail.len());
        if is_ipv4(&tail[..end]) && 7 + end > len {
            len = 7 + end;
        }
    }
    if len == 0 {
        return 0;
    }
    match text[len..].strip_prefix('%') {
        Some(zone) => match zone.find(|c| !is_word(c)).unwrap_or(zone.len()) {
            0 => len,
            zone_len => len + 1 + zone_len,
        },
        None => len,
    }
}

/// Up to six groups, a colon, perhaps a group, a colon, up to six groups.
fn is_ipv6(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let side = |parts: &[&str]| {
        parts == [""] || ((1..=6).contains(&parts.len()) && parts.iter().all(|p| (1..=4).contains(&p.len())))
    };
    parts.len() >= 3
        && parts.iter().all(|p| p.len() <= 4)
        && (1..parts.len() - 1).any(|middle| side(&parts[..middle]) && side(&parts[middle + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(Kind, String)> {
        let mut lexer = Lexer::new(text, 0);
        let mut out = Vec::new();
        loop {
            let token = lexer.next_token();
            if token.kind == Kind::End {
                return out;
            }
            out.push((token.kind, token.text));
        }
    }

    fn kind(text: &str) -> Kind {
        let tokens = kinds(text);
        assert_eq!(tokens.len(), 1, "{tokens:?}");
        tokens[0].0
    }

    #[test]
    fn words_numbers_and_addresses_are_told_apart_by_the_longest_match() {
        for (text, expected) in [
            ("110M", Kind::Integer),
            ("12345678s", Kind::Integer),
            ("123456789", Kind::Word),
            ("512k", Kind::Word),
            ("110Mb", Kind::Word),
            ("10.0.0.1", Kind::Ipv4),
            ("999.999.999.999", Kind::Ipv4),
            ("10.0.0.1.2", Kind::Word),
            ("1000.0.0.1", Kind::Word),
            ("timeout", Kind::Keyword),
            ("no-tcp-cork", Kind::Keyword),
            ("Timeout", Kind::Word),
            ("32K-striping", Kind::Word),
            ("/dev/sdb", Kind::Word),
            ("\"timeout\"", Kind::Quoted),
            ("::1", Kind::Ipv6),
            ("::", Kind::Ipv6),
            ("fe80::1%eth0", Kind::Ipv6),
            ("2001:db8:0:1::1", Kind::Ipv6),
            ("1:2:3:4:5:6:7:8", Kind::Ipv6),
            ("::ffff:203.0.113.1", Kind::Ipv6),
            ("=", Kind::Stray),
            ("ä", Kind::Stray),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn a_comment_ends_a_word_and_a_line() {
        assert_eq!(kinds("/dev/sdb#x ; {\n;"), [(Kind::Word, "/dev/sdb".to_owned()), (Kind::Op(';'), ";".to_owned())]);
    }

    #[test]
    fn an_address_with_port_is_three_tokens() {
        let tokens = kinds("203.0.113.1:7001");
        assert_eq!(tokens.iter().map(|t| t.0).collect::<Vec<_>>(), [Kind::Ipv4, Kind::Op(':'), Kind::Integer]);
        let tokens = kinds("[2001:db8::1]:7050");
        assert_eq!(tokens[1], (Kind::Ipv6, "2001:db8::1".to_owned()));
        assert_eq!(tokens.len(), 5);
    }

    #[test]
    fn escapes_take_the_next_character_literally() {
        assert_eq!(kinds(r#""a \"b\" \\ \n""#), [(Kind::Quoted, r#"a "b" \ n"#.to_owned())]);
    }

    #[test]
    fn broken_strings_are_tokens_with_a_flaw() {
        assert_eq!(kinds("\"open\nnext")[0].0, Kind::Bad(Flaw::Unterminated));
        assert_eq!(kinds("\"open\nnext")[1], (Kind::Word, "next".to_owned()));
        assert_eq!(kind("\"open \\\""), Kind::Bad(Flaw::Unterminated));
        assert_eq!(kind(&format!("\"{}\"", "x".repeat(255))), Kind::Quoted);
        assert_eq!(kind(&format!("\"{}\"", "x".repeat(256))), Kind::Bad(Flaw::QuotedTooLong));
        assert_eq!(kind(&"x".repeat(128)), Kind::Word);
        assert_eq!(kind(&"x".repeat(129)), Kind::Bad(Flaw::WordTooLong));
        assert_eq!(kind("\"a\0b\""), Kind::Bad(Flaw::NotText));
    }

    #[test]
    fn places_count_lines_and_characters() {
        let mut lexer = Lexer::new("a\n \"ä\" b", 3);
        assert_eq!(lexer.next_token().pos, Pos { file: 3, line: 1, col: 1, len: 1 });
        assert_eq!(lexer.next_token().pos, Pos { file: 3, line: 2, col: 2, len: 3 });
        assert_eq!(lexer.next_token().pos, Pos { file: 3, line: 2, col: 6, len: 1 });
        assert_eq!(lexer.next_token().kind, Kind::End);
        assert_eq!(lexer.next_token().kind, Kind::End);
    }
}

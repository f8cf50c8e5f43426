//! Option sections: `net`, `disk`, `options`, `startup`, `handlers`, `syncer` and `proxy`.

use super::{Failed, Parsed, Parser};
use crate::config::ast::{Name, Opt, ProxyOptions, Resource, Startup};
use crate::config::diag::{Diagnostic, Pos};
use crate::config::lexer::{Kind, Token};
use crate::config::options::{self, DEAD_OPTIONS, PROXY_OPTIONS};
use crate::config::spec::{self, OptionSpec, Section};
use crate::config::values::Handler;

/// Statements and options that only DRBD 9 has; such a file needs translation, not spelling correction.
const DRBD_9_WORDS: &[&str] = &[
    "connection",
    "connection-mesh",
    "hosts",
    "host",
    "via",
    "path",
    "node-id",
    "template-file",
    "auto-promote",
    "auto-promote-timeout",
    "quorum",
    "quorum-minimum-redundancy",
    "on-no-quorum",
    "on-suspended-primary-outdated",
    "transport",
    "allow-remote-read",
    "bitmap",
    "peer-ack-window",
    "peer-ack-delay",
    "twopc-timeout",
    "twopc-retry-timeout",
    "max-io-depth",
    "quorum-lost",
    "disconnected",
    "load-balance-paths",
    "tls",
];

/// The three lists that `disk { }`, `net { }` and `options { }` fill, and that 8.3's `syncer { }` is spread over.
fn list_of(resource: &mut Resource, section: Section) -> &mut Vec<Opt> {
    match section {
        Section::Net => &mut resource.net,
        Section::Disk => &mut resource.disk,
        Section::Options => &mut resource.options,
        Section::Startup => &mut resource.startup.opts,
        Section::Handlers => &mut resource.handlers,
        Section::Proxy => &mut resource.proxy.opts,
    }
}

impl Parser<'_, '_, '_> {
    /// `net { }`, `disk { }` and `options { }`: appends to `list`.
    pub(super) fn options(&mut self, section: Section, list: &mut Vec<Opt>) -> Parsed<()> {
        self.block(&format!("the {section} section"), false, |p, token| {
            if let Some(opt) = p.option(section, &token)? {
                p.add(list, opt);
            }
            Ok(())
        })?;
        Ok(())
    }

    fn add(&mut self, list: &mut Vec<Opt>, opt: Opt) {
        if let Some(first) = list.iter().find(|o| o.name == opt.name) {
            let which = if opt.spec.is_some_and(|s| s.section == Section::Disk) { "first" } else { "last" };
            let warning =
                Diagnostic::warning(opt.pos, format!("{} is set more than once; the {which} one counts", opt.name));
            self.push(warning.note(first.pos, "first set here").help("remove the others"));
        }
        list.push(opt);
    }

    /// `startup { }`.
    pub(super) fn startup(&mut self, startup: &mut Startup) -> Parsed<()> {
        self.block("the startup section", false, |p, token| {
            if token.is_keyword("become-primary-on") {
                startup.become_primary_on = p.names("a host name, or both")?;
                return p.semicolon();
            }
            if token.is_keyword("stacked-timeouts") {
                startup.stacked_timeouts = true;
                return p.semicolon();
            }
            if let Some(opt) = p.option(Section::Startup, &token)? {
                p.add(&mut startup.opts, opt);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// One or more names.
    pub(super) fn names(&mut self, expected: &str) -> Parsed<Vec<Name>> {
        let mut names = vec![self.name(expected)?];
        while !matches!(self.peek().kind, Kind::Op(_) | Kind::End | Kind::Stray) {
            names.push(self.name(expected)?);
        }
        Ok(names)
    }

    /// `syncer { }`: the options go where 8.4 has them.
    pub(super) fn syncer(&mut self, resource: &mut Resource) -> Parsed<()> {
        self.block("the syncer section", false, |p, token| {
            if p.dead_option(&token)? {
                return Ok(());
            }
            // Only the names of 8.3: `rate` and `after`, not `resync-rate` and `resync-after`.
            let spec = options::all().find(|s| s.in_syncer && token.is_keyword(s.alias.unwrap_or(s.name)));
            let Some(spec) = spec else { return Err(p.unknown_option(&token, "syncer", None)) };
            let opt = p.option_value(spec, &token)?;
            p.add(list_of(resource, spec.section), opt);
            Ok(())
        })?;
        Ok(())
    }

    /// `handlers { }`.
    pub(super) fn handlers(&mut self, list: &mut Vec<Opt>) -> Parsed<()> {
        self.block("the handlers section", false, |p, token| {
            if p.dead_option(&token)? {
                return Ok(());
            }
            let word = if token.text == "outdate-peer" { Handler::FencePeer.text() } else { token.text.as_str() };
            let handler = Handler::from_text(word).filter(|_| token.kind == Kind::Keyword);
            let Some(handler) = handler else { return Err(p.unknown_option(&token, "handlers", None)) };
            let (value, value_pos) = p.value(handler.text())?;
            p.add(list, Opt { name: handler.text(), spec: None, value, pos: token.pos, value_pos });
            p.semicolon()
        })?;
        Ok(())
    }

    /// The body of `proxy { }` and of `options { }` inside `proxy on`.
    pub(super) fn proxy_options(&mut self, proxy: &mut ProxyOptions) -> Parsed<()> {
        self.block("the proxy options", false, |p, token| {
            if token.is_keyword("plugin") {
                p.block("the plugin section", false, |p, token| {
                    let mut words = vec![token.text.clone()];
                    if matches!(token.kind, Kind::Op(_) | Kind::Stray | Kind::Bad(_)) {
                        return Err(p.unexpected(&token, "a word"));
                    }
                    while !matches!(p.peek().kind, Kind::Op(_) | Kind::Stray | Kind::Bad(_) | Kind::End) {
                        words.push(p.next().text);
                    }
                    p.semicolon()?;
                    proxy.plugins.push(words);
                    Ok(())
                })?;
                return Ok(());
            }
            if p.dead_option(&token)? {
                return Ok(());
            }
            let name = PROXY_OPTIONS.iter().find(|name| token.is_keyword(name));
            let Some(name) = name else { return Err(p.unknown_option(&token, "proxy", None)) };
            let (value, value_pos) = p.value(name)?;
            p.add(&mut proxy.opts, Opt { name, spec: None, value, pos: token.pos, value_pos });
            p.semicolon()
        })?;
        Ok(())
    }

    /// One statement of a section; `None` for the dead options of 8.3.
    fn option(&mut self, section: Section, token: &Token) -> Parsed<Option<Opt>> {
        if self.dead_option(token)? {
            return Ok(None);
        }
        let rows = options::specs(section);
        let keyword = token.kind == Kind::Keyword;
        if let Some(spec) =
            rows.iter().find(|s| keyword && s.in_file && (s.name == token.text || s.alias == Some(&token.text)))
        {
            return self.option_value(spec, token).map(Some);
        }
        if let Some(spec) = rows.iter().find(|s| keyword && s.negated == Some(&token.text)) {
            self.semicolon()?;
            let value = "no".to_owned();
            return Ok(Some(Opt { name: spec.name, spec: Some(spec), value, pos: token.pos, value_pos: token.pos }));
        }
        Err(self.unknown_option(token, section.text(), Some(section)))
    }

    fn option_value(&mut self, spec: &'static OptionSpec, token: &Token) -> Parsed<Opt> {
        let opt =
            |value: String, value_pos| Opt { name: spec.name, spec: Some(spec), value, pos: token.pos, value_pos };
        if matches!(spec.kind, spec::Kind::Flag { .. }) {
            let opt = match self.peek() {
                next if next.is_keyword("yes") || next.is_keyword("no") => {
                    let next = self.next();
                    opt(next.text, next.pos)
                }
                next if next.is_op(';') => opt("yes".to_owned(), token.pos),
                next => {
                    let next = next.clone();
                    let failed = self.unexpected(&next, &format!("yes, no or ';' behind {}", spec.name));
                    return Err(failed);
                }
            };
            self.semicolon()?;
            return Ok(opt);
        }
        let (mut value, value_pos) = self.value(spec.name)?;
        if spec.name == "protocol" {
            value.make_ascii_uppercase();
        }
        self.check_value(spec, &value, value_pos);
        self.semicolon()?;
        Ok(opt(value, value_pos))
    }

    pub(super) fn check_value(&mut self, spec: &OptionSpec, value: &str, pos: Pos) {
        if let Some(text) = spec.clamped(value) {
            let message = format!("{} {value} is outside {}; {text} is used", spec.name, spec.range_text());
            self.push(Diagnostic::warning(pos, message));
        } else if let Err(error) = spec.check(value) {
            self.push(Diagnostic::error(pos, error.message).help(error.help));
        }
    }

    /// The value of an option: a string, a number or the word `on`.
    fn value(&mut self, option: &str) -> Parsed<(String, Pos)> {
        let token = self.peek().clone();
        if token.is_string() || token.kind == Kind::Integer || token.is_keyword("on") {
            self.next();
            return Ok((token.text, token.pos));
        }
        let failed = self.unexpected(&token, &format!("a value for {option} (a word, a number or a quoted text)"));
        if matches!(token.kind, Kind::Bad(_)) {
            // The statement is whole but for this; go on behind it.
            self.next();
        }
        Err(failed)
    }

    /// Reads `NAME value;` of an option that 8.3 had; it has no meaning any more.
    fn dead_option(&mut self, token: &Token) -> Parsed<bool> {
        if token.kind != Kind::Keyword || !DEAD_OPTIONS.contains(&token.text.as_str()) {
            return Ok(false);
        }
        self.value(&token.text)?;
        self.semicolon()?;
        let warning = Diagnostic::warning(token.pos, format!("{} has no meaning since 8.4", token.text));
        self.push(warning.help("remove it"));
        Ok(true)
    }

    /// Reports an option that the section does not have, with the best advice there is.
    fn unknown_option(&mut self, token: &Token, section: &str, known: Option<Section>) -> Failed {
        if !matches!(token.kind, Kind::Keyword | Kind::Word | Kind::Quoted) {
            return self.unexpected(token, &format!("an option of {section}"));
        }
        let word = token.text.as_str();
        let names: Vec<&str> = match (known, section) {
            (Some(section), _) => options::specs(section).iter().filter(|s| s.in_file).map(|s| s.name).collect(),
            (None, "syncer") => options::all().filter(|s| s.in_syncer).map(|s| s.alias.unwrap_or(s.name)).collect(),
            (None, "handlers") => Handler::WORDS.to_vec(),
            (None, _) => PROXY_OPTIONS.to_vec(),
        };
        let elsewhere = options::all().find(|s| s.name == word || s.alias == Some(word) || s.negated == Some(word));
        let help = if let Some(near) = nearest(word, &names) {
            format!("did you mean {near}?")
        } else if DRBD_9_WORDS.contains(&word) {
            format!("{word} belongs to DRBD 9; this is the language of 8.4")
        } else if let Some(spec) = elsewhere {
            if spec.in_file {
                format!("{word} belongs into {} {{ }}", spec.section)
            } else {
                format!("{word} is an option of the command `connect`, not of files")
            }
        } else if Handler::from_text(word).is_some() {
            format!("{word} belongs into handlers {{ }}")
        } else {
            format!("options of {section}: {}", names.join(", "))
        };
        let error = Diagnostic::error(token.pos, format!("unknown option {} in {section} {{ }}", token.shown()));
        self.syntax(error.help(help));
        Failed
    }

    /// Reports a statement that a section does not have.
    pub(super) fn unknown_statement(&mut self, token: &Token, section: &str, known: &[&str]) -> Failed {
        let word = token.text.as_str();
        if !matches!(token.kind, Kind::Keyword | Kind::Word | Kind::Quoted) {
            return self.unexpected(token, &format!("one of {}", known.join(", ")));
        }
        let help = if DRBD_9_WORDS.contains(&word) {
            format!("{word} belongs to DRBD 9; this is the language of 8.4")
        } else if let Some(near) = nearest(word, known) {
            format!("did you mean {near}?")
        } else if let Some(spec) = options::all().find(|s| s.name == word || s.alias == Some(word)) {
            format!("{word} is an option of {} {{ }}", spec.section)
        } else {
            format!("expected one of {}", known.join(", "))
        };
        let error = Diagnostic::error(token.pos, format!("unknown statement {} in {section}", token.shown()));
        self.syntax(error.help(help));
        Failed
    }
}

/// The known word that differs from `word` by at most a third of its letters.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    if word.len() > 40 {
        return None;
    }
    let (distance, best) = known.iter().map(|k| (edit_distance(word, k), *k)).min()?;
    (distance > 0 && distance <= best.len().div_ceil(4).min(3)).then_some(best)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_given_for_near_misses_only() {
        assert_eq!(nearest("ping-intt", &["ping-int", "timeout"]), Some("ping-int"));
        assert_eq!(nearest("timout", &["ping-int", "timeout"]), Some("timeout"));
        assert_eq!(nearest("frobnicate", &["ping-int", "timeout"]), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}

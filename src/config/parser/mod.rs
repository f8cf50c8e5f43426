//! The grammar: tokens into [`ast`](super::ast), as many errors as can be told apart.
//!
//! Takes files through a [`Loader`], so that includes work without any file access of its own. After an error inside a
//! statement the parser goes on behind the next `;` or block. Every value is checked against the option table here; what
//! needs more than one statement is checked in [`super::check`]. Source: config-and-commands.md 1.3, 3, 4 and 7.2.

mod address;
mod host;
mod resource;
mod sections;

use std::collections::BTreeMap;

use super::ast::{Ast, Name, Resource};
use super::diag::{Diagnostic, Diagnostics, Pos, Source};
use super::glob;
use super::lexer::{Flaw, Kind, Lexer, QUOTED_LEN_MAX, Token, WORD_LEN_MAX};
use super::model::{Global, UsageCount};
use super::values::{NumberError, Scale, parse_number};

/// Deepest nesting of includes; every file is read once, so only a chain of that many different files can reach it.
const INCLUDE_DEPTH_MAX: usize = 64;

/// Access to configuration files.
pub trait Loader {
    /// Content of a file.
    ///
    /// # Errors
    /// Why it cannot be read, for a message.
    fn read(&mut self, path: &str) -> Result<Vec<u8>, String>;

    /// Names in a directory, in any order; `None` when it cannot be listed. The empty path is the current directory.
    fn list(&mut self, dir: &str) -> Option<Vec<String>>;

    /// Absolute path without links; `None` when there is no such file.
    fn canonical(&mut self, path: &str) -> Option<String>;
}

/// A loader that finds nothing, for text that includes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFiles;

impl Loader for NoFiles {
    fn read(&mut self, _path: &str) -> Result<Vec<u8>, String> {
        Err("there are no files here".to_owned())
    }

    fn list(&mut self, _dir: &str) -> Option<Vec<String>> {
        None
    }

    fn canonical(&mut self, _path: &str) -> Option<String> {
        None
    }
}

/// Parses one text after the other into one configuration.
pub fn parse(inputs: Vec<Source>, loader: &mut dyn Loader) -> (Ast, Diagnostics) {
    let mut state =
        State { ast: Ast::default(), diagnostics: Diagnostics::default(), loader, seen: BTreeMap::new(), depth: 0 };
    for source in inputs {
        state.file(source);
    }
    (state.ast, state.diagnostics)
}

/// What all files share.
struct State<'l> {
    ast: Ast,
    diagnostics: Diagnostics,
    loader: &'l mut dyn Loader,
    /// First place of everything that may occur once: (what, key).
    seen: BTreeMap<(&'static str, String), Pos>,
    depth: usize,
}

impl State<'_> {
    fn file(&mut self, source: Source) {
        let index = self.ast.sources.files.len();
        // The parser changes the state while it reads the text, so it has a copy.
        let text = source.text.clone();
        self.ast.sources.files.push(source);
        let mut parser = Parser {
            lexer: Lexer::new(&text, index),
            ahead: None,
            last: Pos::default(),
            syntax_errors: 0,
            state: self,
        };
        parser.top();
    }
}

/// An error has been reported; the caller goes on behind the statement.
struct Failed;

type Parsed<T> = Result<T, Failed>;

/// Reads one file.
struct Parser<'a, 's, 'l> {
    lexer: Lexer<'a>,
    ahead: Option<Token>,
    /// The token before `ahead`.
    last: Pos,
    /// Errors that left something out of the tree, so that its absence means nothing.
    syntax_errors: usize,
    state: &'s mut State<'l>,
}

impl Parser<'_, '_, '_> {
    fn peek(&mut self) -> &Token {
        self.ahead.get_or_insert_with(|| self.lexer.next_token())
    }

    fn next(&mut self) -> Token {
        let token = self.ahead.take().unwrap_or_else(|| self.lexer.next_token());
        self.last = token.pos;
        token
    }

    fn push(&mut self, diagnostic: Diagnostic) {
        self.state.diagnostics.push(diagnostic);
    }

    fn syntax(&mut self, diagnostic: Diagnostic) {
        self.syntax_errors += 1;
        self.push(diagnostic);
    }

    /// Reports that `token` is not what the grammar wants. `expected` reads behind "expected".
    fn unexpected(&mut self, token: &Token, expected: &str) -> Failed {
        let diagnostic = match token.kind {
            Kind::Bad(flaw) => flaw_error(token, flaw),
            _ => {
                let error = Diagnostic::error(token.pos, format!("expected {expected}, but got {}", token.shown()));
                match token.kind {
                    Kind::Keyword if expected.contains("name") || expected.contains("value") => {
                        error.help(format!("'{0}' is a keyword; quote it to mean the word: \"{0}\"", token.text))
                    }
                    Kind::Integer | Kind::Ipv4 | Kind::Ipv6
                        if expected.contains("name") || expected.contains("value") =>
                    {
                        error.help(format!("quote it to mean the text: \"{}\"", token.text))
                    }
                    Kind::Stray if token.text == "'" => error.help("only double quotes quote"),
                    Kind::Stray => error.help(format!("quote a text that holds '{}'", token.text)),
                    _ => error,
                }
            }
        };
        self.syntax(diagnostic);
        Failed
    }

    /// Wants a token that `wanted` accepts; leaves any other one where it is.
    fn eat(&mut self, expected: &str, wanted: impl Fn(&Token) -> bool) -> Parsed<Token> {
        if wanted(self.peek()) {
            return Ok(self.next());
        }
        let token = self.peek().clone();
        Err(self.unexpected(&token, expected))
    }

    /// Wants an operator.
    fn op(&mut self, op: char) -> Parsed<Pos> {
        if self.peek().is_op(op) {
            return Ok(self.next().pos);
        }
        let token = self.peek().clone();
        Err(self.unexpected(&token, &format!("'{op}'")))
    }

    /// Wants the `;` behind a statement. Where the next statement or the end of the block follows it is reported, and the
    /// parser goes on as if it were there.
    fn semicolon(&mut self) -> Parsed<()> {
        if self.peek().is_op(';') {
            self.next();
            return Ok(());
        }
        let token = self.peek().clone();
        if matches!(token.kind, Kind::Stray | Kind::Bad(_)) {
            return Err(self.unexpected(&token, "';' behind the statement"));
        }
        let message = format!("expected ';' before {}", token.shown());
        self.syntax(Diagnostic::error(token.pos, message).note(self.last, "add ';' behind this"));
        let failed = Failed;
        if token.kind == Kind::Keyword || token.is_op('}') { Ok(()) } else { Err(failed) }
    }

    /// Wants a name. A keyword or number in its place is reported and then taken for the name.
    fn name(&mut self, expected: &str) -> Parsed<Name> {
        let token = self.peek().clone();
        if token.is_string() {
            self.next();
            return Ok(Name { text: token.text, pos: token.pos });
        }
        let failed = self.unexpected(&token, expected);
        if matches!(token.kind, Kind::Keyword | Kind::Integer | Kind::Ipv4 | Kind::Ipv6 | Kind::Bad(_)) {
            self.next();
            return Ok(Name { text: token.text, pos: token.pos });
        }
        Err(failed)
    }

    /// Wants a plain number in a range. A wrong one is reported and comes back as `None`.
    fn number(&mut self, what: &str, min: u64, max: u64) -> Parsed<(Option<u32>, Pos)> {
        let token = self.peek().clone();
        if token.kind != Kind::Integer {
            return Err(self.unexpected(&token, &format!("a number of at most 8 digits for {what}")));
        }
        self.next();
        let units = match parse_number(&token.text, Scale::One) {
            Ok(units) if token.text.bytes().all(|b| b.is_ascii_digit()) => units,
            Ok(_) | Err(NumberError::NotANumber | NumberError::Overflow) => {
                let error = Diagnostic::error(token.pos, format!("{what} {}: no unit is allowed here", token.text));
                self.syntax(error.help(format!("{what} takes a plain number, {min}..{max}")));
                return Ok((None, token.pos));
            }
        };
        if !(min..=max).contains(&units) {
            let message = format!("{what} {} => {units} out of range [{min}..{max}]", token.text);
            self.syntax(Diagnostic::error(token.pos, message).help(format!("{what} takes {min}..{max}")));
            return Ok((None, token.pos));
        }
        Ok((u32::try_from(units).ok(), token.pos))
    }

    /// Skips to behind the next `;` or block of this level, or to the `}` that ends it.
    fn recover(&mut self) {
        let mut depth = 0_usize;
        loop {
            let token = self.peek();
            match token.kind {
                Kind::End => return,
                Kind::Op('}') if depth == 0 => return,
                Kind::Op('}') if depth == 1 => {
                    self.next();
                    return;
                }
                Kind::Op('}') => depth -= 1,
                Kind::Op('{') => depth += 1,
                Kind::Op(';') if depth == 0 => {
                    self.next();
                    return;
                }
                _ => {}
            }
            self.next();
        }
    }

    /// Reads `{ item... }` and gives the places of both braces; `item` gets each first token. Items that fail are skipped. `eof_ends` says that the end of the
    /// file may stand for the brace.
    fn block(
        &mut self,
        what: &str,
        eof_ends: bool,
        mut item: impl FnMut(&mut Self, Token) -> Parsed<()>,
    ) -> Parsed<(Pos, Pos)> {
        let open = self.op('{')?;
        loop {
            let token = self.next();
            match token.kind {
                Kind::Op('}') => return Ok((open, token.pos)),
                Kind::End if eof_ends => return Ok((open, token.pos)),
                Kind::End => {
                    let error =
                        Diagnostic::error(token.pos, format!("expected '}}' behind {what}, but got {}", token.shown()));
                    self.syntax(error.note(open, format!("{what} opened here")));
                    return Ok((open, token.pos));
                }
                Kind::Op(';') => {
                    let error = Diagnostic::error(token.pos, "a ';' without a statement");
                    self.syntax(error.help("remove it"));
                }
                Kind::Op('{') => {
                    self.unexpected(&token, &format!("a statement of {what}"));
                    self.ahead = Some(token);
                    self.recover();
                }
                _ => {
                    if item(self, token).is_err() {
                        self.recover();
                    }
                }
            }
        }
    }

    /// Reports a second occurrence of something that may occur once; says whether it is the first.
    fn once(&mut self, what: &'static str, key: impl Into<String>, pos: Pos) -> bool {
        let key = key.into();
        let message = format!("conflicting use of {what} '{key}'");
        if let Some(first) = self.state.seen.get(&(what, key.clone())) {
            let error = Diagnostic::error(pos, message).note(*first, "first used here");
            self.push(error.help("remove one of them, or merge the two"));
            return false;
        }
        self.state.seen.insert((what, key), pos);
        true
    }

    fn top(&mut self) {
        loop {
            let token = self.next();
            let result = match (token.kind, token.text.as_str()) {
                (Kind::End, _) => return,
                (Kind::Keyword, "global") => self.global(&token),
                (Kind::Keyword, "common") => self.common(&token),
                (Kind::Keyword, "resource") => self.resource(&token),
                (Kind::Keyword, "skip") => self.skip_block(&token),
                (Kind::Keyword, "include") => self.include(),
                _ => {
                    let failed = self.unexpected(&token, "one of global, common, resource, skip, include");
                    if token.is_op('}') || token.is_op(';') { Ok(()) } else { Err(failed) }
                }
            };
            if result.is_err() {
                if token.is_op('{') {
                    self.ahead = Some(token);
                }
                self.recover();
            }
        }
    }

    fn common(&mut self, keyword: &Token) -> Parsed<()> {
        let name = Name { text: "common".to_owned(), pos: keyword.pos };
        let first = self.once("resource section", "common", keyword.pos);
        let resource = self.resource_body(name, true, first)?;
        self.state.ast.common.get_or_insert(resource);
        Ok(())
    }

    fn resource(&mut self, keyword: &Token) -> Parsed<()> {
        let name = self.name("the name of the resource")?;
        if name.text.is_empty() {
            self.push(Diagnostic::error(name.pos, "Resource name is empty.").help("give the resource a name"));
        } else if name.text.chars().any(|c| c.is_ascii_control()) {
            self.push(
                Diagnostic::error(name.pos, "Resource name is invalid.").help("please don't use control characters"),
            );
        } else if name.text.contains('/') {
            let error = Diagnostic::error(name.pos, format!("resource name '{}' holds a '/'", name.text));
            self.push(
                error.help("NAME/NUMBER is a volume on the command line, and DRBD refuses such names; rename it"),
            );
        }
        let first = self.once("resource section", name.text.clone(), keyword.pos);
        let resource: Resource = self.resource_body(name, false, first)?;
        if first {
            self.state.ast.resources.push(resource);
        }
        Ok(())
    }

    fn skip_block(&mut self, keyword: &Token) -> Parsed<()> {
        if self.peek().is_string() {
            self.next();
        }
        if !self.peek().is_op('{') {
            let token = self.peek().clone();
            let failed = self.unexpected(&token, "'{' (behind skip and at most one name)");
            return Err(failed);
        }
        let mut depth = 0_usize;
        loop {
            match self.next().kind {
                Kind::Op('{') => depth += 1,
                Kind::Op('}') => depth -= 1,
                Kind::End => {
                    let error = Diagnostic::error(keyword.pos, "reached the end of the file inside this skip block");
                    self.syntax(error.help("add the missing '}'"));
                    return Ok(());
                }
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn global(&mut self, keyword: &Token) -> Parsed<()> {
        self.once("global section", "global", keyword.pos);
        if let Some(resource) = self.state.ast.resources.first() {
            let first = resource.name.pos;
            let warning = Diagnostic::warning(keyword.pos, "the global section should stand before all resources");
            self.push(warning.note(first, "the first resource is here"));
        }
        let mut global = Global::default();
        self.block("the global section", false, |p, token| {
            match (token.kind, token.text.as_str()) {
                (Kind::Keyword, "disable-ip-verification") => global.disable_ip_verification = true,
                (Kind::Keyword, "udev-always-use-vnr") => global.udev_always_use_vnr = true,
                (Kind::Keyword, "minor-count") => global.minor_count = p.number("minor-count", 1, 255)?.0,
                (Kind::Keyword, "dialog-refresh") => global.dialog_refresh = p.number("dialog-refresh", 0, 600)?.0,
                (Kind::Keyword, "cmd-timeout-short") => {
                    global.cmd_timeout_short = p.number("cmd-timeout-short", 0, 900)?.0;
                }
                (Kind::Keyword, "cmd-timeout-medium") => {
                    global.cmd_timeout_medium = p.number("cmd-timeout-medium", 0, 900)?.0;
                }
                (Kind::Keyword, "cmd-timeout-long") => {
                    global.cmd_timeout_long = p.number("cmd-timeout-long", 0, 900)?.0;
                }
                (Kind::Keyword, "usage-count") => {
                    let value = p.eat("yes, no or ask", |t| {
                        t.kind == Kind::Keyword && UsageCount::from_text(&t.text).is_some()
                    })?;
                    global.usage_count = UsageCount::from_text(&value.text);
                }
                _ => {
                    return Err(p.unexpected(
                        &token,
                        "one of usage-count, disable-ip-verification, minor-count, dialog-refresh, udev-always-use-vnr, \
                         cmd-timeout-short, cmd-timeout-medium, cmd-timeout-long",
                    ));
                }
            }
            p.semicolon()
        })?;
        if self.state.ast.global.is_none() {
            self.state.ast.global = Some((global, keyword.pos));
        }
        Ok(())
    }

    fn include(&mut self) -> Parsed<()> {
        let pattern = self.name("a file name or pattern")?;
        self.semicolon()?;
        if self.state.depth >= INCLUDE_DEPTH_MAX {
            let message = format!("includes are nested more than {INCLUDE_DEPTH_MAX} deep");
            self.push(Diagnostic::error(pattern.pos, message));
            return Ok(());
        }
        let full = glob::join(glob::parent(self.state.ast.sources.name(pattern.pos.file)), &pattern.text);
        let paths = glob::expand(&full, self.state.loader);
        if paths.is_empty() && !glob::is_pattern(&pattern.text) {
            let error = Diagnostic::error(pattern.pos, format!("cannot open include file '{}'", pattern.text));
            self.push(error.help(format!("looked for {full}; relative names start from the directory of this file")));
        }
        for path in paths {
            let canonical = self.state.loader.canonical(&path).unwrap_or_else(|| path.clone());
            if self.state.ast.sources.files.iter().any(|f| f.path == canonical) {
                continue;
            }
            match self.state.loader.read(&path) {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    self.state.depth += 1;
                    self.state.file(Source { name: path, path: canonical, text });
                    self.state.depth -= 1;
                }
                Err(why) => {
                    self.push(Diagnostic::error(pattern.pos, format!("cannot read include file '{path}': {why}")));
                }
            }
        }
        Ok(())
    }
}

fn flaw_error(token: &Token, flaw: Flaw) -> Diagnostic {
    match flaw {
        Flaw::Unterminated => Diagnostic::error(token.pos, "Unterminated double quoted string")
            .help("add the closing '\"' on the same line; a string cannot hold a line end"),
        Flaw::QuotedTooLong => {
            Diagnostic::error(token.pos, format!("Double quoted string longer than {QUOTED_LEN_MAX} characters"))
                .help("shorten it; a long command fits into a script")
        }
        Flaw::WordTooLong => Diagnostic::error(token.pos, format!("Word longer than {WORD_LEN_MAX} characters"))
            .help(format!("shorten it, or quote it (up to {QUOTED_LEN_MAX} characters)")),
        Flaw::NotText => {
            Diagnostic::error(token.pos, "String with a NUL or a byte that is not UTF-8").help("save the file as UTF-8")
        }
    }
}

//! Errors and warnings about configuration text, with the place, the line and a caret.
//!
//! Owns the texts of the files ([`Sources`]) and what was found in them ([`Diagnostics`]). Rendered form, one per finding:
//!
//! ```text
//! drbd.conf:5:13: error: timeout 0 => 0 out of range [1..600]
//!         timeout 0;
//!                 ^
//!   help: timeout takes 1..600, in tenths of a second
//! ```
//!
//! A line that holds a shared secret is shown with the secret struck out.

use std::fmt;

/// Most errors that are kept; a file that is not a configuration at all would produce one per word.
const ERRORS_MAX: usize = 100;
/// Most warnings that are kept, for the same reason.
const WARNINGS_MAX: usize = 100;
/// Longest part of a source line that is shown, in characters; arbitrary, a few terminal widths.
const LINE_CHARS_MAX: usize = 240;

/// A place in one of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pos {
    /// Index of the file in [`Sources`].
    pub file: usize,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub col: u32,
    /// Length in characters, for the caret.
    pub len: u32,
}

/// One file's text. `Debug` leaves the text out, since it may hold a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Name for messages: as given, or the including directory joined with the pattern's match.
    pub name: String,
    /// Absolute path where the loader knows it, else the name.
    pub path: String,
    /// The text.
    pub text: String,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).field("len", &self.text.len()).finish_non_exhaustive()
    }
}

/// All files of one configuration in the order they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The files.
    pub files: Vec<Source>,
}

impl Sources {
    /// Name of a file, for messages.
    #[must_use]
    pub fn name(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| f.name.as_str())
    }

    /// Absolute path of a file.
    #[must_use]
    pub fn path(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |f| f.path.as_str())
    }

    fn line(&self, pos: Pos) -> Option<&str> {
        let index = usize::try_from(pos.line.checked_sub(1)?).ok()?;
        self.files.get(pos.file)?.text.lines().nth(index)
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration works, but perhaps not as meant.
    Warning,
    /// The configuration is refused.
    Error,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where; `None` for findings about the configuration as a whole.
    pub pos: Option<Pos>,
    /// What is wrong.
    pub message: String,
    /// Other places that belong to it.
    pub notes: Vec<(Pos, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    #[must_use]
    pub fn error(pos: Pos, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, pos: Some(pos), message: message.into(), notes: Vec::new(), help: None }
    }

    /// A warning at a place.
    #[must_use]
    pub fn warning(pos: Pos, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(pos, message) }
    }

    /// An error about the configuration as a whole.
    #[must_use]
    pub fn general(message: impl Into<String>) -> Self {
        Self { pos: None, ..Self::error(Pos::default(), message) }
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with another place.
    #[must_use]
    pub fn note(mut self, pos: Pos, text: impl Into<String>) -> Self {
        self.notes.push((pos, text.into()));
        self
    }

    /// The text for people, without a line end.
    #[must_use]
    pub fn render(&self, sources: &Sources) -> String {
        let kind = match self.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "",
        };
        let mut out = match self.pos {
            Some(pos) => place(sources, pos, &format!("{kind}{}", self.message)),
            None => format!("{kind}{}", self.message),
        };
        for (pos, text) in &self.notes {
            out.push('\n');
            out.push_str(&place(sources, *pos, &format!("note: {text}")));
        }
        if let Some(help) = &self.help {
            out.push_str("\n  help: ");
            out.push_str(help);
        }
        out
    }
}

fn place(sources: &Sources, pos: Pos, message: &str) -> String {
    let mut out = format!("{}:{}:{}: {message}", sources.name(pos.file), pos.line, pos.col);
    let Some(line) = sources.line(pos) else { return out };
    let line = strike_secret(line);
    let (before, rest) = split_chars(&line, usize::try_from(pos.col).unwrap_or(1).saturating_sub(1));
    if before.chars().count() + 1 > LINE_CHARS_MAX {
        return out;
    }
    let shown: String = line.chars().take(LINE_CHARS_MAX).map(printable).collect();
    // Tabs stay tabs in the caret line, so that the caret stands below its place at any tab width.
    let indent: String = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let len = usize::try_from(pos.len).unwrap_or(1);
    let carets = rest.chars().count().min(len).clamp(1, LINE_CHARS_MAX - before.chars().count());
    out.push_str("\n    ");
    out.push_str(shown.trim_end());
    out.push_str("\n    ");
    out.push_str(&indent);
    out.push_str(&"^".repeat(carets));
    out
}

fn printable(c: char) -> char {
    if c.is_control() && c != '\t' { '\u{fffd}' } else { c }
}

fn split_chars(text: &str, count: usize) -> (&str, &str) {
    let at = text.char_indices().nth(count).map_or(text.len(), |(at, _)| at);
    text.split_at(at)
}

/// Replaces what follows the word `shared-secret`, up to the next `;` or the line end, character by character.
fn strike_secret(line: &str) -> String {
    let Some(at) = line.find("shared-secret") else { return line.to_owned() };
    let (head, tail) = line.split_at(at + "shared-secret".len());
    let mut out = head.to_owned();
    let mut end = tail.len();
    if let Some(semicolon) = tail.rfind(';') {
        // The last one: a secret in quotes may hold semicolons.
        end = semicolon;
    }
    out.extend(tail[..end].chars().map(|c| if c.is_whitespace() || c == '"' { c } else { '*' }));
    out.push_str(&tail[end..]);
    out
}

/// All findings of one run, in the order they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
}

impl Diagnostics {
    /// Adds a finding; errors beyond the first hundred are only counted, and so are warnings.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let (count, max) = match diagnostic.severity {
            Severity::Error => (&mut self.errors, ERRORS_MAX),
            Severity::Warning => (&mut self.warnings, WARNINGS_MAX),
        };
        *count += 1;
        if *count > max {
            return;
        }
        // Two checks may stumble over the same thing.
        if !self.list.contains(&diagnostic) {
            self.list.push(diagnostic);
        }
    }

    /// Number of errors.
    #[must_use]
    pub const fn errors(&self) -> usize {
        self.errors
    }

    /// The findings.
    #[must_use]
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// The warnings as text.
    #[must_use]
    pub fn warnings(&self, sources: &Sources) -> Vec<String> {
        self.list.iter().filter(|d| d.severity == Severity::Warning).map(|d| d.render(sources)).collect()
    }
}

/// Why a configuration is refused. Displays as all errors, each with line and caret; warnings can wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The texts that the findings point into.
    pub sources: Sources,
    /// The findings, warnings included.
    pub diagnostics: Diagnostics,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.diagnostics.list().iter().filter(|d| d.severity == Severity::Error);
        let texts: Vec<_> = errors.map(|d| d.render(&self.sources)).collect();
        write!(f, "{}", texts.join("\n"))?;
        if self.diagnostics.errors() > ERRORS_MAX {
            write!(f, "\n... and {} more errors", self.diagnostics.errors() - ERRORS_MAX)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(text: &str) -> Sources {
        Sources { files: vec![Source { name: "f".to_owned(), path: "/f".to_owned(), text: text.to_owned() }] }
    }

    #[test]
    fn the_caret_stands_below_its_place_after_tabs_and_wide_characters() {
        let pos = Pos { file: 0, line: 2, col: 4, len: 3 };
        let text = Diagnostic::error(pos, "bad").render(&sources("x\n\tä bad;\n"));
        assert_eq!(text, "f:2:4: bad\n    \tä bad;\n    \t  ^^^");
    }

    #[test]
    fn a_place_outside_the_text_still_renders() {
        let pos = Pos { file: 0, line: 9, col: 1, len: 1 };
        assert_eq!(Diagnostic::error(pos, "bad").render(&sources("x")), "f:9:1: bad");
        let pos = Pos { file: 0, line: 1, col: 500, len: 9 };
        assert_eq!(Diagnostic::error(pos, "bad").render(&sources("x")), "f:1:500: bad\n    x\n     ^");
    }

    #[test]
    fn secrets_are_struck_out() {
        let pos = Pos { file: 0, line: 1, col: 1, len: 3 };
        let text = Diagnostic::error(pos, "bad").render(&sources(r#"net { shared-secret "my;own"; }"#));
        assert!(text.contains(r#"net { shared-secret "******"; }"#), "{text}");
    }

    #[test]
    fn a_flood_of_errors_is_cut() {
        let mut diagnostics = Diagnostics::default();
        for line in 0..1000 {
            diagnostics.push(Diagnostic::error(Pos { line, ..Pos::default() }, "bad"));
        }
        let report = Report { sources: sources("x"), diagnostics };
        assert!(report.to_string().ends_with("... and 900 more errors"));
    }
}

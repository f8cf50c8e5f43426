//! The drbd.conf language of DRBD 8.4, with 8.3's spellings. Pure: files come through a [`Loader`].
//!
//! Text goes through [`lexer`] and [`parser`] into [`ast`] (what was written, with places), [`expand`] and [`check`] apply
//! inheritance and look for what is missing or contradicts itself, [`build`] makes the typed [`model`], and [`resolve`]
//! gives one host's view of it. [`options`] is the one table of options. [`dump`] prints the canonical text, [`diag`] the
//! errors. Everything is deterministic; no input makes it panic.
//!
//! Where this differs from drbdadm 8.4 on purpose (all else was compared with it on generated files):
//!
//! * Refused here at once, by 8.4's back end later or never: unknown words of enumerations, numbers outside their range in
//!   options that 8.4's parser does not look at, texts that are too long, impossible addresses, units behind `minor` and
//!   `volume`, a resource name with `/`, a stacked volume that the lower resource lacks (8.4: only on the lower hosts).
//! * Taken here, not by 8.4: statements of the resource level count for all host sections, also for those before them.
//! * `al-extents` outside its range is moved into it, with a warning, as 8.4's kernel does.
//! * Every error is reported, not the first one; see also the differences of [`dump`].
//!
//! ```
//! let text = "resource r0 { device minor 0; disk /dev/sdb; meta-disk internal;
//!     on n1 { address 10.0.0.1:7788; } on n2 { address 10.0.0.2:7788; } }";
//! let document = udrbd::config::parse_text("r0.res", text).unwrap();
//! let resolved = document.config().resolve("r0", &udrbd::config::LocalNode::named("n1")).unwrap();
//! assert_eq!(resolved.peer(None).unwrap().name(), "n2");
//! ```

pub mod ast;
pub mod build;
pub mod check;
pub mod diag;
pub mod dump;
pub mod dump_xml;
pub mod expand;
pub mod glob;
pub mod lexer;
#[cfg(feature = "drivers")]
pub mod load;
pub mod model;
pub mod options;
pub mod parser;
pub mod resolve;
mod section;
pub mod spec;
#[cfg(test)]
mod tests;
pub mod values;
pub mod words;

pub use diag::Report;
pub use model::{Config, ResolvedResource};
pub use parser::{Loader, NoFiles};
pub use resolve::{Link, LocalNode, ResolveError};

use ast::Ast;
use check::Purpose;
use diag::{Diagnostic, Diagnostics, Source};
use dump::Relation;
use values::ResyncAfter;

/// A configuration without errors: what was written, and what it means.
#[derive(Clone, Debug)]
pub struct Document {
    ast: Ast,
    config: Config,
    warnings: Vec<String>,
}

/// Parses the file `path` and everything that it includes.
///
/// # Errors
/// All errors that were found.
pub fn load(loader: &mut dyn Loader, path: &str) -> Result<Document, Box<Report>> {
    load_all(loader, &[path])
}

/// Parses several files into one configuration (`drbdadm -t`), so that conflicts between them are found.
///
/// # Errors
/// All errors that were found, or the first file that cannot be read.
pub fn load_all(loader: &mut dyn Loader, paths: &[&str]) -> Result<Document, Box<Report>> {
    let mut inputs = Vec::new();
    for path in paths {
        match loader.read(path) {
            Ok(bytes) => inputs.push(Source {
                name: (*path).to_owned(),
                path: loader.canonical(path).unwrap_or_else(|| (*path).to_owned()),
                text: String::from_utf8_lossy(&bytes).into_owned(),
            }),
            Err(why) => {
                let mut report = Report { sources: diag::Sources::default(), diagnostics: Diagnostics::default() };
                report.diagnostics.push(Diagnostic::general(format!("Can not open '{path}': {why}")));
                return Err(Box::new(report));
            }
        }
    }
    finish(inputs, loader)
}

/// Parses text that may include files; `name` is for messages, and its directory is where relative includes start.
///
/// # Errors
/// All errors that were found.
pub fn parse_with(name: &str, text: &str, loader: &mut dyn Loader) -> Result<Document, Box<Report>> {
    finish(vec![Source { name: name.to_owned(), path: name.to_owned(), text: text.to_owned() }], loader)
}

/// Parses text that includes nothing.
///
/// # Errors
/// All errors that were found.
pub fn parse_text(name: &str, text: &str) -> Result<Document, Box<Report>> {
    parse_with(name, text, &mut NoFiles)
}

fn finish(inputs: Vec<Source>, loader: &mut dyn Loader) -> Result<Document, Box<Report>> {
    let (mut ast, mut diagnostics) = parser::parse(inputs, loader);
    expand::inherit_volumes(&mut ast);
    check::check(&ast, &mut diagnostics);
    if diagnostics.errors() > 0 {
        return Err(Box::new(Report { sources: ast.sources, diagnostics }));
    }
    let warnings = diagnostics.warnings(&ast.sources);
    let config = build::build(&ast);
    Ok(Document { ast, config, warnings })
}

impl Document {
    /// The typed model.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The typed model, when the text is not needed any more.
    #[must_use]
    pub fn into_config(self) -> Config {
        self.config
    }

    /// The warnings, each with line and caret.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What was written.
    #[must_use]
    pub const fn ast(&self) -> &Ast {
        &self.ast
    }

    /// The checks that drbdadm makes for the resources of the host it runs on, and the view of this host: all resources with
    /// a section for it, in file order.
    ///
    /// # Errors
    /// Several sections are this host's; `become-primary-on` with unknown names or without `allow-two-primaries`; a proxy on
    /// one side only; an ambiguous `resync-after`.
    pub fn resolve_all(&self, node: &LocalNode<'_>) -> Result<Vec<ResolvedResource>, Box<Report>> {
        self.relations(&expand::expanded(&self.ast), Purpose::Use, node)?;
        // Cannot fail any more: relations() has reported the only reason.
        Ok(self.config.resolve_all(node).unwrap_or_default())
    }

    /// How each resource relates to this host; runs the checks for it.
    fn relations(&self, ast: &Ast, purpose: Purpose, node: &LocalNode<'_>) -> Result<Vec<Relation>, Box<Report>> {
        let mut diagnostics = Diagnostics::default();
        let mut relations = Vec::with_capacity(ast.resources.len());
        for (typed, written) in self.config.resources.iter().zip(&ast.resources) {
            let section = self.config.section_for(typed, node).unwrap_or_else(|error| {
                let mut places = error.sections().iter().filter_map(|index| Some(written.hosts.get(*index)?.pos));
                let first = places.next().unwrap_or(written.open);
                let last = places.next_back().unwrap_or(first);
                let error = Diagnostic::error(last, error.to_string()).note(first, "the first one is here");
                diagnostics.push(error.help("leave one section for this host"));
                None
            });
            let mine = section.and_then(|index| typed.hosts.get(index));
            if mine.is_some() {
                check::check_for_host(written, ast, purpose, &mut diagnostics);
            }
            let stacked = mine.is_some_and(|h| matches!(h.kind, model::HostKind::Stacked { .. }));
            relations.push(Relation { ignored: mine.is_none(), stacked });
        }
        self.report(diagnostics).map(|()| relations)
    }

    fn report(&self, diagnostics: Diagnostics) -> Result<(), Box<Report>> {
        if diagnostics.errors() == 0 {
            return Ok(());
        }
        Err(Box::new(Report { sources: self.ast.sources.clone(), diagnostics }))
    }

    /// `drbdadm dump`: everything, as written. `expanded` merges the common section and resource options first
    /// (`dump -d`, `dump -v`); `verbose` prints `global { }` even when it is empty (`-v`).
    ///
    /// # Errors
    /// As [`Self::resolve_all`]. The plain form also refuses `become-primary-on both` whose `allow-two-primaries` is in the
    /// common section, as drbdadm does.
    pub fn dump(&self, node: &LocalNode<'_>, expanded: bool, verbose: bool) -> Result<String, Box<Report>> {
        let (ast, relations) = self.printed(node, expanded)?;
        let mut out = dump::head(&ast, verbose);
        for (resource, relation) in ast.resources.iter().zip(relations) {
            out.push_str(&dump::resource(&ast, resource, node.name, relation));
        }
        Ok(out)
    }

    /// `drbdadm dump-xml`: everything, for programs.
    ///
    /// # Errors
    /// As [`Self::dump`].
    pub fn dump_xml(&self, node: &LocalNode<'_>, expanded: bool) -> Result<String, Box<Report>> {
        Ok(dump_xml::dump_xml(&self.printed(node, expanded)?.0))
    }

    /// `drbdadm dump RES`: one resource without header, global and common section; `None` if there is no such resource.
    ///
    /// # Errors
    /// As [`Self::dump`].
    pub fn dump_resource(
        &self,
        name: &str,
        node: &LocalNode<'_>,
        expanded: bool,
    ) -> Result<Option<String>, Box<Report>> {
        let (ast, relations) = self.printed(node, expanded)?;
        let found = ast.resources.iter().zip(relations).find(|(resource, _)| resource.name.text == name);
        Ok(found.map(|(resource, relation)| dump::resource(&ast, resource, node.name, relation)))
    }

    /// What is printed: a resource's own `resync-after` to a resource that is not this host's is left out, as in 8.4.
    fn printed(&self, node: &LocalNode<'_>, expanded: bool) -> Result<(Ast, Vec<Relation>), Box<Report>> {
        let mut ast = if expanded { expand::expanded(&self.ast) } else { self.ast.clone() };
        let purpose = if expanded { Purpose::ExpandedDump } else { Purpose::PlainDump };
        let relations = self.relations(&ast, purpose, node)?;
        let known: Vec<String> = ast
            .resources
            .iter()
            .zip(&relations)
            .filter(|(_, r)| !r.ignored)
            .map(|(r, _)| r.name.text.clone())
            .collect();
        for resource in &mut ast.resources {
            resource.disk.retain(|opt| {
                opt.name != "resync-after"
                    || match ResyncAfter::from_text(&opt.value) {
                        ResyncAfter::Resource { resource, .. } => known.contains(&resource),
                        ResyncAfter::Nothing | ResyncAfter::Minor(_) => true,
                    }
            });
        }
        Ok((ast, relations))
    }

    /// Checks that this host's own addresses are configured on it, unless `disable-ip-verification` is set; only for normal
    /// resources. Families other than IPv4 and IPv6 always pass.
    ///
    /// # Errors
    /// One finding per address that is missing.
    pub fn verify_addresses(&self, node: &LocalNode<'_>) -> Result<(), Box<Report>> {
        if self.config.global.disable_ip_verification {
            return Ok(());
        }
        let mut diagnostics = Diagnostics::default();
        for (typed, written) in self.config.resources.iter().zip(&self.ast.resources) {
            let Some(index) = self.config.section_for(typed, node).ok().flatten() else { continue };
            let (host, place) = (&typed.hosts[index], &written.hosts[index]);
            let stacked = matches!(host.kind, model::HostKind::Stacked { .. });
            if stacked || !check::is_verified(host.address.family) || (node.has_address)(&host.address.ip) {
                continue;
            }
            let message = format!(
                "in resource {}, on {}: IP {} not found on this host.",
                typed.name,
                host.name(),
                host.address.ip
            );
            let error = Diagnostic::error(place.pos, message);
            diagnostics.push(error.help("configure the address, or correct the host name of the section"));
        }
        self.report(diagnostics)
    }
}

//! The command line: drbdadm's loose order of words, made strict and handed to clap.
//!
//! drbdadm takes options and words in any order, and `--` before the command word to pass options on
//! (`drbdadm -- --force primary r0`). Here the first word that is a command is the command; everything else of the line
//! goes behind it, bare `--` are dropped. What each command takes is in the table of [`cmd`](crate::cmd).

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};
use udrbd::config::model::{DiskOptions, NetOptions, ResourceOptions};
use udrbd::config::options::specs;
use udrbd::config::spec::{Kind, OptionSpec, Section};

use crate::cmd::TABLE;
use crate::context::Context;
use crate::out;
use crate::report::{Done, Exit};

/// What the words behind a command are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Resources; done once for each volume.
    Volume,
    /// Resources; done once for each.
    Resource,
    /// There are none.
    Nothing,
}

/// An option of a command.
#[derive(Clone, Copy, Debug)]
pub enum Opt {
    /// A switch: name, short letter, other names, help.
    Flag(&'static str, Option<char>, &'static [&'static str], &'static str),
    /// A value: name, short letter, name of the value, help.
    Value(&'static str, Option<char>, &'static str, &'static str),
    /// All options of a section of the configuration.
    Section(Section),
}

/// A command.
#[derive(Clone, Copy)]
pub struct Row {
    /// The command word.
    pub name: &'static str,
    /// Other words for it.
    pub aliases: &'static [&'static str],
    /// One line of help.
    pub about: &'static str,
    /// What it works on.
    pub per: Per,
    /// Whether it is left out of the list of commands.
    pub hidden: bool,
    /// Its options.
    pub options: &'static [Opt],
    /// Carries it out.
    pub run: fn(&mut Context, &Call) -> Done,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A command line that makes sense.
#[derive(Debug)]
pub struct Call {
    /// The command.
    pub row: &'static Row,
    /// The words behind it.
    pub names: Vec<String>,
    matches: ArgMatches,
}

impl Call {
    /// Whether a switch is on.
    pub fn flag(&self, name: &str) -> bool {
        self.matches.try_get_one::<bool>(name).ok().flatten().copied().unwrap_or(false)
    }

    /// The same call with other words behind the command.
    pub fn with_names(&self, names: &[String]) -> Self {
        Self { row: self.row, names: names.to_vec(), matches: self.matches.clone() }
    }

    /// The value of an option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.matches.try_get_one::<String>(name).ok().flatten().map(String::as_str)
    }

    /// The value of an option that is a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Done<Option<T>> {
        let Some(text) = self.option(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            out::say(&format!("{text} is not a valid number"));
            Exit(20)
        })
    }

    /// The options of `disk { }` on the command line.
    pub fn disk_options(&self) -> Done<DiskOptions> {
        let mut options = DiskOptions::default();
        self.section(Section::Disk, |name, text| options.set(name, text))?;
        Ok(options)
    }

    /// The options of `net { }` on the command line.
    pub fn net_options(&self) -> Done<NetOptions> {
        let mut options = NetOptions::default();
        self.section(Section::Net, |name, text| options.set(name, text))?;
        Ok(options)
    }

    /// The options of `options { }` on the command line.
    pub fn resource_options(&self) -> Done<ResourceOptions> {
        let mut options = ResourceOptions::default();
        self.section(Section::Options, |name, text| options.set(name, text))?;
        Ok(options)
    }

    fn section(
        &self,
        section: Section,
        mut set: impl FnMut(&str, &str) -> Result<(), udrbd::config::spec::ValueError>,
    ) -> Done {
        for spec in specs(section) {
            if let Some(text) = self.option(spec.name) {
                set(spec.name, text).map_err(|error| {
                    out::say(&format!("Option --{}: {}", spec.name, error.message));
                    out::say(&format!("  {}", error.help));
                    Exit(20)
                })?;
            }
        }
        Ok(())
    }

    /// Prints the usage of the command and why it is printed.
    pub fn say_usage(&self, why: &str) {
        out::print(&usage(self.row));
        out::say(why);
    }
}

/// Why a command line makes no sense.
#[derive(Debug)]
pub struct Refusal {
    stdout: String,
    stderr: String,
    code: u8,
}

impl Refusal {
    /// Tells it; gives the exit code.
    pub fn say(&self) -> u8 {
        out::print(&self.stdout);
        out::hint(&self.stderr);
        self.code
    }

    fn usage(stderr: String) -> Self {
        Self { stdout: String::new(), stderr, code: 1 }
    }
}

/// Reads the words of the command line, without the program's name.
///
/// # Errors
/// What to print, and the exit code; help and version come this way too.
pub fn parse(words: &[String]) -> Result<Call, Refusal> {
    if let [only] = words
        && matches!(only.as_str(), "-V" | "--version")
    {
        return Err(Refusal { stdout: version(), stderr: String::new(), code: 0 });
    }
    let ordered = order(words).ok_or_else(|| no_command(words))?;
    let matches = match app().try_get_matches_from(ordered) {
        Ok(matches) => matches,
        Err(error) => return Err(refusal(&error)),
    };
    let Some((name, matches)) = matches.subcommand() else { return Err(no_command(words)) };
    let Some(row) = TABLE.iter().find(|row| row.name == name) else { return Err(no_command(words)) };
    let names = matches.try_get_many::<String>("names").ok().flatten().map(|n| n.cloned().collect());
    Ok(Call { row, names: names.unwrap_or_default(), matches: matches.clone() })
}

/// Options that take the next word as their value and may stand before the command word.
const GLOBAL_VALUES: &[&str] = &["-c", "--config", "--config-file", "--hostname", "--socket", "-P", "--peer", "--node"];

fn is_command(word: &str) -> bool {
    word == "help" || TABLE.iter().any(|row| row.name == word || row.aliases.contains(&word))
}

/// The words with the command first; `None` if there is no command among them.
fn order(words: &[String]) -> Option<Vec<String>> {
    if let [only] = words
        && matches!(only.as_str(), "-h" | "--help")
    {
        return Some(vec!["drbdctl".to_owned(), only.clone()]);
    }
    let mut at = 0;
    while !is_command(words.get(at)?) {
        at += if GLOBAL_VALUES.contains(&words[at].as_str()) { 2 } else { 1 };
    }
    let mut ordered = vec!["drbdctl".to_owned(), words[at].clone()];
    if words[at] == "help" {
        // Only a command word means something behind it.
        ordered.extend(words[at + 1..].iter().find(|word| is_command(word)).cloned());
        return Some(ordered);
    }
    let rest = words[..at].iter().chain(&words[at + 1..]);
    ordered.extend(rest.filter(|word| *word != "--").cloned());
    Some(ordered)
}

fn no_command(words: &[String]) -> Refusal {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if GLOBAL_VALUES.contains(&word.as_str()) {
            at += 2;
        } else if word.starts_with('-') {
            at += 1;
        } else {
            return Refusal::usage(format!("drbdctl: Unknown command '{word}'\ntry 'drbdctl help'\n"));
        }
    }
    let stdout = app().render_help().to_string();
    Refusal { stdout, stderr: "\nNo command specified\n".to_owned(), code: 1 }
}

/// Lines that scripts evaluate: the versions of DRBD and its tools that this behaves like, and the own one.
fn version() -> String {
    format!(
        "DRBDADM_BUILDTAG=udrbd-{own}\nDRBDADM_API_VERSION=1\nDRBD_KERNEL_VERSION_CODE=0x08040b\n\
         DRBDADM_VERSION_CODE=0x091600\nDRBDADM_VERSION=9.22.0\nUDRBD_VERSION={own}\n",
        own = env!("CARGO_PKG_VERSION")
    )
}

fn refusal(error: &clap::Error) -> Refusal {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Refusal { stdout: error.render().to_string(), stderr: String::new(), code: 0 }
        }
        ErrorKind::UnknownArgument => {
            let option = text(ContextKind::InvalidArg).unwrap_or_default();
            let option = option.split('=').next().unwrap_or_default();
            let name = option.trim_start_matches('-');
            let owner = TABLE.iter().find(|row| row.options.iter().any(|opt| has_option(opt, name)));
            let other = owner.map_or_else(|| "help".to_owned(), |row| format!("help {}", row.name));
            Refusal::usage(format!("drbdctl: unrecognized option '{option}'\ntry 'drbdctl {other}'\n"))
        }
        _ => Refusal::usage(error.render().to_string()),
    }
}

fn has_option(opt: &Opt, name: &str) -> bool {
    match opt {
        Opt::Flag(own, _, aliases, _) => *own == name || aliases.contains(&name),
        Opt::Value(own, ..) => *own == name,
        Opt::Section(section) => specs(*section).iter().any(|spec| spec.name == name),
    }
}

fn usage(row: &'static Row) -> String {
    let mut app = app();
    app.build();
    app.find_subcommand_mut(row.name).map(|c| c.render_help().to_string()).unwrap_or_default()
}

fn app() -> Command {
    let value = |name: &'static str, value_name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value_name).help(help).global(true).action(ArgAction::Set)
    };
    let mut app = Command::new("drbdctl")
        .about("Controls udrbd with the command words of drbdadm")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(false)
        .subcommand_required(true)
        .arg(value("config", "FILE", "Configuration (default: /etc/drbd.conf)").short('c').alias("config-file"))
        .arg(value("hostname", "NAME", "Name of this host in the configuration (default: uname -n)"))
        .arg(value("socket", "PATH", "Control socket of udrbd (default: /run/udrbd/control.sock)"))
        .arg(value("peer", "NAME", "Which peer to connect to, where there are several").short('P'))
        .arg(
            Arg::new("stacked")
                .long("stacked")
                .short('S')
                .help("Work on stacked resources")
                .global(true)
                .action(ArgAction::SetTrue),
        );
    for row in TABLE {
        app = app.subcommand(subcommand(row));
    }
    app
}

fn subcommand(row: &'static Row) -> Command {
    let mut command = Command::new(row.name).about(row.about).hide(row.hidden).aliases(row.aliases);
    let names = match row.per {
        Per::Volume => Some("RESOURCE[/VOLUME]|all"),
        Per::Resource => Some("RESOURCE|all"),
        Per::Nothing => None,
    };
    // Commands without names ignore some, as drbdadm does.
    command = command.arg(Arg::new("names").num_args(0..).value_name(names.unwrap_or("IGNORED")).hide(names.is_none()));
    for opt in row.options {
        match opt {
            Opt::Flag(name, short, aliases, help) => {
                let mut arg = Arg::new(*name)
                    .long(*name)
                    .help(*help)
                    .action(ArgAction::SetTrue)
                    .overrides_with(*name)
                    .aliases(*aliases);
                if let Some(short) = short {
                    arg = arg.short(*short);
                }
                command = command.arg(arg);
            }
            Opt::Value(name, short, value_name, help) => {
                let mut arg = Arg::new(*name)
                    .long(*name)
                    .value_name(*value_name)
                    .help(*help)
                    .action(ArgAction::Set)
                    .overrides_with(*name)
                    .allow_hyphen_values(true);
                if let Some(short) = short {
                    arg = arg.short(*short);
                }
                command = command.arg(arg);
            }
            Opt::Section(section) => {
                command = command.args(specs(*section).iter().map(section_option));
            }
        }
    }
    command
}

fn section_option(spec: &'static OptionSpec) -> Arg {
    let arg = Arg::new(spec.name)
        .long(spec.name)
        .action(ArgAction::Set)
        .overrides_with(spec.name)
        .help_heading("Options of the configuration");
    match spec.kind {
        // `--opt` means yes; a word behind a blank is no value.
        Kind::Flag { .. } => arg.num_args(0..=1).require_equals(true).default_missing_value("yes").value_name("yes|no"),
        _ => arg.value_name("VALUE").allow_hyphen_values(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Call, Refusal> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_table_is_a_valid_command_line() {
        app().debug_assert();
        for row in TABLE {
            assert_eq!(TABLE.iter().filter(|other| other.name == row.name).count(), 1, "{}", row.name);
        }
    }

    #[test]
    fn options_and_words_come_in_any_order() {
        for line in [
            "primary --force r0",
            "primary r0 --force",
            "--force primary r0",
            "-- --force primary r0",
            "-- --overwrite-data-of-peer primary r0",
            "-- --do-what-I-say primary r0",
            "-c status primary -- r0 --force --force",
        ] {
            let call = parse_line(line).unwrap_or_else(|refusal| panic!("{line}: {refusal:?}"));
            assert_eq!((call.row.name, call.names.as_slice()), ("primary", &["r0".to_owned()][..]), "{line}");
            assert!(call.flag("force"), "{line}");
        }
        let call = parse_line("--hostname n1 wait-sync --socket=/s r0 all -c f").expect("valid");
        assert_eq!(
            (call.option("hostname"), call.option("socket"), call.option("config")),
            (Some("n1"), Some("/s"), Some("f"))
        );
        assert_eq!(call.names, ["r0", "all"]);
    }

    #[test]
    fn options_of_the_configuration_are_options_of_commands() {
        let call =
            parse_line("connect --allow-two-primaries --ping-int 3 --timeout=50 --discard-my-data r0").expect("valid");
        let net = call.net_options().expect("valid");
        assert_eq!((net.allow_two_primaries, net.discard_my_data), (Some(true), Some(true)));
        assert_eq!((net.ping_int().0, net.timeout().0), (3, 50));
        assert_eq!(call.names, ["r0"]);
        let call = parse_line("attach --al-updates=no r0 --size=1G").expect("valid");
        let disk = call.disk_options().expect("valid");
        assert_eq!((disk.al_updates, disk.size().0), (Some(false), 2 << 20));
    }

    #[test]
    fn refusals_name_the_way_out() {
        let refusal = parse_line("frobnicate r0").expect_err("unknown");
        assert_eq!(
            (refusal.code, refusal.stderr.as_str()),
            (1, "drbdctl: Unknown command 'frobnicate'\ntry 'drbdctl help'\n")
        );
        let refusal = parse_line("primary --tentative r0").expect_err("unknown");
        assert!(refusal.stderr.ends_with("'--tentative'\ntry 'drbdctl help connect'\n"), "{}", refusal.stderr);
        let refusal = parse_line("primary --nosuch=1 r0").expect_err("unknown");
        assert_eq!(refusal.stderr, "drbdctl: unrecognized option '--nosuch'\ntry 'drbdctl help'\n");
        assert_eq!(parse_line("help").expect_err("help").code, 0);
        assert_eq!(parse_line("help primary").expect_err("help").code, 0);
        assert_eq!(parse_line("-V").expect_err("version").code, 0);
        assert_eq!(parse_line("-c").expect_err("nothing").code, 1);
    }
}

//! The command line, made from the table, and the three sources brought together.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches};

use super::table::{Row, TABLE};
use super::{Configuration, Draft, file};
use crate::control::settings::Idle;

/// Variables with our prefix that other programs of the house read: the command line, and the tests.
const FOREIGN_VARIABLE: &str = "PEREGRINE_BROKER";
const FOREIGN_PREFIX: &str = "PEREGRINE_TEST_";
const CONFIG_VARIABLE: &str = "PEREGRINE_CONFIG";

/// What the process is asked to do.
#[derive(Debug)]
pub enum Command {
    Serve(Box<Configuration>),
    /// Hidden: send every byte back, for the load generator's floor.
    Echo(EchoOptions),
    /// Verify the data directory at this path.
    Check {
        data: PathBuf,
        as_json: bool,
    },
    /// Print this and end: help, version, the reference.
    Print(String),
}

/// Of `peregrine-broker echo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoOptions {
    pub listen: SocketAddr,
    pub idle: Idle,
    pub adaptive_spin: std::time::Duration,
    /// The core to run on; without it the first that the process may use.
    pub core: Option<usize>,
}

/// Reads the command line and the environment; an error is a sentence (or clap's own text).
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Command, String> {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if !error.use_stderr() => return Ok(Command::Print(error.render().to_string())),
        Err(error) => return Err(error.render().to_string().trim_end().trim_start_matches("error: ").to_owned()),
    };
    let environment: Vec<_> = environment.into_iter().filter(|(name, _)| name.starts_with("PEREGRINE_")).collect();
    match matches.subcommand() {
        Some(("echo", matches)) => {
            let (draft, _) = gather(matches, &[], None)?;
            let listen = draft.listen.ok_or("--listen is needed")?;
            let core = matches.get_one::<usize>("core").copied();
            Ok(Command::Echo(EchoOptions { listen, idle: draft.idle, adaptive_spin: draft.adaptive_spin, core }))
        }
        Some(("check", matches)) => {
            let (draft, _) = gather(matches, &environment, None)?;
            let data = draft.data.ok_or("say where the data lies: --data DIR or PEREGRINE_DATA")?;
            Ok(Command::Check { data, as_json: matches.get_flag("json") })
        }
        Some(("reference", _)) => Ok(Command::Print(super::reference())),
        _ => serve(&matches, &environment).map(|configuration| Command::Serve(Box::new(configuration))),
    }
}

fn serve(matches: &ArgMatches, environment: &[(String, String)]) -> Result<Configuration, String> {
    let from_environment = environment.iter().find(|(name, _)| name == CONFIG_VARIABLE).map(|(_, value)| value.into());
    let config = matches.get_one::<PathBuf>("config").cloned().or(from_environment);
    let (draft, chosen) = gather(matches, environment, config.as_ref())?;
    let known = |name: &str| {
        let foreign = name == FOREIGN_VARIABLE || name.starts_with(FOREIGN_PREFIX);
        name == CONFIG_VARIABLE || foreign || TABLE.iter().any(|row| row.variable() == name)
    };
    let unknown_variables = environment.iter().map(|(name, _)| name).filter(|name| !known(name)).cloned().collect();
    Ok(Configuration {
        data: draft.data.clone().ok_or("say where the data lies: --data DIR, PEREGRINE_DATA or data in the file")?,
        listen: draft.listen.ok_or("--listen is needed")?,
        shards: draft.shards,
        log: draft.log.clone(),
        ring_directory_chosen: chosen.contains(&"ring_dir"),
        unknown_variables,
        draft,
    })
}

/// Takes each row's value from the first source that has one; also returns the keys that are not at their default.
fn gather(
    matches: &ArgMatches,
    environment: &[(String, String)],
    config: Option<&PathBuf>,
) -> Result<(Draft, Vec<&'static str>), String> {
    let mut filed = config.map(|path| file::read(path)).transpose()?.unwrap_or_default();
    let mut draft = Draft::empty();
    let mut chosen = Vec::new();
    for row in TABLE {
        let from_file = filed.iter().position(|(of, _)| of.key == row.key).map(|index| filed.swap_remove(index).1);
        let from_environment =
            environment.iter().find(|(name, _)| *name == row.variable()).map(|(_, value)| vec![value.clone()]);
        let from_flags = flags(matches, row);
        let file_name =
            || format!("{}: {}", config.map(|path| path.display().to_string()).unwrap_or_default(), row.key);
        let (values, source) = match (from_flags, from_environment, from_file) {
            (Some(values), _, _) => (values, format!("--{}", row.flag())),
            (_, Some(values), _) => (values, row.variable()),
            (_, _, Some(values)) => (values, file_name()),
            _ => {
                if let Some(default) = row.default {
                    (row.take)(&mut draft, default).map_err(|sentence| format!("{}: {sentence}", row.key))?;
                }
                continue;
            }
        };
        chosen.push(row.key);
        for value in values {
            (row.take)(&mut draft, &value).map_err(|sentence| format!("{source}: {sentence}"))?;
        }
    }
    Ok((draft, chosen))
}

/// The values of a row's flag, where this command has it and it was given.
fn flags(matches: &ArgMatches, row: &Row) -> Option<Vec<String>> {
    let values = matches.try_get_many::<String>(row.key).ok().flatten()?;
    Some(values.cloned().collect())
}

fn command() -> clap::Command {
    let config = Arg::new("config").long("config").value_name("FILE").value_parser(clap::value_parser!(PathBuf)).help(
        format!("A TOML file with any of these settings as keys (ring_size = \"1MiB\"). [env: {CONFIG_VARIABLE}]"),
    );
    let core = Arg::new("core").long("core").value_name("N").value_parser(clap::value_parser!(usize));
    let of_echo = |row: &&Row| matches!(row.key, "listen" | "idle" | "adaptive_spin");
    clap::Command::new("peregrine-broker")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The Peregrine message broker: one shard per core, each with its own log.")
        .after_help(
            "When it is ready it prints one line to standard output, and nothing else ever; logs go to standard error.",
        )
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .arg(config)
        .args(TABLE.iter().map(argument))
        .subcommand(clap::Command::new("echo").hide(true).arg(core).args(TABLE.iter().filter(of_echo).map(argument)))
        .subcommand(
            clap::Command::new("check")
                .about("Verify a data directory that no broker has open: every entry, staging rings, checkpoints, indexes")
                .long_about(
                    "Verifies a data directory that no broker has open, and changes nothing in it. The report goes to standard \
                     output, progress to standard error where that is a terminal. Exit code 1: it is damaged; 3: only files are \
                     bad that a start makes again or does without, and nothing is lost.",
                )
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("The report as JSON"))
                .args(TABLE.iter().filter(|row| row.key == "data").map(argument)),
        )
        .subcommand(
            clap::Command::new("reference").about("Print CONFIGURATION.md: every setting and why it is as it is"),
        )
}

fn argument(row: &'static Row) -> Arg {
    let default = row.default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
    let argument = Arg::new(row.key)
        .long(row.flag())
        .help(format!("{}{default} [env: {}]", row.help, row.variable()))
        .long_help(format!("{} {}{default} [env: {}]", row.help, row.reason, row.variable()))
        .hide(row.hidden)
        .action(if row.repeats { ArgAction::Append } else { ArgAction::Set });
    match row.value {
        Some(value) => argument.value_name(value),
        None => argument.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false"),
    }
}

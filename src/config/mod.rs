//! Settings: the configuration file, the flags over it, and every check across fields.
//!
//! Runs on: any process.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use crate::logging;

mod child_ids;
pub(crate) mod destinations;
mod egress;
mod profile;
mod tenants;
mod units;

pub(crate) use child_ids::ids_for_children;
pub(crate) use egress::{Destination, Egress};
pub(crate) use profile::{Cgroups, Limits, Network, Proc, Profile, Root, is_kept_from_others};
pub(crate) use tenants::Tenants;
pub(crate) use units::parse_duration;

/// The configuration file, `pyspawner.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    pub child_main: Option<String>,
    pub preload: Vec<String>,
    pub warm_up: Option<String>,
    pub python: Option<PathBuf>,
    pub path: Vec<PathBuf>,
    pub environment: BTreeMap<String, String>,
    pub strict: bool,
    /// Ask [`File::rehearses`], which knows the default.
    rehearsal: Option<bool>,
    pub profile: BTreeMap<String, Profile>,
    pub pool: Pool,
    pub serve: Serve,
    /// The line of each key, by its dotted path such as `profile.default.limits.pids`: `FILE:LINE`.
    #[serde(skip)]
    places: BTreeMap<String, String>,
}

/// `[pool]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Pool {
    /// How many children run at once; by default as many as there are processors.
    pub concurrency: Option<usize>,
    /// How many children are kept ready for jobs to come, at most; by default as many as there are
    /// processors. Not for `run`, which has but one job.
    pub spares: Option<usize>,
    /// How many jobs wait for their turn at most, with HTTP.
    pub queue: Option<usize>,
    /// The longest that one waits, with HTTP; by default as long as it takes.
    #[serde(deserialize_with = "units::optional_duration")]
    pub queue_timeout: Option<Duration>,
    /// A control group that is delegated to pyspawner; by default its own.
    pub cgroup: Option<PathBuf>,
}

/// `[serve]`: the service over HTTP.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serve {
    /// `ADDRESS:PORT`, or `unix:PATH`.
    pub http: Option<String>,
    /// The token file.
    pub tokens: Option<PathBuf>,
    /// How long the jobs that were taken may take to end after SIGTERM.
    #[serde(deserialize_with = "units::duration")]
    pub drain: Duration,
    /// How long the record of a job is kept after its end.
    #[serde(deserialize_with = "units::duration")]
    pub result_ttl: Duration,
    /// Bytes of all records and output that are held.
    #[serde(deserialize_with = "units::size")]
    pub result_memory: u64,
    /// Bytes of one request's body.
    #[serde(deserialize_with = "units::size")]
    pub body: u64,
    /// Open connections; by default as many as there are descriptors for.
    pub connections: Option<usize>,
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            http: None,
            tokens: None,
            drain: Duration::from_secs(30),
            result_ttl: Duration::from_secs(600),
            result_memory: 256 << 20,
            body: 16 << 20,
            connections: None,
        }
    }
}

impl File {
    /// Whether the warm-up is called once more in a clone before the first job.
    pub(crate) fn rehearses(&self) -> bool {
        self.rehearsal.unwrap_or(true)
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// With file, line and what was expected.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the configuration {}", path.display()))?;
        let place = |offset: usize| {
            let line = 1 + text[..offset.min(text.len())].matches('\n').count();
            format!("{}:{line}", path.display())
        };
        let failed = |error: toml::de::Error| {
            let place = place(error.span().map_or(0, |span| span.start));
            anyhow::anyhow!("{place}: {}", error.message())
        };
        let mut file: Self = toml::from_str(&text).map_err(failed)?;
        let table = DeTable::parse(&text).map_err(failed)?;
        note_places(table.get_ref(), "", &place, &mut file.places);
        if file.pool.concurrency == Some(0) {
            let place = &file.places["pool.concurrency"];
            bail!("{place}: pool.concurrency: expected at least 1");
        }
        Ok(file)
    }

    /// Adds to an error about a profile where in the file its cause is. Such an error begins with the key.
    fn place_of(&self, name: &str, error: &anyhow::Error) -> String {
        let text = error.to_string();
        let key = text.split(':').next().unwrap_or_default();
        let key = format!("profile.{name}.{key}");
        let place = self
            .places
            .get(&key)
            .or_else(|| self.places.get(&format!("profile.{name}")));
        let place = place.map(|place| format!("{place}: "));
        format!("{}profile {name:?}", place.unwrap_or_default())
    }
}

/// Notes the place of each key of a table, and of the tables in it.
fn note_places(
    table: &DeTable<'_>,
    above: &str,
    place: &impl Fn(usize) -> String,
    places: &mut BTreeMap<String, String>,
) {
    for (key, value) in table {
        let path = format!("{above}{}", key.get_ref());
        if let Some(inner) = value.get_ref().as_table() {
            note_places(inner, &format!("{path}."), place, places);
        }
        places.insert(path, place(key.span().start));
    }
}

/// What the host and its children go by. Nothing secret: clones inherit it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostSettings {
    pub child_main: Callable,
    pub preload: Vec<String>,
    pub warm_up: Option<Callable>,
    /// The interpreter, as it names itself.
    pub python: PathBuf,
    pub path: Vec<PathBuf>,
    /// Refuse to start if preloaded modules leave threads behind.
    pub strict: bool,
    /// Call the warm-up once more in a clone before the first job.
    pub rehearsal: bool,
    pub profile: Profile,
    /// Whether children get a variable HOME: not where their environment is to be exactly a client's.
    pub sets_home: bool,
    /// Of which jobs see what their interpreter needs, and no more.
    pub homes: Vec<PathBuf>,
    /// Variables that children have besides the host's own: they name places that jobs can write to, from which the host would be led.
    pub environment_of_jobs: BTreeMap<String, String>,
    pub log: logging::Settings,
}

/// A function by module and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Callable {
    pub module: String,
    pub name: String,
}

impl std::str::FromStr for Callable {
    type Err = String;

    /// `MOD.FUNC` or `MOD:FUNC`; with the colon, `FUNC` may have dots of its own.
    fn from_str(text: &str) -> Result<Self, String> {
        let (module, name) = text
            .split_once(':')
            .or_else(|| text.rsplit_once('.'))
            .ok_or_else(|| format!("{text:?} names no function: expected MODULE.FUNCTION"))?;
        let is_dotted_name = |name: &str| {
            name.split('.').all(|part| {
                part.starts_with(|c: char| c.is_alphabetic() || c == '_')
                    && part.chars().all(|c| c.is_alphanumeric() || c == '_')
            })
        };
        if !is_dotted_name(module) || !is_dotted_name(name) {
            return Err(format!(
                "{text:?} is not MODULE.FUNCTION or MODULE:FUNCTION"
            ));
        }
        Ok(Self {
            module: module.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl std::fmt::Display for Callable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.module, self.name)
    }
}

/// The profile of this name, checked. Without any profile in the file, `default` is the default one.
///
/// # Errors
/// If there are others and not this one: a name with a mistake in it must not mean a profile without limits.
pub(crate) fn choose_profile(file: &File, name: Option<&str>) -> anyhow::Result<Profile> {
    let name = name.unwrap_or("default");
    let profile = match file.profile.get(name) {
        Some(profile) => profile.clone(),
        None if name == "default" && file.profile.is_empty() => Profile::default(),
        None => bail!(no_such_profile(file, name)),
    };
    match profile.check() {
        Ok(()) => Ok(profile),
        Err(error) => {
            let place = file.place_of(name, &error);
            Err(error.context(place))
        }
    }
}

fn no_such_profile(file: &File, name: &str) -> String {
    let known: Vec<_> = file.profile.keys().map(String::as_str).collect();
    let mut text = match file.profile.is_empty() {
        true => format!("there is no profile {name:?}: the configuration has none"),
        false => format!("there is no profile {name:?} in the configuration; there are: {known:?}"),
    };
    if name == "default" {
        text += "; \"default\" is used unless --profile names another";
    }
    if let Some(nearest) = nearest(name, &known) {
        let place = file.places.get(&format!("profile.{nearest}"));
        let place = place.map_or_else(String::new, |place| format!(" ({place})"));
        text += &format!("; hint: did you mean {nearest:?}{place}?");
    }
    text
}

/// The name that is most like one that does not exist, if any is like it.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let alike = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), *known));
    let (distance, nearest) = alike.min()?;
    (distance <= 1 + name.len() / 4).then_some(nearest)
}

/// The child's environment as the C strings of `execve(2)`.
pub(crate) fn environment_block(
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<Vec<CString>> {
    environment
        .iter()
        .map(|(name, value)| {
            if name.is_empty() || name.contains('=') {
                bail!("environment: {name:?} is not a variable's name");
            }
            CString::new(format!("{name}={value}"))
                .with_context(|| format!("environment: {name} contains a null byte"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        let path = std::env::temp_dir().join(format!(
            "pyspawner-config-{}-{:?}.toml",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, text).expect("writable temporary folder");
        let file = File::read(&path).map_err(|error| format!("{error:#}"));
        std::fs::remove_file(path).expect("it was there");
        file
    }

    #[test]
    fn a_full_configuration_is_read() {
        let file = parse(
            r#"
            child_main = "jobs.main"
            preload = ["json"]
            [environment]
            LC_ALL = "C.UTF-8"
            [profile.default]
            root = "read-only"
            tmp = "64M"
            [profile.default.limits]
            wall = "1m 30s"
            output = 4096
            [profile.jail]
            root = { chroot = "/srv" }
            [profile.bare]
            root = { empty = true }
            binds = [{ source = "/data", writable = true }]
            "#,
        )
        .expect("valid");
        let default = &file.profile["default"];
        assert_eq!(default.tmp(), Some(64 << 20));
        assert_eq!(default.limits.wall, Some(Duration::from_secs(90)));
        assert_eq!(default.limits.output, 4096);
        assert_eq!(file.profile["jail"].root, Root::Chroot("/srv".into()));
        assert_eq!(file.profile["bare"].root, Root::Empty);
        let bind = &file.profile["bare"].binds[0];
        assert_eq!((bind.target(), bind.writable), (Path::new("/data"), true));
    }

    #[test]
    fn what_the_documentation_shows_is_accepted() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let mut shown = 0;
        for page in std::fs::read_dir(folder).expect("the folder docs") {
            let page = page.expect("an entry").path();
            // The cookbook's are used as they stand, by tests/test_samples.py.
            if page.extension().is_none_or(|ending| ending != "md") || page.ends_with("cookbook.md")
            {
                continue;
            }
            let text = std::fs::read_to_string(&page).expect("a page");
            let blocks = text.split("```toml").skip(1);
            for block in blocks {
                let (_, rest) = block.split_once('\n').expect("a block has lines");
                let (sample, _) = rest.split_once("```").expect("a block ends");
                if sample.contains("token_sha256") {
                    continue; // a token file, which src/config/tenants.rs reads
                }
                let name = page.display();
                // A folder that every machine has.
                let sample = sample.replace("source = \"/data\"", "source = \"/usr\"");
                let file = parse(&sample).unwrap_or_else(|error| panic!("{name}: {error}"));
                for profile in file.profile.keys() {
                    let chosen = choose_profile(&file, Some(profile));
                    chosen.unwrap_or_else(|error| panic!("{name}: {error:#}"));
                }
                shown += 1;
            }
        }
        assert!(shown >= 2, "{shown}");
    }

    #[test]
    fn errors_name_file_line_and_expectation() {
        for (text, line, words) in [
            (
                "child_main = 'a.b'\nprelaod = []\n",
                2,
                "unknown field `prelaod`",
            ),
            ("preload = 'pandas'\n", 1, "expected a sequence"),
            ("[profile.default]\n\ntmp = 'lots'\n", 3, "not a size"),
            ("[profile.default]\nroot = 'open'\n", 2, "read-only"),
            (
                "[profile.default]\nroot = { empty = false }\n",
                2,
                "empty = true",
            ),
            (
                "[profile.default]\nbinds = [{ target = '/a' }]\n",
                2,
                "source",
            ),
            (
                "[profile.default.limits]\nwall = '0s'\n",
                2,
                "greater than zero",
            ),
            ("[profile.default]\nnetwork = 'all'\n", 2, "egress"),
            (
                "[profile.default]\ncwd = 'here'\n",
                2,
                "`private` or `caller`",
            ),
            (
                "[profile.default]\nnetwork = { egress = { allow = ['example.org'] } }\n",
                2,
                "no destination",
            ),
            (
                "[profile.default]\nskip_layers = ['magic']\n",
                2,
                "unknown variant `magic`",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(
                error.contains(&format!(".toml:{line}: ")),
                "{text}: {error}"
            );
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_combined_is_told_with_its_place() {
        for (setting, words) in [
            (
                "cwd = 'private'\nroot = { chroot = '/' }",
                "cwd: children start in the folder",
            ),
            (
                "cwd = 'caller'\nroot = { chroot = '/' }",
                "cwd: children start in the folder",
            ),
            (
                "cwd = 'caller'\nroot = { empty = true }",
                "expected \"private\"",
            ),
            (
                "cwd = 'private'\nskip_layers = ['root']",
                "expected \"caller\"",
            ),
            (
                "network = 'loopback'\nskip_layers = ['network_namespace']",
                "the machine's own",
            ),
            ("tmp = 0", "tmp: 0"),
        ] {
            let text = format!("strict = true\n\n[profile.odd]\n{setting}\n");
            let file = parse(&text).expect("each alone is valid");
            let error = choose_profile(&file, Some("odd")).expect_err(&text);
            let error = format!("{error:#}");
            let key = error
                .split("\"odd\": ")
                .nth(1)
                .and_then(|rest| rest.split(':').next());
            let line = setting
                .lines()
                .position(|line| Some(line.split(' ').next().unwrap_or("")) == key);
            let place = format!(
                ".toml:{}: profile \"odd\": ",
                4 + line.expect("the key is there")
            );
            assert!(error.contains(&place), "{error}");
            assert!(error.contains(words), "{error}");
        }
        for setting in [
            "cwd = 'caller'\nskip_layers = ['root']",
            "cwd = 'private'\nroot = { empty = true }",
        ] {
            let file = parse(&format!("[profile.default]\n{setting}\n")).expect("valid");
            choose_profile(&file, None).expect(setting);
        }
    }

    #[test]
    fn a_profile_that_is_missing_is_told_with_what_is_like_it() {
        let file = parse("strict = true\n[profile.defualt]\n[profile.odd]\n").expect("valid");
        let error = choose_profile(&file, None)
            .expect_err("it is missing")
            .to_string();
        assert!(
            error.contains("did you mean \"defualt\"") && error.contains(".toml:2)"),
            "{error}"
        );
        let error = choose_profile(&file, Some("quite-another")).expect_err("it is missing");
        assert!(!error.to_string().contains("did you mean"), "{error}");
        assert!(choose_profile(&File::default(), None).is_ok());
        assert!(choose_profile(&File::default(), Some("odd")).is_err());
    }

    #[test]
    fn each_key_has_its_line() {
        for (text, line, words) in [
            ("[pool]\n\nconcurrency = 0\n", 3, "pool.concurrency"),
            (
                "[profile.default]\n[profile.default.limits]\npids = 0\n",
                3,
                "limits.pids",
            ),
            (
                "[profile.default]\ntmp = 5\nbinds = [{ source = 'a' }]\n",
                3,
                "binds: source",
            ),
            ("[profile.default]\nlimits.pids = 0\n", 2, "limits.pids"),
            (
                "[profile.default]\nlimits = { pids = 0 }\n",
                2,
                "limits.pids",
            ),
        ] {
            let checked = parse(text)
                .and_then(|file| choose_profile(&file, None).map_err(|error| format!("{error:#}")));
            let error = checked.expect_err(text);
            assert!(error.contains(&format!(".toml:{line}: ")), "{error}");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn callables_are_parsed_in_both_forms() {
        let dotted: Callable = "a.b.main".parse().expect("valid");
        assert_eq!((&*dotted.module, &*dotted.name), ("a.b", "main"));
        let colon: Callable = "a.b:C.main".parse().expect("valid");
        assert_eq!((&*colon.module, &*colon.name), ("a.b", "C.main"));
        for wrong in ["main", "", ".", "a.", ":f", "a:b:c", "a b.c"] {
            assert!(wrong.parse::<Callable>().is_err(), "{wrong:?}");
        }
    }
}

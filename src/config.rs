//! Settings: the configuration file, the flags over it, and every check across fields.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Deserializer, Serialize};

use crate::sandbox::{Layer, Layers};

/// The configuration file, `pyspawner.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub child_main: Option<String>,
    pub preload: Vec<String>,
    pub warm_up: Option<String>,
    pub python: Option<PathBuf>,
    pub path: Vec<PathBuf>,
    pub environment: BTreeMap<String, String>,
    pub strict: bool,
    pub profile: BTreeMap<String, Profile>,
    pub pool: Pool,
}

/// `[profile.NAME]`: how a sandbox is built.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    pub root: Root,
    pub proc: Proc,
    /// The size of `/tmp`, and of `/dev/shm`, in bytes.
    #[serde(deserialize_with = "size")]
    pub tmp: u64,
    pub network: Network,
    pub limits: Limits,
    /// Layers that are left out. For tests: each makes the sandbox weaker.
    pub skip_layers: Vec<Layer>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            root: Root::ReadOnly,
            proc: Proc::Private,
            tmp: 64 << 20,
            network: Network::None,
            limits: Limits::default(),
            skip_layers: Vec::new(),
        }
    }
}

impl Profile {
    pub fn layers(&self) -> Layers {
        Layers::all_but(&self.skip_layers)
    }

    /// Whether children see the host's files at all.
    pub fn shows_host_tree(&self) -> bool {
        self.root == Root::ReadOnly
    }
}

/// What a child sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Root {
    /// The host's tree, read-only, with places of the child's own.
    #[serde(rename = "read-only")]
    ReadOnly,
    /// Exactly this folder.
    Chroot { chroot: PathBuf },
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            chroot: PathBuf,
        }
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Root;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"read-only\" or { chroot = \"/path\" }")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Root, E> {
                match text {
                    "read-only" => Ok(Root::ReadOnly),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_unit<E>(self) -> Result<Root, E> {
                Ok(Root::ReadOnly) // as this type writes it to the settings
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Root, A::Error> {
                let table = Table::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Root::Chroot {
                    chroot: table.chroot,
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `/proc` in the child: its own processes, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proc {
    Private,
    None,
}

/// The child's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    None,
}

/// `[profile.NAME.limits]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From the start of a job to its forced end.
    #[serde(deserialize_with = "optional_duration")]
    pub wall: Option<Duration>,
    /// Bytes each of standard output, standard error and result.
    #[serde(deserialize_with = "size")]
    pub output: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall: None,
            output: 1 << 20,
        }
    }
}

/// `[pool]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// How many children run at once; by default as many as there are processors.
    pub concurrency: Option<usize>,
}

/// Accepts a number of bytes, or text with a binary suffix: `"64M"` is 64 × 2²⁰.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size such as \"64M\", or a number of bytes")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Text(text) => parse_size::Config::new()
            .with_binary()
            .parse_size(&text)
            .map_err(|_| {
                serde::de::Error::custom(format!(
                    "{text:?} is not a size: expected a number of bytes or one with K, M, G"
                ))
            }),
    }
}

fn optional_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a duration such as \"30s\", or a number of seconds"
    )]
    enum Wall {
        Seconds(f64),
        Text(String),
        /// As this type writes it to the settings.
        Exact(Option<Duration>),
    }
    match Wall::deserialize(d)? {
        Wall::Seconds(seconds) => parse_duration(&seconds.to_string())
            .map(Some)
            .map_err(serde::de::Error::custom),
        Wall::Text(text) => parse_duration(&text)
            .map(Some)
            .map_err(serde::de::Error::custom),
        Wall::Exact(exact) => Ok(exact),
    }
}

/// Far beyond any job, and far from where adding it to a clock overflows.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// `"30s"`, `"1m 30s"`, or plain seconds, which may have a fraction. Greater than zero.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = match text.trim().parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    };
    match duration {
        Ok(Duration::ZERO) => Err(format!("{text:?}: a duration must be greater than zero")),
        Ok(duration) if duration > LONGEST => Err(format!("{text:?} is longer than 100 years")),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!(
            "{text:?} is not a duration: expected seconds, or text such as \"30s\" ({error})"
        )),
    }
}

impl File {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// With file, line and what was expected.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the configuration {}", path.display()))?;
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text[..span.start.min(text.len())].matches('\n').count()
            });
            anyhow::anyhow!("{}:{line}: {}", path.display(), error.message())
        })
    }
}

/// What the host and its children go by. Nothing secret: clones inherit it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostSettings {
    pub child_main: Callable,
    pub preload: Vec<String>,
    pub warm_up: Option<Callable>,
    /// The interpreter, as it names itself.
    pub python: PathBuf,
    pub path: Vec<PathBuf>,
    /// Refuse to start if preloaded modules leave threads behind.
    pub strict: bool,
    pub profile: Profile,
    /// For `env_filter`.
    pub log_filter: String,
}

/// A function by module and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callable {
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

/// The profile of this name, checked. Without any in the file, `default` is the default one.
pub fn choose_profile(file: &File, name: Option<&str>) -> anyhow::Result<Profile> {
    let name = name.unwrap_or("default");
    let profile = match file.profile.get(name) {
        Some(profile) => profile.clone(),
        None if name == "default" => Profile::default(),
        None => {
            let known: Vec<_> = file.profile.keys().map(String::as_str).collect();
            bail!("there is no profile {name:?} in the configuration; there are: {known:?}")
        }
    };
    check_profile(&profile).with_context(|| format!("profile {name:?}"))?;
    Ok(profile)
}

fn check_profile(profile: &Profile) -> anyhow::Result<()> {
    for layer in &profile.skip_layers {
        if !Layer::SKIPPABLE.contains(layer) {
            bail!("skip_layers: {:?} cannot be skipped", layer.name());
        }
    }
    if let Root::Chroot { chroot } = &profile.root {
        if !chroot.is_absolute() {
            bail!("chroot: {} is not an absolute path", chroot.display());
        }
        if !chroot.is_dir() {
            bail!("chroot: {} is not a folder", chroot.display());
        }
    }
    let layers = profile.layers();
    if layers.has(Layer::Seccomp)
        && !layers.has(Layer::NoNewPrivs)
        && layers.has(Layer::DropCapabilities)
    {
        bail!(
            "skip_layers: without \"no_new_privs\" and without capabilities a filter cannot be \
             installed; skip \"seccomp\" or \"drop_capabilities\" too"
        );
    }
    if profile.tmp == 0 {
        bail!("tmp: 0 would mean a tmpfs without limit; expected a size such as \"64M\"");
    }
    if profile.limits.output == 0 {
        bail!("limits.output: expected a size greater than 0");
    }
    Ok(())
}

/// The child's environment as the C strings of `execve(2)`.
pub fn environment_block(environment: &BTreeMap<String, String>) -> anyhow::Result<Vec<CString>> {
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
            "#,
        )
        .expect("valid");
        let default = &file.profile["default"];
        assert_eq!(default.tmp, 64 << 20);
        assert_eq!(default.limits.wall, Some(Duration::from_secs(90)));
        assert_eq!(default.limits.output, 4096);
        let chroot = PathBuf::from("/srv");
        assert_eq!(file.profile["jail"].root, Root::Chroot { chroot });
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
                "[profile.default.limits]\nwall = '0s'\n",
                2,
                "greater than zero",
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
    fn settings_survive_their_own_format() {
        let profile = Profile {
            root: Root::Chroot {
                chroot: "/srv".into(),
            },
            limits: Limits {
                wall: Some(Duration::from_millis(1500)),
                output: 7,
            },
            ..Profile::default()
        };
        for profile in [Profile::default(), profile] {
            let text = serde_json::to_string(&profile).expect("serialises");
            let back: Profile = serde_json::from_str(&text).expect("parses");
            assert_eq!(format!("{back:?}"), format!("{profile:?}"));
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

    #[test]
    fn combinations_that_cannot_work_are_refused() {
        let skip = |layers: &[Layer]| Profile {
            skip_layers: layers.to_vec(),
            ..Profile::default()
        };
        assert!(check_profile(&skip(&[Layer::NoNewPrivs])).is_err());
        assert!(check_profile(&skip(&[Layer::Descriptors])).is_err());
        assert!(check_profile(&skip(&[Layer::Seccomp])).is_ok());
    }
}

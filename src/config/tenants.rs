//! Who may ask for jobs, and how much each may have: the token file.
//!
//! Runs on: any process.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

/// A service's tenants, in the order of their indices in its queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tenants {
    tenants: Vec<Tenant>,
    /// Digests of the operator's tokens.
    operator: Vec<[u8; 32]>,
}

/// Who has tokens of their own, a queue and a share of the jobs that run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tenant {
    pub name: String,
    /// Of each token, the SHA-256 digest. Empty for the only tenant of a service without tokens.
    tokens: Vec<[u8; 32]>,
    /// Jobs at once; without, all that the service runs.
    pub concurrency: Option<usize>,
    /// Jobs that wait; without, all that the service's queue holds.
    pub queue: Option<usize>,
}

/// The token file: `[tenant.NAME]` tables, and `[operator]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tenant: BTreeMap<String, Table>,
    operator: Option<OperatorTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperatorTable {
    token_sha256: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    token_sha256: Vec<String>,
    concurrency: Option<usize>,
    queue: Option<usize>,
}

impl Tenants {
    /// One tenant, whoever asks: for a service that only this machine's users reach.
    pub(crate) fn anybody() -> Self {
        let tenant = Tenant {
            name: "anybody".to_owned(),
            tokens: Vec::new(),
            concurrency: None,
            queue: None,
        };
        Self {
            tenants: vec![tenant],
            operator: Vec::new(),
        }
    }

    /// Reads a token file.
    ///
    /// # Errors
    /// With file, line and what was expected.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let at = || format!("the token file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(at)?;
        let file: File = toml::from_str(&text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let line = 1 + text[..offset.min(text.len())].matches('\n').count();
            anyhow::anyhow!("{}:{line}: {}", path.display(), error.message())
        })?;
        ensure!(
            !file.tenant.is_empty(),
            "{}: expected at least one [tenant.NAME]",
            at()
        );
        let tenants: anyhow::Result<Vec<Tenant>> = file
            .tenant
            .into_iter()
            .map(|(name, table)| {
                let context = format!("{}: tenant {name:?}", path.display());
                table.check(name).context(context)
            })
            .collect();
        let operator = file.operator.map(|table| digests(&table.token_sha256));
        let tenants = Self {
            tenants: tenants?,
            operator: operator
                .transpose()
                .with_context(|| format!("{}: [operator]", path.display()))?
                .unwrap_or_default(),
        };
        if let Some(twice) = tenants.token_of_two() {
            anyhow::bail!("{}: {twice} have the same token", path.display());
        }
        Ok(tenants)
    }

    /// Whether requests need a token.
    pub(crate) fn have_tokens(&self) -> bool {
        self.tenants.iter().any(|tenant| !tenant.tokens.is_empty())
    }

    /// The index of the tenant whose token it is. Takes as long for any token of a length.
    pub(crate) fn of_token(&self, token: &str) -> Option<usize> {
        let mut found = None;
        for (index, tenant) in self.tenants.iter().enumerate() {
            if is_one_of(token, &tenant.tokens) {
                found = Some(index);
            }
        }
        found
    }

    /// Whether it is a token of the operator's, who sees what concerns all tenants.
    pub(crate) fn is_operators(&self, token: &str) -> bool {
        is_one_of(token, &self.operator)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.iter()
    }

    /// Two tenants of which nobody could tell which is meant.
    fn token_of_two(&self) -> Option<String> {
        let mut owners = BTreeMap::new();
        for tenant in &self.tenants {
            for token in &tenant.tokens {
                let owner = owners.insert(token, &tenant.name);
                if let Some(other) = owner.filter(|other| **other != tenant.name) {
                    return Some(format!("the tenants {other:?} and {:?}", tenant.name));
                }
            }
        }
        None
    }
}

impl Table {
    fn check(self, name: String) -> anyhow::Result<Tenant> {
        ensure!(
            self.concurrency != Some(0),
            "concurrency: expected at least 1"
        );
        Ok(Tenant {
            name,
            tokens: digests(&self.token_sha256)?,
            concurrency: self.concurrency,
            queue: self.queue,
        })
    }
}

/// Compares in constant time, with all of them.
fn is_one_of(token: &str, digests: &[[u8; 32]]) -> bool {
    let digest: [u8; 32] = Sha256::digest(token).into();
    let mut found = false;
    for known in digests {
        found |= bool::from(known.ct_eq(&digest));
    }
    found
}

fn digests(texts: &[String]) -> anyhow::Result<Vec<[u8; 32]>> {
    ensure!(
        !texts.is_empty(),
        "token_sha256: expected at least one digest"
    );
    texts.iter().map(|text| digest(text)).collect()
}

/// A digest in hexadecimal.
fn digest(text: &str) -> anyhow::Result<[u8; 32]> {
    let expected = "token_sha256: expected 64 hexadecimal digits, as `printf %s TOKEN | sha256sum` prints them";
    ensure!(
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        expected
    );
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).context(expected)?;
        *byte = u8::from_str_radix(pair, 16).context(expected)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn hex(token: &str) -> String {
        let digest = Sha256::digest(token);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn read(text: &str) -> Result<Tenants, String> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("room");
        Tenants::read(file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn tokens_lead_to_their_tenants() {
        let (a, b, old) = (hex("alpha"), hex("beta"), hex("old"));
        let text = format!(
            "[tenant.a]\ntoken_sha256 = [\"{a}\", \"{old}\"]\n[tenant.b]\ntoken_sha256 = [\"{b}\"]\nconcurrency = 2\n"
        );
        let tenants = read(&text).expect("valid");
        assert!(tenants.have_tokens());
        assert_eq!(tenants.of_token("alpha"), Some(0));
        assert_eq!(tenants.of_token("old"), Some(0));
        assert_eq!(tenants.of_token("beta"), Some(1));
        assert_eq!(tenants.of_token("gamma"), None);
        assert_eq!(tenants.of_token(""), None);
        assert!(!Tenants::anybody().have_tokens());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let digest = hex("x");
        for (text, words) in [
            (String::new(), "missing field `tenant`"),
            ("[tenant]\n".to_owned(), "at least one [tenant.NAME]"),
            (
                "[tenant.a]\ntoken = \"x\"\n".to_owned(),
                ":2: unknown field `token`",
            ),
            (
                "[tenant.a]\ntoken_sha256 = []\n".to_owned(),
                "tenant \"a\": token_sha256",
            ),
            (
                "[tenant.a]\ntoken_sha256 = [\"x\"]\n".to_owned(),
                "64 hexadecimal digits",
            ),
            (
                format!("[tenant.a]\ntoken_sha256 = [\"{digest}\"]\nconcurrency = 0\n"),
                "concurrency: expected at least 1",
            ),
            (
                format!(
                    "[tenant.a]\ntoken_sha256 = [\"{digest}\"]\n[tenant.b]\ntoken_sha256 = [\"{digest}\"]\n"
                ),
                "have the same token",
            ),
        ] {
            let error = read(&text).expect_err(&text);
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}

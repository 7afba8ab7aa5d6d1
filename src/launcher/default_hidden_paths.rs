//! What children do not see of the host's tree unless a bind shows it: its secrets, and the
//! places where its services listen.
//!
//! Runs on: the launcher.
//!
//! Most of it is closed to a child's user by its mode as well. This list is for the modes that
//! are wrong, and for a host without privilege, whose children are its own user outside.

use std::path::{Path, PathBuf};

/// Below `/run` are sockets and FIFOs, which neither a read-only mount nor a network namespace
/// makes unreachable: those of Docker and containerd, D-Bus, systemd, PC/SC. The secrets of
/// containers (Docker's, and Kubernetes' service account tokens) are mounted there too.
const OF_THE_SYSTEM: &[&str] = &[
    "/run",
    "/var/run",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/security/opasswd",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/krb5.keytab",
    "/etc/kubernetes",
    "/etc/rancher",
    "/etc/docker",
    "/etc/wireguard",
    "/etc/NetworkManager/system-connections",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/kubelet",
    "/var/lib/rancher",
    "/var/lib/cloud",
    "/var/spool/cron",
    // Where credentials are put in files that everybody may read.
    "/etc/environment",
    "/etc/default",
    "/etc/systemd/system",
    "/etc/crontab",
    "/etc/cron.d",
    "/etc/pip.conf",
    "/etc/apt/auth.conf",
    "/etc/apt/auth.conf.d",
];

/// Of a home that a bind or a path shows as a whole.
const OF_EACH_HOME: &[&str] = &[
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".boto",
    ".config/gcloud",
    ".config/gh",
    ".config/doctl",
    ".oci",
    ".kube",
    ".docker",
    ".config/containers",
    ".local/share/keyrings",
    ".netrc",
    ".git-credentials",
    ".config/git/credentials",
    ".npmrc",
    ".pypirc",
    ".config/pip",
    ".cargo/credentials.toml",
    ".pgpass",
    ".my.cnf",
    ".vault-token",
    ".terraform.d",
    ".password-store",
    ".bash_history",
    ".python_history",
];

/// The hidden paths: of the system, the homes, and every home's credentials. Whether they exist is
/// looked at before each clone.
///
/// Of a home children see what their interpreter and `path` need, and what binds show: it holds too
/// many secrets, under too many names, for a list of them.
pub(crate) fn by_default(homes: &[PathBuf]) -> Vec<PathBuf> {
    let of_homes = homes
        .iter()
        .flat_map(|home| OF_EACH_HOME.iter().map(move |secret| home.join(secret)));
    OF_THE_SYSTEM
        .iter()
        .map(PathBuf::from)
        .chain(homes.iter().cloned())
        .chain(of_homes)
        .collect()
}

/// Every home, and the folder that most of them are in; `home` is the operator's.
pub(crate) fn homes(home: Option<&Path>) -> Vec<PathBuf> {
    let mut homes: Vec<PathBuf> = std::fs::read_dir("/home")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    homes.extend(["/home", "/root"].map(PathBuf::from));
    homes.extend(home.map(Path::to_owned));
    // HOME may be unset, or another's.
    let account = nix::unistd::User::from_uid(nix::unistd::getuid());
    homes.extend(account.ok().flatten().map(|user| user.dir));
    homes.retain(|home| is_a_home(home));
    homes.sort();
    homes.dedup();
    homes
}

/// Accounts of services have homes such as `/`, `/bin` and `/usr/sbin`, which hold no secrets and
/// are needed.
fn is_a_home(path: &Path) -> bool {
    const SYSTEM: &[&str] = &[
        "/usr", "/bin", "/sbin", "/lib", "/lib64", "/dev", "/proc", "/sys", "/tmp", "/var/tmp",
    ];
    const TOP: &[&str] = &[
        "/", "/etc", "/var", "/opt", "/srv", "/mnt", "/media", "/run",
    ];
    path.is_absolute()
        && !TOP.iter().any(|place| path == Path::new(place))
        && !SYSTEM.iter().any(|place| path.starts_with(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_system_are_no_homes() {
        for path in ["/root", "/home/someone", "/var/lib/postgresql", "/app"] {
            assert!(is_a_home(Path::new(path)), "{path}");
        }
        for path in ["/", "/bin", "/usr/sbin", "/var", "/tmp/x", "relative", ""] {
            assert!(!is_a_home(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn the_operators_home_is_hidden_and_its_keys_too() {
        let hidden = by_default(&homes(Some(Path::new("/srv/me"))));
        for path in ["/srv/me", "/srv/me/.ssh", "/root", "/home", "/etc/shadow"] {
            assert!(hidden.iter().any(|h| h == Path::new(path)), "{path}");
        }
    }
}

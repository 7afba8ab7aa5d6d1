//! What children do not see of the host's tree unless a bind shows it: its secrets, and the
//! places where its services listen.
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
];

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

/// The hidden paths that exist here, for `home` (the operator's) and every folder in `/home`.
pub fn by_default(home: Option<&Path>) -> Vec<PathBuf> {
    let mut homes: Vec<PathBuf> = std::fs::read_dir("/home")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    homes.push("/root".into());
    homes.extend(home.map(Path::to_owned));
    // HOME may be unset, or another's.
    let account = nix::unistd::User::from_uid(nix::unistd::getuid());
    homes.extend(account.ok().flatten().map(|user| user.dir));
    homes.sort();
    homes.dedup();
    let of_homes = homes
        .iter()
        .flat_map(|home| OF_EACH_HOME.iter().map(move |secret| home.join(secret)));
    OF_THE_SYSTEM
        .iter()
        .map(PathBuf::from)
        .chain(of_homes)
        .filter(|path| path.symlink_metadata().is_ok())
        .collect()
}

//! The jobs that came over HTTP: what is known of each while it waits, runs and for some time after.
//!
//! Runs on: the I/O thread.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::Keeping;
use crate::io::pool::live_output::{Progress, Stream};

/// All jobs that can be asked for.
pub(super) struct Jobs {
    keeping: Keeping,
    /// Bytes of all jobs that anybody holds: those that wait and run, those that are kept, those whose records are
    /// on their way to a reader.
    held: Arc<AtomicUsize>,
    // Never held while anything is waited for.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    jobs: HashMap<String, Arc<Entry>>,
    /// By tenant and idempotency key: the digest of the request, and the job's name.
    keys: HashMap<(usize, String), (Digest, String)>,
    /// Those that have ended, the earliest first.
    ended: VecDeque<(Instant, Arc<Entry>)>,
    ended_bytes: usize,
}

/// SHA-256 of a request.
pub(super) type Digest = [u8; 32];

/// What an idempotency key leads to.
pub(super) enum Keyed {
    New,
    Same(Arc<Entry>),
    AnotherRequest,
}

/// A job.
pub(super) struct Entry {
    /// In URLs. Nobody can guess it.
    pub name: String,
    /// What it calls itself in its record.
    pub id: String,
    pub tenant: usize,
    pub cancel: Notify,
    key: Option<String>,
    /// Whether it can be asked for after its end.
    is_kept: bool,
    live: Mutex<Live>,
    changed: watch::Sender<()>,
    /// See [`Jobs::held`].
    held: Arc<AtomicUsize>,
}

/// Where a job is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Queued,
    Running,
    Ended,
}

/// What is known of a job so far.
pub(super) struct Live {
    pub phase: Phase,
    pub was_started: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The latest, with how many there were.
    pub progress: Option<(u64, Progress)>,
    /// Once it has ended: one JSON object with a line feed.
    pub record: Option<Bytes>,
    /// Why it did not run, if it is the service's doing.
    pub is_overdue_in_queue: bool,
}

impl Live {
    fn bytes(&self) -> usize {
        const OF_AN_ENTRY: usize = 1 << 10;
        let record = self.record.as_ref().map_or(0, Bytes::len);
        self.stdout.len() + self.stderr.len() + record + OF_AN_ENTRY
    }
}

/// A record on its way to a reader: its job is held until it is there.
struct Sent {
    record: Bytes,
    #[expect(dead_code, reason = "it is held")]
    entry: Arc<Entry>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.record
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let bytes = self.live().bytes();
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Entry {
    fn new(
        id: Option<String>,
        tenant: usize,
        key: Option<String>,
        is_kept: bool,
        held: Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let entry = Arc::new(Self {
            id: id.unwrap_or_else(|| name.clone()),
            name,
            tenant,
            cancel: Notify::new(),
            is_kept: is_kept || key.is_some(),
            key,
            live: Mutex::new(Live {
                phase: Phase::Queued,
                was_started: false,
                stdout: Vec::new(),
                stderr: Vec::new(),
                progress: None,
                record: None,
                is_overdue_in_queue: false,
            }),
            changed: watch::Sender::new(()),
            held,
        });
        let bytes = entry.live().bytes();
        entry.held.fetch_add(bytes, Ordering::Relaxed);
        entry
    }

    /// For a look; not to be held while anything is waited for.
    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told of every change from here on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn start(&self) {
        self.change(|live| {
            live.phase = Phase::Running;
            live.was_started = true;
        });
    }

    pub(super) fn add_output(&self, stream: Stream, bytes: &[u8]) {
        self.change(|live| {
            let to = match stream {
                Stream::Stdout => &mut live.stdout,
                Stream::Stderr => &mut live.stderr,
            };
            to.extend_from_slice(bytes);
        });
    }

    pub(super) fn set_progress(&self, progress: Progress) {
        self.change(|live| {
            let count = live.progress.take().map_or(0, |(count, _)| count);
            live.progress = Some((count + 1, progress));
        });
    }

    /// Returns once the job has ended: its record.
    pub(super) async fn ended(self: &Arc<Self>) -> Bytes {
        let mut changes = self.changes();
        loop {
            if let Some(record) = self.live().record.clone() {
                let entry = self.clone();
                return Bytes::from_owner(Sent { record, entry });
            }
            // The sender is this entry's own.
            changes.changed().await.ok();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Live)) {
        let mut live = self.live();
        let before = live.bytes();
        change(&mut live);
        let after = live.bytes();
        drop(live);
        // Nothing of a job becomes less.
        self.held.fetch_add(after - before, Ordering::Relaxed);
        self.changed.send_replace(());
    }
}

impl Jobs {
    pub(super) fn new(keeping: Keeping) -> Self {
        Self {
            keeping,
            held: Arc::default(),
            known: Mutex::default(),
        }
    }

    /// Makes a job's entry. `is_kept`: somebody may ask for it after its end. One with an idempotency key is kept anyway.
    pub(super) fn entry(
        &self,
        id: Option<String>,
        tenant: usize,
        key: Option<String>,
        is_kept: bool,
    ) -> Arc<Entry> {
        Entry::new(id, tenant, key, is_kept, self.held.clone())
    }

    /// Whether there is room for what one more job may say.
    pub(super) fn have_room(&self) -> bool {
        // What is kept makes room for what comes.
        let kept = self.known().ended_bytes;
        let held = self.held.load(Ordering::Relaxed);
        held.saturating_sub(kept) <= self.keeping.bytes
    }

    /// The job of this name, if it is this tenant's.
    pub(super) fn find(&self, tenant: usize, name: &str) -> Option<Arc<Entry>> {
        let mut known = self.known();
        known.forget(self.keeping);
        let entry = known.jobs.get(name)?;
        (entry.tenant == tenant).then(|| entry.clone())
    }

    /// What a tenant's idempotency key leads to.
    pub(super) fn keyed(&self, tenant: usize, key: &str, digest: &Digest) -> Keyed {
        let mut known = self.known();
        known.forget(self.keeping);
        match known.keys.get(&(tenant, key.to_owned())) {
            None => Keyed::New,
            Some((earlier, _)) if earlier != digest => Keyed::AnotherRequest,
            Some((_, name)) => match known.jobs.get(name) {
                Some(entry) => Keyed::Same(entry.clone()),
                None => Keyed::New,
            },
        }
    }

    /// Adds a job. One with an idempotency key is found by that, too.
    pub(super) fn add(&self, entry: &Arc<Entry>, digest: Digest) {
        let mut known = self.known();
        known.jobs.insert(entry.name.clone(), entry.clone());
        if let Some(key) = &entry.key {
            let name = entry.name.clone();
            known
                .keys
                .insert((entry.tenant, key.clone()), (digest, name));
        }
    }

    /// Ends a job with its record.
    pub(super) fn end(&self, entry: &Arc<Entry>, record: Vec<u8>, is_overdue_in_queue: bool) {
        entry.change(|live| {
            live.phase = Phase::Ended;
            live.record = Some(record.into());
            live.is_overdue_in_queue = is_overdue_in_queue;
        });
        let bytes = entry.live().bytes();
        let mut known = self.known();
        if !entry.is_kept {
            known.jobs.remove(&entry.name);
            return;
        }
        known.ended.push_back((Instant::now(), entry.clone()));
        known.ended_bytes += bytes;
        known.forget(self.keeping);
    }

    /// How many have not ended.
    pub(super) fn alive(&self) -> usize {
        let known = self.known();
        known.jobs.len() - known.ended.len()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Forgets the earliest of those that have ended, as far as they are too old or too much.
    fn forget(&mut self, keeping: Keeping) {
        while let Some((since, entry)) = self.ended.front() {
            if since.elapsed() < keeping.ttl && self.ended_bytes <= keeping.bytes {
                return;
            }
            self.ended_bytes -= entry.live().bytes();
            self.jobs.remove(&entry.name);
            if let Some(key) = &entry.key {
                self.keys.remove(&(entry.tenant, key.clone()));
            }
            self.ended.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEEPING: Keeping = Keeping {
        ttl: Duration::from_secs(600),
        bytes: 10_000,
    };

    #[test]
    fn what_has_ended_is_kept_within_its_bytes_and_the_latest_longest() {
        let jobs = Jobs::new(KEEPING);
        let entries: Vec<_> = (0..20).map(|_| jobs.entry(None, 0, None, true)).collect();
        for entry in &entries {
            jobs.add(entry, [0; 32]);
            jobs.end(entry, vec![b'x'; 1000], false);
        }
        let kept = entries
            .iter()
            .filter(|entry| jobs.find(0, &entry.name).is_some());
        assert_eq!(kept.count(), 4);
        assert!(jobs.find(0, &entries[19].name).is_some());
        assert_eq!(jobs.alive(), 0);
        let running = jobs.entry(None, 0, None, true);
        jobs.add(&running, [0; 32]);
        assert_eq!(jobs.alive(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_on_its_way_to_readers_takes_room_until_it_is_there() {
        let jobs = Jobs::new(KEEPING);
        let mut sent = Vec::new();
        for _ in 0..10 {
            let entry = jobs.entry(None, 0, None, false);
            jobs.add(&entry, [0; 32]);
            jobs.end(&entry, vec![b'x'; 2000], false);
            sent.push(entry.ended().await);
        }
        assert!(!jobs.have_room());
        drop(sent);
        assert!(jobs.have_room());
        assert_eq!(jobs.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_job_is_forgotten_after_its_time() {
        let jobs = Jobs::new(Keeping {
            ttl: Duration::ZERO,
            ..KEEPING
        });
        let entry = jobs.entry(None, 0, Some("key".to_owned()), false);
        jobs.add(&entry, [1; 32]);
        assert!(matches!(jobs.keyed(0, "key", &[1; 32]), Keyed::Same(_)));
        jobs.end(&entry, Vec::new(), false);
        assert!(jobs.find(0, &entry.name).is_none());
        assert!(matches!(jobs.keyed(0, "key", &[1; 32]), Keyed::New));
    }

    #[test]
    fn a_job_and_a_key_are_their_tenants_own() {
        let jobs = Jobs::new(KEEPING);
        let entry = jobs.entry(None, 0, Some("key".to_owned()), false);
        jobs.add(&entry, [1; 32]);
        assert!(jobs.find(0, &entry.name).is_some());
        assert!(jobs.find(1, &entry.name).is_none());
        assert!(matches!(jobs.keyed(1, "key", &[1; 32]), Keyed::New));
        assert!(matches!(
            jobs.keyed(0, "key", &[2; 32]),
            Keyed::AnotherRequest
        ));
    }
}

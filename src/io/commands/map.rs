//! `pyspawner map`: one job a line in, one result a line out.
//!
//! Runs on: the I/O thread.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::earlier_results::{self, Done};
use super::lines::{Line, LineReader, LineWriter};
use super::progress::{self, Progress};
use crate::config::Profile;
use crate::io::interrupt::Interrupt;
use crate::io::pool::files::NO_FOLDER;
use crate::io::pool::overrides::Overrides;
use crate::io::pool::payload::{self, Job, JobLine, Stdin, Streams};
use crate::io::pool::{Followed, JobReport, Outcome, Pool, plain_text};
use crate::sys::files::{self, FileId};
use crate::wire::assignment::Assignment;

/// The longest line that is taken as a job.
const LONGEST_LINE: usize = 64 << 20;
/// With `--ordered`: how many results may wait for an earlier one, for each job at once.
const WAITING_PER_JOB: u64 = 64;
/// With `--ordered`: how many bytes of results may wait for an earlier one before no more jobs begin. Those that run
/// may still add theirs.
const WAITING_BYTES: usize = 32 << 20;

/// After so many rounds of the loop other tasks have their turn: lines that are no jobs have their results at once.
const ROUNDS: u64 = 32;

#[derive(Serialize, Deserialize)]
pub(crate) struct Command {
    pub input: Option<PathBuf>,
    pub output: Option<PathBuf>,
    pub jobs: usize,
    pub ordered: bool,
    pub plan: Plan,
    pub resume: Option<PathBuf>,
}

/// How a line becomes a job, and how often.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Whether a line is text.
    pub lines: bool,
    /// How often a job is run again at most.
    pub retry: u32,
    pub retry_on: Vec<Outcome>,
    /// The longest that a job may take.
    pub wall: Option<Duration>,
    /// Whether jobs start in a folder of their own.
    pub has_folder: bool,
}

impl Command {
    pub(crate) fn input_name(&self) -> Option<&str> {
        self.input.as_ref().and_then(|path| path.to_str())
    }

    /// The files that it opens itself, with what they are.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        let input = self.input.iter().map(|path| ("the input", path.as_path()));
        let output = self
            .output
            .iter()
            .map(|path| ("the output", path.as_path()));
        let resume = self.resume.iter();
        let resume = resume.map(|path| ("the earlier results", path.as_path()));
        input.chain(output).chain(resume).collect()
    }
}

pub(crate) async fn map(
    pool: &Pool,
    interrupt: &Interrupt,
    profile: &Profile,
    command: Command,
    shows_progress: bool,
) -> anyhow::Result<i32> {
    let (input, size) = open_input(command.input.as_deref())?;
    let (output, done) = match &command.resume {
        Some(path) => {
            open_resumed(path, &input).with_context(|| format!("--resume {}", path.display()))?
        }
        None => tokio::select! {
            output = open_output(command.output.as_deref(), &input) => (output?, Done::default()),
            signal = interrupt.received() => return Ok(128 + signal),
        },
    };
    let mut map = Map {
        pool,
        input: LineReader::new(input, LONGEST_LINE).context("input")?,
        output: LineWriter::new(output).context("output")?,
        jobs: command.jobs,
        ordered: command.ordered,
        plan: Plan {
            wall: profile.limits.wall,
            has_folder: profile.starts_in_home(),
            ..command.plan
        },
        done,
        running: JoinSet::new(),
        jobs_of_tasks: HashMap::new(),
        read: 0,
        written: 0,
        waiting: BTreeMap::new(),
        waiting_bytes: 0,
        progress: Progress::new(size, shows_progress),
    };
    let end = map.run(interrupt).await;
    map.running.shutdown().await;
    map.progress.end();
    let end = end?;
    Ok(match end {
        End::Done if map.progress.failed() == 0 => 0,
        End::Done => 1,
        End::Interrupted(signal) => 128 + signal,
        // As if SIGPIPE had ended this program, which is how a filter ends.
        End::ReaderGone => 128 + libc::SIGPIPE,
    })
}

impl Plan {
    fn job(&self, number: u64, line: &Line) -> Result<Job, Box<JobReport>> {
        let invalid = |detail: String| {
            let detail = plain_text(detail.as_bytes());
            Box::new(JobReport::not_run(Outcome::InvalidJob, detail))
        };
        let failed = |error: std::io::Error| {
            Box::new(JobReport::not_run(
                Outcome::SetupFailed,
                format!("memory file: {error}"),
            ))
        };
        let Line::Text(text) = line else {
            return Err(invalid(format!(
                "the line is longer than {LONGEST_LINE} bytes"
            )));
        };
        let whole;
        let line = match self.lines {
            true => {
                whole = as_argument(text).map_err(invalid)?;
                JobLine::parse(whole.as_bytes())
            }
            false => JobLine::parse(text),
        };
        let line = line.map_err(invalid)?;
        if !self.has_folder && (line.files.is_some() || line.collect.is_some()) {
            return Err(invalid(NO_FOLDER.to_owned()));
        }
        let id = line.id.unwrap_or_else(|| number.to_string());
        // A job may shorten its profile's limit, not lengthen it.
        let timeout = line.timeout.into_iter().chain(self.wall).min();
        let arguments = payload::Arguments {
            args: line.args,
            kwargs: line.kwargs,
            environment: None,
            files: line.files,
        };
        Ok(Job {
            assignment: Assignment {
                shows_folder: line.collect.is_some(),
                ..Assignment::default()
            },
            payload: payload::encode(&id, timeout, &arguments).map_err(failed)?,
            id,
            stdin: line
                .stdin
                .map_or_else(Stdin::null, |text| Stdin::text(&text))
                .map_err(failed)?,
            streams: Streams::Capture,
            wants_result: true,
            collect: line.collect,
            timeout,
            overrides: Overrides::default(),
        })
    }

    /// Runs a job again as often as its outcomes call for that.
    async fn retry(&self, pool: &Pool, number: u64, line: &Line, first: JobReport) -> JobReport {
        let mut report = first;
        while report.attempts <= self.retry && self.retry_on.contains(&report.outcome) {
            let attempts = report.attempts + 1;
            log::info!(
                "job of line {number}: {}, so it is run again",
                report.outcome.name()
            );
            report = match self.job(number, line) {
                Ok(job) => pool.run(job).await,
                Err(report) => *report,
            };
            report.attempts = attempts;
        }
        report
    }
}

/// Tells of the process, too, for those who want to look into it.
async fn run_logged(pool: &Pool, job: Job) -> JobReport {
    let id = job.id.clone();
    let followed = Followed {
        started: Some(Box::new(move |pid| {
            log::debug!("job {id:?} runs in process {pid}");
        })),
        ..Followed::default()
    };
    pool.run_followed(job, followed).await
}

/// A line of text as the arguments of a job.
fn as_argument(text: &[u8]) -> Result<String, String> {
    let text =
        std::str::from_utf8(text).map_err(|error| format!("the line is not UTF-8: {error}"))?;
    serde_json::to_string(&[text]).map_err(|error| error.to_string())
}

enum End {
    Done,
    Interrupted(i32),
    ReaderGone,
}

/// A job that has ended.
struct Finished {
    /// Of its line, from 1.
    number: u64,
    id: String,
    outcome: Outcome,
    reason: Option<String>,
    /// Its result line.
    line: Vec<u8>,
}

impl Finished {
    /// `tells`: whether the reason is for somebody, since it takes a look through all that the job wrote.
    fn of(number: u64, id: String, report: &JobReport, tells: bool) -> Self {
        Self {
            number,
            outcome: report.outcome,
            reason: tells.then(|| report.reason()).flatten(),
            line: report.to_line(number, &id),
            id,
        }
    }
}

struct Map<'a> {
    pool: &'a Pool,
    input: LineReader,
    output: LineWriter,
    jobs: usize,
    ordered: bool,
    plan: Plan,
    /// The ids of jobs that need not be run.
    done: Done,
    running: JoinSet<Finished>,
    /// Line and id of each task's job, for a task that panics.
    jobs_of_tasks: HashMap<tokio::task::Id, (u64, String)>,
    read: u64,
    written: u64,
    /// With `ordered`: results whose turn has not come.
    waiting: BTreeMap<u64, Vec<u8>>,
    waiting_bytes: usize,
    progress: Progress,
}

impl Map<'_> {
    async fn run(&mut self, interrupt: &Interrupt) -> anyhow::Result<End> {
        let mut more = true;
        let mut round = 0u64;
        let mut ticks = tokio::time::interval(progress::TICK);
        while more || !self.running.is_empty() {
            round += 1;
            if round.is_multiple_of(ROUNDS) {
                tokio::task::yield_now().await;
            }
            let room = self.running.len() < self.jobs && !self.window_is_full();
            let finished = tokio::select! {
                biased;
                signal = interrupt.received() => {
                    self.write_cancelled().await;
                    return Ok(End::Interrupted(signal));
                }
                Some(finished) = self.running.join_next_with_id() => Some(self.finished(finished)),
                _ = ticks.tick(), if self.progress.is_shown() => {
                    self.progress.tick();
                    None
                }
                line = self.input.next(), if more && room => {
                    match line.context("reading the jobs")? {
                        Some(line) => self.begin(line),
                        None => {
                            more = false;
                            None
                        }
                    }
                }
            };
            if let Some(finished) = finished {
                self.finish(finished);
            }
            // A reader that waits must not keep an interrupt waiting.
            let written = tokio::select! {
                written = self.output.flush() => written,
                signal = interrupt.received() => {
                    self.write_cancelled().await;
                    return Ok(End::Interrupted(signal));
                }
            };
            if let Err(error) = written {
                return output_failed(error);
            }
        }
        Ok(End::Done)
    }

    /// The result of a task. One that panicked has its own job fail, and no other.
    fn finished(
        &mut self,
        task: Result<(tokio::task::Id, Finished), tokio::task::JoinError>,
    ) -> Finished {
        let error = match task {
            Ok((id, finished)) => {
                self.jobs_of_tasks.remove(&id);
                return finished;
            }
            Err(error) => error,
        };
        log::error!("internal error: {error}");
        let job = self.jobs_of_tasks.remove(&error.id());
        let (number, id) = job.expect("each task's job is noted as it begins");
        let detail = "internal error of pyspawner, see its log; the job may have run";
        let report = JobReport::not_run(Outcome::SetupFailed, detail);
        Finished::of(number, id, &report, self.progress.is_shown())
    }

    /// Whether so many results wait for an earlier one that no more jobs may begin.
    fn window_is_full(&self) -> bool {
        let are_many = self.read - self.written >= WAITING_PER_JOB * self.jobs as u64;
        self.ordered && (are_many || self.waiting_bytes >= WAITING_BYTES)
    }

    /// Starts the job of a line; a line that is none has its result at once.
    fn begin(&mut self, line: Line) -> Option<Finished> {
        self.read += 1;
        self.progress.has_read(self.input.position);
        let number = self.read;
        let tells = self.progress.is_shown();
        let job = match self.plan.job(number, &line) {
            Ok(job) => job,
            Err(report) => {
                return Some(Finished::of(number, number.to_string(), &report, tells));
            }
        };
        if self.done.has(number, &job.id) {
            self.pass_over(number);
            return None;
        }
        let pool = self.pool.clone();
        let noted = (number, job.id.clone());
        let again = (self.plan.retry > 0).then(|| (self.plan.clone(), line));
        let task = self.running.spawn_local(async move {
            let id = job.id.clone();
            let mut report = match log::log_enabled!(log::Level::Debug) {
                true => run_logged(&pool, job).await,
                false => pool.run(job).await,
            };
            if let Some((plan, line)) = again {
                report = plan.retry(&pool, number, &line, report).await;
            }
            log::debug!("job {id:?}: {:?} in {:.1?}", report.outcome, report.wall);
            Finished::of(number, id, &report, tells)
        });
        self.jobs_of_tasks.insert(task.id(), noted);
        None
    }

    /// Hands a result to the output, or keeps it until its turn comes.
    fn finish(&mut self, finished: Finished) {
        let Finished {
            number,
            id,
            outcome,
            reason,
            line,
        } = finished;
        self.progress.count(number, &id, outcome, reason.as_deref());
        self.write(number, line);
    }

    /// Leaves out a job that was `ok` earlier.
    fn pass_over(&mut self, number: u64) {
        self.progress.pass_over();
        self.write(number, Vec::new());
    }

    fn write(&mut self, number: u64, line: Vec<u8>) {
        if self.ordered {
            self.waiting_bytes += line.len();
            self.waiting.insert(number, line);
            while let Some(line) = self.waiting.remove(&(self.written + 1)) {
                self.waiting_bytes -= line.len();
                self.written += 1;
                self.output.add(&line);
            }
        } else {
            self.written += 1;
            self.output.add(&line);
        }
    }

    /// After an interrupt: every job that ran has its result line too, unless nobody reads.
    async fn write_cancelled(&mut self) {
        let rest = async {
            while let Some(finished) = self.running.join_next_with_id().await {
                let finished = self.finished(finished);
                self.finish(finished);
            }
            // A reader that left does not miss them.
            self.output.flush().await.ok();
        };
        let rest = tokio::time::timeout(Duration::from_secs(2), rest).await;
        if rest.is_err() {
            log::warn!("not every cancelled job's result could be written");
        }
    }
}

/// Nothing can be written any more; an error unless it is that the reader left. The jobs
/// still running are given up, which ends their children.
fn output_failed(error: std::io::Error) -> anyhow::Result<End> {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Ok(End::ReaderGone);
    }
    Err(error).context("writing the results")
}

/// The input, and its size in bytes if it has one.
fn open_input(path: Option<&Path>) -> anyhow::Result<(OwnedFd, Option<u64>)> {
    let fd: OwnedFd = match path {
        // A FIFO that nobody writes to yet would keep this thread from hearing an interrupt.
        Some(path) => File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(files::name_on_this_thread(path))
            .with_context(|| format!("opening the input {}", path.display()))?
            .into(),
        None => std::io::stdin().as_fd().try_clone_to_owned()?,
    };
    let stat = nix::sys::stat::fstat(&fd)?;
    let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok((fd, is_file.then_some(stat.st_size as u64)))
}

/// The file of earlier results, ready for more, and the jobs that are `ok` in it.
fn open_resumed(path: &Path, input: &OwnedFd) -> anyhow::Result<(OwnedFd, Done)> {
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600);
    let file = options.open(path)?;
    let (found, input) = (nix::sys::stat::fstat(&file)?, nix::sys::stat::fstat(input)?);
    anyhow::ensure!(
        found.st_mode & libc::S_IFMT == libc::S_IFREG,
        "expected a regular file"
    );
    anyhow::ensure!(
        FileId::from(&found) != FileId::from(&input),
        "it is the input"
    );
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!("another pyspawner writes to it"),
        Err(std::fs::TryLockError::Error(error)) => return Err(error).context("flock"),
    }
    let earlier = earlier_results::read(&file)?;
    earlier_results::cut_unfinished_line(&file, earlier.whole)?;
    Ok((file.into(), earlier.done))
}

async fn open_output(path: Option<&Path>, input: &OwnedFd) -> anyhow::Result<OwnedFd> {
    let Some(path) = path else {
        return Ok(std::io::stdout().as_fd().try_clone_to_owned()?);
    };
    // Before it is emptied.
    let place = files::name_on_this_thread(path);
    if let (Ok(old), Ok(input)) = (nix::sys::stat::stat(&place), nix::sys::stat::fstat(input)) {
        let same = FileId::from(&old) == FileId::from(&input);
        let is_file = old.st_mode & libc::S_IFMT == libc::S_IFREG;
        anyhow::ensure!(
            !(same && is_file),
            "{} is both input and output",
            path.display()
        );
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    // Results are for whoever asked for them.
    options.mode(0o600).custom_flags(libc::O_NONBLOCK);
    let is_fifo = || std::fs::metadata(&place).is_ok_and(|found| found.file_type().is_fifo());
    let mut waiting = false;
    loop {
        match options.open(&place) {
            // Nobody reads it yet (fifo(7)).
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo() => {
                if !std::mem::replace(&mut waiting, true) {
                    log::info!("waiting for a reader of {}", path.display());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => {
                return Ok(opened
                    .with_context(|| format!("opening the output {}", path.display()))?
                    .into());
            }
        }
    }
}

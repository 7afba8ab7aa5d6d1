//! What a clone receives of preloaded objects besides private memory: descriptors and shared memory. None of it
//! may stay common to jobs, or to a job and the host.
//!
//! Runs on: the main thread, and a child that it has just cloned.

mod pairs;
mod read_only;
mod shared_memory;
mod stand_ins;
mod survey;
mod table;

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};

use crate::layer::{Layer, SetupError};
use crate::sys::descriptors::offset;
use crate::sys::files::{close_all_but, duplicate_onto};
use crate::wire::child_descriptors::{ChildDescriptors, StreamCopy};
use read_only::restricted;
use shared_memory::SharedMemory;
pub(crate) use shared_memory::SharedRange;
use stand_ins::StandIn;
pub(crate) use survey::Held;
use survey::{Survey, WATCH_OF_NAMES};
use table::Table;

/// What preloaded objects hold, and what children get in its place.
pub(crate) struct Inherited {
    table: Table,
    /// What stands in for what a job cannot use: an O_PATH descriptor, which has no state of its own.
    unusable: OwnedFd,
    /// pyspawner's own numbers.
    own: Vec<RawFd>,
    survey: RefCell<Survey>,
    shared: RefCell<SharedMemory>,
}

impl ChildDescriptors {
    /// Those that the child keeps for its way in.
    fn kept(&self) -> impl Iterator<Item = RawFd> {
        [Some(self.control), self.spec, self.root]
            .into_iter()
            .flatten()
    }
}

/// The numbers that are open before the first module is imported.
pub(crate) struct Before {
    table: Table,
    own: Vec<RawFd>,
    unusable: OwnedFd,
}

impl Before {
    /// # Errors
    /// If the table cannot be read.
    pub(crate) fn note() -> nix::Result<Self> {
        let table = Table::open()?;
        let null = open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let unusable = restricted(null.as_fd())?;
        drop(null);
        let own = table.numbers()?;
        Ok(Self {
            table,
            own,
            unusable,
        })
    }

    /// Looks at what there is after the warm-up.
    ///
    /// # Errors
    /// If table or mappings cannot be read.
    pub(crate) fn compare(self) -> std::io::Result<Inherited> {
        let Self {
            table,
            own,
            unusable,
        } = self;
        let survey = RefCell::new(Survey::make(&table, &own, None)?);
        let shared = RefCell::new(SharedMemory::find(&table)?);
        Ok(Inherited {
            table,
            unusable,
            own,
            survey,
            shared,
        })
    }
}

impl Inherited {
    /// What preloaded objects hold, by number.
    pub(crate) fn with_held<T>(&self, look: impl FnOnce(&[Held]) -> T) -> T {
        look(&self.survey.borrow().held)
    }

    /// The memory that the host would share with its clones.
    pub(crate) fn with_shared_memory<T>(&self, look: impl FnOnce(&[SharedRange]) -> T) -> T {
        look(&self.shared.borrow().ranges)
    }

    /// Comes last of all preparations: what was opened meanwhile is pyspawner's own, if it is of a kind that no job can
    /// use anyway: folders, files of the kernel's, watches of names. For the rest, a thread of a preloaded module may have
    /// opened something at the same time.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub(crate) fn seal(&mut self) -> nix::Result<()> {
        let earlier = self.survey.borrow();
        let known = self.own.iter().copied().chain(earlier.own_numbers());
        let known: Vec<RawFd> = known.chain(self.shared.borrow().own_numbers()).collect();
        let now = Survey::make(&self.table, &known, Some(&earlier))?;
        let held: Vec<RawFd> = earlier.numbers().collect();
        drop(earlier);
        let new = now.held.iter().filter(|new| !held.contains(&new.number));
        let own = new.filter(|new| now.is_unusable(new.number) || new.target == WATCH_OF_NAMES);
        self.own.extend(own.map(|own| own.number));
        Ok(())
    }

    /// Looks at descriptors and mappings again, while nobody changes them: other code has run in the host since the
    /// last look. `own` are the descriptors that were made for this clone.
    ///
    /// # Errors
    /// If table or mappings cannot be read.
    pub(crate) fn look_again(&self, own: &[RawFd]) -> std::io::Result<()> {
        let survey = {
            let (earlier, shared) = (self.survey.borrow(), self.shared.borrow());
            let own = self.own.iter().chain(own).copied();
            let own = own.chain(earlier.own_numbers()).chain(shared.own_numbers());
            let own: Vec<RawFd> = own.collect();
            Survey::make(&self.table, &own, Some(&earlier))?
        };
        self.survey.replace(survey);
        self.shared.borrow_mut().look_again(&self.table)?;
        Ok(())
    }

    /// Whether a number that was held is now one of a clone's own: then its owner has closed it.
    pub(crate) fn is_outdated(&self, own: &[RawFd]) -> bool {
        let survey = self.survey.borrow();
        survey.numbers().any(|number| own.contains(&number))
    }

    /// Before a clone, in the host: opens the files that the child is to have.
    ///
    /// # Errors
    /// Of `open(2)`.
    pub(crate) fn open(&self) -> nix::Result<Vec<OwnedFd>> {
        let survey = self.survey.borrow();
        let mut opened = Vec::new();
        for stand_in in &survey.stand_ins {
            if let StandIn::Opened {
                number,
                through,
                flags,
            } = *stand_in
            {
                let file = self.table.open_anew(through, flags)?;
                let offset = offset(number)?;
                if offset != 0 {
                    lseek(&file, offset, Whence::SeekSet)?;
                }
                opened.push(file);
            }
        }
        Ok(opened)
    }

    /// In a child that has just been cloned, before any handler: puts the stand-ins in place, makes shared memory
    /// its own, and closes all but these and the child's own descriptors.
    ///
    /// # Errors
    /// With the step that failed; the child must not go on then.
    pub(crate) fn make_own(
        &self,
        opened: &[OwnedFd],
        own: &ChildDescriptors,
    ) -> Result<(), SetupError> {
        for range in &self.shared.borrow().ranges {
            range.make_private().map_err(|errno| {
                let step = format!("mmap of a private copy of {}", range.name);
                SetupError::new(Layer::Descriptors, step, errno)
            })?;
        }
        duplicate_onto(own.null, libc::STDIN_FILENO, false).map_err(at("dup3"))?;
        // Numbers from here on: their owners are the host's, and what nobody needs is closed below.
        let opened: Vec<RawFd> = opened.iter().map(AsRawFd::as_raw_fd).collect();
        let survey = self.survey.borrow();
        let unusable = self.unusable.as_raw_fd();
        stand_ins::place(&survey.stand_ins, &opened, unusable).map_err(|failed| {
            let step = format!("{} (in place of descriptor {})", failed.step, failed.number);
            SetupError::new(Layer::Descriptors, step, failed.errno)
        })?;
        let streams = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
        let kept = streams.into_iter().chain(own.kept());
        let mut kept: Vec<RawFd> = kept.chain(survey.numbers()).collect();
        close_all_but(&mut kept).map_err(at("close_range"))
    }

    /// Where a child's standard streams must be put as well.
    pub(crate) fn stream_copies(&self) -> Vec<StreamCopy> {
        let survey = self.survey.borrow();
        let copies = survey
            .stand_ins
            .iter()
            .filter_map(|stand_in| match *stand_in {
                StandIn::Stream { number, stream } => Some(StreamCopy { number, stream }),
                _ => None,
            });
        copies.collect()
    }
}

fn at(step: &'static str) -> impl Fn(Errno) -> SetupError {
    move |errno| SetupError::new(Layer::Descriptors, step, errno)
}

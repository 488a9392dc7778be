//! The daemon's end of the ledger: what to do when it cannot be written.
//!
//! Whatever goes wrong, the caller [takes the plan back](crate::accounting::tick::State::take_back)
//! and goes on counting; the next plan carries it. A ledger that was open stays open after an error of
//! the disk, so that a transaction of which it is not sure whether it landed is written over and never
//! booked again. One that is gone or was replaced is opened anew, or made, and what was booked in it
//! stays with it; so does what is in a damaged one, which is set aside.

use std::path::{Path, PathBuf};

use super::{Ledger, LedgerError, Options, Tidied, commit::cursors, file, schema};
use crate::accounting::{
    tick::{Cursors, Plan},
    usage::Event,
};

/// Steps of tidying after one plan.
const STEPS: usize = 3;

/// A ledger that is opened again when it has to be.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    options: Options,
    pub(super) ledger: Option<Ledger>,
    /// What is to be told of the one before.
    lost: Option<Lost>,
}

/// What was found when a ledger was opened.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What it goes on from.
    pub cursors: Cursors,
    /// What became of a damaged one. It is an event of the new one.
    pub damaged: Option<Damaged>,
    /// Why it cannot be written now. What it goes on from is known, and a commit opens it later.
    pub refused: Option<LedgerError>,
}

/// A damaged ledger that was set aside.
#[derive(Debug)]
pub struct Damaged {
    /// What happened, for people.
    pub event: Event,
    /// What it was booked up to could not be read: what was counted since then is not known.
    pub forgotten: bool,
}

impl Store {
    /// Opens the ledger of a state folder, whose lock the caller holds. A damaged one is set aside and a
    /// new one begun, which goes on from the cursors of the damaged one where they can still be read: what
    /// it had booked is booked, and what was counted since is not. One on a full disk is only read. `now` is
    /// seconds of Unix time.
    ///
    /// # Errors
    ///
    /// Every other [`LedgerError`].
    pub fn open(folder: &Path, options: Options, now: i64) -> Result<Opened, LedgerError> {
        let open = || {
            let (ledger, _) = Ledger::open(folder, options.clone())?;
            let cursors = ledger.cursors()?;
            Ok((ledger, cursors))
        };
        let ((ledger, cursors), damaged) = match open() {
            Err(error @ LedgerError::Full { .. }) => {
                let Ok(cursors) = read_alone(folder) else { return Err(error) };
                let store = Self { folder: folder.into(), options, ledger: None, lost: None };
                return Ok(Opened { store, cursors, damaged: None, refused: Some(error) });
            }
            Err(error @ LedgerError::Corrupt { .. }) => {
                let known = read_alone(folder).ok().filter(|known| *known != Cursors::default());
                let aside = file::set_aside(&file::path(folder), now)?;
                let forgotten = known.is_none();
                let cursors = known.unwrap_or_default();
                let event = set_aside_at_the_start(now, &aside, &error, forgotten);
                let (mut ledger, _) = Ledger::open(folder, options.clone())?;
                // At once: another start must find what this one knows.
                let events = vec![event.clone()];
                let plan = Plan { at: now, cursors: cursors.clone(), events, ..Plan::default() };
                ledger.commit(&plan)?;
                ((ledger, cursors), Some(Damaged { event, forgotten }))
            }
            other => (other?, None),
        };
        let store = Self { folder: folder.into(), options, ledger: Some(ledger), lost: None };
        Ok(Opened { store, cursors, damaged, refused: None })
    }

    /// Keeps the ledger in another way from now on.
    pub fn keep(&mut self, options: Options) {
        if let Some(ledger) = &mut self.ledger {
            ledger.keep(options.clone());
        }
        self.options = options;
    }

    /// Books a plan, all of it or nothing. Gives what happened to the ledger itself, for people; it is
    /// booked as an event too.
    ///
    /// # Errors
    ///
    /// Every [`LedgerError`]. The plan is not booked then, and has to be taken back.
    pub fn commit(&mut self, plan: &Plan) -> Result<Vec<Event>, LedgerError> {
        let tried = match self.try_commit(plan) {
            // What was written ahead takes room that can be used again.
            Err(LedgerError::Full { .. }) if self.write_back() => self.try_commit(plan),
            tried => tried,
        };
        match tried {
            Err(LedgerError::Gone { .. }) => {
                self.lose("ledger-replaced", "the ledger was gone".to_owned());
            }
            Err(LedgerError::Replaced { .. }) => {
                let what = "the ledger was replaced by another file";
                self.lose("ledger-replaced", what.to_owned());
            }
            Err(LedgerError::Corrupt { .. }) => {
                self.ledger = None;
                let aside = file::set_aside(&file::path(&self.folder), plan.at)?;
                let what =
                    format!("the ledger was damaged and is set aside as {}", aside.display());
                // Whatever else is still to be told, where it is now must be.
                self.lost = Some(Lost { kind: "ledger-damaged", what, made: false });
            }
            Err(error @ LedgerError::ReadOnly { .. }) => {
                // It was opened when it could only be read, so it wrote nothing, and never will.
                self.ledger = None;
                return Err(error);
            }
            other => return other,
        }
        self.try_commit(plan)
    }

    /// What was open is given up. It is told with the next plan that is booked, whenever that is.
    fn lose(&mut self, kind: &'static str, what: String) {
        self.ledger = None;
        self.lost.get_or_insert(Lost { kind, what, made: false });
    }

    /// Whether anything of what was written ahead is in the ledger's own pages now.
    fn write_back(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.write_back().unwrap_or(false))
    }

    fn try_commit(&mut self, plan: &Plan) -> Result<Vec<Event>, LedgerError> {
        let ledger = match &mut self.ledger {
            Some(ledger) => ledger,
            None => {
                let (ledger, made) = Ledger::open(&self.folder, self.options.clone())?;
                if let Some(lost) = &mut self.lost {
                    lost.made |= made;
                }
                self.ledger.insert(ledger)
            }
        };
        let Some(lost) = &self.lost else {
            ledger.commit(plan)?;
            return Ok(Vec::new());
        };
        let news = lost.event(plan);
        let mut plan = plan.clone();
        plan.events.push(news.clone());
        ledger.commit(&plan)?;
        self.lost = None;
        Ok(vec![news])
    }

    /// Sums up and lets go, a little at a time: to be called after each commit. `now` is seconds of Unix
    /// time.
    ///
    /// # Errors
    ///
    /// Every [`LedgerError`]; what was not done is done later.
    pub fn tidy(&mut self, now: i64) -> Result<(), LedgerError> {
        let Some(ledger) = &mut self.ledger else { return Ok(()) };
        for _ in 0..STEPS {
            if ledger.tidy(now)? == Tidied::Nothing {
                break;
            }
        }
        Ok(())
    }
}

fn set_aside_at_the_start(now: i64, aside: &Path, error: &LedgerError, forgotten: bool) -> Event {
    let then = if forgotten {
        "where it had come to cannot be read"
    } else {
        "it goes on from where the damaged one had come to"
    };
    let aside = aside.display();
    Event {
        at: i128::from(now) * 1_000_000_000,
        kind: "ledger-damaged".to_owned(),
        subject: None,
        what: format!("{error}: set aside as {aside}, and a new one is begun; {then}"),
    }
}

/// What a ledger goes on from that takes no room to be read, or is damaged elsewhere.
fn read_alone(folder: &Path) -> rusqlite::Result<Cursors> {
    let path = file::path(folder);
    let Some(db) = file::open_alone(&path)? else { return Ok(Cursors::default()) };
    // The start that began it found no room for more.
    if schema::is_empty(&db)? {
        return Ok(Cursors::default());
    }
    match schema::is_newest(&db) {
        Ok(true) => cursors(&db),
        // An older one says it in another way.
        Ok(false) => Err(rusqlite::Error::InvalidQuery),
        Err(error) => Err(error),
    }
}

/// What happened to a ledger that was open.
#[derive(Debug)]
struct Lost {
    kind: &'static str,
    what: String,
    /// Another one was made since.
    made: bool,
}

impl Lost {
    fn event(&self, plan: &Plan) -> Event {
        let then = if self.made { "a new one is begun" } else { "the one that is there goes on" };
        Event {
            at: i128::from(plan.at) * 1_000_000_000,
            kind: self.kind.to_owned(),
            subject: None,
            what: format!("{}; {then}", self.what),
        }
    }
}

//! The ledger on a thread of its own: a disk that is slow or sick never delays a tick.
//!
//! One plan is under way at a time. While it is, what is counted stays owed; a plan that could not be
//! booked comes back and is owed again.

use std::{
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::second_of;
use crate::{
    accounting::{
        tick::{Begin, Plan, State},
        usage::Event,
    },
    ledger::{Damaged, LedgerError, Options, Store},
    view::json,
};

/// How long the end waits for the disk.
const LAST: Duration = Duration::from_secs(20);
/// How long somebody who asked for something waits for it, at most twice.
const MOMENT: Duration = Duration::from_millis(500);

/// What is to be booked, and how the ledger is kept from then on where that is another way.
type Order = (Plan, Option<Options>);

/// What came of a plan.
enum Outcome {
    /// It is booked. Gives what happened to the ledger itself.
    Booked(Vec<Event>),
    Refused(Box<(Plan, LedgerError)>),
}

/// Whether what is counted is booked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Everything was booked at the last tick.
    #[default]
    Booked,
    /// Nothing is since this time, seconds of Unix time; why, and what helps.
    Refused {
        /// Time of the first plan that was refused.
        since: i64,
        /// Why, safe to print.
        why: String,
        /// What helps.
        remedy: String,
    },
}

/// The daemon's end of the ledger.
pub(crate) struct Books {
    plans: SyncSender<Order>,
    outcomes: Receiver<Outcome>,
    /// Time of the plan that is under way.
    under_way: Option<i64>,
    /// How the ledger is to be kept, until it is told with a plan.
    fresh: Option<Options>,
    standing: Standing,
}

impl Books {
    /// Opens the ledger of a state folder, whose lock the caller holds. Gives the state in which counting
    /// goes on.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be used at all.
    pub(crate) fn open(folder: &Path, options: Options, begin: Begin) -> Result<(Self, State)> {
        let now = second_of(begin.now);
        let opened = Store::open(folder, options, now).context("nothing can be booked")?;
        let refused = opened.refused.map(|error| {
            let remedy = error.remedy();
            (format!("{:#}", anyhow::Error::from(error)), remedy)
        });
        let mut state = State::begin(opened.cursors, begin);
        if let Some(Damaged { event, forgotten }) = opened.damaged {
            tracing::error!("{}", event.what);
            if forgotten {
                state.forgot();
            }
        }
        let (plans, to_book) = sync_channel::<Order>(1);
        let (told, outcomes) = sync_channel(1);
        let mut store = opened.store;
        thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || {
                for (plan, options) in to_book {
                    let now = plan.at;
                    if let Some(options) = options {
                        store.keep(options);
                    }
                    let outcome = match store.commit(&plan) {
                        Ok(news) => Outcome::Booked(news),
                        Err(error) => Outcome::Refused(Box::new((plan, error))),
                    };
                    let booked = matches!(outcome, Outcome::Booked(_));
                    if told.send(outcome).is_err() {
                        return;
                    }
                    if booked && let Err(error) = store.tidy(now) {
                        tracing::warn!(
                            error = format!("{:#}", anyhow::Error::from(error)),
                            "the ledger is not tidied up"
                        );
                    }
                }
                drop(store);
                drop(told);
            })
            .context("cannot start the ledger's thread")?;
        let mut books =
            Self { plans, outcomes, under_way: None, fresh: None, standing: Standing::default() };
        if let Some((why, remedy)) = refused {
            books.refused(now, why, remedy);
        }
        Ok((books, state))
    }

    /// Keeps the ledger in another way from the next plan on.
    pub(super) fn keep(&mut self, options: Options) {
        self.fresh = Some(options);
    }

    /// Books what is owed, unless the last plan is still under way.
    pub(super) fn book(&mut self, state: &mut State, now: i64) {
        match self.outcomes.try_recv() {
            Ok(outcome) => self.take(outcome, state),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        if self.under_way.is_none() {
            self.send(state, now);
        }
    }

    /// Books what is owed and waits a moment for it, because somebody will look.
    pub(super) fn book_now(&mut self, state: &mut State, now: i64) {
        if self.wait(state, MOMENT) {
            self.send(state, now);
            self.wait(state, MOMENT);
        }
    }

    /// Books what is owed and waits for it.
    pub(super) fn settle(&mut self, state: &mut State, now: i64) {
        if !self.wait(state, LAST) {
            return self.silent();
        }
        self.send(state, now);
        if !self.wait(state, LAST) {
            self.silent();
        }
    }

    /// Books what is owed for the last time, and waits for it.
    pub(super) fn close(&mut self, state: &mut State, now: i64) {
        self.settle(state, now);
        if let Standing::Refused { since, .. } = &self.standing {
            let since = json::time(i128::from(*since) * 1_000_000_000);
            tracing::error!(%since, "what was counted since then is not booked, and is lost");
        }
    }

    /// Whether what is counted is booked.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    fn send(&mut self, state: &mut State, now: i64) {
        let plan = state.plan(now);
        self.under_way = Some(now);
        if let Err(error) = self.plans.send((plan, self.fresh.take())) {
            // Its thread has ended, which it does not do.
            self.under_way = None;
            state.take_back(error.0.0);
            let why = "the ledger's thread has ended".to_owned();
            self.refused(now, why, "start the daemon again".to_owned());
        }
    }

    fn silent(&self) {
        tracing::error!("the ledger does not answer: the last plan may not be booked");
    }

    /// Waits for the plan that is under way. Says whether it came back.
    fn wait(&mut self, state: &mut State, time: Duration) -> bool {
        if self.under_way.is_none() {
            return true;
        }
        match self.outcomes.recv_timeout(time) {
            Ok(outcome) => {
                self.take(outcome, state);
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    fn take(&mut self, outcome: Outcome, state: &mut State) {
        let at = self.under_way.take().unwrap_or_default();
        match outcome {
            Outcome::Booked(news) => {
                for event in news {
                    tracing::error!("{}", event.what);
                }
                if let Standing::Refused { since, .. } = std::mem::take(&mut self.standing) {
                    tracing::info!(since, "the ledger is written again: everything is booked");
                    state.note(Event {
                        at: i128::from(at) * 1_000_000_000,
                        kind: "late".to_owned(),
                        subject: None,
                        what: format!("what was counted for {} s was booked at once", at - since),
                    });
                }
            }
            Outcome::Refused(refused) => {
                let (plan, error) = *refused;
                state.take_back(plan);
                let remedy = error.remedy();
                self.refused(at, format!("{:#}", anyhow::Error::from(error)), remedy);
            }
        }
    }

    /// Says it once for each reason.
    fn refused(&mut self, at: i64, why: String, remedy: String) {
        let (since, known) = match &self.standing {
            Standing::Refused { since, why: known, .. } => (*since, *known == why),
            Standing::Booked => (at, false),
        };
        if !known {
            tracing::error!(
                error = why,
                remedy,
                "nothing is booked: counting goes on, and is kept in memory"
            );
        }
        self.standing = Standing::Refused { since, why, remedy };
    }
}

impl Drop for Books {
    /// Without plans to come the thread closes the file, so that nothing is left beside it.
    fn drop(&mut self) {
        self.plans = sync_channel(1).0;
        if self.under_way.is_none() {
            let _ended = self.outcomes.recv_timeout(LAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::PathBuf,
        sync::{Arc, Mutex, mpsc::channel},
    };

    use super::*;
    use crate::{
        accounting::{
            frame::Frame,
            reading::{Coverage, Epoch, GroupReading, Lanes, Layer, Snapshot, Traffic, Window},
            usage::Span,
        },
        ledger::{Calendar, Reader},
    };

    const DAY: i64 = 86_400;

    /// A folder that goes when it is dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("traffic-books-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn note(state: &mut State, what: &str) {
        let what = what.to_owned();
        state.note(Event { at: 0, kind: "test".to_owned(), subject: None, what });
    }

    /// A packet of counters that began under us.
    fn count(state: &mut State) {
        let tcp4 = Traffic { input_bytes: 40, input_packets: 1, ..Traffic::default() };
        let group = Arc::new("443/tcp".parse().unwrap());
        let lanes = Lanes { tcp4, ..Lanes::default() };
        let mut frame = Frame::new(0);
        frame.insert(Snapshot {
            meter: "tcx",
            layer: Layer::L3,
            epoch: Epoch(1),
            since: Some(0),
            window: Window { begin: 0, end: 0 },
            coverage: Coverage::Complete,
            groups: Arc::new([GroupReading { group, lanes, watched: true }]),
            skipped: None,
        });
        state.tick(frame, None);
    }

    fn noted(folder: &Path) -> Vec<String> {
        let reader = Reader::open(folder).unwrap().unwrap();
        let events = reader.events(Span::ALL, usize::MAX).unwrap();
        events.into_iter().map(|event| event.what).collect()
    }

    #[test]
    fn a_ledger_that_is_summed_up_let_go_or_given_back_keeps_no_tick_waiting() {
        let folder = Folder::new();
        // Whoever tidies up asks for the day, and is held there until this lets go.
        let (go, held) = channel::<()>();
        let (asks, asked) = channel();
        let held = Mutex::new((held, asks));
        let calendar = Calendar::new(move |second| {
            let held = held.lock().unwrap();
            let _ = held.1.send(());
            let _ = held.0.recv();
            let begin = second.div_euclid(DAY) * DAY;
            Span { begin, end: begin + DAY }
        });
        let options = Options { calendar, ..Options::default() };
        let begin = Begin { now: 0, boot: 1 };
        let (mut books, mut state) = Books::open(&folder.0, options, begin).unwrap();
        count(&mut state);
        books.book(&mut state, 10);
        assert!(books.wait(&mut state, LAST));
        asked.recv().unwrap();
        // It is held in the middle of its work.
        for tick in 0..100 {
            note(&mut state, &tick.to_string());
            books.book(&mut state, 10 + tick);
        }
        assert_eq!(books.standing(), &Standing::Booked);
        assert_eq!(noted(&folder.0), [""; 0]);
        drop(go);
        books.close(&mut state, 110);
        drop(books);
        let beside = fs::read_dir(&folder.0).unwrap().count();
        assert_eq!(beside, 1, "it was closed");
        let wanted: Vec<_> = (0..100).map(|tick| tick.to_string()).collect();
        assert_eq!(noted(&folder.0), wanted);
    }
}

//! Reads an API over and over on a thread of its own.
//!
//! A thread and not a task: an answer of 64 MiB takes time to take apart, and a resolver that hangs takes
//! longer. Neither may delay whoever counts packets.

use std::{sync::Arc, thread, time::Duration};

use tokio::{
    runtime::Builder,
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{Identity, OnlineUser, ProxyError, ProxyMeter};
use crate::accounting::proxy::{ApiHealth, ProxySnapshot};

/// Time between two questions of who is connected.
const ONLINE_PERIOD: Duration = Duration::from_secs(10);
/// Shortest time between two polls.
const SHORTEST: Duration = Duration::from_millis(1);

/// What is known of a proxy.
#[derive(Clone, Debug, Default)]
pub struct Latest {
    /// How often it was asked.
    pub polls: u64,
    /// How it stands; `None` before the first answer or the first deadline.
    pub health: Option<ApiHealth>,
    /// Who answered last.
    pub identity: Option<Identity>,
    /// The last answer that was good; its window says how old it is.
    pub snapshot: Option<Arc<ProxySnapshot>>,
    /// Who was connected from where at the last poll, if the proxy tells.
    pub online: Option<Arc<[OnlineUser]>>,
}

/// A proxy that is being watched. The thread ends when the last of these is gone; nobody waits for it.
#[derive(Clone, Debug)]
pub struct Watch {
    latest: watch::Receiver<Latest>,
    now: Arc<Notify>,
}

impl Watch {
    /// What is known of the proxy. Never waits for it.
    pub fn latest(&self) -> Latest {
        self.latest.borrow().clone()
    }

    /// Asks now instead of at the next interval. Does not wait for the answer.
    pub fn refresh(&self) {
        self.now.notify_one();
    }

    /// Waits until a poll has ended since this was last called, and gives what is known then.
    pub async fn changed(&mut self) -> Latest {
        // An error means that the thread is gone: then nothing will be newer.
        if self.latest.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.latest.borrow_and_update().clone()
    }
}

impl ProxyMeter {
    /// Polls at once and then at every interval, on a thread of its own, in the caller's network
    /// namespace. While the proxy is away, the interval is the pause between two tries.
    ///
    /// # Errors
    ///
    /// [`ProxyError::Start`] when there can be no more threads or files.
    pub fn spawn(mut self, period: Duration) -> Result<Watch, ProxyError> {
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(ProxyError::Start)?;
        let (sender, latest) = watch::channel(Latest::default());
        let now = Arc::new(Notify::new());
        let asked = Arc::clone(&now);
        let run = move || {
            runtime.block_on(self.keep_polling(period.max(SHORTEST), &sender, &asked));
            // Without waiting for a resolver that may still be at work.
            runtime.shutdown_background();
        };
        thread::Builder::new()
            .name("proxy-api".to_owned())
            .spawn(run)
            .map_err(ProxyError::Start)?;
        Ok(Watch { latest, now })
    }

    /// Polls until nobody wants to know.
    async fn keep_polling(
        &mut self,
        period: Duration,
        sender: &watch::Sender<Latest>,
        asked: &Notify,
    ) {
        let mut asked_online: Option<Instant> = None;
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = sender.closed() => return,
                () = asked.notified() => {}
                _ = ticks.tick() => {}
            }
            let outcome = tokio::select! {
                biased;
                () = sender.closed() => return,
                outcome = self.poll() => outcome,
            };
            let tells = outcome.is_ok() && self.identity().is_some_and(|identity| identity.online);
            sender.send_modify(|latest| {
                latest.polls += 1;
                latest.health = self.health().cloned();
                latest.identity = self.identity();
                if let Ok(snapshot) = outcome {
                    latest.snapshot = Some(Arc::new(snapshot));
                }
                if !tells {
                    latest.online = None;
                }
            });
            // After the counters, and not at each poll: some versions are asked once for each user.
            if tells && asked_online.is_none_or(|at| at.elapsed() >= ONLINE_PERIOD) {
                asked_online = Some(Instant::now());
                let online = self.online_users().await.ok().flatten();
                // Without waking those who wait for a poll.
                sender.send_if_modified(|latest| {
                    latest.online = online.map(Into::into);
                    false
                });
            }
        }
    }
}

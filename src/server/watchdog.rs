//! A thread that watches the hosts: a turn that doesn't end holds up all objects of its host, and
//! so does anything else that blocks its event loop.
//!
//! The watchdog first warns with the name of the running method, then marks the host as not ready,
//! and finally ends the process, which loses nothing that was acknowledged. It never touches a
//! host.

mod ran;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::error::ServerError;
use super::stderr;
use crate::clock;
use crate::host::{Activity, Turn};
use crate::metrics::Metrics;
use ran::{Thread, counted};

/// The limits of the time of one turn, which lasts from one await of a method to the next. Time in
/// which the thread could run but got no processor doesn't count. Zero switches a limit off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLimits {
    /// After this time a warning is logged, with class, object and method.
    pub warn: Duration,
    /// After this time the host counts as not ready, which `/ready` reports.
    pub unready: Duration,
    /// After this time the process ends itself, so that it can be started again.
    pub abort: Duration,
}

impl Default for TurnLimits {
    /// 100 ms, 250 ms and 5 s.
    fn default() -> Self {
        let [warn, unready, abort] = [100, 250, 5_000].map(Duration::from_millis);
        Self { warn, unready, abort }
    }
}

impl TurnLimits {
    /// # Errors
    /// When they aren't in ascending order.
    pub(super) fn check(self) -> Result<(), ServerError> {
        let limits = [self.warn, self.unready, self.abort].into_iter().filter(|at| !at.is_zero());
        if limits.is_sorted() {
            return Ok(());
        }
        let reason = "the limits of turns must rise: --turn-warn, then --turn-unready, then --turn-abort; 0s is \
                      never";
        Err(ServerError::Setting(reason.into()))
    }
}

/// The exit code of a process that was told to end while one of its hosts is stuck.
const STUCK: i32 = 4;
/// The time between two questions to an event loop.
const ASK_PERIOD: Duration = Duration::from_millis(100);

/// Static, because signals belong to the process.
static TOLD_TO_END: AtomicBool = AtomicBool::new(false);

/// From now on a stuck host ends the process, even where the limits of turns wouldn't.
pub(crate) fn told_to_end() {
    TOLD_TO_END.store(true, Ordering::Relaxed);
}

/// The time between two checks of the thread. A turn is noticed up to this time after it began.
const PERIOD: Duration = Duration::from_millis(20);

/// The handle that adds hosts; the thread ends when all handles are gone.
#[derive(Clone)]
pub(super) struct Watchdog(Arc<Mutex<Vec<Watched>>>);

impl Watchdog {
    /// # Errors
    /// When the operating system gives no thread.
    pub(super) fn start(limits: TurnLimits, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let watchdog = Self(Arc::default());
        let hosts = Arc::downgrade(&watchdog.0);
        let look = move || watch(&hosts, limits, &metrics);
        std::thread::Builder::new().name("capstead-watchdog".into()).spawn(look)?;
        Ok(watchdog)
    }

    pub(super) fn watch(&self, number: u16, activity: Arc<Activity>) {
        let watched = Watched {
            number,
            activity,
            beat: None,
            unasked: Duration::ZERO,
            held: None,
            ran: None,
            took: Duration::ZERO,
            stage: Stage::Quiet,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
    }

    /// Watches the event loop of this thread, which runs the host, until the result is dropped.
    pub(super) fn beat(&self, number: u16) -> Beating {
        let beat = Arc::new(Beat { thread: Thread::present(), ..Beat::default() });
        for host in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if host.number == number {
                host.beat = Some(Arc::downgrade(&beat));
            }
        }
        let theirs = beat.clone();
        let task = tokio::task::spawn_local(async move { theirs.answer().await });
        Beating { beat, task: task.abort_handle() }
    }
}

/// Shows that an event loop makes progress: one of its tasks answers each question.
#[derive(Default)]
struct Beat {
    asked: AtomicU64,
    answered: AtomicU64,
    ask: Notify,
    is_over: AtomicBool,
    thread: Option<Thread>,
}

impl Beat {
    async fn answer(&self) {
        loop {
            self.ask.notified().await;
            self.answered.store(self.asked.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Called by the watchdog only.
    fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.ask.notify_one();
    }

    /// The unanswered question, if there is one.
    fn owed(&self) -> Option<u64> {
        let asked = self.asked.load(Ordering::Relaxed);
        let is_owed = self.answered.load(Ordering::Relaxed) != asked;
        (is_owed && !self.is_over.load(Ordering::Relaxed)).then_some(asked)
    }
}

/// An event loop that is watched until this is dropped.
pub(super) struct Beating {
    beat: Arc<Beat>,
    task: AbortHandle,
}

impl Drop for Beating {
    fn drop(&mut self) {
        // The task may end much later.
        self.beat.is_over.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

fn watch(hosts: &Weak<Mutex<Vec<Watched>>>, limits: TurnLimits, metrics: &Metrics) {
    let mut last = clock::monotonic();
    loop {
        std::thread::sleep(PERIOD);
        let Some(hosts) = hosts.upgrade() else { return };
        // Time in which the whole process stood still is no host's fault.
        let now = clock::monotonic();
        let passed = now.duration_since(last).min(PERIOD * 5);
        last = now;
        for host in hosts.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if host.look(passed, limits, metrics) == Stage::Over {
                end(host.number);
            }
        }
    }
}

/// Ends the process; no thread of it can prevent that.
fn end(number: u16) -> ! {
    if TOLD_TO_END.load(Ordering::Relaxed) {
        let last = format!(
            "capstead: told to end, and the thread of host {number} doesn't move: the process ends as it \
             is; all that was answered is durable\n"
        );
        stderr::put(last.into_bytes());
        stderr::flush();
        signal_hook::low_level::exit(STUCK);
    }
    stderr::flush();
    std::process::abort()
}

/// The reason why a host makes no progress.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Turn(Turn),
    /// No single visible turn: none runs, or they change unseen. Holds the question that the event
    /// loop has not answered, and the number of turns by then.
    Loop {
        owed: u64,
        turns: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Quiet,
    Warned,
    Unready,
    Over,
}

struct Watched {
    number: u16,
    activity: Arc<Activity>,
    beat: Option<Weak<Beat>>,
    /// The time since the event loop was last asked.
    unasked: Duration,
    held: Option<Held>,
    /// The state of the thread at the last check, while something holds the host up.
    ran: Option<ran::ThreadState>,
    took: Duration,
    stage: Stage,
}

impl Watched {
    /// Checks the host, and returns the stage that it has reached.
    fn look(&mut self, passed: Duration, limits: TurnLimits, metrics: &Metrics) -> Stage {
        let held = self.held(passed);
        let thread = if held.is_some() { self.beat() } else { None };
        let ran = thread.and_then(|beat| beat.thread.as_ref()?.look());
        let before = std::mem::replace(&mut self.ran, ran);
        if held.is_none() || held != self.held {
            self.ended(metrics);
            (self.held, self.took) = (held, Duration::ZERO);
            return self.stage;
        }
        self.took += counted(passed, before, ran);
        let is_turn = matches!(self.held, Some(Held::Turn(_)));
        let ends_anyway = limits.abort.is_zero() && TOLD_TO_END.load(Ordering::Relaxed);
        // A slow disk is no reason to start again, unless the process was told to end.
        let is_at_disk = self.activity.is_at_disk() && !TOLD_TO_END.load(Ordering::Relaxed);
        let abort = match limits.abort {
            _ if ends_anyway => TurnLimits::default().abort,
            _ if is_at_disk => Duration::ZERO,
            abort => abort,
        };
        let stages = [
            // Only a turn gets a warning: otherwise there is no method to name, and a busy
            // machine is just as slow.
            (Stage::Warned, if is_turn { limits.warn } else { Duration::ZERO }),
            (Stage::Unready, limits.unready),
            (Stage::Over, abort),
        ];
        for (stage, limit) in stages {
            if self.stage < stage && !limit.is_zero() && self.took >= limit {
                self.reach(stage, metrics);
            }
        }
        self.stage
    }

    fn beat(&self) -> Option<Arc<Beat>> {
        self.beat.as_ref().and_then(Weak::upgrade)
    }

    fn held(&mut self, passed: Duration) -> Option<Held> {
        self.unasked += passed;
        let owed = self.beat().and_then(|beat| {
            let owed = beat.owed();
            if owed.is_none() && self.unasked >= ASK_PERIOD {
                self.unasked = Duration::ZERO;
                beat.ask();
            }
            owed
        });
        let turn = self.activity.current().map(Held::Turn);
        turn.or_else(|| owed.map(|owed| Held::Loop { owed, turns: self.activity.beats() }))
    }

    fn reach(&mut self, stage: Stage, metrics: &Metrics) {
        self.stage = stage;
        let Some(held) = &self.held else { return };
        let (host, took) = (self.number, format_args!("{} ms", self.took.as_millis()));
        if stage == Stage::Unready {
            metrics.hosts_unready.add(1);
        }
        let Held::Turn(turn) = held else {
            return match stage {
                Stage::Quiet | Stage::Warned => {}
                Stage::Unready => {
                    tracing::error!(host, %took, "a host's event loop stands still outside of a turn, and isn't ready");
                }
                Stage::Over => {
                    tracing::error!(host, %took, "a host's event loop stands still: the process ends, to be started again");
                }
            };
        };
        let (class, object) = (turn.class, turn.object);
        let method = turn.method_name();
        match stage {
            Stage::Quiet => {}
            Stage::Warned => {
                metrics.turns_slow_total.add(1);
                tracing::warn!(host, class, ?object, method, %took, "a turn holds up its host");
            }
            Stage::Unready => {
                tracing::error!(host, class, ?object, method, %took, "a turn holds up its host, which isn't ready");
            }
            Stage::Over => {
                tracing::error!(host, class, ?object, method, %took, "a turn doesn't end: the process aborts, to be started again");
            }
        }
    }

    fn ended(&mut self, metrics: &Metrics) {
        if self.stage >= Stage::Unready {
            metrics.hosts_unready.subtract(1);
            tracing::info!(host = self.number, took = ?self.took, "the host is ready again");
        }
        self.stage = Stage::Quiet;
    }
}

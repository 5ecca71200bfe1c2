//! A thread that looks after the hosts: a turn that doesn't end holds up all objects of its host, and so
//! does whatever else keeps its event loop from going round.
//!
//! It warns with the name of what runs, then says that the host isn't ready, and at last ends the
//! process, which loses nothing that was acknowledged. It never touches a host.

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

/// The time that one turn may take, which is the time from one await of a method to the next. Time in
/// which its thread could go on and got no processor doesn't count. Zero switches a limit off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLimits {
    /// After that long a warning is logged, with class, object and method.
    pub warn: Duration,
    /// After that long the host counts as not ready, which `/ready` tells.
    pub unready: Duration,
    /// After that long the process ends itself, so that it can be started again.
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
    /// When they aren't in their order.
    pub(super) fn check(self) -> Result<(), ServerError> {
        let limits = [self.warn, self.unready, self.abort].into_iter().filter(|at| !at.is_zero());
        if limits.is_sorted() {
            return Ok(());
        }
        let reason = "the limits of turns must rise: warn, then unready, then abort; 0 is never";
        Err(ServerError::Classes(reason.into()))
    }
}

/// The exit code of a process that was told to end and has a host that doesn't move.
const STUCK: i32 = 4;
/// The time between two questions to an event loop of whether it moves.
const ASK_PERIOD: Duration = Duration::from_millis(100);

/// Signals belong to the process.
static TOLD_TO_END: AtomicBool = AtomicBool::new(false);

/// From now on, a host that doesn't move ends the process even where no turn would.
pub(crate) fn told_to_end() {
    TOLD_TO_END.store(true, Ordering::Relaxed);
}

/// The time between two looks of the thread. A turn is noticed as long as this after it began.
const PERIOD: Duration = Duration::from_millis(20);

/// The end that adds hosts; the thread ends when all of these are gone.
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

    /// Looks after this thread's event loop, which is the host's, as long as what is returned is there.
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

/// Shows that an event loop goes round: a task of it answers when it is asked.
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

    /// Only the watchdog asks.
    fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.ask.notify_one();
    }

    /// The question without an answer, if there is one.
    fn owed(&self) -> Option<u64> {
        let asked = self.asked.load(Ordering::Relaxed);
        let is_owed = self.answered.load(Ordering::Relaxed) != asked;
        (is_owed && !self.is_over.load(Ordering::Relaxed)).then_some(asked)
    }
}

/// An event loop that is looked after until this is dropped.
pub(super) struct Beating {
    beat: Arc<Beat>,
    task: AbortHandle,
}

impl Drop for Beating {
    fn drop(&mut self) {
        // The task may go much later.
        self.beat.is_over.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

fn watch(hosts: &Weak<Mutex<Vec<Watched>>>, limits: TurnLimits, metrics: &Metrics) {
    let mut last = clock::monotonic();
    loop {
        std::thread::sleep(PERIOD);
        let Some(hosts) = hosts.upgrade() else { return };
        // Time in which the whole process stood still is nobody's fault.
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

/// Ends the process, which no thread of it can keep from that.
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

/// The reason that keeps a host from going on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Turn(Turn),
    /// No turn, or one too many of them to be seen. The question that its event loop owes an answer, and
    /// the turns that it had by then.
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
    /// Since the event loop was asked last.
    unasked: Duration,
    held: Option<Held>,
    /// The thread as it was seen last, while something holds the host up.
    ran: Option<ran::Seen>,
    took: Duration,
    stage: Stage,
}

impl Watched {
    /// The stage that whatever holds up the host has reached.
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
        let abort = if ends_anyway { TurnLimits::default().abort } else { limits.abort };
        let stages = [
            // Nobody can be named whose turn is too long, and a busy machine is as slow.
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

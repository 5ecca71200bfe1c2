//! A thread that looks after the hosts: a turn that doesn't end holds up all objects of its host.
//!
//! It warns with the name of what runs, then says that the host isn't ready, and at last ends the
//! process, which loses nothing that was acknowledged. It never touches a host.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::builder::ServerError;
use crate::clock;
use crate::host::{Pulse, Seen};
use crate::metrics::Metrics;

/// How long one turn may take, which is the time from one await of a method to the next. Zero switches
/// a limit off.
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

/// How often the thread looks. A turn is noticed as long as this after it began.
const PERIOD: Duration = Duration::from_millis(20);

/// Who adds hosts; the thread ends when all of these are gone.
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

    pub(super) fn watch(&self, number: u16, pulse: Arc<Pulse>) {
        let watched =
            Watched { number, pulse, turn: None, took: Duration::ZERO, stage: Stage::Quiet };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
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
                std::process::abort();
            }
        }
    }
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
    pulse: Arc<Pulse>,
    turn: Option<Seen>,
    took: Duration,
    stage: Stage,
}

impl Watched {
    /// How far the present turn has come.
    fn look(&mut self, passed: Duration, limits: TurnLimits, metrics: &Metrics) -> Stage {
        let seen = self.pulse.look();
        if seen.is_none() || seen != self.turn {
            self.ended(metrics);
            (self.turn, self.took) = (seen, Duration::ZERO);
            return self.stage;
        }
        self.took += passed;
        let stages = [
            (Stage::Warned, limits.warn),
            (Stage::Unready, limits.unready),
            (Stage::Over, limits.abort),
        ];
        for (stage, limit) in stages {
            if self.stage < stage && !limit.is_zero() && self.took >= limit {
                self.reach(stage, metrics);
            }
        }
        self.stage
    }

    fn reach(&mut self, stage: Stage, metrics: &Metrics) {
        self.stage = stage;
        let Some(turn) = &self.turn else { return };
        let (host, took) = (self.number, format_args!("{} ms", self.took.as_millis()));
        let (class, object) = (turn.class, turn.object);
        let method = match turn.interface {
            0 => "wake".to_owned(),
            interface => format!("@{interface:#x}.@{}", turn.method),
        };
        match stage {
            Stage::Quiet => {}
            Stage::Warned => {
                metrics.turns_slow_total.add(1);
                tracing::warn!(host, class, ?object, method, %took, "a turn holds up its host");
            }
            Stage::Unready => {
                metrics.hosts_unready.add(1);
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

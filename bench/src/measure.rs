//! The methods of measurement: calls in flight, alternating rounds, medians.
//!
//! This module doesn't know what is called.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::try_join_all;

use super::note;
use capstead::{Result, failed};

/// The durations and the number of rounds of all measurements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) round: Duration,
}

/// The end of a run. Calls that were made before it are awaited.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Time(Duration),
    Calls(u64),
}

/// The result of one run.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    elapsed: Duration,
    /// The latencies of all calls, shortest first.
    latencies: Vec<Duration>,
    /// The processor time that the run cost, if a server was watched.
    cpu: Option<Cpu>,
}

/// Seconds of processor time. Unlike wall-clock time, it hardly depends on other load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub(crate) load: f64,
    pub(crate) server: f64,
}

impl Sample {
    pub(crate) fn new(elapsed: Duration, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        Self { elapsed, latencies, cpu: None }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.latencies.len() as u64
    }

    /// Calls per second, each counted `group` times: such a call does the work of a group.
    pub(crate) fn per_second_of(&self, group: u64) -> f64 {
        float(self.calls() * group) / self.elapsed.as_secs_f64()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.per_second_of(1)
    }

    /// The same sample with its processor time.
    pub(crate) fn costing(mut self, cpu: Cpu) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Microseconds of the server's processor time for each call.
    pub(crate) fn server_us(&self) -> Option<f64> {
        Some(self.cpu?.server * 1e6 / float(self.calls().max(1)))
    }

    /// The number of cores that each side used.
    fn cores(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        self.cpu.map_or_else(String::new, |cpu| {
            format!(" ({:.2} cores, load {:.2})", cpu.server / seconds, cpu.load / seconds)
        })
    }

    /// The latency that `percent` of the calls don't exceed, in microseconds.
    pub(crate) fn percentile_us(&self, percent: usize) -> f64 {
        let at = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// Keeps this number of calls in flight; each gets the number of calls made before it.
///
/// # Errors
/// The first error of a call ends the run.
pub(crate) async fn drive(
    in_flight: usize,
    until: Until,
    call: impl AsyncFn(u64) -> Result<()>,
) -> Result<Sample> {
    let next = Cell::new(0);
    let started = now();
    let worker = async || {
        let mut latencies = Vec::new();
        let mut last = started;
        loop {
            let n = next.replace(next.get() + 1);
            if until.is_over(n, last - started) {
                return Ok::<_, capnp::Error>(latencies);
            }
            call(n).await?;
            let end = now();
            latencies.push(end - last);
            last = end;
        }
    };
    let latencies = try_join_all((0..in_flight).map(|_| worker())).await?.concat();
    Ok(Sample::new(now() - started, latencies))
}

/// The same for work that blocks the thread, one step after another.
///
/// # Errors
/// The first error of a step ends the run.
pub(crate) fn drive_here(until: Until, step: impl Fn(u64) -> Result<()>) -> Result<Sample> {
    let step = async |n| step(n);
    drive(1, until, step).now_or_never().unwrap_or_else(|| Err(failed("the work had to wait")))
}

impl Until {
    /// Tells whether a run of this number of calls and this duration has reached its end.
    pub(crate) fn is_over(self, calls: u64, elapsed: Duration) -> bool {
        match self {
            Self::Time(time) => elapsed >= time,
            Self::Calls(most) => calls >= most,
        }
    }
}

impl Plan {
    /// Runs `baseline` and `measured` in turns, after a warm-up that doesn't count.
    ///
    /// # Errors
    /// The first error of either.
    pub(crate) async fn alternate(
        &self,
        name: &str,
        baseline: impl AsyncFn(Until) -> Result<Sample>,
        measured: impl AsyncFn(Until) -> Result<Sample>,
    ) -> Result<Vec<(Sample, Sample)>> {
        let warm_up = Until::Time(self.round / 4);
        baseline(warm_up).await?;
        measured(warm_up).await?;
        let mut rounds = Vec::new();
        for round in 1..=self.rounds {
            let bare = baseline(Until::Time(self.round)).await?;
            let ours = measured(Until::Time(self.round)).await?;
            let (of, bare_rate, our_rate) = (self.rounds, bare.per_second(), ours.per_second());
            let (bare_cores, our_cores) = (bare.cores(), ours.cores());
            note(&format!(
                "{name} {round}/{of}: {our_rate:.0}/s{our_cores}, \
                 baseline {bare_rate:.0}/s{bare_cores}"
            ));
            rounds.push((bare, ours));
        }
        Ok(rounds)
    }

    /// Runs `measured` for the number of rounds, and returns the median of its results.
    ///
    /// # Errors
    /// The first error.
    pub(crate) async fn repeat(
        &self,
        name: &str,
        measured: impl AsyncFn(Until) -> Result<f64>,
    ) -> Result<f64> {
        let mut values = Vec::new();
        for round in 1..=self.rounds {
            let value = measured(Until::Time(self.round)).await?;
            note(&format!("{name} {round}/{}: {value:.2}", self.rounds));
            values.push(value);
        }
        Ok(median(values))
    }
}

/// The median; zero for no values.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A count as a number to divide by.
#[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// The monotonic time, on which only measurements depend.
#[expect(clippy::disallowed_methods, reason = "durations are measured, no behaviour depends on it")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_medians_are_of_the_sorted_values() {
        let latencies = (1..=100).rev().map(Duration::from_micros).collect();
        let sample = Sample::new(Duration::from_secs(2), latencies);
        assert!((sample.percentile_us(50) - 51.0).abs() < 1e-9);
        assert!((sample.percentile_us(99) - 100.0).abs() < 1e-9);
        assert!((sample.per_second() - 50.0).abs() < 1e-9);
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median([]).abs() < 1e-9);
        assert!(Sample::new(Duration::from_secs(1), Vec::new()).percentile_us(99).abs() < 1e-9);
    }

    #[tokio::test]
    async fn a_run_makes_exactly_so_many_calls_and_ends_at_the_first_error() {
        let sample = drive(8, Until::Calls(100), async |_| Ok(())).await.unwrap();
        assert_eq!(sample.calls(), 100);
        let made = Cell::new(0);
        let failing = async |n| {
            made.set(made.get() + 1);
            if n == 3 { Err(capstead::failed("no")) } else { Ok(()) }
        };
        assert!(drive(1, Until::Calls(100), failing).await.is_err());
        assert_eq!(made.get(), 4);
    }
}

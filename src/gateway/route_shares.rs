//! The share that each reference has of a route: its requests and its open WebSockets, wherever
//! they come from. All requests that show no reference have one share together.
//!
//! Invariant: a reference that isn't good has no share, and takes none of another one's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capstead_client::sturdyref::PayloadHash;
use governor::DefaultDirectRateLimiter;
use governor::clock::{Clock, DefaultClock};
use http::StatusCode;
use lru::LruCache;

use super::routes::RowTerms;
use crate::http::{Refusal, refuse};
use crate::metrics::Metrics;

/// Shares whose last requests are remembered. The one that was quiet the longest is forgotten
/// first, and may then send as much as a new one.
const REMEMBERED_MAX: usize = 16_384;

/// The time after which a client with too many WebSockets may try again: one may have ended.
const SOCKET_WAIT: Duration = Duration::from_secs(5);

/// A row of the table, and the reference that was shown, however it was narrowed.
type Share = (usize, Option<PayloadHash>);

/// The shares that are used.
pub(super) struct RouteShares {
    rates: RefCell<LruCache<Share, DefaultDirectRateLimiter>>,
    sockets: RefCell<HashMap<Share, u32>>,
    metrics: Arc<Metrics>,
}

impl RouteShares {
    pub(super) fn new(metrics: Arc<Metrics>) -> Rc<Self> {
        let (rates, sockets) = (RefCell::new(LruCache::unbounded()), RefCell::default());
        Rc::new(Self { rates, sockets, metrics })
    }

    /// Counts a request by a row with these terms, with a reference that is good if it takes one.
    ///
    /// # Errors
    /// The answer to one that comes too soon.
    pub(super) fn admit(
        &self,
        terms: &RowTerms,
        shown: Option<PayloadHash>,
    ) -> Result<(), Refusal> {
        let Some(quota) = terms.quota else { return Ok(()) };
        let mut rates = self.rates.borrow_mut();
        let rate =
            rates.get_or_insert((terms.number, shown), || DefaultDirectRateLimiter::direct(quota));
        let now = DefaultClock::default().now();
        let wait = rate.check().err().map(|refused| refused.wait_time_from(now));
        if rates.len() > REMEMBERED_MAX {
            rates.pop_lru();
        }
        wait.map_or(Ok(()), |wait| {
            let of = if shown.is_some() { "with this reference" } else { "to this path" };
            Err(self.refuse(format!("Too many requests were sent {of}: try again later.\n"), wait))
        })
    }

    /// The place of one more WebSocket, if there is a bound of them.
    ///
    /// # Errors
    /// The answer when there are too many.
    pub(super) fn open(
        self: &Rc<Self>,
        terms: &RowTerms,
        shown: Option<PayloadHash>,
    ) -> Result<Option<SocketShare>, Refusal> {
        let Some(most) = terms.sockets else { return Ok(None) };
        let share = (terms.number, shown);
        let mut sockets = self.sockets.borrow_mut();
        let open = sockets.get(&share).copied().unwrap_or(0);
        if open >= most.get() {
            let of = if shown.is_some() { "with this reference" } else { "at this path" };
            let reason = format!("Too many WebSockets are open {of}: close one, or try later.\n");
            return Err(self.refuse(reason, SOCKET_WAIT));
        }
        sockets.insert(share, open + 1);
        Ok(Some(SocketShare { of: self.clone(), share }))
    }

    fn refuse(&self, reason: String, wait: Duration) -> Refusal {
        self.metrics.http_route_shares_refused_total.add(1);
        refuse(StatusCode::TOO_MANY_REQUESTS, reason).after(wait)
    }
}

/// The place of a WebSocket, until it is dropped.
pub(super) struct SocketShare {
    of: Rc<RouteShares>,
    share: Share,
}

impl Drop for SocketShare {
    fn drop(&mut self) {
        let mut sockets = self.of.sockets.borrow_mut();
        if let Some(open) = sockets.get_mut(&self.share) {
            *open -= 1;
            if *open == 0 {
                sockets.remove(&self.share);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use governor::Quota;

    use super::*;

    fn terms(number: usize) -> RowTerms {
        let most = NonZeroU32::new(2);
        let quota = most.map(Quota::per_second);
        RowTerms { quota, sockets: most, number, ..RowTerms::default() }
    }

    fn shown(number: u32) -> PayloadHash {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PayloadHash::from_bytes(bytes)
    }

    #[test]
    fn each_reference_has_its_share_of_each_row() {
        let shares = RouteShares::new(Arc::default());
        for (row, of) in [(0, Some(shown(1))), (0, Some(shown(2))), (1, Some(shown(1))), (2, None)]
        {
            let status = |refused: Refusal| refused.response(&http::HeaderMap::new()).status();
            let admit = || shares.admit(&terms(row), of).map_err(status);
            assert_eq!([admit(), admit()], [Ok(()), Ok(())]);
            assert_eq!(admit(), Err(StatusCode::TOO_MANY_REQUESTS));
            let (_one, two) = (shares.open(&terms(row), of), shares.open(&terms(row), of));
            assert!(two.is_ok() && shares.open(&terms(row), of).is_err());
            drop(two);
            assert!(shares.open(&terms(row), of).is_ok());
        }
        assert!(shares.sockets.borrow().is_empty(), "the sockets that were there are closed");
        assert_eq!(shares.metrics.http_route_shares_refused_total.get(), 8);
        assert!((0..1000).all(|_| shares.admit(&RowTerms::default(), None).is_ok()));
    }

    #[test]
    fn shares_that_are_quiet_are_forgotten() {
        let shares = RouteShares::new(Arc::default());
        let busy = Some(shown(u32::MAX));
        for number in 0..100_000 {
            assert!(shares.admit(&terms(0), Some(shown(number))).is_ok());
            if number % 1000 == 0 {
                let _ = shares.admit(&terms(0), busy);
            }
        }
        assert_eq!(shares.rates.borrow().len(), REMEMBERED_MAX);
        assert!(shares.rates.borrow().contains(&(0, busy)), "it was not quiet");
    }
}

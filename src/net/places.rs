//! The count of connections, of all listeners of one kind together: in all, and by address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use capstead_client::Budget;

use crate::metrics::{Count, Metrics};

/// The places for connections of all listeners of one kind, and the memory that these hold.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    max_of_peer: usize,
    taken: AtomicUsize,
    by_peer: Mutex<HashMap<IpAddr, usize>>,
    pub(crate) budget: Budget,
}

impl Places {
    /// So many places in all, and for one address.
    pub(crate) fn new(max: usize, max_of_peer: usize) -> Arc<Self> {
        let (taken, by_peer, budget) = Default::default();
        Arc::new(Self { max, max_of_peer, taken, by_peer, budget })
    }

    /// No code that holds this lock can panic.
    fn by_peer(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one more place if there is one, for any address.
    pub(crate) fn take(places: &Arc<Self>) -> Option<TakenPlace> {
        let taken = TakenPlace(places.clone());
        // If there was none, dropping `taken` takes this one back off the count.
        (places.taken.fetch_add(1, Ordering::Relaxed) < places.max).then_some(taken)
    }
}

/// The places in all and for one address, of those that are wanted, where there are descriptors for
/// so many. If these are too few, one address may have half of them at most, and never takes all.
pub(crate) fn within(descriptors: usize, (wanted, of_peer): (usize, usize)) -> (usize, usize) {
    if wanted <= descriptors {
        return (wanted, of_peer);
    }
    (descriptors, of_peer.min((descriptors / 2).max(1)))
}

/// The addresses that one client may choose from, as one of them: with IPv6, providers give each
/// customer a network of 64 bits.
pub(crate) fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// One of the [`Places`], until it is dropped.
#[derive(Debug)]
pub(crate) struct TakenPlace(Arc<Places>);

impl Drop for TakenPlace {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The reason why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// All are taken.
    OfAll,
    /// The address has as many as it may have.
    OfPeer,
}

/// The way to the places for one listener, which counts those that it has taken.
pub(crate) struct Peers {
    of_all: Arc<Places>,
    metrics: Arc<Metrics>,
    /// The metric that counts the open connections.
    open: fn(&Metrics) -> &Count,
}

impl Peers {
    pub(crate) fn new(
        of_all: Arc<Places>,
        metrics: Arc<Metrics>,
        open: fn(&Metrics) -> &Count,
    ) -> Rc<Self> {
        Rc::new(Self { of_all, metrics, open })
    }

    /// A place for one more connection from this address.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn take(self: &Rc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let peer = one_client(peer);
        let of_all = Places::take(&self.of_all).ok_or(Full::OfAll)?;
        let mut taken = self.of_all.by_peer();
        let places = taken.get(&peer).copied().unwrap_or_default();
        if places >= self.of_all.max_of_peer {
            return Err(Full::OfPeer);
        }
        taken.insert(peer, places + 1);
        drop(taken);
        (self.open)(&self.metrics).add(1);
        Ok(Place { peers: self.clone(), peer, _of_all: of_all })
    }
}

/// One connection's place, until it is dropped.
pub(crate) struct Place {
    peers: Rc<Peers>,
    pub(super) peer: IpAddr,
    _of_all: TakenPlace,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Peers { of_all, metrics, open } = &*self.peers;
        open(metrics).subtract(1);
        let mut taken = of_all.by_peer();
        if let Some(places) = taken.get_mut(&self.peer) {
            *places -= 1;
            if *places == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_one_client_share_its_places() {
        let (places, metrics) = (Places::new(9, 1), Arc::<Metrics>::default());
        let peers = Peers::new(places, metrics, |all| &all.connections);
        let take = |text: &str| peers.take(text.parse().unwrap());
        let held = [take("2001:db8::1").ok(), take("192.0.2.1").ok()];
        assert!(held.iter().all(Option::is_some));
        assert_eq!(take("2001:db8::2").err(), Some(Full::OfPeer));
        assert_eq!(take("::ffff:192.0.2.1").err(), Some(Full::OfPeer));
        assert!(take("2001:db8:0:1::1").is_ok());
    }

    #[test]
    fn a_place_is_there_again_when_a_connection_has_ended() {
        let (places, metrics) = (Places::new(3, 2), Arc::<Metrics>::default());
        let listener = || Peers::new(places.clone(), metrics.clone(), |all| &all.connections);
        let (one, other) = (listener(), listener());
        let [a, b] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        let mut held = vec![one.take(a).ok(), other.take(a).ok()];
        assert_eq!(one.take(a).err(), Some(Full::OfPeer), "all listeners count together");
        held.push(other.take(b).ok());
        assert!(held.iter().all(Option::is_some));
        assert_eq!(other.take(b).err(), Some(Full::OfAll));
        assert_eq!(metrics.connections.get(), 3, "who was refused has no place");
        held.swap_remove(0);
        assert!(one.take(b).is_ok());
        drop(held);
        assert_eq!((metrics.connections.get(), places.taken.load(Ordering::Relaxed)), (0, 0));
        assert!(places.by_peer().is_empty());
    }

    // An address took all that there were.
    #[test]
    fn one_address_gets_half_of_the_places_where_descriptors_are_scarce() {
        assert_eq!(within(636, (16_384, 4_096)), (636, 318));
        assert_eq!(within(636, (16_384, 100)), (636, 100));
        assert_eq!(within(20_000, (16_384, 4_096)), (16_384, 4_096));
        assert_eq!(within(636, (100, 100)), (100, 100), "the operator's own choice");
        assert_eq!(within(1, (16_384, 4_096)), (1, 1));
    }
}

//! The count of connections: of all listeners of one kind together, and by address at each
//! listener.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use capstead_client::Budget;

use crate::metrics::{Count, Metrics};

/// The places for connections of all listeners of one kind, and the memory that these hold.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: AtomicUsize,
    pub(crate) budget: Budget,
}

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: AtomicUsize::new(0), budget: Budget::default() })
    }

    /// Takes one more place if there is one, for any address.
    pub(crate) fn take(places: &Arc<Self>) -> Option<TakenPlace> {
        let taken = TakenPlace(places.clone());
        // If there was none, dropping `taken` takes this one back off the count.
        (places.taken.fetch_add(1, Ordering::Relaxed) < places.max).then_some(taken)
    }
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

/// The places of one listener, by address.
pub(crate) struct Peers {
    of_all: Arc<Places>,
    max: usize,
    taken: RefCell<HashMap<IpAddr, usize>>,
    metrics: Arc<Metrics>,
    /// The metric that counts the open connections.
    open: fn(&Metrics) -> &Count,
}

impl Peers {
    /// Each address may have `max` places.
    pub(crate) fn new(
        of_all: Arc<Places>,
        max: usize,
        metrics: Arc<Metrics>,
        open: fn(&Metrics) -> &Count,
    ) -> Rc<Self> {
        Rc::new(Self { of_all, max, taken: RefCell::default(), metrics, open })
    }

    /// A place for one more connection from this address.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn take(self: &Rc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let peer = one_client(peer);
        let of_all = Places::take(&self.of_all).ok_or(Full::OfAll)?;
        let mut taken = self.taken.borrow_mut();
        let places = taken.get(&peer).copied().unwrap_or_default();
        if places >= self.max {
            return Err(Full::OfPeer);
        }
        taken.insert(peer, places + 1);
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
        let Peers { taken, metrics, open, .. } = &*self.peers;
        open(metrics).subtract(1);
        let mut taken = taken.borrow_mut();
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
        let (places, metrics) = (Places::new(9), Arc::<Metrics>::default());
        let peers = Peers::new(places, 1, metrics, |all| &all.connections);
        let take = |text: &str| peers.take(text.parse().unwrap());
        let held = [take("2001:db8::1").ok(), take("192.0.2.1").ok()];
        assert!(held.iter().all(Option::is_some));
        assert_eq!(take("2001:db8::2").err(), Some(Full::OfPeer));
        assert_eq!(take("::ffff:192.0.2.1").err(), Some(Full::OfPeer));
        assert!(take("2001:db8:0:1::1").is_ok());
    }

    #[test]
    fn a_place_is_there_again_when_a_connection_has_ended() {
        let (places, metrics) = (Places::new(3), Arc::<Metrics>::default());
        let of_listener =
            |max| Peers::new(places.clone(), max, metrics.clone(), |all| &all.connections);
        let (one, other) = (of_listener(2), of_listener(2));
        let [a, b] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        let mut held = vec![one.take(a).ok(), one.take(a).ok()];
        assert_eq!(one.take(a).err(), Some(Full::OfPeer));
        held.push(other.take(a).ok());
        assert!(held.iter().all(Option::is_some), "each listener counts addresses for itself");
        assert_eq!(other.take(b).err(), Some(Full::OfAll));
        assert_eq!(metrics.connections.get(), 3, "who was refused has no place");
        held.swap_remove(0);
        assert!(one.take(b).is_ok());
        drop(held);
        assert_eq!((metrics.connections.get(), places.taken.load(Ordering::Relaxed)), (0, 0));
        assert!(one.taken.borrow().is_empty());
    }
}

//! The clients behind connections: their addresses, which a trusted proxy says, and the rate of
//! their requests.
//!
//! Invariant: nothing that a client says changes its address, unless a proxy that the operator
//! named has said it.

use std::cell::Cell;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::net::one_client;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Headers by which proxies pass on what a client told them. From others they mean nothing.
const OF_PROXIES: [HeaderName; 6] = [
    http::header::FORWARDED,
    X_FORWARDED_FOR,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// The proxies that are believed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies(Vec<IpNet>);

impl Proxies {
    /// # Errors
    /// A sentence, when one is neither an address nor a network.
    pub(crate) fn new(networks: &[String]) -> Result<Self, String> {
        let network = |text: &String| {
            let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            parsed.map_err(|_| {
                format!(
                    "{text:?} is no proxy: give its address, like 192.0.2.7, or a network, like 10.0.0.0/8"
                )
            })
        };
        networks.iter().map(network).collect::<Result<_, _>>().map(Self)
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address of the client at whose end `peer` is, or of the one for which that speaks.
    /// Takes out what a client has no right to say.
    pub(super) fn client(&self, peer: IpAddr, headers: &mut HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.contains(peer) {
            // Nearly always there is none, and looking costs less than to remove each.
            if headers.keys().any(|name| OF_PROXIES.contains(name)) {
                for name in &OF_PROXIES {
                    headers.remove(name);
                }
            }
            return peer;
        }
        // Each proxy appends the address that it saw, so the last one that isn't a proxy is the
        // client's. The client may have made up those before it.
        let mut client = peer;
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        for said in lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(',')) {
            let Some(address) = address(said.trim()) else { break };
            client = address;
            if !self.contains(client) {
                break;
            }
        }
        client
    }
}

/// An address, perhaps with a port as some proxies add it.
fn address(said: &str) -> Option<IpAddr> {
    let bare = said.strip_prefix('[').and_then(|rest| rest.split(']').next());
    let parsed = bare.unwrap_or(said).parse::<IpAddr>().ok();
    let with_port = || said.parse::<std::net::SocketAddr>().ok().map(|parsed| parsed.ip());
    parsed.or_else(with_port).map(|address| address.to_canonical())
}

type Limiter = RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>;

/// The rate at which each client may send requests.
pub(super) struct Rate {
    /// None without a bound.
    limiter: Option<Limiter>,
    /// With more clients than this, the quiet ones are forgotten.
    forget_at: Cell<usize>,
}

impl Rate {
    /// The number of clients up to which none is forgotten.
    const REMEMBERED: usize = 10_000;

    pub(super) fn new(per_second: Option<NonZeroU32>) -> Self {
        let limiter = per_second.map(|rate| RateLimiter::hashmap(Quota::per_second(rate)));
        Self { limiter, forget_at: Cell::new(Self::REMEMBERED) }
    }

    /// Counts a request of this client.
    ///
    /// # Errors
    /// The time after which there may be one.
    pub(super) fn admit(&self, client: IpAddr) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if limiter.len() >= self.forget_at.get() {
            limiter.retain_recent();
            // So that a crowd of active clients isn't looked through at each request.
            self.forget_at.set(Self::REMEMBERED.max(2 * limiter.len()));
        }
        let now = DefaultClock::default().now();
        limiter.check_key(&one_client(client)).map_err(|refused| refused.wait_time_from(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &[&str], peer: &str, said: &[&str]) -> (String, usize) {
        let proxies = proxies.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let mut headers = HeaderMap::new();
        for said in said {
            headers.append(X_FORWARDED_FOR, said.parse().unwrap());
        }
        let proxies = Proxies::new(&proxies).unwrap();
        let found = proxies.client(peer.parse().unwrap(), &mut headers);
        (found.to_string(), headers.len())
    }

    #[test]
    fn only_a_proxy_that_was_named_says_whose_request_it_is() {
        let known: &[_] = &["192.0.2.7", "10.0.0.0/8", "2001:db8::/32"];
        for (proxies, peer, said, expected) in [
            (&[][..], "192.0.2.7", &["203.0.113.1"][..], "192.0.2.7"),
            (known, "198.51.100.1", &["203.0.113.1"], "198.51.100.1"),
            (known, "192.0.2.7", &[], "192.0.2.7"),
            (known, "192.0.2.7", &["203.0.113.1"], "203.0.113.1"),
            (known, "::ffff:192.0.2.7", &["203.0.113.1"], "203.0.113.1"),
            // Made up by the client, before what the proxy added.
            (known, "192.0.2.7", &["10.1.1.1, 198.51.100.9, 203.0.113.1"], "203.0.113.1"),
            (known, "192.0.2.7", &["198.51.100.9", "203.0.113.1, 10.2.3.4"], "203.0.113.1"),
            (known, "192.0.2.7", &["203.0.113.1, nonsense"], "192.0.2.7"),
            (known, "192.0.2.7", &["nonsense, 10.2.3.4"], "10.2.3.4"),
            (known, "192.0.2.7", &["203.0.113.1:4711"], "203.0.113.1"),
            (known, "2001:db8::1", &["[2001:db9::2]:4711"], "2001:db9::2"),
            (known, "2001:db8::1", &["2001:db9::2"], "2001:db9::2"),
        ] {
            let (found, left) = client(proxies, peer, said);
            assert_eq!(found, expected, "{peer} {said:?}");
            let is_believed = peer != "198.51.100.1" && !proxies.is_empty();
            assert_eq!(left, if is_believed { said.len() } else { 0 }, "{peer} {said:?}");
        }
        for wrong in ["", "example.com", "10.0.0.0/33", "10.0.0.0/8,192.0.2.7"] {
            assert!(Proxies::new(&[wrong.to_owned()]).unwrap_err().contains(wrong));
        }
    }

    #[test]
    fn a_client_that_asks_too_often_waits_and_no_other_does() {
        let rate = Rate::new(NonZeroU32::new(2));
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        assert_eq!([rate.admit(one), rate.admit(one)], [Ok(()), Ok(())]);
        let wait = rate.admit(one).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        assert_eq!(rate.admit(other), Ok(()));
        assert!((0..1000).all(|_| Rate::new(None).admit(one).is_ok()));
    }

    #[test]
    fn addresses_that_one_client_chooses_from_are_one_client() {
        let rate = Rate::new(NonZeroU32::new(1));
        assert!(rate.admit("2001:db8:0:1::1".parse().unwrap()).is_ok());
        assert!(rate.admit("2001:db8:0:1::2".parse().unwrap()).is_err());
        assert!(rate.admit("2001:db8:0:2::1".parse().unwrap()).is_ok());
    }

    #[test]
    fn clients_that_are_quiet_are_forgotten() {
        let rate = Rate::new(NonZeroU32::new(1_000_000));
        for number in 0..100_000_u32 {
            let _ = rate.admit(std::net::Ipv4Addr::from(number).into());
        }
        let limiter = rate.limiter.as_ref().unwrap();
        assert!(limiter.len() <= Rate::REMEMBERED + 1000, "{}", limiter.len());
    }
}

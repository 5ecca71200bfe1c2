//! The text of a reference: `capstead://host:port/#<base64url>`, or with the scheme `capstead+tls`.
//!
//! The scheme says how its listeners are spoken to: `capstead+tls` always by TLS, `capstead` in the clear on
//! this machine and by TLS everywhere else. The address is a hint for whoever restores it. Neither is signed,
//! and neither can bring anybody to send a reference off this machine in the clear. Each reference, scheme
//! and address have one text. Nothing prints it but the methods whose name says so.

use super::refused::Flaw;
use super::{ClusterId, Refused, Sturdyref};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use zeroize::Zeroizing;

const SCHEME: &str = "capstead://";
const TLS_SCHEME: &str = "capstead+tls://";
const FRAGMENT: &str = "/#";

/// Longest text that is looked at, or written, in bytes. Sixteen links with times are shorter, and so
/// are two of the largest sets of methods.
const TEXT_BYTES_MAX: usize = 8 << 10;

const NO_TEXT: Refused = Refused::because(Flaw::Text);

/// A reference with the address where a listener of its cluster may be found.
#[derive(Clone)]
pub struct TextReference {
    /// One of the two.
    scheme: &'static str,
    address: String,
    reference: Sturdyref,
}

impl TextReference {
    /// Reads a text.
    ///
    /// # Errors
    /// It is not exactly the text of a reference: another scheme, no port, base64 that is padded or
    /// has bits left over, or bytes that are not laid out as a reference.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(NO_TEXT);
        }
        let with = |scheme| text.strip_prefix(scheme).map(|rest| (scheme, rest));
        let (scheme, rest) = with(SCHEME).or_else(|| with(TLS_SCHEME)).ok_or(NO_TEXT)?;
        let (address, encoded) = rest.split_once(FRAGMENT).ok_or(NO_TEXT)?;
        check_address(address)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(explain)?);
        let reference = Sturdyref::from_bytes(&bytes)?;
        Ok(Self { scheme, address: address.to_owned(), reference })
    }

    /// Host and port of a listener, `host:port`. A hint: the address is not signed.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The reference itself.
    pub fn reference(&self) -> &Sturdyref {
        &self.reference
    }

    /// The cluster that a listener at `address` has to prove by TLS to belong to, before it is told anything
    /// of this reference; none where it is spoken to in the clear.
    pub fn proof_needed_at(&self, address: &str) -> Option<ClusterId> {
        let needed = self.scheme == TLS_SCHEME || !is_loopback(address);
        needed.then(|| self.reference.cluster())
    }

    /// The text of another reference for the same listener, such as this one narrowed. **The text is
    /// secret**: whoever has it can use the reference.
    ///
    /// # Errors
    /// The text would be longer than 8,192 bytes: such texts are refused.
    pub fn expose_text_of(&self, other: &Sturdyref) -> Result<String, Refused> {
        other.expose(self.scheme, &self.address)
    }
}

/// All bytes are looked at before the end is.
fn explain(error: DecodeError) -> Refused {
    match error {
        DecodeError::InvalidLength(_) | DecodeError::InvalidLastSymbol(..) => {
            Refused::because(Flaw::Cut)
        }
        _ => NO_TEXT,
    }
}

impl fmt::Debug for TextReference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("TextReference")
            .field("scheme", &self.scheme)
            .field("address", &self.address)
            .field("reference", &self.reference)
            .finish()
    }
}

impl Sturdyref {
    /// The text for a listener at `address`, `host:port`. **The text is secret**: whoever has it can
    /// use the reference.
    ///
    /// # Errors
    /// `address` is not of the form `host:port`, or the text would be longer than 8,192 bytes: such
    /// texts are refused.
    pub fn expose_text(&self, address: &str) -> Result<String, Refused> {
        check_address(address)?;
        self.expose(SCHEME, address)
    }

    /// As [`expose_text`](Self::expose_text), for a listener that is spoken to by TLS alone.
    ///
    /// # Errors
    /// As for that.
    pub fn expose_tls_text(&self, address: &str) -> Result<String, Refused> {
        check_address(address)?;
        self.expose(TLS_SCHEME, address)
    }

    fn expose(&self, scheme: &str, address: &str) -> Result<String, Refused> {
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(&self.bytes));
        let parts = [scheme, address, FRAGMENT, &encoded];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > TEXT_BYTES_MAX { Err(NO_TEXT) } else { Ok(parts.concat()) }
    }
}

/// Tells whether `address`, `host:port`, is on this machine, as far as the text alone tells. A name
/// other than `localhost` is not: who resolves it may be somebody else.
pub(crate) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|host| host.is_loopback())
        || bare_v6(host).is_some_and(|host| host == Ipv6Addr::LOCALHOST)
}

/// An IPv6 address in brackets.
fn bare_v6(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// Tells whether a reference can have this address in its text: `host:port`.
pub fn is_address(text: &str) -> bool {
    check_address(text).is_ok()
}

/// A host, which is a name, an IPv4 address or an IPv6 address in brackets, and a port.
fn check_address(address: &str) -> Result<(), Refused> {
    let (host, port) = address.rsplit_once(':').ok_or(NO_TEXT)?;
    let is_name = |host: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !host.is_empty() && host.bytes().all(allowed)
    };
    let host_is_sound = is_name(host) || bare_v6(host).is_some();
    let port_is_sound = port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    if host_is_sound && port_is_sound { Ok(()) } else { Err(NO_TEXT) }
}

//! The text of a reference: `capstead://host:port/#<base64url>`, or with the scheme `capstead+tls`.
//!
//! The scheme says how to speak to the reference's listeners: `capstead+tls` always by TLS,
//! `capstead` in the clear on this machine and by TLS everywhere else. The address is a hint for
//! the client that restores it. Neither is signed, and neither can make a client send a reference
//! to another machine in the clear. A reference, scheme and address have exactly one text. Only
//! methods that say so in their names print it.

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

/// The longest text that is read or written, in bytes. Sixteen links with times are shorter, and so
/// are two of the largest sets of methods.
const TEXT_BYTES_MAX: usize = 8 << 10;

const NO_TEXT: Refused = Refused::because(Flaw::Text);

/// A reference with the address where a listener of its cluster may be found.
#[derive(Clone)]
pub struct TextReference {
    /// `capstead` or `capstead+tls`.
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
        let reference = Sturdyref::parse_owned(URL_SAFE_NO_PAD.decode(encoded).map_err(explain)?)?;
        Ok(Self { scheme, address: address.to_owned(), reference })
    }

    /// Host and port of a listener, `host:port`. It is a hint: the address is not signed.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The reference itself.
    pub fn reference(&self) -> &Sturdyref {
        &self.reference
    }

    /// The same, without the address.
    pub fn into_reference(self) -> Sturdyref {
        self.reference
    }

    /// The cluster that a listener at `address` must prove by TLS to belong to before it learns
    /// anything of this reference; `None` where the connection is in the clear.
    pub fn proof_needed_at(&self, address: &str) -> Option<ClusterId> {
        let needed = self.scheme == TLS_SCHEME || !is_loopback(address);
        needed.then(|| self.reference.cluster())
    }

    /// The text of another reference, for example this one narrowed, with the same listener. **The
    /// text is secret**: anyone who has it can use the reference.
    ///
    /// # Errors
    /// The text would be longer than 8,192 bytes, and such texts are refused.
    pub fn expose_text_of(&self, other: &Sturdyref) -> Result<String, Refused> {
        other.expose(self.scheme, &self.address)
    }
}

/// Tells a text that was cut off from one that is no reference: the decoder complains about the end
/// only when all characters before it are good.
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
    /// The text with the address of a listener, `host:port`. **The text is secret**: anyone who has
    /// it can use the reference.
    ///
    /// # Errors
    /// `address` is not of the form `host:port`, or the text would be longer than 8,192 bytes, and
    /// such texts are refused.
    pub fn expose_text(&self, address: &str) -> Result<String, Refused> {
        check_address(address)?;
        self.expose(SCHEME, address)
    }

    /// As [`expose_text`](Self::expose_text), for a listener that speaks TLS only.
    ///
    /// # Errors
    /// As for [`expose_text`](Self::expose_text).
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

/// Tells whether `address`, `host:port`, is certainly on this machine. No name other than
/// `localhost` is, because another machine may decide what it resolves to.
pub(crate) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|host| host.is_loopback())
        || bare_v6(host).is_some_and(|host| host == Ipv6Addr::LOCALHOST)
}

/// An IPv6 address in brackets, without them.
fn bare_v6(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// Tells whether a reference can have this address in its text: `host:port`.
pub fn is_address(text: &str) -> bool {
    check_address(text).is_ok()
}

/// Checks for a host (a name, an IPv4 address or an IPv6 address in brackets) and a port.
fn check_address(address: &str) -> Result<(), Refused> {
    let (host, port) = address.rsplit_once(':').ok_or(NO_TEXT)?;
    let is_name = |host: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !host.is_empty() && host.bytes().all(allowed)
    };
    let host_is_sound = is_name(host) || bare_v6(host).is_some();
    // No listener has the port 0.
    let is_port = |number: u16| number > 0 && number.to_string() == port;
    let port_is_sound = port.parse().is_ok_and(is_port);
    if host_is_sound && port_is_sound { Ok(()) } else { Err(NO_TEXT) }
}

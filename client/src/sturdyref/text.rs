//! The text of a reference: `capstead://host:port/#<base64url>`.
//!
//! The address is a hint for whoever restores it, and is not signed. Each reference and address have
//! one text. Nothing prints it but the method whose name says so.

use super::verify::Reason;
use super::{Refused, Sturdyref};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use zeroize::Zeroizing;

const SCHEME: &str = "capstead://";
const FRAGMENT: &str = "/#";

/// Longest text that is looked at, or written, in bytes. Sixteen links with times are shorter, and so
/// are two of the largest sets of methods.
const TEXT_BYTES_MAX: usize = 8 << 10;

const NO_TEXT: Refused = Refused::because(Reason::Text);

/// A reference with the address where a listener of its cluster may be found.
#[derive(Clone)]
pub struct TextReference {
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
        let rest = text.strip_prefix(SCHEME).ok_or(NO_TEXT)?;
        let (address, encoded) = rest.split_once(FRAGMENT).ok_or(NO_TEXT)?;
        check_address(address)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| NO_TEXT)?);
        Ok(Self { address: address.to_owned(), reference: Sturdyref::from_bytes(&bytes)? })
    }

    /// Host and port of a listener, `host:port`. A hint: the address is not signed.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The reference itself.
    pub fn reference(&self) -> &Sturdyref {
        &self.reference
    }
}

impl fmt::Debug for TextReference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("TextReference")
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
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(&self.bytes));
        let parts = [SCHEME, address, FRAGMENT, &encoded];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > TEXT_BYTES_MAX { Err(NO_TEXT) } else { Ok(parts.concat()) }
    }
}

/// A host, which is a name, an IPv4 address or an IPv6 address in brackets, and a port.
fn check_address(address: &str) -> Result<(), Refused> {
    let (host, port) = address.rsplit_once(':').ok_or(NO_TEXT)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = |host: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !host.is_empty() && host.bytes().all(allowed)
    };
    let host_is_sound =
        bare.map_or_else(|| is_name(host), |v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    let port_is_sound = port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    if host_is_sound && port_is_sound { Ok(()) } else { Err(NO_TEXT) }
}

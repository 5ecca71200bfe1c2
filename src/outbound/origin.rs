//! The names of the objects: an origin, and a path above all requests.

use std::fmt;

use http::Uri;
use http::uri::PathAndQuery;

/// A scheme, a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) is_tls: bool,
    /// In small letters; an address of IPv6 has its brackets.
    host: String,
    port: u16,
}

/// A place outside: an origin, and the part of its paths that may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) origin: Origin,
    /// Without the slash at its end; empty for all paths.
    prefix: String,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let is_tls = match uri.scheme_str()? {
            "https" | "wss" => true,
            "http" | "ws" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        // Neither users nor empty ports.
        let has_more = authority.as_str().contains('@') || authority.as_str().ends_with(':');
        let host = authority.host().to_ascii_lowercase();
        if has_more || host.is_empty() {
            return None;
        }
        let usual = if is_tls { 443 } else { 80 };
        // A port that is none is not the usual one.
        let port = match authority.as_str()[authority.host().len()..].strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0)?,
            None => usual,
        };
        Some(Self { is_tls, host, port })
    }

    /// The host as the system and certificates name it, and the port.
    pub(super) fn address(&self) -> (&str, u16) {
        (self.host.trim_start_matches('[').trim_end_matches(']'), self.port)
    }

    /// The value of the header `Host`.
    pub(super) fn authority(&self) -> String {
        let usual = if self.is_tls { 443 } else { 80 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_tls { "https" } else { "http" }, self.authority())
    }
}

impl Destination {
    /// # Errors
    /// A sentence, when it is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let none = || {
            format!(
                "{text:?} is no origin: use one like https://api.example.com, and for objects also \
                 one with a path, like https://api.example.com/v1"
            )
        };
        let uri: Uri = text.parse().map_err(|_| none())?;
        let origin = Origin::of(&uri).ok_or_else(none)?;
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let has_more = text.contains(['?', '#']) || !is_plain(&prefix);
        if has_more { Err(none()) } else { Ok(Self { origin, prefix }) }
    }

    fn is_whole(&self) -> bool {
        self.prefix.is_empty()
    }

    /// Tells whether the other one is a part of this.
    pub(super) fn has(&self, other: &Self) -> bool {
        self.origin == other.origin && self.is_above(&other.prefix)
    }

    fn is_above(&self, path: &str) -> bool {
        let below = path.strip_prefix(&self.prefix);
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The path and the query of a request for this URL.
    ///
    /// # Errors
    /// A sentence, when it isn't in here.
    pub(super) fn path(&self, url: &str) -> Result<PathAndQuery, String> {
        let malformed = |_: http::uri::InvalidUri| format!("{url:?} is no URL");
        let path = if url.starts_with('/') {
            url.parse::<PathAndQuery>().map_err(malformed)?
        } else {
            let uri: Uri = url.parse().map_err(malformed)?;
            if Origin::of(&uri).as_ref() != Some(&self.origin) {
                return Err(format!("{url:?} is not of {}: get a reference to it", self.origin));
            }
            uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
        };
        if self.is_whole() || self.is_above(path.path()) && is_plain(path.path()) {
            return Ok(path);
        }
        Err(format!("this object asks {self} and what is below it alone"))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.prefix)
    }
}

/// Tells whether a path means to every server what it says: none of its segments leads up, and none
/// hides a separator.
fn is_plain(path: &str) -> bool {
    // Some servers decode twice.
    let mut small = path.to_ascii_lowercase();
    while small.contains("%25") {
        small = small.replace("%25", "%");
    }
    let hides = ["%2f", "%5c", "\\", "%00"].iter().any(|hidden| small.contains(hidden));
    let leads_up = |segment: &str| {
        // Some servers take the part behind a semicolon for a parameter.
        let name = segment.split(';').next().unwrap_or_default().replace("%2e", ".");
        matches!(&*name, "." | "..")
    };
    !hides && !small.split('/').any(leads_up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        for (text, shown, address) in [
            ("https://API.example.com", "https://api.example.com", ("api.example.com", 443)),
            ("wss://api.example.com:443/", "https://api.example.com", ("api.example.com", 443)),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", ("127.0.0.1", 8080)),
            ("ws://[::1]:80", "http://[::1]", ("::1", 80)),
        ] {
            let target = Destination::parse(text).unwrap();
            assert_eq!((&*target.origin.to_string(), target.origin.address()), (shown, address));
            assert!(target.is_whole());
        }
        for text in [
            "",
            "api.example.com",
            "/",
            "ftp://a",
            "https://",
            "https://a:",
            "https://a:0",
            "https://a:99999",
            "https://user@a",
            "https://a?x=1",
            "https://a/#x",
            "https://a/b/../c",
            "https://a b",
            "https://a\r\nb",
            "file:///etc/passwd",
        ] {
            assert!(Destination::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_has_what_is_below_it() {
        let has = |one: &str, other: &str| {
            Destination::parse(one).unwrap().has(&Destination::parse(other).unwrap())
        };
        assert!(has("https://a", "wss://A:443/x"));
        assert!(has("https://a/x/", "https://a/x"));
        assert!(has("https://a/x", "https://a/x/y"));
        assert!(!has("https://a/x", "https://a"));
        assert!(!has("https://a/x", "https://a/xy"));
        assert!(!has("https://a", "http://a"));
        assert!(!has("https://a", "https://a:444"));
        assert!(!has("https://a", "https://b.a"));
    }

    #[test]
    fn a_url_never_leaves_the_origin() {
        let target = Destination::parse("https://api.example.com").unwrap();
        for (url, path) in [
            ("/", "/"),
            ("/a/../b?c=d", "/a/../b?c=d"),
            ("//evil.example/x", "//evil.example/x"),
            ("https://api.example.com", "/"),
            ("https://api.example.com:443/a?b#c", "/a?b"),
        ] {
            assert_eq!(target.path(url).unwrap().as_str(), path, "{url}");
        }
        for url in [
            "",
            "*",
            "a",
            "http://api.example.com/",
            "https://evil.example/",
            "https://api.example.com:444/",
            "https://api.example.com@evil.example/",
            "https://evil.example@api.example.com/",
            "https://api.example.com.evil.example/",
            "api.example.com:443",
            "/a b",
            "/a\r\nHost: b",
        ] {
            assert!(target.path(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn a_url_never_leaves_the_path() {
        let target = Destination::parse("https://a/v1/x/").unwrap();
        for url in ["/v1/x", "/v1/x/", "/v1/x?q=/../", "/v1/x/100%25", "https://a/v1/x/y"] {
            assert!(target.path(url).is_ok(), "{url}");
        }
        for url in [
            "/",
            "/v1",
            "/v1/xy",
            "/v1/x/..",
            "/v1/x/../y",
            "/v1/x/%2e%2E/y",
            "/v1/x/.%2e/y",
            "/v1/x/..;a/y",
            "/v1/x/..%2fy",
            "/v1/x/..%252fy",
            "/v1/x\\..\\y",
            "/v1/x/%5c..",
            "//v1/x",
            "/V1/x",
        ] {
            assert!(target.path(url).is_err(), "{url}");
        }
    }
}

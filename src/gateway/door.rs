//! The door of the gateway: which requests it lets in, by the page that they come from and the host
//! that they name.
//!
//! Most paths ask nobody for credentials, so a browser that reaches the gateway would lend its
//! place on the network to every page that it shows. Browsers say which page a request comes from,
//! and a page that made its own name lead here (DNS rebinding) can't help naming itself as the
//! host.
//!
//! Invariant: headers decide only to refuse. A request that is let in has no more rights for what
//! it says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use tokio::net::TcpStream;

use crate::http::{Refusal, refuse};

/// The safe methods of HTTP/1.1. No class knows of further ones.
const SAFE: [Method; 4] = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Pages and host names that are let in beside those that always are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Door {
    origins: Vec<String>,
    hosts: Vec<String>,
}

/// The machines that reach the address to which a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This one alone.
    ThisMachine,
    Others,
}

impl Reach {
    /// That of one connection: where all addresses are listened to, each may have another.
    pub(crate) fn of(stream: &TcpStream) -> Self {
        match stream.local_addr() {
            Ok(address) if !is_loopback(address.ip()) => Self::Others,
            // A connection without an address is gone; it gets more checks, not fewer.
            _ => Self::ThisMachine,
        }
    }
}

/// The thing that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Response,
    Socket,
}

/// Tells whether only this machine reaches an address, which may be written as one of IPv6.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl Door {
    /// # Errors
    /// A sentence, when an origin or a name of a host isn't one.
    pub(crate) fn new(origins: &[String], hosts: &[String]) -> Result<Self, String> {
        Ok(Self {
            origins: origins.iter().map(|text| origin(text)).collect::<Result<_, _>>()?,
            hosts: hosts.iter().map(|text| host(text)).collect::<Result<_, _>>()?,
        })
    }

    /// Checks that the request may come in at all, by a connection to such an address. Pages of
    /// `origins` may, beside those that were given for all paths. Browsers let every page open
    /// WebSockets and read them, also to other origins.
    pub(super) fn admit(
        &self,
        reach: Reach,
        request: &http::request::Parts,
        wanted: Wanted,
        origins: &[String],
    ) -> Result<(), Refusal> {
        self.check_host(reach, request.version, &request.uri, &request.headers)?;
        let is_safe = SAFE.contains(&request.method) && wanted == Wanted::Response;
        if is_safe || self.is_of_this_origin(request, origins) {
            return Ok(());
        }
        let reason = "A page of another origin may not change anything here, nor open a WebSocket. Start \
                      the server with `--http-origin` and the page's origin to allow it, or name it in \
                      the `origins` of the route.\n";
        Err(refuse(StatusCode::FORBIDDEN, reason))
    }

    /// Checks that the host that a request names may be this one.
    ///
    /// # Errors
    /// The answer to a request that names none, several, or another one.
    pub(crate) fn check_host(
        &self,
        reach: Reach,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        // At other addresses everybody can reach it anyway, and its names are unknown here unless
        // they are given.
        let is_checked = reach == Reach::ThisMachine || !self.hosts.is_empty();
        let mut named = headers.get_all(HOST).iter();
        let named = match (named.next(), named.next()) {
            (Some(host), None) => Some(host.to_str().unwrap_or("\0")),
            (None, _) if version < Version::HTTP_11 => None,
            _ => return Err(refuse(StatusCode::BAD_REQUEST, "A request has one Host header.\n")),
        };
        // A URL in the request line counts before the header, and a proxy may have looked at
        // either.
        let all = named.into_iter().chain(uri.authority().map(Authority::as_str));
        for host in all {
            let malformed = || refuse(StatusCode::BAD_REQUEST, "The Host header is malformed.\n");
            let is_known = if host.is_empty() {
                !is_checked
            } else {
                let host = authority(host).ok_or_else(malformed)?;
                !is_checked || self.is_host(&name(&host))
            };
            if !is_known {
                let reason = "This server isn't the host that the request names. Start it with \
                              `--http-host` and that name if it should be.\n";
                return Err(refuse(StatusCode::MISDIRECTED_REQUEST, reason));
            }
        }
        Ok(())
    }

    fn is_host(&self, name: &str) -> bool {
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_loopback = match address {
            Ok(address) => is_loopback(address),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        };
        is_loopback || self.hosts.iter().any(|host| host == name)
    }

    /// Tells whether pages of any origin were let in beside the server's own, here or with
    /// `origins`.
    pub(super) fn knows_origins(&self, origins: &[String]) -> bool {
        !self.origins.is_empty() || !origins.is_empty()
    }

    /// The origin of the page that the request comes from, if its pages were let in, here or with
    /// `origins`.
    pub(super) fn known_origin<'a>(
        &self,
        headers: &'a HeaderMap,
        origins: &[String],
    ) -> Option<&'a HeaderValue> {
        let mut named = headers.get_all(ORIGIN).iter();
        let origin = named.next().filter(|_| named.next().is_none())?;
        self.origins
            .iter()
            .chain(origins)
            .any(|known| known.as_bytes() == origin.as_bytes())
            .then_some(origin)
    }

    /// Programs other than browsers name no origin.
    fn is_of_this_origin(&self, request: &http::request::Parts, origins: &[String]) -> bool {
        let headers = &request.headers;
        if self.known_origin(headers, origins).is_some() {
            return true;
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = match (origins.next(), origins.next()) {
            (origin, None) => origin.map(|origin| origin.to_str().unwrap_or("null")),
            _ => return false,
        };
        if headers.contains_key(SEC_FETCH_SITE) {
            let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
            return sites.all(|site| site == "same-origin" || site == "none");
        }
        let Some(origin) = origin else { return true };
        // Older browsers name only the origin, which is then that of this host.
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let page = origin.split_once("://").map(|(_, page)| page);
        page.zip(host).is_some_and(|(page, host)| page.eq_ignore_ascii_case(host))
    }
}

/// The name of the host that a request is for, once the door let it in.
pub(super) fn named_host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if let Some(authority) = uri.authority() {
        return Some(name(authority));
    }
    let host = headers.get(HOST)?.to_str().ok()?;
    authority(host).as_ref().map(name)
}

/// `host` or `host:port`.
fn authority(text: &str) -> Option<Authority> {
    text.parse::<Authority>().ok().filter(|parsed| !text.contains('@') && !parsed.host().is_empty())
}

fn name(authority: &Authority) -> String {
    authority.host().trim_end_matches('.').to_ascii_lowercase()
}

/// An origin as browsers write it, in lower case and without the port that its scheme has anyway. A
/// text of any other form would let nobody in.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let wrong = |what: &str| {
        let like = "give one origin, like https://app.example or http://localhost:3000";
        format!("{text:?} is no origin{what}: {like}")
    };
    let lower = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
    let (scheme, page) = lower.split_once("://").ok_or_else(|| wrong(""))?;
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(wrong("")),
    };
    let at = page.rfind(':').filter(|at| !page[*at..].contains(']'));
    let (host, port) = page.split_at(at.unwrap_or(page.len()));
    let Some(host) = canonical(host) else { return Err(wrong(", since its host is none")) };
    let Some(digits) = port.strip_prefix(':') else { return Ok(format!("{scheme}://{host}")) };
    match digits.parse::<u16>() {
        Ok(number) if number == 0 || number.to_string() != digits => {
            Err(wrong(", since its port is none"))
        }
        Ok(number) if number == usual => Ok(format!("{scheme}://{host}")),
        Ok(number) => Ok(format!("{scheme}://{host}:{number}")),
        Err(_) => Err(wrong(", since its port is none")),
    }
}

fn host(text: &str) -> Result<String, String> {
    let name = canonical(text.strip_suffix('.').unwrap_or(text));
    name.ok_or_else(|| {
        format!(
            "{text:?} is no name of a host: give one, like app.example or 192.0.2.7, without a port and \
             without *"
        )
    })
}

/// A name or an address as browsers write it; none if it is neither.
fn canonical(host: &str) -> Option<String> {
    if let Some(address) = host.strip_prefix('[') {
        let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
        let [.., high, low] = address.segments();
        let is_mapped = address.to_ipv4_mapped().is_some();
        return Some(if is_mapped {
            format!("[::ffff:{high:x}:{low:x}]")
        } else {
            format!("[{address}]")
        });
    }
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let mut labels = host.strip_suffix('.').unwrap_or(host).split('.');
    if !host.bytes().all(is_good) || labels.clone().any(str::is_empty) {
        return None;
    }
    // To browsers a name that ends in a number is an address.
    let last = labels.next_back()?;
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    if is_number && host.parse::<Ipv4Addr>().is_err() {
        return None;
    }
    Some(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(origins: &[&str], hosts: &[&str]) -> Door {
        let owned = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Door::new(&owned(origins), &owned(hosts)).unwrap()
    }

    /// That of a request by loopback.
    fn status(door: &Door, request: &str) -> u16 {
        status_of(door, Reach::ThisMachine, request)
    }

    fn status_of(door: &Door, reach: Reach, request: &str) -> u16 {
        let mut words = request.split('|');
        let mut built =
            http::Request::builder().method(words.next().unwrap()).uri(words.next().unwrap());
        for header in words {
            let (name, value) = header.split_once(": ").unwrap_or((header, ""));
            built = built.header(name, value);
        }
        let request = built.body(()).unwrap().into_parts().0;
        let refused =
            door.admit(reach, &request, crate::gateway::socket::wanted(&request), &[]).err();
        refused.map_or(200, |refused| refused.response(&request.headers).status().as_u16())
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_and_those_that_were_given_are_hosts() {
        let door = door(&[], &["App.Example"]);
        for host in [
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:7f00:1]",
            "a.localhost",
            "localhost.",
            "app.example",
            "app.example:99",
        ] {
            assert_eq!(status(&door, &format!("GET|/|Host: {host}")), 200, "{host}");
            assert_eq!(
                status(&door, &format!("GET|http://{host}/|Host: localhost")),
                200,
                "{host}"
            );
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::2]",
            "[::ffff:192.0.2.1]",
            "notlocalhost",
            "",
        ] {
            assert_eq!(status(&door, &format!("GET|/|Host: {host}")), 421, "{host}");
        }
        assert_eq!(status(&door, "GET|http://evil.example/|Host: localhost"), 421);
        for host in ["a b", "user@localhost", "localhost, evil", "localhost/", ":80"] {
            assert_eq!(status(&door, &format!("GET|/|Host: {host}")), 400, "{host}");
        }
        assert_eq!(status(&door, "GET|/"), 400);
        assert_eq!(status(&door, "GET|/|Host: localhost|Host: localhost"), 400);
    }

    #[test]
    fn elsewhere_hosts_are_looked_at_once_names_were_given() {
        assert_eq!(status_of(&door(&[], &[]), Reach::Others, "GET|/|Host: a.example"), 200);
        let named = door(&[], &["a.example"]);
        for reach in [Reach::ThisMachine, Reach::Others] {
            assert_eq!(status_of(&named, reach, "GET|/|Host: a.example"), 200);
            assert_eq!(status_of(&named, reach, "GET|/|Host: b.example"), 421);
        }
    }

    /// Some connections come to an address of this machine if all addresses are listened to.
    #[test]
    fn each_connection_is_from_here_by_its_own_address() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            for listens in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", "[::ffff:127.0.0.1]:0"] {
                // A machine may have no IPv6.
                let Ok(listener) = tokio::net::TcpListener::bind(listens).await else {
                    assert!(listens.starts_with('['), "{listens}");
                    continue;
                };
                let port = listener.local_addr().unwrap().port();
                let client = TcpStream::connect(("127.0.0.1", port));
                let (client, accepted) = tokio::join!(client, listener.accept());
                client.unwrap();
                assert_eq!(Reach::of(&accepted.unwrap().0), Reach::ThisMachine, "{listens}");
            }
        });
        for here in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(here.parse().unwrap()), "{here}");
        }
        for elsewhere in ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "::127.0.0.1"] {
            assert!(!is_loopback(elsewhere.parse().unwrap()), "{elsewhere}");
        }
    }

    #[test]
    fn pages_of_other_origins_change_nothing() {
        let door = door(&["https://App.example:443/"], &[]);
        let allowed = [
            "",
            "|Origin: http://localhost:80",
            "|Sec-Fetch-Site: same-origin|Origin: https://proxied.example",
            "|Sec-Fetch-Site: none",
            "|Sec-Fetch-Site: cross-site|Origin: https://app.example",
        ];
        let refused = [
            "|Origin: null",
            "|Origin: http://localhost",
            "|Origin: http://localhost:3000",
            "|Origin: https://evil.example",
            "|Origin: https://app.example|Origin: https://evil.example",
            "|Sec-Fetch-Site: cross-site",
            "|Sec-Fetch-Site: same-site|Origin: http://localhost:80",
            "|Sec-Fetch-Site: same-origin|Sec-Fetch-Site: cross-site",
        ];
        for headers in allowed {
            assert_eq!(
                status(&door, &format!("POST|/|Host: localhost:80{headers}")),
                200,
                "{headers}"
            );
        }
        for headers in refused {
            for method in ["POST", "PUT", "DELETE", "PATCH", "PURGE", "QUERY"] {
                let request = format!("{method}|/|Host: localhost:80{headers}");
                assert_eq!(status(&door, &request), 403, "{request}");
            }
            for method in ["GET", "HEAD", "OPTIONS"] {
                let request = format!("{method}|/|Host: localhost:80{headers}");
                assert_eq!(status(&door, &request), 200, "{request}");
            }
        }
    }

    #[test]
    fn what_is_no_origin_and_no_host_is_refused_at_the_start() {
        let origins = ["", "null", "*", "app.example", "ftp://a", "https://a/b", "https://"];
        // These were accepted once, and no browser ever writes them.
        let unheard = [
            "https://*",
            "https://*.example",
            "https://app.example:",
            "https://app.example:0443",
            "https://app.example:99999",
            "https://app.example:0",
            "https://app.example:+80",
            "https://user@app.example",
            "https://app..example",
            "https://.example",
            "https://127.1",
            "https://0x7f.0.0.0x1",
            "https://[::1",
            "https://::1",
            "https://[127.0.0.1]",
            "https://%61.example",
        ];
        for text in origins.into_iter().chain(unheard) {
            assert!(origin(text).is_err(), "{text}");
        }
        for text in ["", "a:80", "http://a", "a b", "u@a", "*:1", "*", "*.example", "a..b", "."] {
            assert!(host(text).is_err_and(|said| said.contains("without *")), "{text}");
        }
    }

    #[test]
    fn what_is_given_in_another_form_is_known_in_that_of_browsers() {
        for (text, written) in [
            ("HTTPS://App.Example:443/", "https://app.example"),
            ("http://app.example:443", "http://app.example:443"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://[0:0:0:0:0:0:0:1]", "https://[::1]"),
            ("http://[::FFFF:192.0.2.7]:80", "http://[::ffff:c000:207]"),
            ("http://192.0.2.7:8080", "http://192.0.2.7:8080"),
            ("https://my_app.example.", "https://my_app.example."),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(written));
        }
        let hosts =
            [("[0:0::2]", "[::2]"), ("App.Example.", "app.example"), ("10.0.0.1", "10.0.0.1")];
        for (text, written) in hosts {
            assert_eq!(host(text).as_deref(), Ok(written));
        }
    }
}

//! Files that are part of a program, such as the page of a class and its scripts.

use std::fmt;
use std::io::Write;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE, REFERRER_POLICY,
    VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use xxhash_rust::xxh3::xxh3_128;

use super::{Answer, Body, refuse};

/// A file that is part of the program: it changes with the program alone.
///
/// Browsers keep it and ask whether it has changed, so that it is sent once, and compressed by gzip
/// to those who take that. A client that asks for a range of it gets that, of the file as it is, so
/// that it can go on with what broke off. It comes with the headers that a page of its own should
/// have: nothing may frame it, guess its type, or learn where its links are.
///
/// ```
/// use capstead::http::{self, Answer, Body, Request, StaticFile, StatusCode};
///
/// static PAGE: StaticFile = StaticFile::new("text/html; charset=utf-8", b"<h1>hello</h1>")
///     .policy("default-src 'none'");
///
/// fn answer(request: &Request<Body>) -> Answer {
///     match request.uri().path() {
///         "/page" => PAGE.answer(request),
///         _ => Err(http::refuse(StatusCode::NOT_FOUND, "there is only /page")),
///     }
/// }
/// # let request = Request::get("/page").body(Body::default()).unwrap();
/// # assert_eq!(answer(&request).unwrap().body().as_bytes(), b"<h1>hello</h1>");
/// ```
pub struct StaticFile {
    kind: &'static str,
    policy: &'static str,
    bytes: &'static [u8],
    made: OnceLock<Made>,
}

/// The forms of a file, made when it is first asked for.
struct Made {
    /// The tag of the file as it is; the compressed one has it with `-gzip`.
    tag: String,
    /// None if compressing gains nothing.
    compressed: Option<Vec<u8>>,
}

impl StaticFile {
    /// A file of this media type.
    pub const fn new(kind: &'static str, bytes: &'static [u8]) -> Self {
        let policy = "default-src 'self'; frame-ancestors 'none'";
        Self { kind, policy, bytes, made: OnceLock::new() }
    }

    /// Sets the content security policy: what the page may load. By default it may load what comes
    /// from its own origin, and nothing may frame it.
    #[must_use]
    pub const fn policy(mut self, policy: &'static str) -> Self {
        self.policy = policy;
        self
    }

    /// The response to a request for it.
    ///
    /// # Errors
    /// 405 when the request isn't a GET.
    pub fn answer<B>(&'static self, request: &Request<B>) -> Answer {
        if request.method() != Method::GET {
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "it can only be read: use GET")
                .allow("GET, HEAD"));
        }
        let Made { tag, compressed } = self.made();
        let part = Part::of(request.headers(), tag, self.bytes.len());
        let packs = part == Part::All && takes_gzip(request.headers());
        let compressed = compressed.as_ref().filter(|_| packs);
        let suffix = if compressed.is_some() { "-gzip" } else { "" };
        let tag = format!("\"{tag}{suffix}\"");
        let mut response = Response::new(Body::default());
        for (name, value) in [
            (ACCEPT_RANGES, "bytes"),
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, self.policy),
            (REFERRER_POLICY, "no-referrer"),
            (VARY, "accept-encoding"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ] {
            insert(&mut response, name, value);
        }
        insert(&mut response, ETAG, &tag);
        if is_known(request.headers(), &tag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(response);
        }
        let length = self.bytes.len();
        if part == Part::Beyond {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            insert(&mut response, CONTENT_RANGE, &format!("bytes */{length}"));
            return Ok(response);
        }
        insert(&mut response, CONTENT_TYPE, self.kind);
        *response.body_mut() = match (part, compressed) {
            (Part::Of(first, last), _) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                insert(&mut response, CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"));
                Body::from(&self.bytes[first..=last])
            }
            (_, None) => Body::from(self.bytes),
            (_, Some(compressed)) => {
                insert(&mut response, CONTENT_ENCODING, "gzip");
                Body::from(compressed.as_slice())
            }
        };
        Ok(response)
    }

    fn made(&self) -> &Made {
        self.made.get_or_init(|| Made {
            tag: format!("{:032x}", xxh3_128(self.bytes)),
            compressed: compressed(self.bytes).filter(|made| made.len() < self.bytes.len()),
        })
    }
}

impl fmt::Debug for StaticFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.len();
        let mut shown = f.debug_struct("StaticFile");
        shown.field("kind", &self.kind).field("bytes", &bytes).finish_non_exhaustive()
    }
}

/// The part of a file that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    /// From the first of these bytes to the last.
    Of(usize, usize),
    /// Nothing of it is in the file.
    Beyond,
}

impl Part {
    /// By RFC 9110, 14: several ranges, and what is none, count for nothing.
    fn of(headers: &HeaderMap, tag: &str, length: usize) -> Self {
        let said = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        // A date is none of ours, and a weak tag doesn't say that the bytes are the same.
        let is_same = |known: &str| known.trim_matches('"') == tag && known.starts_with('"');
        let part = said(RANGE)
            .filter(|_| headers.get(IF_RANGE).is_none() || said(IF_RANGE).is_some_and(is_same));
        let range = part.and_then(|part| part.trim().strip_prefix("bytes="));
        let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
            return Self::All;
        };
        let number = |digits: &str| {
            let is_one = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // A number that is too large is beyond every end.
            is_one.then(|| digits.parse().unwrap_or(usize::MAX))
        };
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first > last => Self::All,
            (Some(first), _) if last.is_empty() || number(last).is_some() => {
                let last = number(last).unwrap_or(usize::MAX).min(length.saturating_sub(1));
                if first < length { Self::Of(first, last) } else { Self::Beyond }
            }
            (None, Some(0)) if first.is_empty() => Self::Beyond,
            (None, Some(_)) if first.is_empty() && length == 0 => Self::Beyond,
            (None, Some(count)) if first.is_empty() => {
                Self::Of(length.saturating_sub(count), length - 1)
            }
            _ => Self::All,
        }
    }
}

/// A value that is no header's is left out: the author's mistake, which shows in a browser.
fn insert(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn compressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Memory takes all that is written.
    encoder.write_all(bytes).and_then(|()| encoder.finish()).ok()
}

/// Tells whether the client takes gzip, by RFC 9110, 12.5.3: a quality of zero means that it
/// doesn't.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let quality = |wanted: &str| {
        let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).find_map(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted));
            let said = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            is_it.then(|| said.map_or(1.0, |said| said.parse::<f32>().unwrap_or_default()))
        })
    };
    quality("gzip").or_else(|| quality("*")).is_some_and(|quality| quality > 0.0)
}

/// Tells whether the client has what this tag stands for, by RFC 9110, 13.1.2.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let lines = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    let mut known = lines.flat_map(|line| line.split(',')).map(str::trim);
    known.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    static FILE: StaticFile = StaticFile::new("text/plain", &[b'x'; 10_000]);
    static SHORT: StaticFile = StaticFile::new("text/plain", b"x");

    fn ask(file: &'static StaticFile, headers: &[(&str, &str)]) -> Response<Body> {
        let request = Request::get("/");
        let request = headers.iter().fold(request, |all, (name, value)| all.header(*name, *value));
        file.answer(&request.body(()).unwrap()).unwrap()
    }

    fn header<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[test]
    fn it_is_compressed_for_those_who_take_that() {
        for (said, is_taken) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("deflate, *", true),
            ("*;q=0", false),
            ("gzip; q=0, *", false),
            ("gzip;q=0.000", false),
            ("gzip;q=nonsense", false),
            ("br", false),
            ("", false),
        ] {
            let answer = ask(&FILE, &[("accept-encoding", said)]);
            assert_eq!(header(&answer, "content-encoding") == "gzip", is_taken, "{said}");
            assert_eq!(header(&answer, "vary"), "accept-encoding");
            let mut text = Vec::new();
            if is_taken {
                assert!(answer.body().as_bytes().len() < 100);
                GzDecoder::new(answer.body().as_bytes()).read_to_end(&mut text).unwrap();
            } else {
                text.extend(answer.body().as_bytes());
            }
            assert_eq!(text, FILE.bytes);
        }
        assert_eq!(ask(&SHORT, &[("accept-encoding", "gzip")]).body().as_bytes(), b"x");
        assert_eq!(header(&ask(&FILE, &[]), "content-encoding"), "");
    }

    #[test]
    fn whoever_has_it_gets_none_again() {
        let plain = header(&ask(&FILE, &[]), "etag").to_owned();
        let gzip = header(&ask(&FILE, &[("accept-encoding", "gzip")]), "etag").to_owned();
        assert_ne!(plain, gzip, "both are the same file in other bytes");
        assert_ne!(plain, header(&ask(&SHORT, &[]), "etag"));
        for known in [&plain, &format!("W/{plain}"), &format!("\"other\", {plain}"), "*"] {
            let answer = ask(&FILE, &[("if-none-match", known)]);
            assert_eq!(answer.status(), 304, "{known}");
            assert!(answer.body().as_bytes().is_empty());
            assert_eq!(header(&answer, "etag"), plain);
        }
        for known in ["\"other\"", &gzip, "", plain.trim_matches('"')] {
            assert_eq!(ask(&FILE, &[("if-none-match", known)]).status(), 200, "{known}");
        }
        let both = [("accept-encoding", "gzip"), ("if-none-match", gzip.as_str())];
        assert_eq!(ask(&FILE, &both).status(), 304);
    }

    #[test]
    fn a_range_is_of_the_file_as_it_is() {
        static DIGITS: StaticFile = StaticFile::new("text/plain", b"0123456789");
        for (range, expected) in [
            ("bytes=0-0", Some(("0", "bytes 0-0/10"))),
            ("bytes=2-4", Some(("234", "bytes 2-4/10"))),
            ("bytes=7-", Some(("789", "bytes 7-9/10"))),
            ("bytes=7-99999999999999999999999", Some(("789", "bytes 7-9/10"))),
            ("bytes=-3", Some(("789", "bytes 7-9/10"))),
            ("bytes=-99", Some(("0123456789", "bytes 0-9/10"))),
            ("bytes=10-", Some(("", "bytes */10"))),
            ("bytes=99999999999999999999999-", Some(("", "bytes */10"))),
            ("bytes=-0", Some(("", "bytes */10"))),
            ("bytes=4-2", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("bytes=1-2,4-5", None),
            ("lines=1-2", None),
            ("", None),
        ] {
            let answer = ask(&DIGITS, &[("range", range)]);
            let (said, status) = (header(&answer, "content-range"), answer.status().as_u16());
            let body = std::str::from_utf8(answer.body().as_bytes()).unwrap();
            match expected {
                Some(("", beyond)) => {
                    assert_eq!((status, said, body), (416, beyond, ""), "{range}");
                }
                Some((part, place)) => assert_eq!((status, said, body), (206, place, part)),
                None => assert_eq!((status, said, body), (200, "", "0123456789"), "{range}"),
            }
        }
        // Of one that would be packed, too.
        let both = [("range", "bytes=0-9"), ("accept-encoding", "gzip")];
        let part = ask(&FILE, &both);
        assert_eq!((part.status().as_u16(), header(&part, "content-encoding")), (206, ""));
        assert_eq!(part.body().as_bytes(), b"xxxxxxxxxx");
        assert_eq!(header(&part, "etag"), header(&ask(&FILE, &[]), "etag"));
        // A file that has changed comes as a whole.
        let tag = header(&part, "etag").to_owned();
        for (known, status) in [
            (tag.as_str(), 206),
            (&format!("W/{tag}"), 200),
            ("\"other\"", 200),
            (tag.trim_matches('"'), 200),
            ("Sat, 28 Nov 2026 12:00:00 GMT", 200),
        ] {
            let answer = ask(&FILE, &[("range", "bytes=0-9"), ("if-range", known)]);
            assert_eq!(answer.status().as_u16(), status, "{known}");
        }
        let known = [("range", "bytes=0-9"), ("if-none-match", &tag)];
        assert_eq!(ask(&FILE, &known).status(), 304);
    }

    #[test]
    fn it_is_only_read() {
        let request = Request::post("/").body(()).unwrap();
        assert!(FILE.answer(&request).is_err());
    }
}

//! One row of the table of routes: the paths that it takes, the object to which it leads, and who
//! may come in by it.

use std::borrow::Cow;
use std::fmt::Write;
use std::num::NonZeroU32;

use governor::Quota;
use http::Method;
use percent_encoding::percent_decode_str;

use crate::gateway::classes::JsonPlace;
use crate::gateway::route::{Reference, Route};
use crate::http::secret_hash;

/// Hex digits of a secret.
const SECRET_DIGITS: usize = 64;

/// The last part of a path that takes all that follows.
const REST: &str = "*";

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(super) pattern: Pattern,
    pub(super) leads: Leads,
    pub(super) terms: RowTerms,
}

/// The requests that a row takes, of those with its path.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct RowTerms {
    /// None for all methods.
    pub(in crate::gateway) methods: Option<Vec<Method>>,
    pub(in crate::gateway) body_bytes: Option<usize>,
    /// Pages of other origins that may come in, as browsers write them.
    pub(in crate::gateway) origins: Vec<String>,
    /// They show a reference, and are for the object that it names.
    pub(in crate::gateway) needs_bearer: bool,
    /// The rate of all requests with one reference, or of all without one.
    pub(in crate::gateway) quota: Option<Quota>,
    /// The open WebSockets with one reference, or of all without one.
    pub(in crate::gateway) sockets: Option<NonZeroU32>,
    /// The place of its calls in JSON, if it leads to them.
    pub(in crate::gateway) json: Option<JsonPlace>,
    /// Tells rows apart.
    pub(in crate::gateway) number: usize,
}

impl RowTerms {
    /// Tells whether requests with this method come in. GET includes HEAD.
    pub(in crate::gateway) fn takes(&self, method: &Method) -> bool {
        let Some(methods) = &self.methods else { return true };
        methods.contains(method) || (method == Method::HEAD && methods.contains(&Method::GET))
    }
}

/// The place to which a row leads.
#[derive(Clone, Debug)]
pub(super) enum Leads {
    /// To an object, which sees the path `url`.
    Object { speaks: Speaks, class: String, by: By, url: String },
    /// To the door for Cap'n Proto.
    Capnp,
    /// To the page that opens links, and shows what is at this path.
    Link(String),
}

/// The place to which a row leads one request.
#[derive(Debug)]
pub(in crate::gateway) enum To<'a> {
    /// With `is_json`, the path that the object would see names a method.
    Object {
        is_json: bool,
        route: Route<'a>,
    },
    Capnp,
    Link(&'a str),
}

impl Leads {
    pub(super) fn is_json(&self) -> bool {
        matches!(self, Self::Object { speaks: Speaks::Json, .. })
    }
}

/// The way in which an object is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// It gets the request.
    Http,
    /// The path that it would see names a method, and the body has the parameters.
    Json,
}

/// The means by which an object is reached.
#[derive(Clone, Debug)]
pub(super) enum By {
    /// By its name, with parts of the path in braces.
    Name(String),
    /// By a reference that the operator gave.
    Reference(Reference),
    /// By the one that a request shows.
    Bearer,
}

/// The paths, and perhaps the host, of a row. Two that are equal take the same requests, whatever
/// their parts in braces are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    /// In lower case; none for every host.
    pub(super) host: Option<String>,
    path: Vec<Segment>,
    /// Any further segments fit, too.
    has_rest: bool,
}

#[derive(Clone, Debug)]
enum Segment {
    Fixed(String),
    Any { name: String, takes: Takes },
}

impl Eq for Segment {}

impl PartialEq for Segment {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(one), Self::Fixed(other)) => one == other,
            (Self::Any { takes, .. }, Self::Any { takes: other, .. }) => takes == other,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Anything,
    UpTo(usize),
    Secret,
}

/// The parts of a path that fits.
struct Parts<'p, 'a> {
    values: Vec<(&'p str, String)>,
    /// Behind the fixed part and those in braces, without a slash before it.
    rest: Option<&'a str>,
}

impl Row {
    /// `/chat`, or `chat.example/chat` for one host, to the object `name` of `class`, which sees
    /// the path `url`.
    ///
    /// # Errors
    /// A sentence, when it is no route.
    pub(crate) fn new(path: &str, class: &str, name: &str, url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("the route {path:?} can't be: {why}");
        let pattern = Pattern::parse(path).map_err(|why| wrong(&why))?;
        if name.is_empty() || !url.starts_with('/') {
            return Err(wrong("it leads to an object with a name, at a path that begins with /"));
        }
        pattern.check_name(name).map_err(wrong)?;
        let by = By::Name(name.to_owned());
        let [class, url] = [class, url].map(str::to_owned);
        let leads = Leads::Object { speaks: Speaks::Http, class, by, url };
        Ok(Self { pattern, leads, terms: RowTerms::default() })
    }

    /// The place that the path and the query are for, if they are this row's.
    pub(super) fn take<'a>(&'a self, path: &'a str, query: &'a str) -> Option<To<'a>> {
        let Parts { values, rest } = self.pattern.take(path)?;
        let (speaks, class, by, url) = match &self.leads {
            Leads::Object { speaks, class, by, url } => (*speaks, class, by, url),
            Leads::Capnp => return Some(To::Capnp),
            Leads::Link(to) => return Some(To::Link(to)),
        };
        let url = url_behind(url, rest, query);
        let route = match by {
            By::Name(name) => {
                let name = filled(name, &values);
                // No path has a line break.
                let object = Cow::Owned(format!("{class}\n{name}"));
                Route { object, class, name: name.into(), url, reference: None }
            }
            By::Reference(reference) => Route::held(class, reference.clone(), url),
            By::Bearer => Route::unnamed(class, url),
        };
        Some(To::Object { is_json: speaks == Speaks::Json, route })
    }
}

/// The path that an object sees, with its query.
fn url_behind<'a>(url: &'a str, rest: Option<&str>, query: &str) -> Cow<'a, str> {
    match rest {
        None if query.is_empty() => Cow::Borrowed(url),
        None => Cow::Owned(format!("{url}{query}")),
        Some(rest) => {
            let url = url.strip_suffix('/').unwrap_or(url);
            Cow::Owned(format!("{url}/{rest}{query}"))
        }
    }
}

/// The name with its parts in braces replaced, in one pass: a value may have braces of its own.
fn filled(name: &str, values: &[(&str, String)]) -> String {
    let mut filled = String::new();
    let mut pieces = name.split('{');
    filled.extend(pieces.next());
    for piece in pieces {
        let (called, rest) = piece.split_once('}').unwrap_or((piece, ""));
        filled.extend(values.iter().find(|(name, _)| *name == called).map(|(_, value)| &**value));
        filled.push_str(rest);
    }
    filled
}

impl Pattern {
    /// # Errors
    /// The reason why it is none, as a part of a sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let at = text.find('/').ok_or("a path begins with /")?;
        let (host, rest) = text.split_at(at);
        if !host.is_empty() && (!is_host(host) || host.trim_end_matches('.').is_empty()) {
            return Err(format!(
                "{host:?} before the path is no host: give a name like app.example, without a scheme \
                 and without a port"
            ));
        }
        let (rest, has_rest) = match rest.strip_suffix(REST) {
            Some(before) if before.ends_with('/') => (&before[..before.len() - 1], true),
            _ => (rest, false),
        };
        let path = match rest.strip_prefix('/') {
            None => Vec::new(),
            Some(rest) => rest.split('/').map(segment).collect::<Result<_, _>>()?,
        };
        // As the name that a request says is read.
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let host = (!host.is_empty()).then_some(host);
        let pattern = Self { host, path, has_rest };
        let mut names: Vec<_> = pattern.names().collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two of its parts in braces have one name".to_owned());
        }
        Ok(pattern)
    }

    /// Checks that the path has all parts in braces that the name of an object has.
    ///
    /// # Errors
    /// The reason why it can't be, as a part of a sentence.
    pub(super) fn check_name(&self, name: &str) -> Result<(), &'static str> {
        for used in name.split('{').skip(1) {
            let used = used.split_once('}').map(|(used, _)| used);
            if !self.names().any(|name| Some(name) == used) {
                return Err("the name has a part in braces that the path hasn't");
            }
        }
        Ok(())
    }

    /// The place of calls in JSON at these paths, of one method or of all.
    pub(super) fn json_place(&self, method: Option<String>) -> JsonPlace {
        let mut path = String::new();
        for segment in &self.path {
            let _ = match segment {
                Segment::Fixed(text) => write!(path, "/{text}"),
                Segment::Any { name, .. } => write!(path, "/{{{name}}}"),
            };
        }
        JsonPlace { path, parts: self.names().map(str::to_owned).collect(), method }
    }

    /// Tells whether it takes more segments than it names.
    pub(super) fn has_rest(&self) -> bool {
        self.has_rest
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.path.iter().filter_map(|segment| match segment {
            Segment::Any { name, .. } => Some(&**name),
            Segment::Fixed(_) => None,
        })
    }

    /// The parts of a path that fits.
    fn take<'a>(&self, path: &'a str) -> Option<Parts<'_, 'a>> {
        let mut values = Vec::new();
        let mut rest = Some(path.strip_prefix('/')?);
        for segment in &self.path {
            let (part, behind) = match rest?.split_once('/') {
                Some((part, behind)) => (part, Some(behind)),
                None => (rest?, None),
            };
            rest = behind;
            match segment {
                Segment::Fixed(text) if text == part => {}
                Segment::Fixed(_) => return None,
                Segment::Any { name, takes } => values.push((&**name, takes.value(part)?)),
            }
        }
        // In a name of several parts no part may pretend to be two.
        let are_parts =
            values.len() < 2 || values.iter().all(|(_, value)| !value.contains(['/', '\0']));
        let fits = are_parts && (rest.is_none() || self.has_rest);
        fits.then_some(Parts { values, rest })
    }
}

/// Tells whether a text may be a host before a path.
fn is_host(text: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.[]".contains(&byte);
    // The colons of an address stand in brackets.
    let is_address = text.starts_with('[') && text.ends_with(']');
    text.bytes().all(|byte| is_good(byte) || (is_address && byte == b':'))
}

impl Takes {
    /// The text that stands in the name.
    fn value(self, part: &str) -> Option<String> {
        let text = percent_decode_str(part).decode_utf8().ok()?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match self {
            _ if text.is_empty() => None,
            Self::Anything => Some(text.into_owned()),
            Self::UpTo(most) => (text.chars().count() <= most).then(|| text.into_owned()),
            Self::Secret => {
                let is_one = text.len() == SECRET_DIGITS && text.bytes().all(is_digit);
                is_one.then(|| secret_hash(&text))
            }
        }
    }
}

fn segment(text: &str) -> Result<Segment, String> {
    let Some(inner) = text.strip_prefix('{') else {
        let is_fixed = !text.contains(['{', '}', '?', '#', '%', '*']);
        return is_fixed.then(|| Segment::Fixed(text.to_owned())).ok_or_else(|| {
            format!(
                "{text:?} is neither a word nor a name in braces, like {{room}}, nor * at the end"
            )
        });
    };
    let inner = inner.strip_suffix('}').ok_or_else(|| format!("{text:?} has no closing brace"))?;
    let (name, takes) = match inner.split_once(':') {
        None => (inner, Takes::Anything),
        Some((name, "secret")) => (name, Takes::Secret),
        Some((name, most)) => {
            let most = most.parse().map_err(|_| {
                format!("behind the colon of {text:?} is a number of characters, or secret")
            })?;
            (name, Takes::UpTo(most))
        }
    };
    if name.is_empty() || name.contains(['{', '}']) {
        return Err(format!("{text:?} names nothing"));
    }
    Ok(Segment::Any { name: name.to_owned(), takes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route<'a>(row: &'a Row, path: &'a str, query: &'a str) -> Option<Route<'a>> {
        match row.take(path, query)? {
            To::Object { route, .. } => Some(route),
            _ => None,
        }
    }

    #[test]
    fn the_parts_of_a_path_cannot_pretend_to_be_others() {
        let name_for = |row: &Row, path| route(row, path, "").map(|route| route.name.into_owned());
        let row = Row::new("/{a}/{b}", "Room", "{a}/{b}", "/").unwrap();
        assert_eq!(name_for(&row, "/x/y").as_deref(), Some("x/y"));
        assert_eq!(name_for(&row, "/%7Bb%7D/y").as_deref(), Some("{b}/y"));
        assert_eq!(name_for(&row, "/x%2Fy/z"), None);
        let alone = Row::new("/{a}", "Room", "{a}", "/").unwrap();
        assert_eq!(name_for(&alone, "/x%2Fy").as_deref(), Some("x/y"));
    }

    #[test]
    fn the_rest_of_a_path_stands_behind_the_objects_own() {
        for (row, url, path, expected) in [
            ("/n/{a}/*", "/", "/n/x", Some("/?q")),
            ("/n/{a}/*", "/", "/n/x/", Some("/?q")),
            ("/n/{a}/*", "/", "/n/x/one/t%2Fwo", Some("/one/t%2Fwo?q")),
            ("/n/{a}/*", "/api", "/n/x", Some("/api?q")),
            ("/n/{a}/*", "/api/", "/n/x/one", Some("/api/one?q")),
            ("/n/{a}/*", "/", "/n/", None),
            ("/n/{a}/*", "/", "/nn/x", None),
            ("/*", "/", "/", Some("/?q")),
            ("/*", "/", "/a/b", Some("/a/b?q")),
            ("/n/{a}", "/", "/n/x/", None),
        ] {
            let row = Row::new(row, "Room", "room", url).unwrap();
            let found = route(&row, path, "?q").map(|route| route.url.into_owned());
            assert_eq!(found.as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn patterns_that_take_the_same_are_equal_whatever_their_parts_are_called() {
        let pattern = |text| Pattern::parse(text).unwrap();
        for (one, other) in [("/{a}", "/{b}"), ("A.example/x/*", "a.Example/x/*")] {
            assert_eq!(pattern(one), pattern(other));
        }
        for (one, other) in [
            ("/{a}", "/{a:3}"),
            ("/{a:3}", "/{a:4}"),
            ("/x", "/x/"),
            ("/x", "/x/*"),
            ("/x", "a.example/x"),
        ] {
            assert_ne!(pattern(one), pattern(other));
        }
    }

    /// The same name as in a request, whose dot at the end is cut.
    #[test]
    fn a_host_is_one_whatever_its_case_and_with_a_dot_at_the_end() {
        let parse = |text| Pattern::parse(text).unwrap();
        assert_eq!(parse("App.Example./x"), parse("app.example/x"));
        assert!(Row::new("./x", "Room", "x", "/").is_err());
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for (path, name, url) in [
            ("chat", "x", "/"),
            ("/{a", "{a}", "/"),
            ("/a}", "x", "/"),
            ("/{}", "x", "/"),
            ("/{a:many}", "{a}", "/"),
            ("/{a}", "{b}", "/"),
            ("/{a}/{a}", "{a}", "/"),
            ("/a?b", "x", "/"),
            ("/*/a", "x", "/"),
            ("/a*", "x", "/"),
            ("https://app.example/a", "x", "/"),
            ("app.example:80/a", "x", "/"),
            ("/a", "", "/"),
            ("/a", "x", "page"),
        ] {
            assert!(Row::new(path, "Room", name, url).is_err(), "{path} {name} {url}");
        }
    }
}

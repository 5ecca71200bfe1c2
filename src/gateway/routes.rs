//! The table of routes: from a path, and perhaps a host, to an object and to the path that it sees.
//! All other paths go by [`route`](super::route::route), if their class may be reached so.
//!
//! Each row is four texts, as a file of routes has them. A part of the path in braces takes any
//! text, and stands for that in the name of the object:
//!
//! | path | takes |
//! |---|---|
//! | `{room}` | one segment, decoded |
//! | `{room:32}` | one of up to 32 characters |
//! | `{room:secret}` | 64 hex digits in lower case, for which their hash stands in the name |
//!
//! Invariant: a secret of a path goes no further: not into a name, the path of the object, or a
//! log.

use std::borrow::Cow;
use std::collections::HashSet;

use percent_encoding::percent_decode_str;

use super::route::Route;
use crate::http::secret_hash;

/// Hex digits of a secret.
const SECRET_DIGITS: usize = 64;

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// In lower case; none for every host.
    host: Option<String>,
    path: Vec<Segment>,
    class: String,
    name: String,
    url: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Fixed(String),
    Any { name: String, takes: Takes },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Anything,
    UpTo(usize),
    Secret,
}

/// All rows, of which the first that fits counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    rows: Vec<Row>,
    /// In lower case: classes that nothing else leads to.
    only: HashSet<String>,
}

impl Row {
    /// `/chat`, or `chat.example/chat` for one host, to the object `name` of `class`, which sees
    /// the path `url`.
    ///
    /// # Errors
    /// A sentence, when it is no route.
    pub(crate) fn new(path: &str, class: &str, name: &str, url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("the route {path:?} can't be: {why}");
        let at = path.find('/').ok_or_else(|| wrong("a path begins with /"))?;
        let (host, rest) = path.split_at(at);
        let segments: Vec<_> = rest[1..]
            .split('/')
            .map(segment)
            .collect::<Result<_, _>>()
            .map_err(|why| wrong(&why))?;
        if name.is_empty() || !url.starts_with('/') {
            return Err(wrong("it leads to an object with a name, at a path that begins with /"));
        }
        for used in name.split('{').skip(1) {
            let used = used.split_once('}').map(|(used, _)| used);
            let is_there = |segment: &Segment| match segment {
                Segment::Any { name, .. } => Some(&**name) == used,
                Segment::Fixed(_) => false,
            };
            if !segments.iter().any(is_there) {
                return Err(wrong("the name has a part in braces that the path hasn't"));
            }
        }
        let host = (!host.is_empty()).then(|| host.to_ascii_lowercase());
        let [class, name, url] = [class, name, url].map(str::to_owned);
        Ok(Self { host, path: segments, class, name, url })
    }

    /// The object's name, if the path is this row's.
    fn name_for(&self, host: Option<&str>, path: &str) -> Option<String> {
        if self.host.is_some()
            && self.host.as_deref() != host.map(str::to_ascii_lowercase).as_deref()
        {
            return None;
        }
        let mut values = Vec::new();
        let mut parts = path.strip_prefix('/')?.split('/');
        for segment in &self.path {
            let part = parts.next()?;
            match segment {
                Segment::Fixed(text) if text == part => {}
                Segment::Fixed(_) => return None,
                Segment::Any { name: called, takes } => {
                    values.push((called.as_str(), takes.value(part)?));
                }
            }
        }
        // In a name of several parts no part may pretend to be two.
        let are_parts =
            values.len() < 2 || values.iter().all(|(_, value)| !value.contains(['/', '\0']));
        (parts.next().is_none() && are_parts).then(|| filled(&self.name, &values))
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
        let is_fixed = !text.contains(['{', '}', '?', '#', '%']);
        return is_fixed.then(|| Segment::Fixed(text.to_owned())).ok_or_else(|| {
            format!("{text:?} is neither a word nor a name in braces, like {{room}}")
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

impl Routes {
    pub(crate) fn new(rows: Vec<Row>, only: &[&str]) -> Self {
        Self { rows, only: only.iter().map(|class| class.to_lowercase()).collect() }
    }

    /// The object that a request is for. `None`: there can't be one.
    pub(super) fn find<'a>(
        &'a self,
        host: Option<&str>,
        path_and_query: &'a str,
    ) -> Option<Route<'a>> {
        let path_end = path_and_query.find('?').unwrap_or(path_and_query.len());
        let (path, query) = path_and_query.split_at(path_end);
        for row in &self.rows {
            if let Some(name) = row.name_for(host, path) {
                let url = match query {
                    "" => Cow::Borrowed(&*row.url),
                    query => Cow::Owned(format!("{}{query}", row.url)),
                };
                // No path has a line break.
                let object = Cow::Owned(format!("{}\n{name}", row.class));
                return Some(Route { object, class: &row.class, key: name.into(), url });
            }
        }
        let route = super::route::route(path_and_query)?;
        let is_open = self.only.is_empty() || !self.are_only_way_to(&route.class.to_lowercase());
        is_open.then_some(route)
    }

    /// Tells whether only rows of the table lead to objects of this class, in lower case.
    pub(super) fn are_only_way_to(&self, class: &str) -> bool {
        self.only.contains(class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn routes() -> Routes {
        let row = |path, name, url| Row::new(path, "Room", name, url).unwrap();
        let rows = vec![
            row("/chat", "front", "/page"),
            row("/", "front", "/index"),
            row("/api/room/{id:secret}/websocket", "private/{id}", "/websocket"),
            row("/api/room/{room:5}/websocket", "public/{room}", "/websocket"),
            row("app.example/x/{a}/{b}", "{b} {a}", "/"),
        ];
        Routes::new(rows, &["Room"])
    }

    fn check(path: &str, expected: Option<(&str, &str)>) {
        let routes = routes();
        let found = routes.find(Some("localhost"), path);
        let found = found.as_ref().map(|route| (&*route.key, &*route.url));
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn a_path_leads_to_the_first_row_that_takes_it() {
        check("/chat", Some(("front", "/page")));
        check("/chat?a=/b", Some(("front", "/page?a=/b")));
        check("/", Some(("front", "/index")));
        check("/api/room/a%2Fb/websocket", Some(("public/a/b", "/websocket")));
        check(
            "/api/room/%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC/websocket",
            Some(("public/üüüüü", "/websocket")),
        );
        check("/counter/x/y", Some(("x", "/y")));
        for path in [
            "/chat/",
            "/CHAT",
            "/api/room/sixsix/websocket",
            "/api/room//websocket",
            "/api/room/%ff/websocket",
            "/api/room/a/websocket/",
            "/api/room/a",
        ] {
            let routes = routes();
            let found = routes.find(None, path);
            assert!(found.is_none_or(|route| route.class != "Room"), "{path}");
        }
    }

    #[test]
    fn the_parts_of_a_path_cannot_pretend_to_be_others() {
        let row = Row::new("/{a}/{b}", "Room", "{a}/{b}", "/").unwrap();
        assert_eq!(row.name_for(None, "/x/y").as_deref(), Some("x/y"));
        assert_eq!(row.name_for(None, "/%7Bb%7D/y").as_deref(), Some("{b}/y"));
        assert_eq!(row.name_for(None, "/x%2Fy/z"), None);
        let alone = Row::new("/{a}", "Room", "{a}", "/").unwrap();
        assert_eq!(alone.name_for(None, "/x%2Fy").as_deref(), Some("x/y"));
    }

    #[test]
    fn a_class_of_routes_is_reached_in_no_other_way() {
        for path in ["/room/front/page", "/ROOM/front", "/room/private%2Fx/websocket"] {
            check(path, None);
        }
    }

    #[test]
    fn a_secret_leads_to_its_hash_and_stands_nowhere() {
        let routes = routes();
        let path = format!("/api/room/{SECRET}/websocket?x");
        let route = routes.find(None, &path).unwrap();
        assert_eq!(route.key, format!("private/{}", secret_hash(SECRET)));
        assert!(!format!("{route:?}").contains(SECRET), "{route:?}");
        let upper = path.replace(SECRET, &SECRET.to_uppercase());
        let other = routes.find(None, &upper);
        assert!(other.is_none_or(|route| route.class != "Room"), "it is written in one way");
    }

    #[test]
    fn a_route_of_a_host_is_for_that_alone() {
        let routes = routes();
        let found = |host| {
            routes
                .find(host, "/x/1/2")
                .map(|route| (route.class.to_owned(), route.key.into_owned()))
        };
        assert_eq!(found(Some("App.Example")), Some(("Room".to_owned(), "2 1".to_owned())));
        // The class `x` isn't the table's.
        assert_eq!(found(Some("other.example")), Some(("x".to_owned(), "1".to_owned())));
        assert_eq!(found(None), Some(("x".to_owned(), "1".to_owned())));
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
            ("/a?b", "x", "/"),
            ("/a", "", "/"),
            ("/a", "x", "page"),
        ] {
            assert!(Row::new(path, "Room", name, url).is_err(), "{path} {name} {url}");
        }
    }
}

//! The table of routes: from a path, and perhaps a host, to an object and to the path that it sees.
//! All other paths go by [`route`](super::route::route), if their class may be reached so, unless
//! the table is all that there is.
//!
//! A row has a path and leads to an object, by a class and a name or by a reference; [`file`] reads
//! rows from a file. A part of the path in braces takes any text, and stands for that in the name
//! of the object:
//!
//! | path | takes |
//! |---|---|
//! | `{room}` | one segment, decoded |
//! | `{room:32}` | one of up to 32 characters |
//! | `{room:secret}` | 64 hex digits in lower case, for which their hash stands in the name |
//! | `*` | at the end, all further segments as they stand, which go to the object |
//!
//! Invariant: a secret of a path goes no further: not into a name, the path of the object, or a
//! log.
//! Invariant: class names are compared as the namespaces' are, in Unicode's lower case.

mod file;
mod row;

use super::route::Route;
pub(crate) use file::parse;
use row::Leads;
pub(crate) use row::Row;
pub(super) use row::{RowTerms, To};

/// All rows, of which the first that fits counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    rows: Vec<Row>,
    /// The classes, in lower case, that are reached by rows alone.
    only: Vec<String>,
    /// Nothing is reached by another way.
    are_all: bool,
}

/// The row that takes a request, and the place to which it leads.
#[derive(Debug)]
pub(super) struct RowMatch<'a> {
    pub(super) terms: &'a RowTerms,
    pub(super) to: To<'a>,
}

impl Routes {
    pub(crate) fn new(rows: Vec<Row>, only: &[&str]) -> Self {
        let only = only.iter().map(|class| class.to_lowercase()).collect();
        Self { rows, only, are_all: false }
    }

    /// Routes beside which nothing is reached.
    pub(crate) fn alone(mut rows: Vec<Row>) -> Self {
        for (number, row) in rows.iter_mut().enumerate() {
            row.terms.number = number;
        }
        Self { rows, only: Vec::new(), are_all: true }
    }

    /// Tells whether a row leads to calls in JSON.
    pub(crate) fn have_json(&self) -> bool {
        self.rows.iter().any(|row| row.leads.is_json())
    }

    /// Tells whether a row leads to the door for Cap'n Proto.
    pub(crate) fn have_capnp(&self) -> bool {
        self.rows.iter().any(|row| matches!(row.leads, Leads::Capnp))
    }

    /// Tells whether references come in by a row.
    pub(crate) fn take_references(&self) -> bool {
        self.have_capnp() || self.rows.iter().any(|row| row.terms.needs_bearer)
    }

    /// Tells whether nothing is reached but by a row.
    pub(crate) fn are_all(&self) -> bool {
        self.are_all
    }

    /// The first row that takes the path. `host` gives the name of the request's host, in lower
    /// case, and is asked for if a row is for one.
    pub(super) fn find<'a>(
        &'a self,
        host: impl Fn() -> Option<String>,
        path_and_query: &'a str,
    ) -> Option<RowMatch<'a>> {
        let path_end = path_and_query.find('?').unwrap_or(path_and_query.len());
        let (path, query) = path_and_query.split_at(path_end);
        let named = std::cell::LazyCell::new(host);
        self.rows.iter().find_map(|row| {
            let is_for = row.pattern.host.is_none() || row.pattern.host == *named;
            let to = is_for.then(|| row.take(path, query))??;
            Some(RowMatch { terms: &row.terms, to })
        })
    }

    /// The object that a path names by its class. `None`: there can't be one.
    pub(super) fn by_class<'a>(&self, path_and_query: &'a str) -> Option<Route<'a>> {
        let route = super::route::route(path_and_query)?;
        (!self.are_all && !self.are_only_way_to(route.class)).then_some(route)
    }

    /// Tells whether only rows of the table lead to objects of this class.
    pub(super) fn are_only_way_to(&self, class: &str) -> bool {
        if class.is_ascii() {
            return self.only.iter().any(|only| only.eq_ignore_ascii_case(class));
        }
        // The names of classes are ASCII, and a few other letters are the same in lower case.
        !self.only.is_empty() && self.only.contains(&class.to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::secret_hash;

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

    fn find<'a>(routes: &'a Routes, host: Option<&str>, path: &'a str) -> Option<Route<'a>> {
        let found = routes.find(|| host.map(str::to_lowercase), path);
        let route = found.and_then(|found| match found.to {
            To::Object { route, .. } => Some(route),
            _ => None,
        });
        route.or_else(|| routes.by_class(path))
    }

    fn check(path: &str, expected: Option<(&str, &str)>) {
        let routes = routes();
        let found = find(&routes, Some("localhost"), path);
        let found = found.as_ref().map(|route| (&*route.name, &*route.url));
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
            let found = find(&routes, None, path);
            assert!(found.is_none_or(|route| route.class != "Room"), "{path}");
        }
    }

    #[test]
    fn a_class_of_routes_is_reached_in_no_other_way() {
        for path in ["/room/front/page", "/ROOM/front", "/room/private%2Fx/websocket"] {
            check(path, None);
        }
        // The sign of Kelvin is a k in lower case, for the map of the namespaces too.
        let routes = Routes::new(Vec::new(), &["Kiosk"]);
        assert_eq!("\u{212a}iosk".to_lowercase(), "kiosk");
        for class in ["kiosk", "KIOSK", "\u{212a}iosk", "\u{212a}IOS\u{212a}"] {
            assert!(routes.are_only_way_to(class), "{class}");
        }
        assert!(!routes.are_only_way_to("kiosk\u{e9}"));
    }

    #[test]
    fn a_secret_leads_to_its_hash_and_stands_nowhere() {
        let routes = routes();
        let path = format!("/api/room/{SECRET}/websocket?x");
        let route = find(&routes, None, &path).unwrap();
        assert_eq!(route.name, format!("private/{}", secret_hash(SECRET)));
        assert!(!format!("{route:?}").contains(SECRET), "{route:?}");
        let upper = path.replace(SECRET, &SECRET.to_uppercase());
        let other = find(&routes, None, &upper);
        assert!(other.is_none_or(|route| route.class != "Room"), "it is written in one way");
    }

    #[test]
    fn a_route_of_a_host_is_for_that_alone() {
        let routes = routes();
        let found = |host| {
            find(&routes, host, "/x/1/2")
                .map(|route| (route.class.to_owned(), route.name.into_owned()))
        };
        assert_eq!(found(Some("App.Example")), Some(("Room".to_owned(), "2 1".to_owned())));
        // The class `x` isn't the table's.
        assert_eq!(found(Some("other.example")), Some(("x".to_owned(), "1".to_owned())));
        assert_eq!(found(None), Some(("x".to_owned(), "1".to_owned())));
    }

    #[test]
    fn the_host_is_asked_for_where_a_row_is_for_one() {
        let never = || -> Option<String> { panic!("no row needs it") };
        let routes = Routes::new(vec![Row::new("/x", "Room", "x", "/").unwrap()], &[]);
        assert!(routes.find(never, "/x").is_some());
        assert!(routes.find(never, "/y").is_none());
    }

    #[test]
    fn a_table_that_is_all_leaves_no_other_way() {
        let routes = Routes::alone(vec![Row::new("/x", "Room", "x", "/").unwrap()]);
        assert!(find(&routes, None, "/x").is_some());
        assert!(find(&routes, None, "/room/x").is_none());
    }
}

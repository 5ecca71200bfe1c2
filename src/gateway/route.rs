//! From a path to a class, a name and the path that the object sees.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The text of a sturdyref, which nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Reference(Zeroizing<String>);

impl Reference {
    pub(super) fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The secret itself.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reference(..)")
    }
}

/// The meaning of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route<'a> {
    /// The same for one object however often it is asked for: the part of the path that names it,
    /// as it stands there.
    pub(super) object: Cow<'a, str>,
    /// The class, in any case.
    pub(super) class: &'a str,
    /// The object's name, decoded once.
    pub(super) name: Cow<'a, str>,
    /// The rest, with its slash and the query: what the object gets as its own URL.
    pub(super) url: Cow<'a, str>,
    /// The reference that leads to the object, if no class and name do. The class then has its
    /// methods, and may be none.
    pub(super) reference: Option<Reference>,
}

impl<'a> Route<'a> {
    /// The object to which a reference leads.
    pub(super) fn held(class: &'a str, reference: Reference, url: Cow<'a, str>) -> Self {
        // No path begins so, and nothing here keeps the secret longer than necessary.
        let hash = Sha256::digest(reference.expose());
        let object = Cow::Owned(format!("\n{}", STANDARD_NO_PAD.encode(hash)));
        Self { object, class, name: Cow::Borrowed(""), url, reference: Some(reference) }
    }

    /// The route itself, to be kept.
    pub(super) fn to_owned(&self) -> OwnedRoute {
        let Route { object, class, name, reference, .. } = self;
        let (object, class) = (object.clone().into_owned(), (*class).to_owned());
        OwnedRoute { object, class, name: name.clone().into_owned(), reference: reference.clone() }
    }

    /// A route to an object that has no name yet.
    pub(super) fn unnamed(class: &'a str, url: Cow<'a, str>) -> Self {
        let nothing = Cow::Borrowed("");
        Self { object: nothing.clone(), class, name: nothing, url, reference: None }
    }
}

/// A route that is kept, without the path that its object sees.
pub(super) struct OwnedRoute {
    object: String,
    class: String,
    name: String,
    reference: Option<Reference>,
}

impl OwnedRoute {
    pub(super) fn borrow(&self) -> Route<'_> {
        let Self { object, class, name, reference } = self;
        let (object, name) = (Cow::Borrowed(&**object), Cow::Borrowed(&**name));
        Route { object, class, name, url: Cow::Borrowed(""), reference: reference.clone() }
    }
}

/// `None`: it can't mean an object.
pub(super) fn route(path_and_query: &str) -> Option<Route<'_>> {
    let path_end = path_and_query.find('?').unwrap_or(path_and_query.len());
    let (path, query) = path_and_query.split_at(path_end);
    let (class, rest) = path.strip_prefix('/')?.split_once('/')?;
    let name_end = rest.find('/').unwrap_or(rest.len());
    let (name, path) = rest.split_at(name_end);
    let name = percent_decode_str(name).decode_utf8().ok()?;
    if class.is_empty() || name.is_empty() {
        return None;
    }
    let url = match (path, query) {
        ("", "") => Cow::Borrowed("/"),
        ("", query) => Cow::Owned(format!("/{query}")),
        (path, "") => Cow::Borrowed(path),
        _ => Cow::Borrowed(&path_and_query[path_end - path.len()..]),
    };
    let object = Cow::Borrowed(&path_and_query[..path_end - path.len()]);
    Some(Route { object, class, name, url, reference: None })
}

/// Tells whether a path can be taken for two: decoded, it has a part `.` or `..`, which others on
/// the way may have resolved, or a byte 0, at which others may end it.
pub(super) fn is_ambiguous(path: &str) -> bool {
    let is_dots = |part: &[u8]| matches!(part, b"." | b"..");
    // Nearly every path shows at once that it has neither.
    path.contains(['.', '%']) && {
        let path = Cow::from(percent_decode_str(path));
        path.contains(&0) || path.split(|byte| *byte == b'/').any(is_dots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_two_meanings_are_known() {
        for path in [
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%2e%2e/a",
            "/.%2E/a",
            "/a%2f..%2fb",
            "/a%2F..",
            "/a%00",
            "/a%00b/c",
        ] {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in [
            "",
            "*",
            "/",
            "/a",
            "//a",
            "/.a",
            "/a.",
            "/...",
            "/a..b",
            "/..a/b",
            "/%2e%2ea",
            "/%252e%252e",
            "/a%2fb",
            "/%ff",
            "/a%0",
            "/.well-known/x",
            "/a/v1.2",
        ] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    fn check(path: &str, expected: Option<(&str, &str, &str)>) {
        let route = route(path);
        let route = route.as_ref().map(|route| (route.class, &*route.name, &*route.url));
        assert_eq!(route, expected, "{path}");
    }

    #[test]
    fn a_path_names_class_object_and_the_objects_own_path() {
        check("/counter/x", Some(("counter", "x", "/")));
        check("/counter/x/", Some(("counter", "x", "/")));
        check("/counter/x?by=2", Some(("counter", "x", "/?by=2")));
        assert_eq!(route("/counter/a%20b/c?d").unwrap().object, "/counter/a%20b");
        check("/counter/x/increment", Some(("counter", "x", "/increment")));
        check("/counter/x/increment?by=2", Some(("counter", "x", "/increment?by=2")));
        check("/counter/a%2Fb%20c/d%2Fe", Some(("counter", "a/b c", "/d%2Fe")));
    }

    #[test]
    fn anything_else_means_no_object() {
        for path in ["", "/", "/counter", "/counter/", "//x", "counter/x", "/counter/%ff", "*"] {
            check(path, None);
        }
    }
}

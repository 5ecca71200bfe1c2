//! The rows of a file of routes, in TOML: `docs/routes.md` says what each key means.
//!
//! Invariant: an error names the line and what to do there, and shows no value that may be a
//! reference.

use std::fmt::Display;
use std::num::NonZeroU32;
use std::ops::Range;

use bytesize::ByteSize;
use capstead_client::sturdyref::TextReference;
use governor::Quota;
use http::Method;
use serde::Deserialize;
use toml::Spanned;

use super::row::{By, Leads, Pattern, Row, RowTerms, Speaks};
use crate::gateway::door;
use crate::gateway::route::Reference;
use crate::limits::NAME_BYTES_MAX;

/// A longer word of an error may be a secret, and is left out.
const WORD_BYTES_MAX: usize = 48;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    route: Vec<Spanned<Table>>,
}

/// A row as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    path: Spanned<String>,
    kind: Option<Spanned<Kind>>,
    access: Option<Spanned<Access>>,
    class: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    sturdyref: Option<Spanned<String>>,
    url: Option<Spanned<String>>,
    methods: Option<Spanned<Vec<String>>>,
    body: Option<Spanned<String>>,
    origins: Option<Spanned<Vec<String>>>,
    rate: Option<Spanned<i64>>,
    burst: Option<Spanned<i64>>,
    sockets: Option<Spanned<i64>>,
    to: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Http,
    Json,
    Capnp,
    Link,
}

/// The requests that may come in.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Access {
    Public,
    Bearer,
}

/// A mistake, and the bytes of the text that it is in.
struct Mistake {
    at: Range<usize>,
    why: String,
}

impl Mistake {
    fn new(at: Range<usize>, why: impl Display) -> Self {
        Self { at, why: why.to_string() }
    }
}

/// The rows of a file that is called `file`, for a server with these classes.
///
/// # Errors
/// A sentence with the file, the line and what to do.
pub(crate) fn parse(file: &str, text: &str, classes: &[&str]) -> Result<Vec<Row>, String> {
    rows(text, classes).map_err(|Mistake { at, why }| {
        let line = text.get(..at.start).map_or(1, |before| before.matches('\n').count() + 1);
        format!("{file}:{line}: {why}")
    })
}

fn rows(text: &str, classes: &[&str]) -> Result<Vec<Row>, Mistake> {
    let File { route } = toml::from_str(text).map_err(|error| {
        let why = format!("{}; docs/routes.md lists what a route has", plain(error.message()));
        Mistake::new(error.span().unwrap_or_default(), why)
    })?;
    if route.is_empty() {
        let why = "there is no [[route]], so that nothing would be reached by HTTP: add one, or give \
                   --http off";
        return Err(Mistake::new(0..0, why));
    }
    let mut rows: Vec<(Range<usize>, Row)> = Vec::new();
    for table in route {
        let at = table.get_ref().path.span();
        let row = table.into_inner().row(classes)?;
        if let Some((other, _)) = rows.iter().find(|(_, other)| other.pattern == row.pattern) {
            let line = text[..other.start].matches('\n').count() + 1;
            let why = format!(
                "the route at line {line} takes the same paths, so that this one would never be \
                 used: remove one of them"
            );
            return Err(Mistake::new(at, why));
        }
        rows.push((at, row));
    }
    check_links(&rows)?;
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Checks that the page behind a link is on a route that asks for a reference.
fn check_links(rows: &[(Range<usize>, Row)]) -> Result<(), Mistake> {
    for (at, row) in rows {
        let Leads::Link(to) = &row.leads else { continue };
        let takes = |other: &&Row| {
            let (ours, theirs) = (&row.pattern.host, &other.pattern.host);
            let may_meet = ours.is_none() || theirs.is_none() || ours == theirs;
            may_meet && other.take(to, "").is_some()
        };
        let mut good = rows.iter().map(|(_, other)| other).filter(takes).map(|other| {
            let is_good = other.terms.needs_bearer
                && !other.leads.is_json()
                && other.terms.takes(&Method::GET);
            (is_good, other.pattern.host.is_none() || other.pattern.host == row.pattern.host)
        });
        // The host that a browser names decides its row: all rows have to be good, up to the first
        // that takes every such host.
        let last = good.find(|(is_good, is_last)| !is_good || *is_last);
        if last.is_none_or(|(is_good, _)| !is_good) {
            let why = "the page shows what is at `to`, and no route of the kind http with access = \
                       \"bearer\" takes a GET of that: add one, or correct `to`";
            return Err(Mistake::new(at.clone(), why));
        }
    }
    Ok(())
}

/// The parser's words, without any that may be a secret which stands in a wrong place.
fn plain(message: &str) -> String {
    let is_inside = |byte: char| !byte.is_whitespace() && !matches!(byte, '`' | '"' | '\'');
    let mut plain = String::new();
    let mut rest = message;
    while !rest.is_empty() {
        let word_end = rest.find(|byte| !is_inside(byte)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(word_end);
        let is_secret = word.len() > WORD_BYTES_MAX || word.contains("://");
        plain.push_str(if is_secret { "…" } else { word });
        let gap_end = behind.find(is_inside).unwrap_or(behind.len());
        let (gap, behind) = behind.split_at(gap_end);
        plain.push_str(gap);
        rest = behind;
    }
    plain.trim_end().replace('\n', ", ")
}

impl Table {
    fn row(self, classes: &[&str]) -> Result<Row, Mistake> {
        let at = self.path.span();
        let pattern = Pattern::parse(self.path.get_ref()).map_err(|why| {
            Mistake::new(at.clone(), format!("the path can't be: {}", plain(&why)))
        })?;
        let leads = self.leads(&pattern, classes)?;
        let is_bearer = |access: &Spanned<Access>| *access.get_ref() == Access::Bearer;
        let needs_bearer = self.access.as_ref().is_some_and(is_bearer);
        let methods = match (&leads, self.methods) {
            (Leads::Object { speaks: Speaks::Http, .. }, all) => all.map(methods).transpose()?,
            (Leads::Object { .. }, None) => Some(vec![Method::GET, Method::POST]),
            (Leads::Capnp | Leads::Link(_), None) => Some(vec![Method::GET]),
            (_, Some(all)) => {
                let why = "a route of this kind has its one method: remove the methods";
                return Err(Mistake::new(all.span(), why));
            }
        };
        let json = match &leads {
            Leads::Object { speaks: Speaks::Json, url, .. } => {
                let method = (!pattern.has_rest()).then(|| url.trim_start_matches('/').to_owned());
                Some(pattern.json_place(method))
            }
            _ => None,
        };
        let (quota, sockets) = (quota(self.rate, self.burst)?, sockets(self.sockets, &leads)?);
        let terms = RowTerms {
            quota,
            sockets,
            number: 0,
            json,
            methods,
            body_bytes: self.body.map(body_bytes).transpose()?,
            origins: self.origins.map_or(Ok(Vec::new()), origins)?,
            needs_bearer,
        };
        Ok(Row { pattern, leads, terms })
    }

    fn leads(&self, pattern: &Pattern, classes: &[&str]) -> Result<Leads, Mistake> {
        let speaks = match self.kind.as_ref().map_or(Kind::Http, |kind| *kind.get_ref()) {
            Kind::Http => Speaks::Http,
            Kind::Json => Speaks::Json,
            Kind::Capnp => return self.capnp(),
            Kind::Link => return self.link(),
        };
        check_without(&[("to", span_of(self.to.as_ref()))])?;
        if let Some(class) = &self.class {
            check_class(class, classes)?;
        }
        let class = self.class.as_ref().map(|class| class.get_ref().clone());
        let by = match self.access.as_ref().map(|access| *access.get_ref()) {
            Some(Access::Public) => self.by(pattern, speaks)?,
            Some(Access::Bearer) => self.by_bearer(speaks)?,
            None => return Err(self.says_no_access()),
        };
        let url = self.url(pattern, speaks)?;
        Ok(Leads::Object { speaks, class: class.unwrap_or_default(), by, url })
    }

    fn says_no_access(&self) -> Mistake {
        let why = "the route doesn't say who may come in: add access = \"public\" for everybody who \
                   reaches the port, or access = \"bearer\" for those who show a reference";
        Mistake::new(self.path.span(), why)
    }

    /// The keys that lead to an object.
    fn of_object(&self) -> [(&'static str, Option<Range<usize>>); 5] {
        [
            ("class", span_of(self.class.as_ref())),
            ("name", span_of(self.name.as_ref())),
            ("sturdyref", span_of(self.sturdyref.as_ref())),
            ("url", span_of(self.url.as_ref())),
            ("body", span_of(self.body.as_ref())),
        ]
    }

    fn capnp(&self) -> Result<Leads, Mistake> {
        check_without(&self.of_object())?;
        check_without(&[("to", span_of(self.to.as_ref()))])?;
        // Nobody gets anything there without a reference.
        check_without(&[("access", span_of(self.access.as_ref()))])?;
        Ok(Leads::Capnp)
    }

    fn link(&self) -> Result<Leads, Mistake> {
        check_without(&self.of_object())?;
        let is_public = |access: &Spanned<Access>| *access.get_ref() == Access::Public;
        if !self.access.as_ref().is_some_and(is_public) {
            let why = "everybody gets the page that opens links, without the link's secret: say access = \
                       \"public\"";
            return Err(Mistake::new(self.path.span(), why));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
        match &self.to {
            Some(to) if to.get_ref().starts_with('/') && to.get_ref().bytes().all(is_plain) => {
                Ok(Leads::Link(to.get_ref().clone()))
            }
            Some(to) => {
                let why = "`to` is a path of letters, digits and the marks / - . _ ~";
                Err(Mistake::new(to.span(), why))
            }
            None => {
                let why = "the page needs a path to show: add to = \"/…\"";
                Err(Mistake::new(self.path.span(), why))
            }
        }
    }

    /// The reference that requests show leads to the object.
    fn by_bearer(&self, speaks: Speaks) -> Result<By, Mistake> {
        check_without(&self.of_object()[1..3])?;
        match (speaks, &self.class) {
            (Speaks::Http, Some(class)) => {
                let why = "the reference that requests show names the object: remove the class";
                Err(Mistake::new(class.span(), why))
            }
            (Speaks::Json, None) => Err(self.says_no_methods()),
            _ => Ok(By::Bearer),
        }
    }

    fn says_no_methods(&self) -> Mistake {
        let why =
            "calls in JSON need the class of the object, which has its methods: add class = \"…\"";
        Mistake::new(self.path.span(), why)
    }

    /// The object that the route leads to.
    fn by(&self, pattern: &Pattern, speaks: Speaks) -> Result<By, Mistake> {
        match (&self.class, &self.name, &self.sturdyref) {
            (Some(_), Some(name), None) => {
                let text = name.get_ref();
                let why = match pattern.check_name(text) {
                    _ if text.starts_with("capstead") && text.contains("://") => {
                        "the name is a reference: give that as sturdyref, and remove class and name"
                            .to_owned()
                    }
                    _ if text.is_empty() || text.len() > NAME_BYTES_MAX => {
                        format!("the name of an object has 1 to {NAME_BYTES_MAX} bytes")
                    }
                    Ok(()) => return Ok(By::Name(text.clone())),
                    Err(why) => format!("{why}: take one that the path has"),
                };
                Err(Mistake::new(name.span(), why))
            }
            (class, None, Some(sturdyref)) => {
                if TextReference::parse(sturdyref.get_ref()).is_err() {
                    let why = "the sturdyref is none, or is cut off: copy the whole text once more";
                    return Err(Mistake::new(sturdyref.span(), why));
                }
                match (class, speaks) {
                    (Some(class), Speaks::Http) => {
                        let why = "the sturdyref names the object already: remove the class";
                        Err(Mistake::new(class.span(), why))
                    }
                    (None, Speaks::Json) => Err(self.says_no_methods()),
                    _ => Ok(By::Reference(Reference::new(sturdyref.get_ref()))),
                }
            }
            (_, Some(name), Some(_)) => {
                let why = "the sturdyref names the object already: remove the name";
                Err(Mistake::new(name.span(), why))
            }
            _ => {
                let why = "the route leads nowhere: give it a class and a name, or a sturdyref";
                Err(Mistake::new(self.path.span(), why))
            }
        }
    }

    /// The path that the object sees, or the method that is called.
    fn url(&self, pattern: &Pattern, speaks: Speaks) -> Result<String, Mistake> {
        let url = self.url.as_ref().map_or("/", |url| url.get_ref());
        let at = self.url.as_ref().map_or(self.path.span(), Spanned::span);
        if !url.starts_with('/') || url.contains(['?', '#', ' ']) || !url.is_ascii() {
            let why = "the url is no path: it begins with / and has no query";
            return Err(Mistake::new(at, why));
        }
        if speaks == Speaks::Json && (url == "/") != pattern.has_rest() {
            let why = "a route of the kind json calls the method that url says, like url = \"/read\", or \
                       the one that the end of the path says: then that is *, and there is no url";
            return Err(Mistake::new(at, why));
        }
        Ok(url.to_owned())
    }
}

/// Checks that none of these keys is there.
fn check_without(keys: &[(&str, Option<Range<usize>>)]) -> Result<(), Mistake> {
    for (key, at) in keys {
        if let Some(at) = at {
            let why = format!("a route of this kind and access has no {key}: remove that");
            return Err(Mistake::new(at.clone(), why));
        }
    }
    Ok(())
}

/// The requests that come in, by the second and at once.
fn quota(
    rate: Option<Spanned<i64>>,
    burst: Option<Spanned<i64>>,
) -> Result<Option<Quota>, Mistake> {
    let quota = match (&rate, &burst) {
        (Some(rate), _) => Quota::per_second(number("rate", "requests per second", rate)?),
        (None, None) => return Ok(None),
        (None, Some(burst)) => {
            let why = "burst says how many requests of a rate may come at once: add a rate";
            return Err(Mistake::new(burst.span(), why));
        }
    };
    let burst = burst.map(|burst| number("burst", "requests at once", &burst)).transpose()?;
    Ok(Some(burst.map_or(quota, |burst| quota.allow_burst(burst))))
}

/// The WebSockets that may be open.
fn sockets(sockets: Option<Spanned<i64>>, leads: &Leads) -> Result<Option<NonZeroU32>, Mistake> {
    let Some(most) = sockets else { return Ok(None) };
    if leads.is_json() || matches!(leads, Leads::Link(_)) {
        let why = "a route of this kind opens no WebSockets: remove the sockets";
        return Err(Mistake::new(most.span(), why));
    }
    number("sockets", "WebSockets", &most).map(Some)
}

fn number(key: &str, of: &str, given: &Spanned<i64>) -> Result<NonZeroU32, Mistake> {
    let number = u32::try_from(*given.get_ref()).ok().and_then(NonZeroU32::new);
    number.ok_or_else(|| {
        let why = format!("{key} is a number of {of}, from 1 to {}, like {key} = 20", u32::MAX);
        Mistake::new(given.span(), why)
    })
}

fn span_of<T>(value: Option<&Spanned<T>>) -> Option<Range<usize>> {
    value.map(Spanned::span)
}

fn check_class(class: &Spanned<String>, classes: &[&str]) -> Result<(), Mistake> {
    if classes.contains(&&**class.get_ref()) {
        return Ok(());
    }
    let why = format!(
        "there is no class {}; this server has {}",
        plain(class.get_ref()),
        classes.join(", ")
    );
    Err(Mistake::new(class.span(), why))
}

fn methods(all: Spanned<Vec<String>>) -> Result<Vec<Method>, Mistake> {
    let at = all.span();
    let wrong = |why: String| Mistake::new(at.clone(), why);
    let read = |text: &String| match Method::from_bytes(text.as_bytes()) {
        Ok(method) if text.bytes().all(|byte| byte.is_ascii_uppercase()) => Ok(method),
        _ => Err(wrong(format!("{} is no method: write it like \"GET\"", plain(text)))),
    };
    let methods: Vec<_> = all.get_ref().iter().map(read).collect::<Result<_, _>>()?;
    if methods.is_empty() {
        return Err(wrong("no method is let in: name some, or remove the key for all".to_owned()));
    }
    Ok(methods)
}

fn body_bytes(text: Spanned<String>) -> Result<usize, Mistake> {
    let size = text.get_ref().parse::<ByteSize>().ok();
    let bytes = size.and_then(|size| usize::try_from(size.as_u64()).ok());
    bytes.ok_or_else(|| Mistake::new(text.span(), "body is a size like \"64KiB\"".to_owned()))
}

fn origins(all: Spanned<Vec<String>>) -> Result<Vec<String>, Mistake> {
    let read = |(at, text): (usize, &String)| {
        door::origin(text).map_err(|_| {
            let why = format!(
                "origin number {} is none: give it as browsers write it, like \"https://app.example\" or \
                 \"http://localhost:3000\"",
                at + 1
            );
            Mistake::new(all.span(), why)
        })
    };
    all.get_ref().iter().enumerate().map(read).collect()
}

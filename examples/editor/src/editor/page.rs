//! The page of a document with its script, and the page that asks for a document's name.

use capstead::http::StaticFile;

/// Made by `page/files.rs`, as the others.
const POLICY: &str = include_str!(concat!(env!("OUT_DIR"), "/editor.policy"));

pub(super) static HTML: StaticFile = StaticFile::new(
    "text/html; charset=utf-8",
    include_bytes!(concat!(env!("OUT_DIR"), "/editor.html")),
)
.policy(POLICY);

pub(super) static SCRIPT: StaticFile = StaticFile::new(
    "text/javascript; charset=utf-8",
    include_bytes!(concat!(env!("OUT_DIR"), "/editor.js")),
)
.policy(POLICY);

pub(super) static FRONT: StaticFile =
    StaticFile::new("text/html; charset=utf-8", include_bytes!("../../page/front.html")).policy(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    );

#[cfg(test)]
#[path = "../../page/files.rs"]
#[allow(dead_code, reason = "a build script has more use for it")]
mod files;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::files;

    const PAGE: &str = include_str!("../../page/page.html");
    const SOURCE: &str = include_str!("../../page/editor.js");
    const MAP: &str = include_str!("../../page/import-map.json");
    const LOCK: &str = include_str!("../../page/package-lock.json");
    const SERVER: &str = "https://cdn.jsdelivr.net/npm/";

    fn parsed(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_import_map_has_the_versions_of_the_lock_file() {
        let (map, lock) = (parsed(MAP), parsed(LOCK));
        let hashes = map["integrity"].as_object().unwrap();
        assert!(hashes.values().all(|hash| hash.as_str().unwrap().starts_with("sha384-")));
        for (name, url) in map["imports"].as_object().unwrap() {
            assert!(hashes.contains_key(url.as_str().unwrap()), "{name} has a hash");
        }
        for url in hashes.keys() {
            let (name, rest) = url.strip_prefix(SERVER).unwrap().rsplit_once('@').unwrap();
            let version = rest.split_once('/').unwrap().0;
            assert_eq!(
                lock["packages"][format!("node_modules/{name}")]["version"],
                version,
                "{url}"
            );
        }
        // Two copies of Yjs would not know each other's documents.
        assert_eq!(hashes.keys().filter(|url| url.contains("/yjs@")).count(), 1);
        let imported: BTreeSet<&str> = SOURCE
            .lines()
            .filter_map(|line| {
                line.strip_prefix("import ")?.rsplit_once(" from \"")?.1.strip_suffix("\";")
            })
            .collect();
        let wanted = lock["packages"][""]["dependencies"].as_object().unwrap();
        assert!(imported.iter().copied().eq(wanted.keys().map(String::as_str)), "{imported:?}");
        assert!(imported.iter().all(|name| map["imports"].get(name).is_some()));
    }

    #[test]
    fn without_a_script_of_its_own_the_page_names_another_server() {
        let made = files::made(PAGE, None, SOURCE, MAP);
        let (_, rest) = made.html.split_once("<script type=\"importmap\">").unwrap();
        let (map, rest) = rest.split_once("</script>").unwrap();
        assert_eq!(parsed(map), parsed(MAP));
        assert!(rest.contains("<script"), "the map comes before all modules");
        assert_eq!(made.script, SOURCE);
        let sources = made.policy.split("; ").find_map(|part| part.strip_prefix("script-src "));
        let sources: Vec<&str> = sources.unwrap().split(' ').collect();
        assert_eq!(sources[..2], ["'self'", "'unsafe-inline'"]);
        let others = &sources[2..];
        for url in parsed(MAP)["integrity"].as_object().unwrap().keys() {
            assert!(others.iter().any(|package| url.starts_with(package)), "{url} may be loaded");
        }
        // A version of a package each: `…/npm/yjs@13.6.33/`.
        for package in others {
            assert!(package.starts_with(SERVER) && package.ends_with('/'), "{package}");
            assert!(package.rsplit_once('@').is_some_and(|(_, version)| version.len() > 4));
        }
    }

    #[test]
    fn with_a_script_of_its_own_the_page_names_no_other_server() {
        let made = files::made(PAGE, Some("built".to_owned()), SOURCE, MAP);
        assert_eq!(made.script, "built");
        assert!(!made.html.contains("importmap\">"));
        assert!(!made.policy.contains("http"), "{}", made.policy);
    }
}

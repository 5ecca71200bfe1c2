//! Schemas in folders of their own, and the committed ones. Tests that need the `capnp` tool pass
//! where it is missing.

use super::*;

const SCHEMA: &str = "@0xd5a3c4f19e2b7086;\n\
    using Http = import \"/capstead/http.capnp\";\n\
    interface Site extends(Http.HttpService) { hits @0 () -> (count :UInt64); }\n";

/// A schema with its request in a new folder; `None` without the tool.
fn site() -> Option<(Scratch, Schemas)> {
    if !tool::is_installed() {
        return None;
    }
    let folder = Scratch::new().unwrap();
    let path = folder.0.join("site.capnp");
    std::fs::write(&path, SCHEMA).unwrap();
    let schemas = Schemas::new(&[path.to_str().unwrap()]);
    let hash = request::hash(&schemas.files).unwrap();
    schemas.renew(&hash, &folder.0).unwrap();
    Some((folder, schemas))
}

#[test]
fn a_request_stays_current_until_the_schema_changes() {
    let Some((folder, schemas)) = site() else { return };
    assert_eq!(schemas.check().unwrap(), Freshness::Current);

    std::fs::write(folder.0.join("site.capnp"), SCHEMA.replace('\n', "\r\n")).unwrap();
    assert_eq!(schemas.check().unwrap(), Freshness::Current);

    std::fs::write(folder.0.join("site.capnp"), SCHEMA.replace("hits", "visits")).unwrap();
    assert_eq!(schemas.check().unwrap(), Freshness::Stale);
}

#[test]
fn a_request_whose_content_is_not_of_the_schema_is_stale() {
    let Some((folder, schemas)) = site() else { return };
    let hash = request::hash(&schemas.files).unwrap();
    std::fs::write(folder.0.join("site.capnp"), SCHEMA.replace("hits", "visits")).unwrap();
    let other = tool::compile(&schemas.files, &folder.0).unwrap();
    std::fs::write(folder.0.join("site.capnp"), SCHEMA).unwrap();
    request::write(&schemas.request, &other, &hash).unwrap();
    assert_eq!(schemas.check().unwrap(), Freshness::Stale);
}

#[test]
fn imported_public_schemas_are_taken_from_the_client_crate() {
    let Some((folder, schemas)) = site() else { return };
    let request = request::read(&schemas.request).unwrap().unwrap();
    let code = tool::generate(request.message(), &folder.0, &schemas.files).unwrap();
    assert!(code[0].contains("::capstead_client::http_capnp::http_service"));
}

#[test]
fn each_client_knows_the_names_of_its_methods() {
    let Some((folder, schemas)) = site() else { return };
    let schema = format!(
        "{SCHEMA} interface Chest(T) {{\n\
           get @0 () -> (value :T);\n\
           interface NextTo(U) extends(Chest(T)) {{ put @0 (value :U); }}\n\
         }}\n"
    );
    std::fs::write(folder.0.join("site.capnp"), schema).unwrap();
    let request = tool::compile(&schemas.files, &folder.0).unwrap();
    let code = &tool::generate(&request, &folder.0, &schemas.files).unwrap()[0];
    let implemented: Vec<_> = code.split("::capstead_client::Interface for ").skip(1).collect();
    let owned = ": ::capnp::traits::Owned";
    for (client, names) in [
        (
            "site::Client ".to_owned(),
            &[
                "Site.hits",
                "HttpService.startRequest",
                "HttpService.request",
                "HttpService.connect",
            ][..],
        ),
        (format!("chest::Client<T> where T{owned} "), &["Chest.get"]),
        (
            format!("chest::next_to::Client<T, U> where T{owned}, U{owned} "),
            &["NextTo.put", "Chest.get"],
        ),
    ] {
        let body = implemented.iter().find_map(|code| code.strip_prefix(&*client));
        let body = body.unwrap_or_else(|| panic!("{client} is not among {implemented:#?}"));
        let (body, _) = body.split_once("\n}").unwrap();
        let (body, schema) = body.split_once("const ID: u64 = 0x").unwrap();
        assert!(schema.ends_with("include_bytes!(\"site_capnp.schema\");"), "{schema}");
        let found: Vec<_> = body.split('"').skip(3).step_by(2).collect();
        assert_eq!(found, names, "{client}");
    }
    assert_eq!(implemented.len(), 3, "the code of imported schemas is elsewhere");
    assert_eq!(std::fs::read(folder.0.join("site_capnp.schema")).unwrap(), request);
}

#[test]
fn a_missing_request_is_stale() {
    let Some((_folder, schemas)) = site() else { return };
    std::fs::remove_file(&schemas.request).unwrap();
    assert_eq!(schemas.check().unwrap(), Freshness::Stale);
}

#[test]
fn a_refused_schema_is_one_sentence() {
    let Some((folder, schemas)) = site() else { return };
    std::fs::write(folder.0.join("site.capnp"), "interface").unwrap();
    let error = tool::compile(&schemas.files, &folder.0).unwrap_err().to_string();
    assert!(error.starts_with("capnp refuses the schema: "), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn the_committed_request_of_the_public_schemas_is_current() {
    let files = [
        "../schema/facet.capnp",
        "../schema/http.capnp",
        "../schema/restorer.capnp",
        "../schema/sturdyref.capnp",
    ];
    let found = Schemas::new(&files).request("../schema/public.request").check().unwrap();
    assert_ne!(found, Freshness::Stale);
}

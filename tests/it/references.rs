//! References over the wire: everything but a genuine one is refused with one and the same error.
//!
//! A refusal reveals nothing, wakes nothing and writes nothing. The operations that holders can do
//! on a reference alone, narrowing and sealing, keep it valid.

use crate::support::calls::{by_name, connect, increment, read, run};
use crate::support::random::Random;
use crate::support::{Served, http, scratch, serve};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capnp::capability::FromClientHook;
use capstead_client::restorer_capnp::restorer;
use capstead_client::sturdyref::{Caveats, TextReference};
use capstead_client::{Connection, namespace};
use futures::future::join_all;
use tempfile::TempDir;

/// The only text that a client gets.
const REFUSED: &str = "the reference was refused";

/// The number of concurrent restores.
const AT_ONCE: usize = 200;

fn start() -> (Served, TempDir) {
    let (folder, data) = scratch();
    (serve(&data), folder)
}

async fn dial(served: &Served) -> Connection {
    Connection::dial(&served.announced.capnp).await.expect("it is reached")
}

/// Asks for the reference, and makes a call on the promised result before it is there.
async fn try_to_use(connection: &Connection, text: &str) -> capnp::Result<()> {
    let mut request = connection.bootstrap::<restorer::Client>().restore_request();
    request.get().set_sturdy_ref(text);
    let answer = request.send();
    let counters: namespace::Client = FromClientHook::new(answer.pipeline.get_cap().as_cap());
    let call = increment(&by_name(&counters, "victim"));
    let restored = answer.promise.await;
    let called = call.await;
    assert_eq!(restored.is_ok(), called.is_ok(), "{called:?}");
    restored.map(drop)
}

fn assert_refused(result: capnp::Result<()>, what: &str) {
    let error = result.expect_err(what);
    assert_eq!(error.kind, capnp::ErrorKind::Failed, "{what}: {error}");
    let told = error.extra.trim_start_matches("remote exception: ");
    assert_eq!(told, REFUSED, "{what}");
}

/// Checks that each text is refused with the same words, whichever way it is asked about.
async fn all_refused(served: &Served, texts: &[(String, String)]) {
    let before = counts(served);
    let connection = dial(served).await;
    for texts in texts.chunks(AT_ONCE) {
        let restored = join_all(texts.iter().map(|(_, text)| try_to_use(&connection, text))).await;
        let located = join_all(texts.iter().map(|(_, text)| connection.locate(text))).await;
        for (((what, _), restored), located) in texts.iter().zip(restored).zip(located) {
            assert_refused(restored, what);
            assert_refused(located.map(drop), what);
        }
    }
    assert_eq!(counts(served), before, "an object woke, or something was written");
}

/// Objects woken, calls started on objects, and commits.
fn counts(served: &Served) -> [u64; 3] {
    ["wakes_total", "calls_total", "commits_total"].map(|name| served.metric(name))
}

fn address(text: &str) -> &str {
    text.split_once("/#").expect("it is a reference").0
}

fn bytes(text: &str) -> Vec<u8> {
    let fragment = text.split_once('#').expect("it is a reference").1;
    URL_SAFE_NO_PAD.decode(fragment).expect("it is base64")
}

fn text(address: &str, bytes: &[u8]) -> String {
    format!("{address}/#{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn with_bit_flipped(text_before: &str, bit: usize) -> (String, String) {
    let mut bytes = bytes(text_before);
    bytes[bit / 8] ^= 1 << (bit % 8);
    (format!("bit {bit} of {}", bytes.len() * 8), text(address(text_before), &bytes))
}

fn narrowed(text: &str, not_after_ms: u64) -> String {
    let parsed = TextReference::parse(text).expect("it is a reference");
    let narrowed =
        parsed.reference().narrow(&Caveats::not_after(not_after_ms)).expect("it can be narrowed");
    narrowed.expose_text(parsed.address()).expect("the address is sound")
}

fn sealed(text: &str) -> String {
    let parsed = TextReference::parse(text).expect("it is a reference");
    parsed.reference().seal().expose_text(parsed.address()).expect("the address is sound")
}

const HOUR_MS: u64 = 3_600_000;

fn now_ms() -> u64 {
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970");
    since_1970.as_millis() as u64
}

/// The references that holders can make from one on their own; all of them stay valid for at least
/// an hour.
fn good_ones(text: &str) -> Vec<String> {
    let later = now_ms() + HOUR_MS;
    let narrow = narrowed(text, later);
    let twice = narrowed(&narrow, later + 1);
    [sealed(text), sealed(&narrow), sealed(&twice), narrow, twice, text.to_owned()].into()
}

// Any single changed bit is enough: each bit of the root reference is tried, and a random sample of
// those that holders made from it and from another class's.
#[test]
fn a_reference_with_a_flipped_bit_is_refused() {
    let (served, _folder) = start();
    let mut random = Random::from_printed_seed();
    let root = served.counters();
    let mut forged: Vec<_> =
        (0..bytes(root).len() * 8).map(|bit| with_bit_flipped(root, bit)).collect();
    let mut others = good_ones(root);
    others.extend(good_ones(&served.announced.namespaces["Poll"]));
    for _ in 0..2_000 {
        let other = &others[random.below(others.len() as u64) as usize];
        let bit = random.below(bytes(other).len() as u64 * 8) as usize;
        forged.push(with_bit_flipped(other, bit));
    }
    run(all_refused(&served, &forged));
    assert!(served.metric("restores_refused_total") >= forged.len() as u64);
}

// A prefix of a reference is refused, and so is a reference with bytes appended.
#[test]
fn a_reference_cut_short_or_made_longer_is_refused() {
    let (served, _folder) = start();
    let root = served.counters();
    let (address, whole) = (address(root), bytes(root));
    let mut forged: Vec<_> = (0..whole.len())
        .map(|length| (format!("{length} bytes"), text(address, &whole[..length])))
        .collect();
    for more in [&[0][..], &[1], &whole] {
        forged.push((format!("{} more", more.len()), text(address, &[&whole, more].concat())));
    }
    let sealed = bytes(&sealed(root));
    forged.push(("unsealed".to_owned(), text(address, &sealed[..sealed.len() - 64])));
    run(all_refused(&served, &forged));
}

// A reference can be written in only one way: any other text is refused.
#[test]
fn a_text_that_is_no_reference_is_refused() {
    let (served, _folder) = start();
    let root = served.counters();
    let (start, fragment) = root.split_once('#').unwrap();
    let (standard, padded) = (fragment.replace('-', "+").replace('_', "/"), format!("{root}="));
    let texts = [
        String::new(),
        "hello".to_owned(),
        "capstead://".to_owned(),
        start.to_owned(),
        format!("{start}#"),
        format!("{start}#{fragment}#"),
        format!("{start}{fragment}"),
        format!("{start}# {fragment}"),
        format!("{root}\n"),
        format!("{root}\0"),
        root.replace("capstead:", "Capstead:"),
        root.replace("capstead:", "http:"),
        format!("{start}#{}", fragment.to_lowercase()),
        format!("capstead://no port/#{fragment}"),
        "x".repeat(60 << 10),
        padded,
    ];
    let mut texts: Vec<_> = texts
        .into_iter()
        .map(|text| (format!("{:.60}", text.escape_debug().to_string()), text))
        .collect();
    if standard != fragment {
        texts.push(("the other base64".to_owned(), format!("{start}#{standard}")));
    }
    run(all_refused(&served, &texts));
}

// Each cluster has its own keys: a signature by another cluster's key means nothing.
#[test]
fn a_reference_of_another_cluster_is_refused() {
    let (served, _folder) = start();
    let (other, _other_folder) = start();
    let foreign = other.counters().replace(&other.announced.capnp, &served.announced.capnp);
    let mut forged = vec![("another cluster's".to_owned(), foreign.clone())];
    forged.extend(good_ones(&foreign).into_iter().map(|text| ("made of it".to_owned(), text)));
    // The other cluster's signature below this cluster's name.
    let (own, foreign) = (bytes(served.counters()), bytes(&foreign));
    let address = address(served.counters());
    let mixed = [&own[..33], &foreign[33..]].concat();
    forged.push(("a mixture".to_owned(), text(address, &mixed)));
    let signed_here = [&foreign[..own.len() - 34], &own[own.len() - 34..]].concat();
    forged.push(("another mixture".to_owned(), text(address, &signed_here)));
    run(all_refused(&served, &forged));
}

// A holder limits the time, offline; a later limit appended to an earlier one changes nothing.
#[test]
fn an_expired_reference_is_refused_whatever_is_made_of_it() {
    let (served, _folder) = start();
    let (root, now) = (served.counters(), now_ms());
    let mut forged = Vec::new();
    for at in [0, 1, 1_000, now - HOUR_MS, now - 1_000, now - 1] {
        let expired = narrowed(root, at);
        let extended = narrowed(&expired, now + HOUR_MS);
        for text in [sealed(&expired), sealed(&extended), narrowed(&extended, 5), expired, extended]
        {
            forged.push((format!("good until {at}"), text));
        }
    }
    run(all_refused(&served, &forged));
}

// Removing a link would widen the reference again, but the proof is lost with the last link.
#[test]
fn a_link_cannot_be_taken_off_again() {
    let (served, _folder) = start();
    let (root, expired) = (served.counters(), narrowed(served.counters(), 1));
    let (plain, linked) = (bytes(root), bytes(&expired));
    let proof = 33; // a byte for its kind, and the secret
    let body = plain.len() - proof;
    let stolen = [&plain[..body], &linked[linked.len() - proof..]].concat();
    run(all_refused(&served, &[("a link less".to_owned(), text(address(root), &stolen))]));
}

// The other half of every test above: these are genuine, and all lead to the same objects.
#[test]
fn narrowed_and_sealed_references_work() {
    let (served, _folder) = start();
    let good = good_ones(served.counters());
    run(async {
        let connection = dial(&served).await;
        for (at, text) in (1..).zip(&good) {
            try_to_use(&connection, text).await.unwrap();
            let counters: namespace::Client = connection.restore(text).unwrap();
            assert_eq!(read(&by_name(&counters, "victim")).await.unwrap(), at);
            // With several hosts, the owner has an address of its own.
            let owner = Connection::dial(&connection.locate(text).await.unwrap()).await.unwrap();
            let counters: namespace::Client = owner.restore(text).unwrap();
            assert_eq!(read(&by_name(&counters, "victim")).await.unwrap(), at);
        }
    });
    assert_eq!(served.metric("wakes_total"), 1);
}

// The client's own entry point dials, locates and restores; it refuses the same texts as the
// server.
#[test]
fn the_client_restores_what_is_good_and_nothing_else() {
    let (served, _folder) = start();
    run(async {
        let good = good_ones(served.counters());
        for text in &good {
            let counters: namespace::Client = capstead_client::restore(text).await.unwrap();
            increment(&by_name(&counters, "victim")).await.unwrap();
        }
        let expired = narrowed(served.counters(), 1);
        let refused = capstead_client::restore::<namespace::Client>(&expired).await;
        assert_refused(refused.map(drop), "expired");
        let root = bytes(served.counters()).len() * 8;
        for bit in [0, root / 2, root - 1] {
            let (what, forged) = with_bit_flipped(served.counters(), bit);
            let refused = capstead_client::restore::<namespace::Client>(&forged).await;
            // The client may see more in the text, but sends it to no other party.
            let told = refused.map(drop).expect_err(&what).extra;
            let told = told.trim_start_matches("remote exception: ");
            assert!(told.starts_with(REFUSED), "{what}: {told}");
        }
    });
}

async fn try_get(counters: &namespace::Client, name: &str) -> capnp::Result<bool> {
    let mut request = counters.try_get_request();
    request.get().set_key(name);
    Ok(request.send().promise.await?.get()?.has_object())
}

// Asking is free: it makes nothing, wakes nothing, and returns the truth.
#[test]
fn asking_for_an_object_that_does_not_exist_gives_null_and_makes_nothing() {
    let (served, _folder) = start();
    run(async {
        let (_connection, counters) = connect(&served).await;
        let before = counts(&served);
        for _ in 0..10 {
            assert!(!try_get(&counters, "x").await.unwrap());
            drop(by_name(&counters, "x"));
        }
        assert_eq!(counts(&served), before);
        assert_eq!(read(&by_name(&counters, "x")).await.unwrap(), 0);
        assert!(!try_get(&counters, "x").await.unwrap(), "reading makes nothing");
        increment(&by_name(&counters, "x")).await.unwrap();
        assert!(try_get(&counters, "x").await.unwrap());
        assert!(!try_get(&counters, "X").await.unwrap());
    });
}

// An object without a name is new each time, and no name leads to it.
#[test]
fn every_object_that_is_created_is_a_new_one() {
    let (served, _folder) = start();
    run(async {
        let (_connection, counters) = connect(&served).await;
        let create = || {
            let created = counters.create_request().send().pipeline.get_object().as_cap();
            capstead::counter_capnp::counter::Client::new(created)
        };
        let created: Vec<_> = (0..20).map(|_| create()).collect();
        for _ in 0..2 {
            join_all(created.iter().map(increment)).await;
        }
        let values = join_all(created.iter().map(read)).await;
        assert!(values.into_iter().all(|value| value.unwrap() == 2));
    });
    assert_eq!(served.metric("wakes_total"), 20);
}

// Names are bytes: every byte distinguishes them, and only their length is limited.
#[test]
fn names_are_bytes_and_have_a_limit() {
    let (served, _folder) = start();
    let (longest, similar) = ("n".repeat(1024), format!("{}m", "n".repeat(1023)));
    let wide = "ü".repeat(512);
    let names = [
        "x",
        "X",
        "x ",
        " x",
        "x\0",
        "\0",
        "\0\0",
        "ü",
        "u\u{308}",
        "\u{feff}x",
        "x/y",
        "x%2Fy",
        "日本",
        "🦀",
        "\u{202e}x",
        "../x",
        "'; drop",
        "\n",
        &longest,
        &similar,
        &wide,
    ];
    run(async {
        let (_connection, counters) = connect(&served).await;
        for (by, name) in (1..).zip(names) {
            let mut request = by_name(&counters, name).increment_request();
            request.get().set_by(by);
            request.send().promise.await.unwrap();
        }
        for (by, name) in (1..).zip(names) {
            assert_eq!(read(&by_name(&counters, name)).await.unwrap(), by, "{name:?}");
            assert!(try_get(&counters, name).await.unwrap(), "{name:?}");
        }
        let before = counts(&served);
        for (name, says) in
            [("n".repeat(1025), "1024"), ("ü".repeat(513), "1024"), (String::new(), "empty")]
        {
            let error = increment(&by_name(&counters, &name)).await.unwrap_err();
            assert_eq!(error.kind, capnp::ErrorKind::Failed);
            assert!(error.extra.contains(says), "{error}");
            assert!(try_get(&counters, &name).await.unwrap_err().extra.contains(says));
        }
        assert_eq!(counts(&served), before);
    });
    let path = format!("/counter/{longest}");
    assert_eq!(http::get(&served.announced.http, &path).body, "19");
}

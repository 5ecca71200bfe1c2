//! Caveats against a model of them, and their bytes.

use super::*;
use crate::restorer_capnp::namespace;
use crate::sturdyref_capnp::{
    CAVEAT_DEPENDENT, CAVEAT_HOLDER, CAVEAT_METHODS, CAVEAT_OBJECT_METHODS, METHODS_MAX,
};
use capnp::traits::HasTypeId;
use proptest::collection::{btree_set, vec};
use std::collections::BTreeSet;

/// The interfaces, ordinals and times to try: few of each, so that lists often have some in common.
const INTERFACES: [u64; 3] = [1, 2, NAMESPACE];
const NAMESPACE: u64 = namespace::Client::TYPE_ID;
const ORDINALS: u16 = 4;
const TIMES: u64 = 6;

/// One list as plain data, which answers without the code under test.
#[derive(Clone, Debug, Default)]
struct Model {
    last: Option<u64>,
    methods: Option<BTreeSet<Method>>,
    object_methods: Option<BTreeSet<Method>>,
    dependent: bool,
    holders: BTreeSet<u8>,
}

impl Model {
    fn any() -> impl Strategy<Value = Self> {
        let of = |interfaces: &[u64]| {
            let interface = proptest::sample::select(interfaces.to_vec());
            (interface, 0..ORDINALS).prop_map(|(interface, of)| Method::new(interface, of))
        };
        let methods = || btree_set(of(&INTERFACES), 0..INTERFACES.len() * usize::from(ORDINALS));
        let of_namespaces = btree_set(of(&[NAMESPACE]), 0..4);
        let parts = (
            proptest::option::weighted(0.3, NOW..NOW + TIMES),
            proptest::option::weighted(0.4, prop_oneof![methods(), of_namespaces]),
            proptest::option::weighted(0.1, methods()),
            proptest::bool::weighted(0.1),
            btree_set(0..5_u8, 0..3),
        );
        parts.prop_map(|(last, methods, object_methods, dependent, holders)| Self {
            last,
            methods,
            object_methods,
            dependent,
            holders,
        })
    }

    fn caveats(&self) -> Caveats {
        let mut caveats = self.last.map_or(Caveats::none(), Caveats::not_after);
        if let Some(methods) = &self.methods {
            caveats = caveats.with_methods(methods.iter().rev().copied()).unwrap();
        }
        if let Some(methods) = &self.object_methods {
            caveats = caveats.with_object_methods(methods.iter().copied()).unwrap();
        }
        if self.dependent {
            caveats = caveats.dependent();
        }
        let holders = self.holders.iter().map(|&seed| holder(seed).verifying_key());
        holders.fold(caveats, |caveats, key| caveats.with_holder(key).unwrap())
    }

    fn allows(&self, interface: u64, method: u16) -> bool {
        self.methods
            .as_ref()
            .is_none_or(|methods| methods.contains(&Method::new(interface, method)))
    }

    /// A set with a method that no namespace has restricts the objects reached through a namespace
    /// as well.
    fn allows_of_objects(&self, interface: u64, method: u16) -> bool {
        let is_mixed =
            |set: &BTreeSet<Method>| set.iter().any(|method| method.interface != NAMESPACE);
        let sets =
            [self.methods.as_ref().filter(|set| is_mixed(set)), self.object_methods.as_ref()];
        sets.into_iter().flatten().all(|set| set.contains(&Method::new(interface, method)))
    }
}

fn keys_of(models: &[Model]) -> BTreeSet<[u8; 32]> {
    let seeds = models.iter().flat_map(|model| &model.holders);
    seeds.map(|&seed| holder(seed).verifying_key().to_bytes()).collect()
}

/// The first list goes into the payload, and each of the others into a link.
fn chain(models: &[Model]) -> Sturdyref {
    let (first, links) = models.split_first().unwrap();
    let links = (0..).zip(links);
    links.fold(reference(2, first.caveats()), |all, (seed, model)| {
        all.narrow_with(&model.caveats(), &NextSecret::from_seed([seed; 32])).unwrap()
    })
}

proptest! {
    /// Each list of the chain is asked separately: the chain refuses exactly what one of them
    /// refuses.
    #[test]
    fn a_chain_allows_what_each_of_its_links_allows(
        models in vec(Model::any(), 1..=17), seal: bool,
    ) {
        let whole = chain(&models);
        let whole = if seal { whole.seal() } else { whole };
        for now in NOW - 1..=NOW + TIMES {
            let in_time = models.iter().all(|model| model.last.is_none_or(|last| now <= last));
            prop_assert_eq!(verify(&whole, now).is_ok(), in_time);
        }
        let verified = verify(&whole, 0).unwrap().caveats;
        let of_objects = verified.clone().for_objects();
        let dependent = models.iter().any(|model| model.dependent);
        prop_assert_eq!((verified.is_dependent(), of_objects.is_dependent()), (dependent, dependent));
        for (interface, method) in [0, 1, 2, NAMESPACE].into_iter().flat_map(|i| (0..=ORDINALS).map(move |m| (i, m))) {
            let all_allow = models.iter().all(|model| model.allows(interface, method));
            prop_assert_eq!(verified.allows(interface, method), all_allow);
            let all_allow = models.iter().all(|model| model.allows_of_objects(interface, method));
            prop_assert_eq!(of_objects.allows(interface, method), all_allow);
        }
        prop_assert_eq!(Caveats::decode(&verified.encode()).unwrap(), verified.clone());
        let holders: Vec<_> = verified.holders().iter().map(|key| *key.as_bytes()).collect();
        prop_assert_eq!(&holders, &keys_of(&models).into_iter().collect::<Vec<_>>());
        let keys = [0, 1, 2, 3, 4].map(holder);
        let proof = whole.prove(&[7; 32], &keys).unwrap();
        prop_assert!(whole.check_proofs(&[7; 32], &proof).is_ok());
        for missing in 0..proof.len() {
            let mut proof = proof.clone();
            proof.remove(missing);
            prop_assert!(whole.check_proofs(&[7; 32], &proof).is_err());
        }
        let together = models.iter().map(Model::caveats).fold(Caveats::none(), |all, one| all.and(&one));
        prop_assert_eq!(&verified, &together);
    }

    #[test]
    fn caveats_survive_encoding_and_have_one_encoding(
        model in Model::any(), at: proptest::sample::Index, byte: u8, change in 0..3,
    ) {
        let caveats = model.caveats();
        let mut bytes = caveats.encode();
        prop_assert_eq!(Caveats::decode(&bytes).unwrap(), caveats.clone());
        prop_assert_eq!(caveats.is_none(), bytes == [0]);
        let at = at.index(bytes.len());
        match change {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            _ => drop(bytes.remove(at)),
        }
        if let Ok(other) = Caveats::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_caveats_in_their_one_encoding_or_refused(bytes in vec(any::<u8>(), 0..60)) {
        if let Ok(caveats) = Caveats::decode(&bytes) {
            prop_assert_eq!(caveats.encode(), bytes);
        }
    }
}

fn caveat(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[1, kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
}

fn methods(methods: &[(u64, u16)]) -> Vec<u8> {
    caveat(CAVEAT_METHODS, &method_bytes(methods))
}

fn method_bytes(methods: &[(u64, u16)]) -> Vec<u8> {
    methods.iter().flat_map(|(i, m)| [&i.to_be_bytes()[..], &m.to_be_bytes()].concat()).collect()
}

/// A list with both sets of methods.
fn two_sets(own: &[(u64, u16)], of_objects: &[(u64, u16)]) -> Vec<u8> {
    let own = &caveat(CAVEAT_METHODS, &method_bytes(own))[1..];
    [&[2], own, &caveat(CAVEAT_OBJECT_METHODS, &method_bytes(of_objects))[1..]].concat()
}

fn holders(keys: &[[u8; 32]]) -> Vec<u8> {
    caveat(CAVEAT_HOLDER, &keys.concat())
}

/// Tells whether the list is accepted; it must be accepted both in a reference and alone, or in
/// neither.
fn is_taken(list: &[u8]) -> bool {
    let decoded = Caveats::decode(list).is_ok();
    assert_eq!(accepted(&with_caveats(list)), decoded, "{list:02x?}");
    decoded
}

#[test]
fn sets_of_methods_and_holders_have_one_encoding() {
    let many = |count: u16| (0..count).map(|method| (1, method)).collect::<Vec<_>>();
    assert!(is_taken(&methods(&[])), "the empty set");
    assert!(is_taken(&methods(&[(1, 2), (1, 3), (2, 0)])));
    assert!(is_taken(&methods(&many(METHODS_MAX))));
    assert!(!is_taken(&methods(&many(METHODS_MAX + 1))));
    assert!(!is_taken(&methods(&[(1, 3), (1, 2)])), "descending");
    assert!(!is_taken(&methods(&[(1, 2), (1, 2)])), "twice");
    assert!(!is_taken(&caveat(CAVEAT_METHODS, &[0; 9])));
    assert!(!is_taken(&caveat(CAVEAT_METHODS, &[0; 11])));

    let mut keys = [0, 1, 2].map(|seed| holder(seed).verifying_key().to_bytes());
    keys.sort_unstable();
    let [first, second, third] = keys;
    assert!(is_taken(&holders(&[first])));
    assert!(is_taken(&holders(&[first, second, third])));
    assert!(!is_taken(&holders(&[])), "none at all");
    assert!(is_taken(&caveat(CAVEAT_DEPENDENT, &[])));
    assert!(!is_taken(&caveat(CAVEAT_DEPENDENT, &[0])), "it has no value");
    assert!(!is_taken(&holders(&[second, first])), "descending");
    assert!(!is_taken(&holders(&[first, first])), "twice");
    assert!(!is_taken(&caveat(CAVEAT_HOLDER, &first[..31])));
}

/// A list holds the methods of objects only where the other set doesn't say the same of them.
#[test]
fn the_methods_of_objects_have_one_encoding() {
    let by_name = (NAMESPACE, 0);
    assert!(is_taken(&caveat(CAVEAT_OBJECT_METHODS, &[])), "none of the objects' methods");
    assert!(is_taken(&caveat(CAVEAT_OBJECT_METHODS, &method_bytes(&[(1, 2)]))));
    assert!(is_taken(&two_sets(&[by_name], &[(1, 2), by_name])));
    assert!(is_taken(&two_sets(&[by_name], &[])));
    assert!(is_taken(&two_sets(&[(1, 2), by_name], &[(1, 2)])), "fewer");
    assert!(!is_taken(&two_sets(&[(1, 2), by_name], &[(1, 2), by_name])), "the same");
    assert!(!is_taken(&two_sets(&[(1, 2), by_name], &[(1, 2), (1, 3)])), "others");
    assert!(!is_taken(&caveat(CAVEAT_OBJECT_METHODS, &method_bytes(&[(1, 3), (1, 2)]))));
}

/// A set that allows a namespace's own methods doesn't give back those of its objects.
#[test]
fn what_one_set_took_away_from_objects_no_later_one_brings_back() {
    let by_name = Method::new(NAMESPACE, 0);
    let given = Caveats::none().with_methods([by_name, Method::new(1, 2)]).unwrap();
    for later in [vec![by_name], vec![], vec![by_name, Method::new(1, 3)]] {
        let narrow = given.clone().with_methods(later.clone()).unwrap();
        assert_eq!(narrow.allows(NAMESPACE, 0), later.contains(&by_name));
        let narrow = Caveats::decode(&narrow.encode()).unwrap().for_objects();
        assert!(!narrow.allows(1, 3), "{later:?}");
        assert_eq!(narrow.allows(1, 2), !later.contains(&Method::new(1, 3)), "{later:?}");
    }
    let whole = Caveats::none().with_methods([by_name]).unwrap();
    assert!(whole.clone().for_objects().is_none() && whole.of_object().allows(NAMESPACE, 0));
    assert!(
        Caveats::none().with_object_methods((0..257).map(|method| Method::new(1, method))).is_err()
    );
}

/// Decoding either keeps a whole list or refuses it.
#[test]
fn decode_takes_nothing_that_it_would_lose() {
    assert!(Caveats::decode(&[0]).unwrap().is_none());
    assert!(Caveats::decode(&[]).is_err());
    assert!(Caveats::decode(&[0, 0]).is_err(), "something behind it");
    assert!(Caveats::decode(&caveat(0x05, &[])).is_err(), "unknown and not critical");
    let critical = Caveats::decode(&caveat(0x86, &[]));
    assert_eq!(reason(critical), "it has a critical caveat of an unknown kind");
}

#[test]
fn what_is_claimed_holds_no_caveat_that_is_not_understood() {
    let unknown = Sturdyref::from_bytes(&with_caveats(&caveat(0x86, &[]))).unwrap();
    assert!(unknown.claimed_caveats().is_err());
    assert!(unknown.prove(&[0; 32], &[]).is_err());
    assert!(unknown.check_proofs(&[0; 32], &[]).is_err());
}

#[test]
fn each_caveat_makes_it_stricter() {
    let of_one = |ordinal| Method::new(1, ordinal);
    let caveats = Caveats::not_after(5).with_not_after(9).with_methods([1, 2].map(of_one)).unwrap();
    let caveats = caveats.with_methods([2, 3, 2].map(of_one)).unwrap();
    assert_eq!(caveats.not_after_ms(), Some(5));
    assert!(caveats.methods().unwrap().iter().eq([of_one(2)]));
    assert!(caveats.allows(1, 2) && !caveats.allows(1, 1) && !caveats.allows(2, 2));
    let nothing = caveats.with_methods([]).unwrap();
    assert!(!nothing.allows(1, 2) && !nothing.is_none());
    assert!(Caveats::none().is_none() && Caveats::none().allows(1, 1));
    assert!(Caveats::none().with_methods((0..257).map(of_one)).is_err());
    assert!(Caveats::none().with_methods((0..257).map(|method| of_one(method % 256))).is_ok());
}

/// With more holders than a list can name, nobody can give all proofs, so nothing is allowed.
#[test]
fn too_many_holders_leave_nothing() {
    let keys: BTreeSet<_> = (0..=2047_u16).map(key_of_number).collect();
    let keys: Vec<_> = keys.into_iter().collect();
    let most = Caveats::decode(&holders(&keys[..2047])).unwrap();
    assert!(most.allows(1, 1) && most.not_after_ms().is_none());
    let more = most.with_holder(VerifyingKey::from_bytes(&keys[2047]).unwrap()).unwrap();
    assert_eq!((more.allows(1, 1), more.not_after_ms()), (false, Some(0)));
    assert_eq!(Caveats::decode(&more.encode()).unwrap(), more);
}

fn key_of_number(number: u16) -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed).verifying_key().to_bytes()
}

/// Texts have a largest length, and none is written that couldn't be read again.
#[test]
fn a_reference_that_is_too_long_for_a_text_has_none() {
    let large = |interface| {
        let methods = (0..METHODS_MAX).map(|method| Method::new(interface, method));
        Caveats::none().with_methods(methods).unwrap()
    };
    let two = reference(2, large(1)).narrow(&large(2)).unwrap();
    let text = two.expose_text("localhost:4000").unwrap();
    assert!(TextReference::parse(&text).is_ok());
    let three = two.narrow(&large(3)).unwrap();
    assert!(verify(&three, NOW).is_ok());
    assert_eq!(reason(three.expose_text("localhost:4000")), "the text is not that of a reference");
}

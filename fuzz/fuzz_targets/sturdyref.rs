//! Texts and bytes of references, and of caveats by themselves: what is taken must be written as it
//! was read, and no reference that was not signed is found good.
#![no_main]

use capstead_client::sturdyref::{Caveats, ClusterId, Sturdyref, TextReference};
use ed25519_dalek::SigningKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(reference) = Sturdyref::from_bytes(bytes) {
        assert_eq!(reference.expose_bytes(), bytes);
        look_at(&reference);
    }
    if let Ok(caveats) = Caveats::decode(bytes) {
        assert_eq!(caveats.encode(), bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(parsed) = TextReference::parse(text)
    {
        assert_eq!(parsed.expose_text_of(parsed.reference()).ok().as_deref(), Some(text));
        look_at(parsed.reference());
    }
});

fn look_at(reference: &Sturdyref) {
    // The corpus was signed by another key.
    let key = SigningKey::from_bytes(&[1; 32]).verifying_key();
    assert!(reference.verify(&ClusterId::of(&key), |_| Some(key), 0).is_err());
    assert!(reference.verify(&reference.cluster(), |_| Some(key), 0).is_err());
    if let Ok(narrow) = reference.narrow(&Caveats::not_after(7)) {
        let narrow = narrow.seal();
        assert!(narrow.is_sealed() && narrow.payload_hash() == reference.payload_hash());
        assert!(Sturdyref::from_bytes(narrow.expose_bytes()).is_ok());
    }
}

//! Methods by their names, where the class is not known.

use super::trial::{World, run};
use crate::host::authority::nameable::{Words, of_object};

fn words(methods: &[&str]) -> Words {
    Words { methods: methods.iter().map(|&word| word.to_owned()).collect(), object_methods: vec![] }
}

/// A tool without the class takes numbers as they are, and says what to do about names.
#[test]
fn a_class_that_is_not_here_has_its_methods_by_number() {
    run(async {
        let world = World::new();
        let caveats = of_object(&world.vat, "Elsewhere", &words(&["0x7:1"])).unwrap();
        assert!(caveats.allows(7, 1) && !caveats.allows(7, 2));
        let refused = of_object(&world.vat, "Elsewhere", &words(&["0x7:1", "info"])).unwrap_err();
        for says in ["Elsewhere", "while the program that has it serves", "by its number"] {
            assert!(refused.extra.contains(says), "{refused}");
        }
        let here = of_object(&world.vat, "Trial", &words(&["0x7:1"])).unwrap_err();
        assert!(here.extra.contains("it has Trial."), "{here}");
    });
}

//! Schemas that contradict themselves: nothing of them may reach the builders of `capnp`, which
//! believe them.

use capnp::message::Builder;
use capnp::schema_capnp::{code_generator_request, node};
use capnp::serialize;
use capstead_client::Interface;
use serde_json::json;

use super::write;
use crate::dynamic::Table;
use crate::schema::counter_capnp::counter;
use crate::schema::poll_capnp::poll;

/// A request with one struct.
fn schema(write: impl FnOnce(node::struct_::Builder<'_>)) -> Result<Table, String> {
    let mut message = Builder::new_default();
    let request = message.init_root::<code_generator_request::Builder<'_>>();
    let mut node = request.init_nodes(1).get(0);
    node.set_id(7);
    node.set_display_name("odd.capnp:Odd");
    write(node.init_struct());
    let bytes = serialize::write_message_to_words(&message);
    Table::new(&bytes).map_err(|error| error.to_string())
}

/// A struct of so many words and pointers with one field, which `write` makes.
fn field(
    size: (u16, u16),
    write: impl FnOnce(capnp::schema_capnp::field::Builder<'_>),
) -> Result<Table, String> {
    schema(|mut of| {
        of.set_data_word_count(size.0);
        of.set_pointer_count(size.1);
        let mut field = of.init_fields(1).get(0);
        field.set_name("x");
        field.set_discriminant_value(0xffff);
        write(field);
    })
}

#[test]
fn a_field_outside_of_its_struct_is_refused() {
    let number = |size, offset| {
        field((size, 0), |field| {
            let mut slot = field.init_slot();
            slot.set_offset(offset);
            slot.init_type().set_uint32(());
        })
        .map(drop)
    };
    assert_eq!(number(1, 1), Ok(()));
    for (size, offset) in [(0, 0), (1, 2), (1, u32::MAX), (u16::MAX, u32::MAX)] {
        let said = number(size, offset).unwrap_err();
        assert_eq!(said, "in the schema, x is outside of Odd");
    }
    let text = |pointers, offset| {
        field((0, pointers), |field| {
            let mut slot = field.init_slot();
            slot.set_offset(offset);
            slot.init_type().set_text(());
        })
        .map(drop)
    };
    assert_eq!(text(1, 0), Ok(()));
    assert!(text(1, 1).is_err());
    let union = |offset| {
        schema(|mut of| {
            of.set_data_word_count(1);
            of.set_discriminant_count(2);
            of.set_discriminant_offset(offset);
        })
        .map(drop)
    };
    assert_eq!(union(3), Ok(()));
    assert_eq!(union(4).unwrap_err(), "in the schema, union is outside of Odd");
}

#[test]
fn a_group_is_a_group_and_lies_in_its_struct() {
    let group = |of| field((1, 1), |field| field.init_group().set_type_id(of)).map(drop);
    assert!(group(7).is_err(), "the struct is none");
    assert!(group(8).is_err(), "there is no such");
    // A group of itself ends where all nesting does.
    let table = schema(|mut of| {
        of.set_is_group(true);
        let mut field = of.init_fields(1).get(0);
        field.set_name("x");
        field.set_discriminant_value(0xffff);
        field.init_group().set_type_id(7);
    })
    .unwrap();
    let message = write(&table, "Odd", &json!({})).unwrap();
    let said = super::read(&table, "Odd", &message).unwrap_err();
    assert!(said.ends_with("there are more than 64 values in each other"), "{said}");
}

#[test]
fn a_type_that_grows_with_each_link_is_no_more_than_its_message() {
    // struct Odd(T) { x @0 :Odd(Odd(T)) }
    let table = field((0, 1), |field| {
        let mut outer = field.init_slot().init_type().init_struct();
        outer.set_type_id(7);
        let mut scope = outer.init_brand().init_scopes(1).get(0);
        scope.set_scope_id(7);
        let mut inner = scope.init_bind(1).get(0).init_type().init_struct();
        inner.set_type_id(7);
        let mut scope = inner.init_brand().init_scopes(1).get(0);
        scope.set_scope_id(7);
        let mut parameter =
            scope.init_bind(1).get(0).init_type().init_any_pointer().init_parameter();
        parameter.set_scope_id(7);
        parameter.set_parameter_index(0);
    })
    .unwrap();
    let json = (0..60).fold(json!({}), |inner, _| json!({"x": inner}));
    let message = write(&table, "Odd", &json).unwrap();
    assert_eq!(super::read(&table, "Odd", &message), Ok(json));
}

/// Their numbers have 16 bits.
#[test]
fn an_interface_has_no_more_methods_than_there_are_numbers() {
    let table = |methods| {
        let mut message = Builder::new_default();
        let request = message.init_root::<code_generator_request::Builder<'_>>();
        let mut node = request.init_nodes(1).get(0);
        node.set_id(7);
        node.set_display_name("odd.capnp:Odd");
        node.init_interface().init_methods(methods);
        let table = Table::new(&serialize::write_message_to_words(&message));
        table.map(|table| table.methods(7).len()).map_err(|error| error.to_string())
    };
    assert_eq!(table(3), Ok(3));
    assert!(table(65_537).unwrap_err().contains("too many methods"));
}

/// Seven words announced millions of parts that take no bytes, and cost gigabytes and seconds.
#[test]
fn a_schema_has_no_more_parts_than_bytes() {
    const PARTS: u64 = 4_000_000;
    // The root with four pointers, of which the first leads to a list of structs of no size.
    let words = [6 << 32, 4 << 48, 0x7_0000_000d, 0, 0, 0, PARTS << 2];
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    let error = Table::new(&bytes).unwrap_err().to_string();
    assert!(error.contains("limit"), "{error}");
}

#[test]
fn what_is_no_schema_is_an_error() {
    assert!(Table::new(b"").is_err());
    assert!(Table::new(&[0xff; 64]).is_err());
    let schema = poll::Client::SCHEMA;
    assert!(Table::new(&schema[..schema.len() / 2]).is_err());
    for end in (0..schema.len()).step_by(8) {
        let mut damaged = schema.to_vec();
        damaged[end] ^= 0x55;
        drop(Table::new(&damaged));
    }
}

#[test]
fn the_schemas_of_the_bundled_classes_are_tables() {
    let counters = Table::new(counter::Client::SCHEMA).unwrap();
    let names: Vec<_> =
        counters.methods(counter::Client::ID).into_iter().map(|method| method.name).collect();
    assert!(names.starts_with(&["Counter.increment".to_owned()]), "{names:?}");
    assert!(names.contains(&"HttpService.request".to_owned()), "{names:?}");
    assert_eq!(Table::new(poll::Client::SCHEMA).unwrap().methods(poll::Client::ID).len(), 2);
}

/// Interfaces of two files and of two scopes, with methods of the same names.
#[test]
fn methods_of_the_same_name_are_told_apart() {
    let mut message = Builder::new_default();
    let request = message.init_root::<code_generator_request::Builder<'_>>();
    let all = [
        (1, "a.capnp:Shop", &["sell"][..], &[2, 3, 4, 5][..]),
        (2, "a.capnp:Store", &["get", "put"], &[]),
        (3, "a.capnp:Inner.Store", &["get"], &[]),
        (4, "b.capnp:Inner.Store", &["get"], &[]),
        (5, "b.capnp:Other", &["put"], &[]),
    ];
    let mut nodes = request.init_nodes(all.len() as u32);
    for (at, (id, name, methods, above)) in (0..).zip(all) {
        let mut node = nodes.reborrow().get(at);
        node.set_id(id);
        node.set_display_name(name);
        let mut of = node.init_interface();
        let mut made = of.reborrow().init_methods(methods.len() as u32);
        for (at, name) in (0..).zip(methods) {
            made.reborrow().get(at).set_name(*name);
        }
        let mut extends = of.init_superclasses(above.len() as u32);
        for (at, id) in (0..).zip(above) {
            extends.reborrow().get(at).set_id(*id);
        }
    }
    let table = Table::new(&serialize::write_message_to_words(&message)).unwrap();
    let methods = table.methods(1);
    let mut names: Vec<_> = methods.iter().map(|method| method.name.as_str()).collect();
    names.sort_unstable();
    let expected = ["0x3.get", "0x4.get", "Other.put", "Shop.sell", "Store.get", "Store.put"];
    assert_eq!(names, expected);
    assert!(methods.iter().all(|method| method.name.ends_with(method.short_name())));
}

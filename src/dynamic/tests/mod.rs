//! JSON and messages, against each other and against the generated code of `every.capnp`.

mod accessors;
mod generate;
mod hostile;
mod schemas;

use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp::{any_pointer, serialize};
use capstead_client::Interface;
use serde_json::{Value, json};

use super::*;
use crate::schema::every_capnp::{every, maker};

const BYTES_MAX: usize = 1 << 20;

fn table() -> Table {
    Table::new(maker::Client::SCHEMA).unwrap()
}

/// The message that is written from JSON.
fn write(table: &Table, of: &str, json: &Value) -> Result<Builder<HeapAllocator>, String> {
    let text = json.to_string();
    let json = parse(text.as_bytes()).map_err(|error| error.to_string())?;
    let mut message = Builder::new_default();
    let root = RootBuilder::of(message.init_root::<any_pointer::Builder<'_>>());
    table
        .write(&table.struct_named(of), &json, root, BYTES_MAX, &mut NoCapSource)
        .map_err(|error| error.to_string())?;
    Ok(message)
}

/// The JSON of a message.
fn read(table: &Table, of: &str, message: &Builder<HeapAllocator>) -> Result<Value, String> {
    let root = Root::of(message.get_root_as_reader().unwrap()).unwrap();
    let json = table
        .read(&table.struct_named(of), root, BYTES_MAX, &mut NoCapSink)
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

/// There, over the wire, and back.
fn round(of: &str, json: &Value) -> Result<Value, String> {
    let table = table();
    let bytes = serialize::write_message_to_words(&write(&table, of, json)?);
    let message = serialize::read_message(&bytes[..], ReaderOptions::new()).unwrap();
    let root = Root::of(message.get_root().unwrap()).unwrap();
    let json = table
        .read(&table.struct_named(of), root, BYTES_MAX, &mut NoCapSink)
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

#[test]
fn defaults_are_there_and_unset_pointers_are_not() {
    let defaults = json!({
        "number": -3, "flag": true, "text": "as ever", "data": "wP/u", "colour": "blue", "float": 0.5,
        "list": [1, 2, 3], "point": {"x": "1", "y": "2"}, "short": "Infinity",
        "long": "18446744073709551615",
    });
    assert_eq!(round("Inner", &json!({})), Ok(defaults.clone()));
    assert_eq!(round("Inner", &defaults), Ok(defaults.clone()));
    assert_eq!(round("Inner", &json!({"text": null, "list": null})), Ok(defaults));
    let other = json!({
        "number": 0, "flag": false, "text": "", "data": "", "colour": "red", "float": 0.0,
        "list": [], "point": {"x": "0", "y": "0"}, "short": 0.0, "long": "0",
    });
    assert_eq!(round("Inner", &other), Ok(other));
    assert_eq!(round("Point", &json!({})), Ok(json!({"x": "0", "y": "0"})));
    let every = round("Every", &json!({})).unwrap();
    let pointers = every.as_object().unwrap().keys().filter(|key| key.ends_with('s'));
    assert_eq!(pointers.count(), 0);
    assert_eq!(every["group"], json!({"left": 0, "deeper": {"flag": true}}));
    assert_eq!(every["shape"], json!({"none": null}));
}

#[test]
fn a_union_is_the_one_key_that_is_set() {
    for shape in [
        json!({"none": null}),
        json!({"circle": -0.0}),
        json!({"name": null}),
        json!({"name": "x"}),
        json!({"square": {"side": 7}}),
        json!({"square": {"side": 0, "label": "l"}}),
    ] {
        assert_eq!(round("Every", &json!({"shape": shape})).unwrap()["shape"], shape);
    }
    let whole = |union: Value| {
        let mut choice = json!({"before": 3, "after": "z"});
        choice.as_object_mut().unwrap().extend(union.as_object().unwrap().clone());
        choice
    };
    for union in
        [json!({"number": "9"}), json!({"word": null}), json!({"point": {"x": "1", "y": "-1"}})]
    {
        assert_eq!(round("Choice", &whole(union.clone())), Ok(whole(union)));
    }
    let said = round("Choice", &json!({"number": 1, "word": "x"})).unwrap_err();
    assert_eq!(said, "only one of number and word can be set");
}

#[test]
fn numbers_come_in_more_forms_than_they_leave() {
    let (least, most) = (i64::MIN, u64::MAX);
    for (given, back) in [
        (json!({"int64": least, "uInt64": most}), json!([least.to_string(), most.to_string()])),
        (json!({"int64": "-5", "uInt64": "0018"}), json!(["-5", "18"])),
        (json!({"int64": 2.0, "uInt64": 1e3}), json!(["2", "1000"])),
        (
            json!({"int64": -1e18, "uInt64": 1.8e19}),
            json!(["-1000000000000000000", "18000000000000000000"]),
        ),
    ] {
        let every = round("Every", &given).unwrap();
        assert_eq!(json!([every["int64"], every["uInt64"]]), back);
    }
    for (given, back) in [
        (json!("NaN"), json!("NaN")),
        (json!("-Infinity"), json!("-Infinity")),
        (json!(0.1), json!(0.1)),
        (json!(16_777_217), json!(16_777_216.0)),
    ] {
        assert_eq!(round("Every", &json!({"float32": given})).unwrap()["float32"], back);
    }
    assert_eq!(round("Every", &json!({"colour": 77})).unwrap()["colour"], json!(77));
    assert_eq!(round("Every", &json!({"colour": 1})).unwrap()["colour"], json!("darkGreen"));
    assert_eq!(round("Every", &json!({"data": "aGk"})).unwrap()["data"], json!("aGk="));
}

#[test]
fn json_that_is_not_of_the_schema_is_told_where_and_why() {
    for (json, says) in [
        (json!([]), "it must be an object, and is an array"),
        (json!({"Bool": true}), "there is no field \"Bool\"; there are void, bool, int8, "),
        (
            json!({"group": {"deeper": {"x": 1}}}),
            "group.deeper: there is no field \"x\"; there are flag",
        ),
        (json!({"bool": 1}), "bool: it must be true or false, and is a number"),
        (json!({"bool": null}), "bool: it must be true or false, and is null"),
        (json!({"void": 0}), "void: it must be null, and is a number"),
        (json!({"int8": 128}), "int8: the number is out of the range of Int8"),
        (json!({"int8": "1"}), "int8: it must be a whole number, and is a text"),
        (json!({"int16": -32769}), "int16: the number is out of"),
        (json!({"uInt32": -1}), "uInt32: the number is out of the range of UInt32"),
        (json!({"uInt32": 0.5}), "uInt32: it must be a whole number, and 0.5 is none"),
        (json!({"uInt64": 1e20}), "uInt64: the number is out of the range of UInt64"),
        (json!({"uInt64": "18446744073709551616"}), "uInt64: the number is out of"),
        (json!({"int64": "+1"}), "int64: it must be a whole number, or a text"),
        (json!({"int64": "1e3"}), "int64: it must be a whole number, or a text"),
        (json!({"float32": 1e39}), "float32: the number is out of the range of Float32"),
        (json!({"float64": "nan"}), "float64: it must be a number, or one of"),
        (json!({"text": 1}), "text: it must be a text, and is a number"),
        (json!({"data": "a"}), "data: the text must be the base64 of bytes"),
        (json!({"data": "-_-_"}), "data: the text must be the base64 of bytes"),
        (json!({"colour": "Red"}), "colour: there is no Red; there are red, darkGreen, blue"),
        (json!({"colours": ["red", 65536]}), "colours[1]: the number is out of the range of enum"),
        (json!({"inners": [{}, null]}), "inners[1]: it must be an object, and is null"),
        (json!({"inners": [{"point": {"x": []}}]}), "inners[0].point.x: it must be a whole"),
        (json!({"grid": [[1], [2, "3"]]}), "grid[1][1]: it must be a whole number, and is a text"),
        (json!({"shape": {}, "any": 1}), "any: it is an AnyPointer, which has no form in JSON"),
        (json!({"cap": {}}), "cap: it must be the text of a reference, and is an object"),
        (json!({"caps": ["x"]}), "caps[0]: no capability can be given here"),
        (json!({"pair": {"first": 1}}), "pair.first: it must be a text, and is a number"),
    ] {
        let said = write(&table(), "Every", &json).err().unwrap_or_else(|| panic!("{json}"));
        assert!(said.starts_with(says), "{json}: {said}");
    }
}

#[test]
fn the_parameters_of_generic_types_are_what_was_given_for_them() {
    let pair = json!({"first": "a", "second": {"point": {"x": "1", "y": "2"}}});
    let back = round("Every", &json!({"pair": pair})).unwrap();
    assert_eq!(back["pair"]["first"], "a");
    assert_eq!(back["pair"]["second"]["point"]["y"], "2");
    let turned = json!({"turned": {"first": {"number": 4}, "turned": {"first": "b"}}});
    let back = round("Every", &json!({"pair": turned})).unwrap();
    assert_eq!(back["pair"]["turned"]["first"]["number"], 4);
    assert_eq!(back["pair"]["turned"]["turned"]["first"], "b");
    let pairs = json!([{"second": [7, 8]}, {}]);
    assert_eq!(round("Every", &json!({"pairs": pairs})).unwrap()["pairs"], pairs);
    let said = round("Every", &json!({"pair": {"second": "x"}})).unwrap_err();
    assert_eq!(said, "pair.second: it must be an object, and is a text");
}

#[test]
fn methods_are_those_of_the_interface_and_all_above_it() {
    let table = table();
    let methods = table.methods(maker::Client::TYPE_ID);
    let names: Vec<_> = methods.iter().map(|method| method.name.as_str()).collect();
    let expected = ["make", "choose", "flow", "any", "boxed"].map(|name| format!("Maker.{name}"));
    assert_eq!(names, [&expected[..], &["Box.put".into(), "Box.take".into()]].concat());
    assert_eq!(methods[0].about, "Makes one.");
    assert_eq!(table.about_interface(maker::Client::ID), "Makes things.");
    let of = |method: usize, json: Value| {
        let (text, mut message) = (json.to_string(), Builder::new_default());
        let json = parse(text.as_bytes()).unwrap();
        let root = RootBuilder::of(message.init_root::<any_pointer::Builder<'_>>());
        table.write(&methods[method].params, &json, root, BYTES_MAX, &mut NoCapSource)?;
        let root = Root::of(message.get_root_as_reader().unwrap()).unwrap();
        table.read(&methods[method].params, root, BYTES_MAX, &mut NoCapSink)
    };
    let of = |method, json| match of(method, json) {
        Ok(json) => String::from_utf8(json).unwrap(),
        Err(unfit) => unfit.to_string(),
    };
    assert_eq!(of(0, json!({})), r#"{"count":3}"#);
    assert_eq!(of(1, json!({"word": "w"})), r#"{"before":0,"word":"w"}"#);
    assert_eq!(of(2, json!({"data": "aGk="})), r#"{"data":"aGk="}"#);
    assert_eq!(of(3, json!({"value": null})), "{}");
    assert!(of(3, json!({"value": 1})).starts_with("value: it is an AnyPointer"));
    assert_eq!(
        of(5, json!({"value": "the Text of Maker's Box"})),
        r#"{"value":"the Text of Maker's Box"}"#
    );
    assert_eq!(of(5, json!({"value": 1})), "value: it must be a text, and is a number");
}

/// Makes broken capabilities that say their text.
struct Broken(Vec<String>);

impl CapSource for Broken {
    fn capability(
        &mut self,
        text: &str,
    ) -> Result<Box<dyn capnp::private::capability::ClientHook>, Unfit> {
        self.0.push(text.to_owned());
        Ok(capnp_rpc::new_broken_cap(crate::error::failed(text)).hook)
    }
}

/// Has a text for the capabilities in one field.
struct Named(&'static str);

impl CapSink for Named {
    fn capability(
        &mut self,
        path: &[&str],
        _: Box<dyn capnp::private::capability::ClientHook>,
    ) -> Result<Option<String>, Unfit> {
        Ok((path.join(".") == self.0).then(|| format!("of {}", self.0)))
    }
}

#[test]
fn capabilities_are_given_as_texts_and_named_unless_there_is_a_text_for_them() {
    let table = table();
    let every = table.struct_named("Every");
    let json = parse(br#"{"cap": "one", "caps": ["two", null, "three"]}"#).unwrap();
    let (mut message, mut capabilities) = (Builder::new_default(), Vec::new());
    let mut root = message.init_root::<any_pointer::Builder<'_>>();
    root.imbue_mut(&mut capabilities);
    let mut broken = Broken(Vec::new());
    table.write(&every, &json, RootBuilder::of(root), BYTES_MAX, &mut broken).unwrap();
    assert_eq!(broken.0, ["one", "two", "three"]);
    let mut root = message.get_root::<any_pointer::Builder<'_>>().unwrap();
    root.imbue_mut(&mut capabilities);
    let root = Root::of(root.into_reader()).unwrap();
    let json = table.read(&every, root, BYTES_MAX, &mut Named("caps")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["cap"], json!({"capability": "Capability"}));
    assert_eq!(json["caps"], json!(["of caps", null, "of caps"]));
}

#[test]
fn a_text_that_is_not_utf8_is_no_json() {
    let mut message = Builder::new_default();
    let mut root = message.init_root::<every::Builder<'_>>();
    root.set_text(capnp::text::Reader(b"\xff"));
    let said = read(&table(), "Every", &message).unwrap_err();
    assert_eq!(said, "text: the text is not UTF-8");
}

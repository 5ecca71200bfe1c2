//! The same messages by generated code, written by hand: what the table must agree with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::schema::every_capnp::{Colour, every, inner};

fn float(value: f64) -> Value {
    match value {
        value if value.is_nan() => json!("NaN"),
        value if value.is_infinite() => json!(if value > 0.0 { "Infinity" } else { "-Infinity" }),
        value => json!(value),
    }
}

fn float32(value: f32) -> Value {
    float(value.to_string().parse().unwrap())
}

fn colour(value: Result<Colour, capnp::NotInSchema>) -> Value {
    match value {
        Ok(Colour::Red) => json!("red"),
        Ok(Colour::DarkGreen) => json!("darkGreen"),
        Ok(Colour::Blue) => json!("blue"),
        Err(capnp::NotInSchema(number)) => json!(number),
    }
}

fn read_inner(inner: inner::Reader<'_>) -> Value {
    let point = inner.get_point().unwrap();
    json!({
        "number": inner.get_number(),
        "flag": inner.get_flag(),
        "text": inner.get_text().unwrap().to_str().unwrap(),
        "data": STANDARD.encode(inner.get_data().unwrap()),
        "colour": colour(inner.get_colour()),
        "float": float(inner.get_float()),
        "list": inner.get_list().unwrap().iter().collect::<Vec<_>>(),
        "point": {"x": point.get_x().to_string(), "y": point.get_y().to_string()},
        "short": float32(inner.get_short()),
        "long": inner.get_long().to_string(),
    })
}

fn read_shape(shape: every::shape::Reader<'_>) -> Value {
    use every::shape::Which;
    match shape.which().unwrap() {
        Which::None(()) => json!({"none": null}),
        Which::Circle(value) => json!({"circle": float(value)}),
        Which::Name(name) if shape.has_name() => json!({"name": name.unwrap().to_str().unwrap()}),
        Which::Name(_) => json!({"name": null}),
        Which::Square(square) => {
            let mut json = json!({"side": square.get_side()});
            if square.has_label() {
                json["label"] = json!(square.get_label().unwrap().to_str().unwrap());
            }
            json!({"square": json})
        }
        Which::Inner(inner) => json!({"inner": read_inner(inner.unwrap())}),
    }
}

/// The JSON of a message.
pub(super) fn read(every: every::Reader<'_>) -> Value {
    let group = every.get_group();
    let mut json = json!({
        "void": every.get_void(),
        "bool": every.get_bool(),
        "int8": every.get_int8(),
        "int16": every.get_int16(),
        "int32": every.get_int32(),
        "int64": every.get_int64().to_string(),
        "uInt8": every.get_u_int8(),
        "uInt16": every.get_u_int16(),
        "uInt32": every.get_u_int32(),
        "uInt64": every.get_u_int64().to_string(),
        "float32": float32(every.get_float32()),
        "float64": float(every.get_float64()),
        "colour": colour(every.get_colour()),
        "group": {"left": group.get_left(), "deeper": {"flag": group.get_deeper().get_flag()}},
        "shape": read_shape(every.get_shape()),
    });
    if group.has_right() {
        json["group"]["right"] = json!(group.get_right().unwrap().to_str().unwrap());
    }
    read_pointers(every, json.as_object_mut().unwrap());
    json
}

/// A list as its elements in JSON.
macro_rules! elements {
    ($list:expr, $element:expr) => {
        $list.unwrap().iter().map($element).collect::<Vec<Value>>().into()
    };
}

fn read_pointers(every: every::Reader<'_>, json: &mut Map<String, Value>) {
    macro_rules! pointers {
        ($($name:literal $has:ident $get:ident $list:ident => $value:expr,)+) => {
            $(if every.$has() {
                let $list = every.$get();
                json.insert($name.to_owned(), $value);
            })+
        };
    }
    pointers! {
        "text" has_text get_text of => json!(of.unwrap().to_str().unwrap()),
        "data" has_data get_data of => json!(STANDARD.encode(of.unwrap())),
        "inner" has_inner get_inner of => read_inner(of.unwrap()),
        "every" has_every get_every of => read(of.unwrap()),
        "voids" has_voids get_voids of => elements!(of, |()| Value::Null),
        "bools" has_bools get_bools of => elements!(of, |value| json!(value)),
        "int8s" has_int8s get_int8s of => elements!(of, |value| json!(value)),
        "int16s" has_int16s get_int16s of => elements!(of, |value| json!(value)),
        "int32s" has_int32s get_int32s of => elements!(of, |value| json!(value)),
        "int64s" has_int64s get_int64s of => elements!(of, |value| json!(value.to_string())),
        "uInt8s" has_u_int8s get_u_int8s of => elements!(of, |value| json!(value)),
        "uInt16s" has_u_int16s get_u_int16s of => elements!(of, |value| json!(value)),
        "uInt32s" has_u_int32s get_u_int32s of => elements!(of, |value| json!(value)),
        "uInt64s" has_u_int64s get_u_int64s of => elements!(of, |value| json!(value.to_string())),
        "float32s" has_float32s get_float32s of => elements!(of, float32),
        "float64s" has_float64s get_float64s of => elements!(of, float),
        "texts" has_texts get_texts of => texts(of.unwrap()),
        "datas" has_datas get_datas of => elements!(of, |data| json!(STANDARD.encode(data.unwrap()))),
        "colours" has_colours get_colours of => elements!(of, colour),
        "inners" has_inners get_inners of => elements!(of, read_inner),
        "grid" has_grid get_grid of => elements!(of, |row| elements!(row, |value| json!(value))),
        "cube" has_cube get_cube of => elements!(of, |plane| {
            elements!(plane, |row| elements!(row, read_inner))
        }),
        "pair" has_pair get_pair of => {
            let pair = of.unwrap();
            json!({
                "first": pair.get_first().unwrap().to_str().unwrap(),
                "second": read_inner(pair.get_second().unwrap()),
            })
        },
        "pairs" has_pairs get_pairs of => elements!(of, |pair| json!({
            "first": read_inner(pair.get_first().unwrap()),
            "second": pair.get_second().unwrap().iter().collect::<Vec<_>>(),
        })),
    }
}

/// Generated code can't tell an empty text of a list from none, so their order is looked at from
/// outside.
fn texts(list: capnp::text_list::Reader<'_>) -> Value {
    list.iter().map(|text| json!(text.unwrap().to_str().unwrap())).collect()
}

/// A number as JSON has it.
fn number<T: std::str::FromStr>(json: &Value) -> T
where
    T::Err: std::fmt::Debug,
{
    match json {
        Value::String(text) => text.parse().unwrap(),
        other => other.to_string().parse().unwrap(),
    }
}

fn bytes(json: &Value) -> Vec<u8> {
    STANDARD.decode(json.as_str().unwrap()).unwrap()
}

/// None for those that generated code has no value of.
fn named(json: &Value) -> Option<Colour> {
    Some(match json.as_str()? {
        "red" => Colour::Red,
        "darkGreen" => Colour::DarkGreen,
        _ => Colour::Blue,
    })
}

fn write_inner(json: &Value, mut inner: inner::Builder<'_>) {
    inner.set_number(number(&json["number"]));
    inner.set_flag(json["flag"].as_bool().unwrap());
    inner.set_text(json["text"].as_str().unwrap());
    inner.set_data(&bytes(&json["data"]));
    inner.set_colour(named(&json["colour"]).unwrap());
    inner.set_float(number(&json["float"]));
    let list: Vec<u32> = json["list"].as_array().unwrap().iter().map(number).collect();
    inner.set_list(&list[..]).unwrap();
    let mut point = inner.reborrow().init_point();
    point.set_x(number(&json["point"]["x"]));
    point.set_y(number(&json["point"]["y"]));
    inner.set_short(number(&json["short"]));
    inner.set_long(number(&json["long"]));
}

fn write_shape(json: &Value, mut shape: every::shape::Builder<'_>) {
    let (name, value) = json.as_object().unwrap().iter().next().unwrap();
    match name.as_str() {
        "none" => shape.set_none(()),
        "circle" => shape.set_circle(number(value)),
        "name" => match value.as_str() {
            Some(name) => shape.set_name(name),
            None => drop(shape.init_name(0)),
        },
        "square" => {
            let mut square = shape.init_square();
            square.set_side(number(&value["side"]));
            if let Some(label) = value["label"].as_str() {
                square.set_label(label);
            }
        }
        _ => write_inner(value, shape.init_inner()),
    }
}

/// Writes a message of JSON as it comes back, whose enumerants all have names.
pub(super) fn write(json: &Value, mut every: every::Builder<'_>) {
    every.set_bool(json["bool"].as_bool().unwrap());
    every.set_int8(number(&json["int8"]));
    every.set_int16(number(&json["int16"]));
    every.set_int32(number(&json["int32"]));
    every.set_int64(number(&json["int64"]));
    every.set_u_int8(number(&json["uInt8"]));
    every.set_u_int16(number(&json["uInt16"]));
    every.set_u_int32(number(&json["uInt32"]));
    every.set_u_int64(number(&json["uInt64"]));
    every.set_float32(number(&json["float32"]));
    every.set_float64(number(&json["float64"]));
    every.set_colour(named(&json["colour"]).unwrap());
    let mut group = every.reborrow().init_group();
    group.set_left(number(&json["group"]["left"]));
    if let Some(right) = json["group"]["right"].as_str() {
        group.set_right(right);
    }
    group.init_deeper().set_flag(json["group"]["deeper"]["flag"].as_bool().unwrap());
    write_shape(&json["shape"], every.reborrow().init_shape());
    for (name, value) in json.as_object().unwrap() {
        write_pointer(name, value, every.reborrow());
    }
}

fn write_pointer(name: &str, json: &Value, mut every: every::Builder<'_>) {
    macro_rules! each {
        ($init:ident $list:ident $at:ident $value:ident => $write:expr) => {{
            let values = json.as_array().unwrap();
            let mut $list = every.$init(values.len() as u32);
            for ($at, $value) in (0..).zip(values) {
                $write;
            }
        }};
    }
    match name {
        "text" => every.set_text(json.as_str().unwrap()),
        "data" => every.set_data(&bytes(json)),
        "inner" => write_inner(json, every.init_inner()),
        "every" => write(json, every.init_every()),
        "voids" => drop(every.init_voids(json.as_array().unwrap().len() as u32)),
        "texts" => each!(init_texts list at value => list.set(at, value.as_str().unwrap())),
        "datas" => each!(init_datas list at value => list.set(at, &bytes(value))),
        "colours" => each!(init_colours list at value => list.set(at, named(value).unwrap())),
        "inners" => each!(init_inners list at value => write_inner(value, list.reborrow().get(at))),
        "grid" => each!(init_grid list at value => {
            let values: Vec<u16> = value.as_array().unwrap().iter().map(number).collect();
            list.set(at, values.as_slice()).unwrap();
        }),
        "cube" => each!(init_cube list at value => {
            let rows = value.as_array().unwrap();
            let mut plane = list.reborrow().init(at, rows.len() as u32);
            for (at, row) in (0..).zip(rows) {
                let row = row.as_array().unwrap();
                let mut list = plane.reborrow().init(at, row.len() as u32);
                for (at, value) in (0..).zip(row) {
                    write_inner(value, list.reborrow().get(at));
                }
            }
        }),
        "pair" => {
            let mut pair = every.init_pair();
            pair.set_first(json["first"].as_str().unwrap()).unwrap();
            write_inner(&json["second"], pair.init_second());
        }
        "pairs" => each!(init_pairs list at value => {
            let mut pair = list.reborrow().get(at);
            write_inner(&value["first"], pair.reborrow().init_first());
            let bytes: Vec<u8> = value["second"].as_array().unwrap().iter().map(number).collect();
            let mut second = pair.initn_second(bytes.len() as u32);
            for (at, byte) in (0..).zip(bytes) {
                second.set(at, byte);
            }
        }),
        name => write_numbers(name, json, every),
    }
}

fn write_numbers(name: &str, json: &Value, every: every::Builder<'_>) {
    macro_rules! numbers {
        ($init:ident) => {{
            let values = json.as_array().unwrap();
            let mut list = every.$init(values.len() as u32);
            for (at, value) in (0..).zip(values) {
                list.set(at, number(value));
            }
        }};
    }
    match name {
        "bools" => numbers!(init_bools),
        "int8s" => numbers!(init_int8s),
        "int16s" => numbers!(init_int16s),
        "int32s" => numbers!(init_int32s),
        "int64s" => numbers!(init_int64s),
        "uInt8s" => numbers!(init_u_int8s),
        "uInt16s" => numbers!(init_u_int16s),
        "uInt32s" => numbers!(init_u_int32s),
        "uInt64s" => numbers!(init_u_int64s),
        "float32s" => numbers!(init_float32s),
        "float64s" => numbers!(init_float64s),
        _ => {}
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The general way is the measure.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::canonical::general;

/// Where it writes something, the general way writes the same.
fn agrees<T: Serialize>(value: &T) -> Option<String> {
    let written = write(value)?;
    assert_eq!(general(value).as_deref(), Ok(written.as_slice()));
    Some(String::from_utf8(written).unwrap())
}

fn tree() -> impl Strategy<Value = Value> {
    let text = prop_oneof![".{0,12}", "[ -~]{0,12}", "[\\x00-\\x1f\"\\\\\\x7f\u{2028}\u{e000}\u{10000}]{0,6}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-(1_i64 << 53)..=(1 << 53)).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..6).prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn every_tree_is_written_as_the_general_way_does(tree in tree()) {
        agrees(&tree);
    }

    #[test]
    fn objects_in_any_order(fields in prop::collection::vec(("[a-e]{1,3}", any::<u32>()), 0..8)) {
        struct Object(Vec<(String, u32)>);
        impl Serialize for Object {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
            }
        }
        let distinct: BTreeMap<_, _> = fields.iter().cloned().collect();
        let written = agrees(&Object(fields.clone()));
        prop_assert_eq!(written.is_some(), distinct.len() == fields.len(), "a key twice is left to the general way");
    }
}

#[derive(Serialize)]
enum Choice {
    Unit,
    New(u8),
    Pair(u8, u8),
    Fields { a: u8 },
}

#[derive(Serialize)]
struct Unit;

#[derive(Serialize)]
struct New(i8);

#[derive(Serialize)]
struct Pair(u16, Option<i32>);

#[derive(Serialize)]
struct Everything {
    z: Choice,
    b: (u8, char, &'static str),
    unit: Unit,
    new: New,
    pair: Pair,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<u8>,
    map: BTreeMap<char, ()>,
    #[serde(rename = "A")]
    capital: [i64; 2],
}

#[test]
fn every_shape_of_a_type_is_written_as_the_general_way_does() {
    let everything = |z| Everything {
        z,
        b: (255, 'é', "\u{7f}\n"),
        unit: Unit,
        new: New(-128),
        pair: Pair(65_535, None),
        left_out: None,
        map: [('y', ()), ('x', ())].into(),
        capital: [-(MAX_INTEGER as i64), MAX_INTEGER as i64],
    };
    let written = agrees(&everything(Choice::Unit)).unwrap();
    let expected = "{\"A\":[-9007199254740991,9007199254740991],\"b\":[255,\"é\",\"\u{7f}\\n\"],\
        \"map\":{\"x\":null,\"y\":null},\"new\":-128,\"pair\":[65535,null],\"unit\":null,\"z\":\"Unit\"}";
    assert_eq!(written, expected);
    assert!(agrees(&everything(Choice::New(1))).unwrap().ends_with("\"z\":{\"New\":1}}"));
    for unusual in [everything(Choice::Pair(1, 2)), everything(Choice::Fields { a: 1 })] {
        assert_eq!(agrees(&unusual), None);
        assert!(general(&unusual).is_ok());
    }
    let numbers: BTreeMap<u8, u8> = [(1, 1)].into();
    assert_eq!(agrees(&numbers), None);
}

#[test]
fn what_is_refused_is_not_written() {
    for value in [json!(1.0), json!({"a": 0.5}), json!([MAX_INTEGER + 1]), json!(i64::MIN), json!({"é": 1})] {
        assert_eq!(write(&value), None, "{value}");
    }
}

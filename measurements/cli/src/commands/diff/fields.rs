// SPDX-License-Identifier: Apache-2.0
//! Differences between two documents, field by field.

use serde::Serialize;
use serde_json::Value;

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FieldDifference {
    /// Its path: `predicate.image.kernel.unpatched`, `registers[2].rtmr_0`.
    pub(super) field: String,
    /// Its value in the first document; absent when it has none.
    pub(super) a: Option<Value>,
    /// Its value in the second.
    pub(super) b: Option<Value>,
    /// What the field decides, where that is known.
    pub(super) affects: Option<&'static str>,
}

/// Compares two values; at most `MAX_DIFFERENCES` are listed.
pub(super) fn compare(a: &Value, b: &Value) -> Vec<FieldDifference> {
    let mut found = Vec::new();
    walk("", Some(a), Some(b), &mut found);
    found
}

fn walk(path: &str, a: Option<&Value>, b: Option<&Value>, found: &mut Vec<FieldDifference>) {
    if a == b || found.len() >= MAX_DIFFERENCES {
        return;
    }
    match (a, b) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(&path, a.get(name), b.get(name), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for index in 0..a.len().max(b.len()) {
                walk(&format!("{path}[{index}]"), a.get(index), b.get(index), found);
            }
        }
        _ => found.push(FieldDifference {
            field: event_log::escaped(path.as_bytes()),
            a: a.cloned(),
            b: b.cloned(),
            affects: affects(path),
        }),
    }
}

/// What a field of a release, a shape or a configuration decides.
fn affects(path: &str) -> Option<&'static str> {
    let rules = [
        ("image.firmware.mr_td", "mr_td"),
        ("image.firmware", "mr_td, rtmr_0"),
        ("image.kernel", "rtmr_1"),
        ("image.initrd", "rtmr_2; before QEMU 10.0 rtmr_1, too"),
        ("image.command_line", "rtmr_2"),
        ("components.firmware", "mr_td, rtmr_0"),
        ("components.kernel", "rtmr_1"),
        ("components.initrd", "rtmr_2"),
        ("memory_mib", "rtmr_0; before QEMU 10.0 rtmr_1, too"),
        ("acpi", "rtmr_0"),
        ("vcpus", "rtmr_0"),
        ("physical_bits", "rtmr_0"),
        ("devices", "rtmr_0"),
        ("qemu", "rtmr_0; before 10.0 rtmr_1, before 10.1 mr_td, too"),
    ];
    rules.into_iter().find(|(part, _)| path.contains(part)).map(|(_, affects)| affects)
}

/// A value for a line of text.
pub(super) fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "(absent)".to_owned(), |value| event_log::escaped(value.to_string().as_bytes()))
}

const MAX_DIFFERENCES: usize = 256;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_by_their_path() {
        let a = json!({"predicate": {"image": {"command_line": "a", "initrd": "1"}, "list": [1, 2]}});
        let b = json!({"predicate": {"image": {"command_line": "b", "initrd": "1"}, "list": [1, 3, 4]}, "new": 1});
        let fields: Vec<_> = compare(&a, &b).into_iter().map(|d| (d.field, d.affects)).collect();
        assert_eq!(
            fields,
            [
                ("new".to_owned(), None),
                ("predicate.image.command_line".to_owned(), Some("rtmr_2")),
                ("predicate.list[1]".to_owned(), None),
                ("predicate.list[2]".to_owned(), None),
            ]
        );
        assert_eq!(compare(&a, &a), []);
        let long: Vec<u32> = (0..1000).collect();
        assert_eq!(compare(&json!(long), &json!(vec![9999; 1000])).len(), MAX_DIFFERENCES);
    }
}

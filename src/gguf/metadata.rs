//! The ordered list of metadata keys and values.

use super::ALIGNMENT;
use super::error::GgufError;
use super::value::{Array, Value};
use bstr::{BString, ByteSlice};
use std::collections::HashMap;

/// Metadata in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A key's value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Sets a key. One that exists keeps its place, as in gguf-py.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.index.get(key) {
            Some(&i) => self.entries[i].1 = value,
            None => {
                self.index.insert(key.to_owned(), self.entries.len());
                self.entries.push((key.to_owned(), value));
            }
        }
    }

    /// Sets a key and moves it to the end, as ggml's `gguf_set_val` does.
    pub fn set_last(&mut self, key: &str, value: impl Into<Value>) {
        self.remove(key);
        self.set(key, value);
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let i = self.index.remove(key)?;
        let (_, value) = self.entries.remove(i);
        for (key, _) in &self.entries[i..] {
            if let Some(place) = self.index.get_mut(key) {
                *place -= 1;
            }
        }
        Some(value)
    }

    /// A key's value where one for the whole model is wanted: some files have it once for each layer.
    fn scalar<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(Value::Array(array)) = self.get(key) else {
            return self.typed(key, expected, convert);
        };
        array.uniform().as_ref().and_then(convert).map(Some).ok_or_else(|| GgufError::KeyType {
            key: key.to_owned(),
            expected,
            found: match array.uniform() {
                None if array.len() > 1 => format!("array of {}, not all equal", array.type_name()),
                _ => format!("array of {}", array.type_name()),
            },
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| GgufError::KeyType {
                key: key.to_owned(),
                expected,
                found: value.type_name(),
            }),
        }
    }

    /// A count, of whatever integer type, that fits 32 bits. An array of equal ones counts as one.
    ///
    /// # Errors
    /// The key holds anything else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.scalar(key, "a whole number below 2^32", |value| match *value {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n),
            Value::U64(n) => n.try_into().ok(),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        })
    }

    /// A number. An array of equal ones counts as one.
    ///
    /// # Errors
    /// The key holds anything else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.scalar(key, "f32", |value| match *value {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        })
    }

    /// A switch. An array of equal ones counts as one.
    ///
    /// # Errors
    /// The key holds anything else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.scalar(key, "bool", |value| match *value {
            Value::Bool(flag) => Some(flag.is_on()),
            _ => None,
        })
    }

    /// What tensor data is aligned to.
    ///
    /// # Errors
    /// The key holds no power of two as u32.
    pub fn alignment(&self) -> Result<u64, GgufError> {
        const KEY: &str = "general.alignment";
        match self.get(KEY) {
            None => Ok(ALIGNMENT),
            Some(&Value::U32(n)) if n.is_power_of_two() => Ok(n.into()),
            Some(other) => Err(GgufError::KeyType {
                key: KEY.to_owned(),
                expected: "a power of two as u32",
                found: match other {
                    Value::U32(n) => n.to_string(),
                    other => other.type_name(),
                },
            }),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// The key holds anything else, or bytes that are not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a UTF-8 string", |value| match value {
            Value::String(s) => s.to_str().ok(),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// The key holds anything else.
    pub fn strings(&self, key: &str) -> Result<Option<&[BString]>, GgufError> {
        self.typed(key, "array of string", |value| match value {
            Value::Array(Array::String(strings)) => Some(strings.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit integers.
    ///
    /// # Errors
    /// The key holds anything else.
    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>, GgufError> {
        self.typed(key, "array of i32", |value| match value {
            Value::Array(Array::I32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit floats.
    ///
    /// # Errors
    /// The key holds anything else.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed(key, "array of f32", |value| match value {
            Value::Array(Array::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_keeps_the_place_and_setting_last_does_not() {
        let mut metadata = Metadata::new();
        for (key, value) in [("a", 1u32), ("b", 2), ("c", 3)] {
            metadata.set(key, value);
        }
        metadata.set("a", 4u32);
        metadata.set_last("b", 5u32);
        assert_eq!(metadata.remove("missing"), None);
        let keys: Vec<_> = metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        let expected =
            [("a", 4u32), ("c", 3), ("b", 5)].map(|(k, v)| (k.to_owned(), Value::U32(v)));
        assert_eq!(keys, expected);
        assert_eq!(metadata.get("c"), Some(&Value::U32(3)));
        assert_eq!(metadata.get("b"), Some(&Value::U32(5)));
    }

    #[test]
    fn a_key_of_another_type_is_an_error_that_names_both() {
        let mut metadata = Metadata::new();
        metadata.set("n", -1i32);
        metadata.set("s", "text");
        let error = metadata.u32("n").unwrap_err().to_string();
        assert!(error.contains("`n`") && error.contains("i32"), "{error}");
        assert!(metadata.f32("s").is_err());
        assert_eq!(metadata.u32("absent").unwrap(), None);
    }

    #[test]
    fn equal_values_of_an_array_count_as_one() {
        let mut metadata = Metadata::new();
        metadata.set("heads", vec![8u32; 3]);
        metadata.set("eps", vec![1e-6f32; 2]);
        metadata.set("on", vec![true]);
        metadata.set("mixed", vec![8i32, 0]);
        metadata.set("none", Vec::<u32>::new());
        metadata.set("names", vec!["a".to_owned()].into_iter().collect::<Value>());
        assert_eq!(metadata.u32("heads").unwrap(), Some(8));
        assert_eq!(metadata.f32("eps").unwrap(), Some(1e-6));
        assert_eq!(metadata.bool("on").unwrap(), Some(true));
        let error = |key| metadata.u32(key).unwrap_err().to_string();
        assert!(error("mixed").contains("`mixed` is array of i32, not all equal"));
        assert!(error("none").contains("array of u32,"));
        assert!(error("names").contains("array of string,"));
    }
}

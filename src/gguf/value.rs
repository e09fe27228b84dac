//! Metadata values with the types that the file gives them.

use bstr::BString;
use std::str::FromStr;

macro_rules! values {
    ($($variant:ident($ty:ty) = $id:literal, $name:literal;)*) => {
        /// A metadata value. Strings are kept as bytes: files exist whose strings were cut inside
        /// a UTF-8 sequence, and a copy must not change them.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Value {
            $($variant($ty),)*
            Array(Array),
        }

        /// An array of values of one type. Arrays of arrays do not exist.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Array {
            $($variant(Vec<$ty>),)*
        }

        impl Value {
            /// The id of the value's type in files.
            pub fn type_id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Array(_) => ARRAY_ID,
                }
            }

            /// The name of the value's type, as for `array of f32`.
            pub fn type_name(&self) -> String {
                match self {
                    $(Self::$variant(_) => $name.to_owned(),)*
                    Self::Array(array) => format!("array of {}", array.type_name()),
                }
            }

            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => value.write(out),)*
                    Self::Array(array) => array.write(out),
                }
            }
        }

        impl Array {
            /// The id of the elements' type in files.
            pub fn type_id(&self) -> u32 {
                match self { $(Self::$variant(_) => $id,)* }
            }

            /// The name of the elements' type.
            pub fn type_name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }

            /// Elements.
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(array) => array.len(),)* }
            }

            /// Keeps the elements at some places.
            pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
                let mut places = 0..;
                let mut keep = || places.next().is_some_and(&mut keep);
                match self { $(Self::$variant(array) => array.retain(|_| keep()),)* }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The one value that all elements have; `None` where they differ or there are none.
            pub(super) fn uniform(&self) -> Option<Value> {
                match self {
                    $(Self::$variant(array) => match array.split_first()? {
                        (first, rest) if rest.iter().all(|x| x == first) => {
                            Some(Value::$variant(first.clone()))
                        }
                        _ => None,
                    },)*
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.type_id().to_le_bytes());
                out.extend_from_slice(&(self.len() as u64).to_le_bytes());
                match self {
                    $(Self::$variant(array) => array.iter().for_each(|value| value.write(out)),)*
                }
            }
        }

        $(
            impl From<$ty> for Value {
                fn from(value: $ty) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$ty>> for Value {
                fn from(array: Vec<$ty>) -> Self {
                    Self::Array(Array::$variant(array))
                }
            }
        )*

        /// Reads a value of the type with this id; `None` for an unknown id.
        pub(super) fn read(
            id: u32,
            cursor: &mut super::parse::Cursor,
        ) -> Result<Option<Value>, super::parse::Stop> {
            match id {
                $($id => cursor.value::<$ty>().map(|value| Some(Value::$variant(value))),)*
                _ => Ok(None),
            }
        }

        /// Reads an array of the type with this id; `None` for an unknown id.
        pub(super) fn read_array(
            id: u32,
            cursor: &mut super::parse::Cursor,
        ) -> Result<Option<Value>, super::parse::Stop> {
            match id {
                $($id => cursor.array::<$ty>().map(|a| Some(Value::Array(Array::$variant(a)))),)*
                _ => Ok(None),
            }
        }
    };
}

values! {
    U8(u8) = 0, "u8";
    I8(i8) = 1, "i8";
    U16(u16) = 2, "u16";
    I16(i16) = 3, "i16";
    U32(u32) = 4, "u32";
    I32(i32) = 5, "i32";
    F32(f32) = 6, "f32";
    Bool(Flag) = 7, "bool";
    String(BString) = 8, "string";
    U64(u64) = 10, "u64";
    I64(i64) = 11, "i64";
    F64(f64) = 12, "f64";
}

/// The id of arrays.
pub(super) const ARRAY_ID: u32 = 9;

/// A switch as files hold it: any byte but 0 is on. The byte is kept, so that a copy has it too.
#[derive(Clone, Copy, Debug)]
pub struct Flag(u8);

impl Flag {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self.0 != 0
    }
}

impl PartialEq for Flag {
    fn eq(&self, other: &Self) -> bool {
        self.is_on() == other.is_on()
    }
}

impl From<bool> for Flag {
    fn from(on: bool) -> Self {
        Self(on.into())
    }
}

impl From<bool> for Value {
    fn from(on: bool) -> Self {
        Flag::from(on).into()
    }
}

impl From<Vec<bool>> for Value {
    fn from(array: Vec<bool>) -> Self {
        array.into_iter().map(Flag::from).collect::<Vec<_>>().into()
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value.into())
    }
}

impl FromIterator<String> for Value {
    fn from_iter<I: IntoIterator<Item = String>>(strings: I) -> Self {
        Self::Array(Array::String(strings.into_iter().map(BString::from).collect()))
    }
}

/// A value that stands in the file as itself or inside an array.
pub(super) trait Element: Sized {
    /// Bytes that the element takes at least; a bound on how many can be left in a file.
    const MIN_BYTES: u64;
    fn write(&self, out: &mut Vec<u8>);
    fn read(cursor: &mut super::parse::Cursor) -> Result<Self, super::parse::Stop>;
}

macro_rules! numbers {
    ($($ty:ty),*) => {$(
        impl Element for $ty {
            const MIN_BYTES: u64 = size_of::<$ty>() as u64;

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn read(cursor: &mut super::parse::Cursor) -> Result<Self, super::parse::Stop> {
                Ok(Self::from_le_bytes(cursor.fixed()?))
            }
        }
    )*};
}
numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

impl Element for Flag {
    const MIN_BYTES: u64 = 1;

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.0);
    }

    fn read(cursor: &mut super::parse::Cursor) -> Result<Self, super::parse::Stop> {
        cursor.value().map(Self)
    }
}

impl Element for BString {
    const MIN_BYTES: u64 = 8;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len() as u64).to_le_bytes());
        out.extend_from_slice(self);
    }

    fn read(cursor: &mut super::parse::Cursor) -> Result<Self, super::parse::Stop> {
        cursor.string().map(BString::from)
    }
}

impl Value {
    /// A value from the name of its type and its text; `None` for an unknown type or a text that is
    /// no such value. `str` is a string, and `arr[i32]` an array of numbers: a JSON list, or elements
    /// with commas between them.
    pub fn parse(ty: &str, text: &str) -> Option<Self> {
        match ty.strip_prefix("arr[").and_then(|ty| ty.strip_suffix(']')) {
            Some(ty) => Self::parse_array(ty, &elements(text)?),
            None => Self::parse_scalar(ty, text),
        }
    }

    fn parse_scalar(ty: &str, text: &str) -> Option<Self> {
        Some(match ty {
            "u8" => text.parse::<u8>().ok()?.into(),
            "i8" => text.parse::<i8>().ok()?.into(),
            "u16" => text.parse::<u16>().ok()?.into(),
            "i16" => text.parse::<i16>().ok()?.into(),
            "u32" => text.parse::<u32>().ok()?.into(),
            "i32" => text.parse::<i32>().ok()?.into(),
            "f32" => text.parse::<f32>().ok()?.into(),
            "bool" => text.parse::<bool>().ok()?.into(),
            "str" => text.into(),
            "u64" => text.parse::<u64>().ok()?.into(),
            "i64" => text.parse::<i64>().ok()?.into(),
            "f64" => text.parse::<f64>().ok()?.into(),
            _ => return None,
        })
    }

    fn parse_array(ty: &str, elements: &[String]) -> Option<Self> {
        fn list<T: FromStr>(elements: &[String]) -> Option<Value>
        where
            Value: From<Vec<T>>,
        {
            let parsed: Option<Vec<T>> = elements.iter().map(|text| text.parse().ok()).collect();
            parsed.map(Value::from)
        }
        match ty {
            "u8" => list::<u8>(elements),
            "i8" => list::<i8>(elements),
            "u16" => list::<u16>(elements),
            "i16" => list::<i16>(elements),
            "u32" => list::<u32>(elements),
            "i32" => list::<i32>(elements),
            "f32" => list::<f32>(elements),
            "bool" => list::<bool>(elements),
            "str" => Some(elements.iter().cloned().collect()),
            "u64" => list::<u64>(elements),
            "i64" => list::<i64>(elements),
            "f64" => list::<f64>(elements),
            _ => None,
        }
    }
}

/// The texts of a list's elements.
fn elements(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    if !text.starts_with('[') {
        return Some(text.split(',').map(|element| element.trim().to_owned()).collect());
    }
    let list: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
    let element = |element: serde_json::Value| match element {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Some(list.into_iter().map(element).collect())
}

//! Metadata values with the types that the file gives them.

use bstr::BString;

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
    Bool(bool) = 7, "bool";
    String(BString) = 8, "string";
    U64(u64) = 10, "u64";
    I64(i64) = 11, "i64";
    F64(f64) = 12, "f64";
}

/// The id of arrays.
pub(super) const ARRAY_ID: u32 = 9;

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

impl Element for bool {
    const MIN_BYTES: u64 = 1;

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn read(cursor: &mut super::parse::Cursor) -> Result<Self, super::parse::Stop> {
        Ok(cursor.fixed::<1>()? != [0])
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
    /// A value from the name of its type, `str` for strings, and its text; `None` for an unknown
    /// type or a text that is no such value.
    pub fn parse(ty: &str, text: &str) -> Option<Self> {
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
}

//! A cursor over the header's bytes that never reads past them nor allocates beyond them.

use super::value::Element;

/// The header ends before what it announces.
#[derive(Debug)]
pub(super) struct Stop;

/// Reads little-endian fields one after the other.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Stop> {
        if n > self.remaining() {
            return Err(Stop);
        }
        let bytes = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(bytes)
    }

    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        self.take(N as u64).map(|bytes| bytes.try_into().expect("take returns N bytes"))
    }

    pub fn value<T: Element>(&mut self) -> Result<T, Stop> {
        T::read(self)
    }

    pub fn string(&mut self) -> Result<&'a [u8], Stop> {
        let n = self.value::<u64>()?;
        self.take(n)
    }

    pub fn array<T: Element>(&mut self) -> Result<Vec<T>, Stop> {
        let n = self.value::<u64>()?;
        if n.checked_mul(T::MIN_BYTES).is_none_or(|bytes| bytes > self.remaining()) {
            return Err(Stop);
        }
        // An element in memory is at most three times its smallest form in the file.
        let mut array = Vec::with_capacity(n as usize);
        for _ in 0..n {
            array.push(T::read(self)?);
        }
        Ok(array)
    }
}

//! What bytes are compared by.

use std::io::{self, Write};

/// How many bytes there were, and their CRC-32.
#[derive(Debug, Default)]
pub(crate) struct Digest {
    bytes: u64,
    crc32: crc32fast::Hasher,
}

impl Digest {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.crc32.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(crate) fn finish(self) -> (u64, u32) {
        (self.bytes, self.crc32.finalize())
    }
}

impl Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

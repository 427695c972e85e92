//! The file format of `lzop`.
//!
//! A header, blocks of at most 256 KiB each with its checksums, and a length of zero. WAL-E pipes
//! everything through that program; so that an archive can be read by both, its format is kept.

use std::io::{self, Read, Write};

use adler2::adler32_slice;
use lzokay_native::{Dict, compress_with_dict};

/// What every file begins with.
const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1A, b'\n'];

/// How many bytes `lzop` takes at a time.
const BLOCK: usize = 256 << 10;

/// The greatest block that `lzop` reads.
const MOST: usize = 64 << 20;

// Flags of the header: what there is of checksums, of uncompressed (D) and compressed (C) bytes.
const ADLER32_D: u32 = 0x1;
const ADLER32_C: u32 = 0x2;
const EXTRA_FIELD: u32 = 0x40;
const CRC32_D: u32 = 0x100;
const CRC32_C: u32 = 0x200;
const MULTIPART: u32 = 0x400;
const FILTER: u32 = 0x800;
const HEADER_CRC32: u32 = 0x1000;
/// Unix.
const OS: u32 = 0x0300_0000;

/// Compresses what is written to it.
pub(crate) struct Encoder<W: Write> {
    into: W,
    block: Vec<u8>,
    dictionary: Dict,
    begun: bool,
}

impl<W: Write> Encoder<W> {
    pub(crate) fn new(into: W) -> Self {
        Self {
            into,
            block: Vec::with_capacity(BLOCK),
            dictionary: Dict::new(),
            begun: false,
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.put_block()?;
        self.into.write_all(&[0; 4])?;
        Ok(self.into)
    }

    fn put_block(&mut self) -> io::Result<()> {
        if !self.begun {
            self.begun = true;
            self.into.write_all(&MAGIC)?;
            self.into.write_all(&header())?;
        }
        if self.block.is_empty() {
            return Ok(());
        }
        let packed = compress_with_dict(&self.block, &mut self.dictionary)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let stored = packed.len() >= self.block.len();
        let bytes = if stored { &self.block } else { &packed };
        self.into.write_all(&length(self.block.len())?)?;
        self.into.write_all(&length(bytes.len())?)?;
        self.into
            .write_all(&adler32_slice(&self.block).to_be_bytes())?;
        self.into.write_all(bytes)?;
        self.block.clear();
        Ok(())
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.put_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// Decompresses what is read through it.
pub(crate) struct Decoder<R: Read> {
    from: R,
    /// What the header says; nothing before it was read.
    flags: Option<u32>,
    block: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl<R: Read> Decoder<R> {
    pub(crate) fn new(from: R) -> Self {
        Self {
            from,
            flags: None,
            block: Vec::new(),
            taken: 0,
            ended: false,
        }
    }

    fn next_block(&mut self) -> io::Result<()> {
        let flags = match self.flags {
            Some(flags) => flags,
            None => *self.flags.insert(read_header(&mut self.from)?),
        };
        let unpacked = number(&mut self.from)?;
        if unpacked == 0 {
            self.ended = true;
            let after = self.from.read(&mut [0])?;
            return if after == 0 {
                Ok(())
            } else {
                Err(bad("there is something after its end"))
            };
        }
        let packed = number(&mut self.from)?;
        let (unpacked, packed) = (size(unpacked)?, size(packed)?);
        if packed == 0 || packed > unpacked {
            return Err(bad("a block is larger than what it was made of"));
        }
        let adler_d = checksum(&mut self.from, flags & ADLER32_D != 0)?;
        let crc_d = checksum(&mut self.from, flags & CRC32_D != 0)?;
        let stored = packed == unpacked;
        let adler_c = checksum(&mut self.from, !stored && flags & ADLER32_C != 0)?;
        let crc_c = checksum(&mut self.from, !stored && flags & CRC32_C != 0)?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(packed).unwrap_or(u64::MAX);
        self.from.by_ref().take(limit).read_to_end(&mut bytes)?;
        if bytes.len() < packed {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        agrees(adler_c, || adler32_slice(&bytes))?;
        agrees(crc_c, || crc32fast::hash(&bytes))?;
        self.block = if stored {
            bytes
        } else {
            lzo::decompress(&bytes, unpacked).map_err(|error| bad(&error.to_string()))?
        };
        if self.block.len() != unpacked {
            return Err(bad("a block has another length than it says"));
        }
        agrees(adler_d, || adler32_slice(&self.block))?;
        agrees(crc_d, || crc32fast::hash(&self.block))?;
        self.taken = 0;
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.block.len() && !self.ended {
            self.block.clear();
            self.taken = 0;
            self.next_block()?;
        }
        let left = &self.block[self.taken..];
        let length = left.len().min(into.len());
        into[..length].copy_from_slice(&left[..length]);
        self.taken += length;
        Ok(length)
    }
}

/// The header of a file that was compressed from a pipe, with its checksum.
fn header() -> Vec<u8> {
    let mut header = Vec::with_capacity(38);
    header.extend(0x1040_u16.to_be_bytes()); // lzop 1.04
    header.extend(0x20A0_u16.to_be_bytes()); // as with liblzo 2.10
    header.extend(0x0940_u16.to_be_bytes()); // lzop 0.94 can read it
    header.extend([1, 5]); // LZO1X-1, level 5
    header.extend((OS | ADLER32_D).to_be_bytes());
    header.extend(0x81A4_u32.to_be_bytes()); // a regular file, rw-r--r--
    header.extend([0; 8]); // no time
    header.push(0); // no name
    let checksum = adler32_slice(&header);
    header.extend(checksum.to_be_bytes());
    header
}

fn read_header(from: &mut impl Read) -> io::Result<u32> {
    let mut magic = [0; 9];
    from.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(bad("it does not begin as a file of lzop does"));
    }
    let mut header = Vec::new();
    let mut more = |length: usize| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        header.extend_from_slice(&bytes);
        Ok(bytes)
    };
    let numbers = more(6)?;
    let version = u16::from_be_bytes([numbers[0], numbers[1]]);
    // Before 0.94, level and the upper half of the time were not there.
    if version < 0x0940 {
        return Err(bad("it is of an lzop before 0.94"));
    }
    let method = more(2)?[0];
    if !(1..=3).contains(&method) {
        return Err(bad("it is compressed by another method than LZO1X"));
    }
    let flags = more(4)?;
    let flags = u32::from_be_bytes([flags[0], flags[1], flags[2], flags[3]]);
    if flags & (EXTRA_FIELD | MULTIPART | FILTER) != 0 {
        return Err(bad("it has parts, a filter or fields of its own"));
    }
    more(12)?;
    let name = more(1)?[0];
    more(usize::from(name))?;
    let expected = number(from)?;
    let actual = if flags & HEADER_CRC32 == 0 {
        adler32_slice(&header)
    } else {
        crc32fast::hash(&header)
    };
    if actual != expected {
        return Err(bad("its header has another checksum than it says"));
    }
    Ok(flags)
}

fn checksum(from: &mut impl Read, there: bool) -> io::Result<Option<u32>> {
    there.then(|| number(from)).transpose()
}

fn agrees(expected: Option<u32>, actual: impl FnOnce() -> u32) -> io::Result<()> {
    match expected {
        Some(expected) if actual() != expected => {
            Err(bad("a block has another checksum than it says"))
        }
        _ => Ok(()),
    }
}

fn number(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn size(number: u32) -> io::Result<usize> {
    let size = usize::try_from(number).unwrap_or(usize::MAX);
    if size > MOST {
        return Err(bad("a block is larger than any that lzop makes"));
    }
    Ok(size)
}

fn length(length: usize) -> io::Result<[u8; 4]> {
    let length = u32::try_from(length).map_err(io::Error::other)?;
    Ok(length.to_be_bytes())
}

fn bad(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn lzop(arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut lzop = Command::new("lzop")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("lzop is there: cargo xtask setup");
        let mut stdin = lzop.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = lzop.wait_with_output().unwrap();
        writing.join().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        output.stdout
    }

    fn sample() -> Vec<u8> {
        let lines = (0..60_000_u64).map(|n| format!("{n} {}\n", n * n % 7919));
        lines.collect::<String>().into_bytes()
    }

    #[test]
    fn lzop_reads_what_is_written_here() {
        let mut encoder = Encoder::new(Vec::new());
        encoder.write_all(&sample()).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(packed.len() < sample().len());
        assert!(lzop(&["-d", "-c"], &packed) == sample());
    }

    #[test]
    fn what_lzop_writes_is_read_here() {
        for arguments in [
            &["-c"][..],
            &["-1", "-c"],
            &["-9", "-c"],
            &["-CC", "-c"],
            &["-F", "-c"],
        ] {
            let packed = lzop(arguments, &sample());
            let mut read = Vec::new();
            Decoder::new(&packed[..]).read_to_end(&mut read).unwrap();
            assert!(read == sample(), "{arguments:?}");
        }
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b""[..], b"\x89LZO", &[0; 100], &MAGIC] {
            assert!(Decoder::new(bytes).read_to_end(&mut Vec::new()).is_err());
        }
    }
}

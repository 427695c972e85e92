//! How the bytes of an object are compressed.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use lz4_flex::frame::{BlockMode, FrameDecoder, FrameEncoder, FrameInfo};

use crate::lzop;

/// A compression, each in the file format of the program of its name.
///
/// All but `None` carry a checksum of what they hold, so that bytes that were changed on the way
/// are an error when they are unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Zstandard: the best of speed and size.
    #[default]
    Zstd,
    /// LZ4: less work, larger objects.
    Lz4,
    /// LZO as `lzop` has it: the only one that WAL-E knows.
    Lzo,
    /// None at all.
    None,
}

/// A name that no codec has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no codec: there are zstd, lz4, lzo and none")]
pub struct BadCodec(String);

/// What is compressed as it is written.
pub(crate) trait Encode: Write {
    /// Writes what is left, and the end.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

impl Codec {
    /// All of them, those first that make smaller objects.
    pub const ALL: [Self; 4] = [Self::Zstd, Self::Lz4, Self::Lzo, Self::None];

    /// Returns how the names of its objects end.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => ".zst",
            Self::Lz4 => ".lz4",
            Self::Lzo => ".lzo",
            Self::None => "",
        }
    }

    /// Compresses what is written to what it returns into `into`.
    pub(crate) fn encoder<'a>(
        self,
        level: i32,
        into: impl Write + 'a,
    ) -> io::Result<Box<dyn Encode + 'a>> {
        Ok(match self {
            Self::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(into, level)?;
                encoder.include_checksum(true)?;
                Box::new(encoder)
            }
            Self::Lz4 => {
                let info = FrameInfo::new()
                    .block_mode(BlockMode::Linked)
                    .block_checksums(false)
                    .content_checksum(true);
                Box::new(FrameEncoder::with_frame_info(info, into))
            }
            Self::Lzo => Box::new(lzop::Encoder::new(into)),
            Self::None => Box::new(Plain(into)),
        })
    }

    /// Decompresses `from`.
    pub(crate) fn decoder<'a>(self, from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(from)?),
            Self::Lz4 => Box::new(Lz4 {
                frame: FrameDecoder::new(Asked { from, ended: false }),
                ended: false,
            }),
            Self::Lzo => Box::new(lzop::Decoder::new(from)),
            Self::None => Box::new(from),
        })
    }
}

impl<W: Write> Encode for zstd::stream::write::Encoder<'_, W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}

impl<W: Write> Encode for FrameEncoder<W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        let finished = (*self).finish();
        finished.map_err(io::Error::other)?.flush()
    }
}

impl<W: Write> Encode for lzop::Encoder<W> {
    fn finish(self: Box<Self>) -> io::Result<()> {
        (*self).finish()?.flush()
    }
}

/// A decoder that is not satisfied with a part: the library's takes an end before any block for
/// that of the frame.
struct Lz4<R: Read> {
    frame: FrameDecoder<Asked<R>>,
    ended: bool,
}

/// What is read, and whether more was asked for than there is.
struct Asked<R> {
    from: R,
    ended: bool,
}

impl<R: Read> Read for Lz4<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ended || into.is_empty() {
            return Ok(0);
        }
        let read = self.frame.read(into)?;
        if read == 0 {
            self.ended = true;
            let asked = self.frame.get_mut();
            if asked.ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if asked.from.read(&mut [0])? > 0 {
                let problem = "there is something after its end";
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
        }
        Ok(read)
    }
}

impl<R: Read> Read for Asked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.ended |= read == 0 && !into.is_empty();
        Ok(read)
    }
}

struct Plain<W>(W);

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> Encode for Plain<W> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.0.flush()
    }
}

impl FromStr for Codec {
    type Err = BadCodec;

    fn from_str(text: &str) -> Result<Self, BadCodec> {
        let all = Self::ALL.into_iter();
        let mut found = all.filter(|codec| codec.to_string() == text);
        found.next().ok_or_else(|| BadCodec(text.to_owned()))
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzo => "lzo",
            Self::None => "none",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that compress, and some that do not.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut noise = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[4]
        };
        let byte = |n: usize| {
            if (n / 1000).is_multiple_of(2) {
                noise()
            } else {
                (n / 7).to_le_bytes()[0]
            }
        };
        (0..length).map(byte).collect()
    }

    fn packed(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        let mut encoder = codec.encoder(1, &mut packed).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap();
        packed
    }

    fn unpacked(codec: Codec, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        codec.decoder(bytes)?.read_to_end(&mut unpacked)?;
        Ok(unpacked)
    }

    #[test]
    fn what_was_packed_is_what_comes_out() {
        for codec in Codec::ALL {
            for length in [0, 1, 100, 256 << 10, (256 << 10) + 1, 3_000_000] {
                let bytes = sample(length);
                assert!(
                    unpacked(codec, &packed(codec, &bytes)).unwrap() == bytes,
                    "{codec}"
                );
            }
        }
    }

    #[test]
    fn a_part_of_it_and_more_than_it_are_errors() {
        let bytes = sample(5000);
        for codec in [Codec::Zstd, Codec::Lz4, Codec::Lzo] {
            let mut packed = packed(codec, &bytes);
            for length in 0..packed.len() {
                let part = unpacked(codec, &packed[..length]);
                assert!(part.is_err(), "{codec} of {length} bytes");
            }
            packed.extend_from_slice(b"more");
            assert!(unpacked(codec, &packed).is_err(), "{codec}");
        }
    }

    #[test]
    fn a_byte_that_was_changed_is_an_error_or_means_nothing() {
        let bytes = sample(5000);
        for codec in [Codec::Zstd, Codec::Lz4, Codec::Lzo] {
            let packed = packed(codec, &bytes);
            for at in 0..packed.len() {
                let mut changed = packed.clone();
                changed[at] ^= 0x41;
                if let Ok(unpacked) = unpacked(codec, &changed) {
                    assert!(unpacked == bytes, "{codec} at {at}");
                }
            }
        }
    }

    #[test]
    fn they_read_back_their_names() {
        for codec in Codec::ALL {
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        let error = "gzip".parse::<Codec>().unwrap_err().to_string();
        assert_eq!(
            error,
            r#""gzip" is no codec: there are zstd, lz4, lzo and none"#
        );
    }
}

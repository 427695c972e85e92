//! Objects that the store cannot read.

use std::fmt;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use chacha20poly1305::aead::stream::{DecryptorBE32, EncryptorBE32};
use chacha20poly1305::aead::{OsRng, Payload};
use chacha20poly1305::{AeadCore as _, KeyInit as _, XChaCha20Poly1305};
use spilo_core::backup::{BackupError, BackupErrorKind};

use crate::body::{Body, BodyReader, BodyWriter};
use crate::layout::SEALED;
use crate::objects::{Object, Objects};

/// A store of objects in another one, which sees their names and sizes and nothing else.
///
/// An object is sealed by XChaCha20-Poly1305 in pieces of 64 KiB, as the STREAM construction has
/// them: one that was changed, shortened, lengthened or put under another name is damaged, and so
/// is what somebody without the key put there. Not seen is that an object was deleted, or replaced
/// by an older one of the same name or by one of another archive with the same key: give each archive a
/// key of its own.
///
/// Names of sealed objects end with `.sealed`. Others are refused, so that an archive that is not
/// sealed is not taken for an empty one: it is sealed from its beginning, or not at all.
///
/// ```text
/// spilo-sealed-1\n        in ASCII
/// 19 bytes               by chance: the beginning of the nonce, of which the rest counts pieces
/// pieces                 each 65,536 bytes and a tag of 16; the last may be shorter, and says that
///                        it is the last; all with the object's name as associated data
/// ```
#[derive(Clone, Debug)]
pub struct Sealed {
    inner: Arc<dyn Objects>,
    keys: SealingKeys,
}

/// Keys that objects are sealed with: the first seals, and all open.
///
/// As text they are lines of 64 hexadecimal digits, which is what `openssl rand -hex 32` prints;
/// empty lines and those that begin with `#` are passed over.
#[derive(Clone)]
pub struct SealingKeys(Arc<[XChaCha20Poly1305]>);

/// A text that has no keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSealingKeys {
    /// There is no line with one.
    #[error("there is no key; `openssl rand -hex 32` makes one")]
    None,
    /// A line is something else.
    #[error("line {0} is no key of 64 hexadecimal digits, as `openssl rand -hex 32` makes them")]
    Line(usize),
}

const MAGIC: &[u8; 15] = b"spilo-sealed-1\n";

/// What of a nonce is by chance; the rest counts.
const NONCE: usize = 19;

/// How long a piece is before it is sealed.
const PIECE: usize = 64 << 10;

const TAG: usize = 16;

impl Sealed {
    /// Puts objects into `inner`, sealed with these keys.
    pub fn new(inner: Arc<dyn Objects>, keys: SealingKeys) -> Self {
        Self { inner, keys }
    }

    fn error(&self, action: String, error: &io::Error) -> BackupError {
        let kind = match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => BackupErrorKind::Damaged,
            _ => BackupErrorKind::Unavailable,
        };
        BackupError::new(self.inner.kind(), kind, action, error.to_string())
    }
}

#[async_trait]
impl Objects for Sealed {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn place(&self, key: &str) -> String {
        self.inner.place(&format!("{key}{SEALED}"))
    }

    async fn put(&self, key: &str, body: Body) -> Result<(), BackupError> {
        let (this, name) = (self.clone(), key.to_owned());
        let sealed = Body::written_by(move |writer| {
            let reader = body.into_reader();
            let failed = reader.failed();
            seal(&this.keys, &name, reader, writer).map_err(|error| {
                let action = format!("seal {}", this.place(&name));
                failed.take().unwrap_or_else(|| this.error(action, &error))
            })
        });
        self.inner.put(&format!("{key}{SEALED}"), sealed).await
    }

    async fn get(&self, key: &str) -> Result<Body, BackupError> {
        let mut sealed = self.inner.get(&format!("{key}{SEALED}")).await?;
        // A task carries it, which ends with the body: a thread cannot be made to.
        let fed = Body::made_by(move |sender| async move {
            while let Some(bytes) = sealed.next().await? {
                if !sender.send(bytes).await {
                    break;
                }
            }
            Ok(())
        });
        let (this, name) = (self.clone(), key.to_owned());
        Ok(Body::written_by(move |writer| {
            let reader = fed.into_reader();
            let failed = reader.failed();
            open(&this.keys, &name, reader, writer).map_err(|error| {
                let action = format!("open {}", this.place(&name));
                failed.take().unwrap_or_else(|| this.error(action, &error))
            })
        }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, BackupError> {
        let mut found = Vec::new();
        for object in self.inner.list(prefix).await? {
            let Some(key) = object.key.strip_suffix(SEALED) else {
                let action = format!("read {}", self.inner.place(&object.key));
                let problem = "it is not sealed, and a key is given: an archive is sealed from its \
                               beginning, or not at all";
                let kind = BackupErrorKind::Refused;
                return Err(BackupError::new(self.kind(), kind, action, problem));
            };
            let key = key.to_owned();
            found.push(Object { key, ..object });
        }
        found.sort();
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<(), BackupError> {
        self.inner.delete(&format!("{key}{SEALED}")).await
    }
}

impl SealingKeys {
    /// Reads keys from a file, which others should not be able to.
    ///
    /// # Errors
    /// `Refused` where it cannot be read or has no keys.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let refused = |problem: String| {
            let action = format!("read the keys in {}", path.display());
            BackupError::new("archive", BackupErrorKind::Refused, action, problem)
        };
        let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
        text.parse()
            .map_err(|error: BadSealingKeys| refused(error.to_string()))
    }
}

impl FromStr for SealingKeys {
    type Err = BadSealingKeys;

    fn from_str(text: &str) -> Result<Self, BadSealingKeys> {
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = read_key(line).ok_or(BadSealingKeys::Line(number))?;
            keys.push(XChaCha20Poly1305::new(&key.into()));
        }
        match keys.is_empty() {
            true => Err(BadSealingKeys::None),
            false => Ok(Self(keys.into())),
        }
    }
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKeys({} of them)", self.0.len())
    }
}

fn read_key(line: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if line.len() != 64 || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(line.get(at..at + 2)?, 16).ok()?;
    }
    Some(key)
}

fn seal(
    keys: &SealingKeys,
    name: &str,
    mut from: BodyReader,
    mut into: BodyWriter,
) -> io::Result<()> {
    let chance = XChaCha20Poly1305::generate_nonce(&mut OsRng);
    let nonce = &chance[..NONCE];
    let cipher = keys.0.first().cloned();
    let cipher = cipher.ok_or_else(|| io::Error::other("there is no key"))?;
    let mut sealer = EncryptorBE32::from_aead(cipher, nonce.into());
    into.write_all(MAGIC)?;
    into.write_all(nonce)?;
    let too_long = |_| io::Error::other("it is too long to be sealed");
    let mut piece = fill(&mut from, PIECE)?;
    loop {
        let next = match piece.len() {
            PIECE => fill(&mut from, PIECE)?,
            _ => Vec::new(),
        };
        let (msg, aad) = (&piece[..], name.as_bytes());
        if next.is_empty() {
            let last = sealer.encrypt_last(Payload { msg, aad });
            into.write_all(&last.map_err(too_long)?)?;
            return into.flush();
        }
        let sealed = sealer.encrypt_next(Payload { msg, aad });
        into.write_all(&sealed.map_err(too_long)?)?;
        piece = next;
    }
}

fn open(
    keys: &SealingKeys,
    name: &str,
    mut from: BodyReader,
    mut into: BodyWriter,
) -> io::Result<()> {
    let damaged = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut head = [0; MAGIC.len() + NONCE];
    from.read_exact(&mut head)?;
    let (magic, nonce) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(damaged("it is not sealed as its name says"));
    }
    let mut piece = fill(&mut from, PIECE + TAG)?;
    let mut opener = None;
    loop {
        let next = match piece.len() {
            len if len == PIECE + TAG => fill(&mut from, PIECE + TAG)?,
            _ => Vec::new(),
        };
        let (msg, aad) = (&piece[..], name.as_bytes());
        let last = next.is_empty();
        let opened = match opener.take() {
            Some(opener) => open_piece(opener, Payload { msg, aad }, last),
            // The first piece tells which of the keys it was.
            None => keys.0.iter().find_map(|cipher| {
                let opener = DecryptorBE32::from_aead(cipher.clone(), nonce.into());
                open_piece(opener, Payload { msg, aad }, last)
            }),
        };
        let (bytes, rest) = opened.ok_or_else(|| {
            damaged("none of the keys opens it, or it is not what was sealed under this name")
        })?;
        into.write_all(&bytes)?;
        if last {
            return into.flush();
        }
        (opener, piece) = (rest, next);
    }
}

type Opener = DecryptorBE32<XChaCha20Poly1305>;

/// Opens a piece; returns with it what opens the next one.
fn open_piece(
    mut opener: Opener,
    piece: Payload<'_, '_>,
    last: bool,
) -> Option<(Vec<u8>, Option<Opener>)> {
    if last {
        return Some((opener.decrypt_last(piece).ok()?, None));
    }
    let bytes = opener.decrypt_next(piece).ok()?;
    Some((bytes, Some(opener)))
}

/// Reads so many bytes, or what there is.
fn fill(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(most);
    from.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_of_hexadecimal_digits() {
        let key = "00ff".repeat(16);
        let keys: SealingKeys = format!("# of 2026\n{key}\n\n{key}\n").parse().unwrap();
        assert_eq!(format!("{keys:?}"), "SealingKeys(2 of them)");
        for (text, problem) in [
            (String::new(), BadSealingKeys::None),
            ("# none\n".to_owned(), BadSealingKeys::None),
            (format!("{key}\n{key}0\n"), BadSealingKeys::Line(2)),
            ("zz".repeat(32), BadSealingKeys::Line(1)),
            ("é".repeat(32), BadSealingKeys::Line(1)),
        ] {
            assert_eq!(text.parse::<SealingKeys>().unwrap_err(), problem, "{text}");
        }
    }
}

//! What the first page of a file of the log says of it.

use spilo_core::ids::SystemId;
use spilo_core::segment::{SegmentName, SegmentSize};
use spilo_core::wal::Lsn;

/// How many bytes of a file say it.
pub(crate) const LENGTH: usize = 40;

/// The beginning of a file of the log.
///
/// `XLogLongPageHeaderData`: the form of all supported versions, in the order of bytes of the
/// machine that wrote it, which is that of the machine that replays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstPage {
    /// The cluster that wrote it.
    pub(crate) system: SystemId,
    /// How large all files of that cluster's log are.
    pub(crate) size: SegmentSize,
    /// The position of its first byte.
    pub(crate) begin: Lsn,
}

impl FirstPage {
    /// Reads it, and compares it with the file's name.
    ///
    /// # Errors
    /// Why it is not the beginning of the file of that name.
    pub(crate) fn read(bytes: &[u8], name: SegmentName) -> Result<Self, String> {
        let Some(header) = bytes.first_chunk::<LENGTH>() else {
            return Err(format!("it has only {} bytes", bytes.len()));
        };
        let magic = u16::from_ne_bytes([header[0], header[1]]);
        let info = u16::from_ne_bytes([header[2], header[3]]);
        // 0xD10D is that of version 13; bit 2 says that this is a first page.
        if magic >> 8 != 0xD1 || info & 2 == 0 {
            return Err("it does not begin as a file of the log does".to_owned());
        }
        let eight = |at: usize| {
            let bytes = header[at..at + 8].try_into().unwrap_or_default();
            u64::from_ne_bytes(bytes)
        };
        let size = u32::from_ne_bytes(header[32..36].try_into().unwrap_or_default());
        let size = SegmentSize::new(u64::from(size)).map_err(|error| error.to_string())?;
        let begin = Lsn(eight(8));
        if name.begin(size) != Some(begin) {
            return Err(format!("it is the file that begins at {begin}"));
        }
        let system = SystemId(eight(24));
        Ok(Self {
            system,
            size,
            begin,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file of the log of a cluster, with `fill` as what it holds.
    pub(crate) fn segment(name: &str, system: u64, size: u32, fill: u8) -> Vec<u8> {
        let name: SegmentName = name.parse().unwrap();
        let begin = name
            .begin(SegmentSize::new(u64::from(size)).unwrap())
            .unwrap();
        let mut bytes = vec![fill; usize::try_from(size).unwrap()];
        bytes[..2].copy_from_slice(&0xD10D_u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&2_u16.to_ne_bytes());
        bytes[4..8].copy_from_slice(&name.timeline().0.to_ne_bytes());
        bytes[8..16].copy_from_slice(&begin.0.to_ne_bytes());
        bytes[24..32].copy_from_slice(&system.to_ne_bytes());
        bytes[32..36].copy_from_slice(&size.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_first_page_says_whose_it_is_and_must_be_the_one_of_its_name() {
        let name = "000000010000000000000003";
        let bytes = segment(name, 77, 1 << 20, 0);
        let page = FirstPage::read(&bytes, name.parse().unwrap()).unwrap();
        assert_eq!(page.system, SystemId(77));
        assert_eq!(page.begin, Lsn(3 << 20));
        let other = FirstPage::read(&bytes, "000000010000000000000004".parse().unwrap());
        assert_eq!(
            other,
            Err("it is the file that begins at 0/300000".to_owned())
        );
        for bytes in [&bytes[..39], &[0; 100]] {
            assert!(FirstPage::read(bytes, name.parse().unwrap()).is_err());
        }
        let mut odd = bytes;
        odd[32] = 1;
        let error = FirstPage::read(&odd, name.parse().unwrap()).unwrap_err();
        assert!(error.contains("no size of a WAL segment"), "{error}");
    }
}

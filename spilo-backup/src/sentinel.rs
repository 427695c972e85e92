//! The document that makes a backup whole.
//!
//! WAL-E's, with what else there is to know under `spilo`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use spilo_core::backup::{BackupInfo, BackupName};
use spilo_core::ids::SystemId;
use spilo_core::segment::{SegmentName, SegmentSize};
use spilo_core::wal::{Lsn, Timeline, WalPosition};

use crate::layout::{Beginning, read_backup_name};

/// All that is known of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sentinel {
    pub(crate) info: BackupInfo,
    /// What must lie outside of the data directory: the tablespaces, by their object identifier.
    pub(crate) tablespaces: Vec<(u32, PathBuf)>,
    /// The directory that it was made from.
    pub(crate) source: String,
    /// What spilo wrote of it; nothing for a backup of somebody else.
    pub(crate) own: Option<Own>,
}

/// What spilo writes of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Own {
    system: u64,
    start: (u32, u64),
    stop: (u32, u64),
    segment_size: SegmentSize,
    /// The server's `server_version_num`.
    pub(crate) server_version: u32,
    /// When it began and ended, in seconds since 1970.
    pub(crate) started: u64,
    pub(crate) finished: u64,
    /// What there is to restore; one that is missing is seen.
    pub(crate) parts: Vec<Part>,
}

/// One tar file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// How long it is before it is compressed, and its CRC-32.
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
}

impl Sentinel {
    pub(crate) fn new(info: BackupInfo, source: String, tablespaces: Vec<(u32, PathBuf)>) -> Self {
        Self {
            info,
            tablespaces,
            source,
            own: None,
        }
    }

    /// Adds what only spilo knows.
    pub(crate) fn with(mut self, version: u32, times: (u64, u64), parts: Vec<Part>) -> Self {
        let place = |position: WalPosition| (position.timeline.0, position.lsn.0);
        self.own = Some(Own {
            system: self.info.system.map_or(0, |system| system.0),
            start: place(self.info.start),
            stop: place(self.info.stop),
            segment_size: self.info.segment_size,
            server_version: version,
            started: times.0,
            finished: times.1,
            parts,
        });
        self
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let (info, size) = (&self.info, self.info.segment_size);
        // The position after the last byte, in the file that WAL-E waits for.
        let stop = info.stop;
        let last = size.segment_at(stop.timeline, Lsn(stop.lsn.0.saturating_sub(1)));
        let begin = last.begin(size).unwrap_or_default();
        let mut spec = Map::new();
        spec.insert("base_prefix".to_owned(), json!(self.source));
        let ids = self.tablespaces.iter().map(|(oid, _)| oid.to_string());
        spec.insert("tablespaces".to_owned(), ids.collect());
        for (oid, place) in &self.tablespaces {
            let link = format!("pg_tblspc/{oid}");
            spec.insert(oid.to_string(), json!({"loc": place, "link": link}));
        }
        let document = json!({
            "wal_segment_backup_stop": last.to_string(),
            "wal_segment_offset_backup_stop": format!("{:08}", stop.lsn.bytes_past(begin)),
            "expanded_size_bytes": info.size,
            "spec": spec,
            "spilo": self.own,
        });
        let mut bytes = document.to_string().into_bytes();
        bytes.push(b'\n');
        bytes
    }

    /// Reads the sentinel of a backup.
    ///
    /// # Errors
    /// What there is instead of what.
    pub(crate) fn read(name: &BackupName, bytes: &[u8]) -> Result<Self, String> {
        let beginning =
            read_backup_name(&name.0).ok_or("its name is not that of a whole backup")?;
        let document: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut sentinel = if let Some(own) = document.get("spilo").filter(|own| !own.is_null()) {
            let own: Own =
                serde_json::from_value(own.clone()).map_err(|error| format!("spilo: {error}"))?;
            Self::of_own(name, own)
        } else if document.contains_key("wal_segment_backup_stop") {
            Self::of_wal_e(name, beginning, &document)?
        } else if document.contains_key("LSN") {
            return Err("it is one of WAL-G, which cannot be restored here".to_owned());
        } else {
            return Err("it has neither spilo nor wal_segment_backup_stop".to_owned());
        };
        if let Some(size) = document.get("expanded_size_bytes").and_then(Value::as_u64) {
            sentinel.info.size = Some(size);
        }
        let spec = document.get("spec").and_then(Value::as_object);
        if let Some(spec) = spec {
            sentinel.tablespaces = tablespaces(spec)?;
            let source = spec.get("base_prefix").and_then(Value::as_str);
            sentinel.source = source.unwrap_or_default().to_owned();
        }
        Ok(sentinel)
    }

    fn of_own(name: &BackupName, own: Own) -> Self {
        let place = |(timeline, lsn)| WalPosition {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
        };
        let mut info = BackupInfo::new(name.clone(), place(own.start), place(own.stop));
        info.system = Some(SystemId(own.system)).filter(|system| system.0 != 0);
        info.made = Some(own.started);
        info.segment_size = own.segment_size;
        let mut sentinel = Self::new(info, String::new(), Vec::new());
        sentinel.own = Some(own);
        sentinel
    }

    fn of_wal_e(
        name: &BackupName,
        beginning: Beginning,
        document: &Map<String, Value>,
    ) -> Result<Self, String> {
        let text = |key: &str| {
            let value = document.get(key).and_then(Value::as_str);
            value.ok_or_else(|| format!("{key} is no text"))
        };
        let segment: SegmentName = text("wal_segment_backup_stop")?
            .parse()
            .map_err(|error| format!("wal_segment_backup_stop: {error}"))?;
        let offset = text("wal_segment_offset_backup_stop")?;
        let offset = offset
            .parse()
            .map_err(|_| format!("wal_segment_offset_backup_stop: {offset:?} is no number"))?;
        let start = position(beginning.segment, beginning.offset)?;
        let stop = position(segment, offset)?;
        let info = BackupInfo::new(name.clone(), start, stop);
        Ok(Self::new(info, String::new(), Vec::new()))
    }
}

/// WAL-E does not say how large segments are; its names are of those of 16 MiB.
fn position(segment: SegmentName, offset: u32) -> Result<WalPosition, String> {
    let size = SegmentSize::DEFAULT;
    let begin = segment
        .begin(size)
        .filter(|_| u64::from(offset) <= size.bytes());
    let begin = begin.ok_or_else(|| format!("{segment} at {offset} is of other segments"))?;
    Ok(WalPosition {
        timeline: segment.timeline(),
        lsn: Lsn(begin.0.saturating_add(u64::from(offset))),
    })
}

fn tablespaces(spec: &Map<String, Value>) -> Result<Vec<(u32, PathBuf)>, String> {
    let names = spec.get("tablespaces").and_then(Value::as_array);
    let read = |name: &Value| {
        let name = name.as_str().ok_or("spec: a tablespace is no text")?;
        let oid = name
            .parse()
            .map_err(|_| format!("spec: the tablespace {name:?} is no number"))?;
        let place = spec.get(name).and_then(|own| own.get("loc")?.as_str());
        let place = place.filter(|place| place.starts_with('/'));
        let place = place.ok_or_else(|| format!("spec: tablespace {name} has no place"))?;
        Ok((oid, PathBuf::from(place)))
    };
    names.into_iter().flatten().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> BackupName {
        BackupName(text.to_owned())
    }

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
        }
    }

    #[test]
    fn what_is_written_reads_back_and_wal_e_finds_its_own() {
        let mut info = BackupInfo::new(
            name("base_000000010000000000000003_00000040"),
            at(1, 0x300_0028),
            at(1, 0x400_0000),
        );
        info.system = Some(SystemId(7_710_822_623_212_245_678));
        info.size = Some(23_456_789);
        info.made = Some(1);
        let part = Part {
            name: "part_00000000.tar.zst".to_owned(),
            bytes: 10_240,
            crc32: 1,
        };
        let places = vec![(16_384, PathBuf::from("/srv/fast"))];
        let sentinel = Sentinel::new(info.clone(), "/srv/pg".to_owned(), places);
        let sentinel = sentinel.with(150_018, (1, 2), vec![part]);
        let bytes = sentinel.to_bytes();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            document["wal_segment_backup_stop"],
            "000000010000000000000003"
        );
        assert_eq!(document["wal_segment_offset_backup_stop"], "16777216");
        assert_eq!(document["expanded_size_bytes"], 23_456_789);
        assert_eq!(document["spec"]["16384"]["loc"], "/srv/fast");
        assert_eq!(Sentinel::read(&info.name, &bytes), Ok(sentinel));
    }

    #[test]
    fn those_of_wal_e_are_read() {
        let wal_e = br#"{"wal_segment_backup_stop": "000000010000000000000003",
            "wal_segment_offset_backup_stop": "00000312", "expanded_size_bytes": 24000000,
            "spec": {"base_prefix": "/srv/pg/", "tablespaces": []}}"#;
        let backup = name("base_000000010000000000000003_00000040");
        let info = Sentinel::read(&backup, wal_e).unwrap().info;
        assert_eq!(
            (info.start, info.stop),
            (at(1, 0x300_0028), at(1, 0x300_0138))
        );
        assert_eq!((info.size, info.system), (Some(24_000_000), None));
    }

    #[test]
    fn garbage_says_what_is_wrong() {
        let backup = name("base_000000010000000000000003_00000040");
        for (text, problem) in [
            ("", "EOF"),
            ("[]", "expected a map"),
            ("{}", "it has neither spilo"),
            (r#"{"spilo": 3}"#, "spilo: "),
            (
                r#"{"wal_segment_backup_stop": 3}"#,
                "wal_segment_backup_stop is no text",
            ),
            (
                r#"{"wal_segment_backup_stop": "000000010000000000000003",
                    "wal_segment_offset_backup_stop": "99999999"}"#,
                "is of other segments",
            ),
            (r#"{"LSN": 1}"#, "it is one of WAL-G"),
            (
                r#"{"wal_segment_backup_stop": "000000010000000000000003",
                    "wal_segment_offset_backup_stop": "00000312",
                    "spec": {"tablespaces": ["1"], "1": {"loc": "x"}}}"#,
                "tablespace 1 has no place",
            ),
        ] {
            let error = Sentinel::read(&backup, text.as_bytes()).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        let error = Sentinel::read(&name("base_x"), b"{}").unwrap_err();
        assert!(error.contains("its name"), "{error}");
    }
}

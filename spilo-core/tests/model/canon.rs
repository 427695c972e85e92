//! The canonical form of a state: what is equal in it for states that behave alike.
//!
//! Everything comes in through `Serialize`, which names each type and field. A moment becomes an
//! age, capped where nothing asks any more how old something is; revisions, epochs, lease ids,
//! tickets and numbers of operations become ranks, because nothing is ever computed from them but
//! which is greater; texts for people are left out.

mod rules;

use std::collections::BTreeSet;

use serde::de::value::Error;
use serde::ser::{self, Serialize, Serializer};
use spilo_core::NodeTime;

pub(crate) use rules::Known;
use rules::{Rule, rule};

/// Takes values in and gives a row of numbers out.
#[derive(Debug, Default)]
pub(crate) struct Canon {
    now: u64,
    row: Vec<u64>,
    /// Places in the row that a rank comes into, with what is ranked.
    ranked: Vec<(usize, Kind, u64)>,
    /// What the next number means.
    meaning: Option<Kind>,
    /// After how many milliseconds an age is as good as any greater one.
    cap: u64,
    /// The field of the facts, or of the store, that is being taken in.
    within: &'static str,
    /// The document that is being taken in.
    document: &'static str,
    node: u64,
    known: Known,
    /// Whether all that matters of the next option is whether it is there.
    presence: bool,
}

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Time,
    Version,
    LeaseId,
    Ticket(u64),
    Op(u64),
    Secret,
}

impl Canon {
    pub(crate) fn new(now: NodeTime) -> Self {
        Self {
            now: now.0,
            cap: LONGEST,
            ..Self::default()
        }
    }

    /// Takes in what belongs to a node: its tickets are its own.
    pub(crate) fn enter(&mut self, node: usize, known: Known) {
        self.node = node as u64;
        self.known = known;
    }

    pub(crate) fn put(&mut self, value: &impl Serialize) {
        value.serialize(self).expect("nothing here fails");
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.row.push(number);
    }

    pub(crate) fn lease_ids<'a>(&mut self, ids: impl Iterator<Item = &'a u64>) {
        for id in ids {
            self.rank(Kind::LeaseId, *id);
        }
        self.row.push(END);
    }

    /// Returns the row, with all ranks in it.
    pub(crate) fn finish(mut self) -> Vec<u64> {
        let all: BTreeSet<(Kind, u64)> = self.ranked.iter().map(|(_, k, v)| (*k, *v)).collect();
        let all: Vec<(Kind, u64)> = all.into_iter().collect();
        for (place, kind, value) in self.ranked {
            let first = all.partition_point(|other| other.0 < kind);
            let this = all.partition_point(|other| *other < (kind, value));
            self.row[place] = (this - first) as u64;
        }
        self.row
    }

    fn rank(&mut self, kind: Kind, value: u64) {
        self.ranked.push((self.row.len(), kind, value));
        self.row.push(0);
    }

    fn time(&mut self, at: u64) {
        let form = if at <= self.now {
            (self.now - at).min(self.cap)
        } else {
            FUTURE + (at - self.now).min(LONGEST)
        };
        self.row.push(form);
    }

    /// Takes in a text. The documents that hold an epoch are texts that begin with it, and the
    /// secrets of the reference store are a lease id and an epoch.
    fn text(&mut self, text: &str) {
        let rest = match text.strip_prefix("{\"epoch\":") {
            Some(rest) => {
                let end = rest
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(rest.len());
                self.rank(Kind::Version, rest[..end].parse().unwrap_or(0));
                &rest[end..]
            }
            None => text,
        };
        self.row.push(rest.len() as u64);
        for part in rest.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.row.push(u64::from_le_bytes(word));
        }
    }

    fn secret(&mut self, secret: &str) {
        let (id, epoch) = secret.split_once('@').unwrap_or_default();
        self.rank(Kind::LeaseId, id.parse().unwrap_or(0));
        self.rank(Kind::Version, epoch.parse().unwrap_or(0));
    }

    fn field<T: Serialize + ?Sized>(
        &mut self,
        of: &'static str,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let (cap, within, meaning) = (self.cap, self.within, self.meaning);
        if matches!(of, "Facts" | "Lanes" | "Store" | "Written") {
            self.within = name;
            self.document = "";
        }
        match rule(of, name, self.within, self.known, self.document) {
            Rule::LeaveOut => {}
            Rule::Presence => {
                self.presence = true;
                value.serialize(&mut *self)?;
                self.presence = false;
            }
            Rule::LeaseId => {
                self.meaning = Some(Kind::LeaseId);
                value.serialize(&mut *self)?;
            }
            Rule::Capped(ms) => {
                self.cap = ms;
                value.serialize(&mut *self)?;
            }
            Rule::Whole => value.serialize(&mut *self)?,
        }
        (self.cap, self.within, self.meaning) = (cap, within, meaning);
        Ok(())
    }
}

/// Longer than every time that anything in the core waits for with this environment; where a
/// shorter one is enough, `rules` says so.
const LONGEST: u64 = 9_000;

const FUTURE: u64 = 1 << 40;
const NONE: u64 = 1 << 41;
const SOME: u64 = NONE + 1;
const END: u64 = NONE + 2;
const BEGIN: u64 = NONE + 3;

impl<'a> Serializer for &'a mut Canon {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    fn serialize_bool(self, v: bool) -> Result<(), Error> {
        self.serialize_u64(u64::from(v))
    }
    fn serialize_i8(self, v: i8) -> Result<(), Error> {
        self.serialize_i64(i64::from(v))
    }
    fn serialize_i16(self, v: i16) -> Result<(), Error> {
        self.serialize_i64(i64::from(v))
    }
    fn serialize_i32(self, v: i32) -> Result<(), Error> {
        self.serialize_i64(i64::from(v))
    }
    fn serialize_i64(self, v: i64) -> Result<(), Error> {
        self.serialize_u64(v.cast_unsigned())
    }
    fn serialize_u8(self, v: u8) -> Result<(), Error> {
        self.serialize_u64(u64::from(v))
    }
    fn serialize_u16(self, v: u16) -> Result<(), Error> {
        self.serialize_u64(u64::from(v))
    }
    fn serialize_u32(self, v: u32) -> Result<(), Error> {
        self.serialize_u64(u64::from(v))
    }
    fn serialize_u64(self, v: u64) -> Result<(), Error> {
        match self.meaning {
            None => self.row.push(v),
            Some(Kind::Time) => self.time(v),
            Some(kind) => self.rank(kind, v),
        }
        Ok(())
    }
    fn serialize_f32(self, v: f32) -> Result<(), Error> {
        self.serialize_u64(u64::from(v.to_bits()))
    }
    fn serialize_f64(self, v: f64) -> Result<(), Error> {
        self.serialize_u64(v.to_bits())
    }
    fn serialize_char(self, v: char) -> Result<(), Error> {
        self.serialize_u64(u64::from(v))
    }
    fn serialize_str(self, v: &str) -> Result<(), Error> {
        if self.meaning == Some(Kind::Secret) {
            self.secret(v);
        } else {
            self.text(v);
        }
        Ok(())
    }
    fn serialize_bytes(self, v: &[u8]) -> Result<(), Error> {
        self.row.push(v.len() as u64);
        self.row.extend(v.iter().map(|byte| u64::from(*byte)));
        Ok(())
    }
    fn serialize_none(self) -> Result<(), Error> {
        self.row.push(NONE);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.row.push(SOME);
        if self.presence {
            return Ok(());
        }
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        Ok(())
    }
    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        if name == "Key" {
            self.document = variant;
        }
        self.row.push(u64::from(index));
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let before = self.meaning;
        self.meaning = match name {
            "NodeTime" => Some(Kind::Time),
            "Epoch" | "Revision" => Some(Kind::Version),
            "Ticket" => Some(Kind::Ticket(self.node)),
            "OpId" => Some(Kind::Op(self.node)),
            "LeaseSecret" => Some(Kind::Secret),
            _ => before,
        };
        let done = value.serialize(&mut *self);
        self.meaning = before;
        done
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.row.push(u64::from(index));
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'a>, Error> {
        Ok(Parts::of(self, ""))
    }
    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, Error> {
        Ok(Parts::of(self, ""))
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, Error> {
        Ok(Parts::of(self, ""))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Error> {
        self.row.push(u64::from(index));
        Ok(Parts::of(self, ""))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Parts<'a>, Error> {
        Ok(Parts::of(self, ""))
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Parts<'a>, Error> {
        Ok(Parts::of(self, name))
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Error> {
        self.row.push(u64::from(index));
        Ok(Parts::of(self, name))
    }
}

/// The parts of something, one after the other.
pub(crate) struct Parts<'a> {
    canon: &'a mut Canon,
    of: &'static str,
    /// What numbers mean in it: a map of lease ids has other numbers in its values.
    meaning: Option<Kind>,
}

impl<'a> Parts<'a> {
    fn of(canon: &'a mut Canon, of: &'static str) -> Self {
        canon.row.push(BEGIN);
        let meaning = canon.meaning;
        Self { canon, of, meaning }
    }

    fn end(self) {
        self.canon.row.push(END);
    }
}

macro_rules! parts {
    ($($trait:ident $add:ident;)*) => {$(
        impl ser::$trait for Parts<'_> {
            type Ok = ();
            type Error = Error;
            fn $add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                value.serialize(&mut *self.canon)
            }
            fn end(self) -> Result<(), Error> {
                self.end();
                Ok(())
            }
        }
    )*};
}

parts! {
    SerializeSeq serialize_element;
    SerializeTuple serialize_element;
    SerializeTupleStruct serialize_field;
    SerializeTupleVariant serialize_field;
}

macro_rules! named_parts {
    ($($trait:ident)*) => {$(
        impl ser::$trait for Parts<'_> {
            type Ok = ();
            type Error = Error;
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                self.canon.field(self.of, name, value)
            }
            fn end(self) -> Result<(), Error> {
                self.end();
                Ok(())
            }
        }
    )*};
}

named_parts!(SerializeStruct SerializeStructVariant);

impl ser::SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.canon.meaning = self.meaning;
        key.serialize(&mut *self.canon)?;
        self.canon.meaning = None;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut *self.canon)
    }

    fn end(self) -> Result<(), Error> {
        self.canon.meaning = self.meaning;
        self.end();
        Ok(())
    }
}

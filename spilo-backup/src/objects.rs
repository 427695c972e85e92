//! Where objects lie: the part of an archive that differs between a directory and S3.

use std::fmt;

use async_trait::async_trait;
use spilo_core::backup::BackupError;

use crate::body::Body;

/// A store of objects with names like paths.
///
/// # Contract
/// - An object is there whole or not at all, whatever dies on the way, and never changes.
/// - A listing has what was put before it was asked for.
/// - All of it may be called at the same time, and from several machines.
#[async_trait]
pub trait Objects: Send + Sync + fmt::Debug {
    /// Returns the name of the kind of store, for errors.
    fn kind(&self) -> &'static str;

    /// Returns where an object is, as people name it: `s3://bucket/prefix/key`.
    fn place(&self, key: &str) -> String;

    /// Stores an object. Returns once it is durable.
    ///
    /// # Errors
    /// `Conflict` where one of this name is there already: it is left as it is. Where the answer
    /// was lost, an object of one's own may be what is there.
    ///
    /// # Cancellation
    /// The object is there whole or not at all.
    async fn put(&self, key: &str, body: Body) -> Result<(), BackupError>;

    /// Fetches an object.
    ///
    /// # Errors
    /// `NotFound` where there is none of this name. What goes wrong later fails the body.
    ///
    /// # Cancellation
    /// Safe.
    async fn get(&self, key: &str) -> Result<Body, BackupError>;

    /// Returns all objects whose names begin with `prefix`, sorted by name.
    ///
    /// # Errors
    /// The store did not answer, or not with a list.
    ///
    /// # Cancellation
    /// Safe.
    async fn list(&self, prefix: &str) -> Result<Vec<Object>, BackupError>;

    /// Deletes an object. One that is not there is deleted.
    ///
    /// # Errors
    /// It may be there still.
    ///
    /// # Cancellation
    /// It is there or not.
    async fn delete(&self, key: &str) -> Result<(), BackupError>;
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its name in the store.
    pub key: String,
    /// How large it is, in bytes.
    pub size: u64,
}

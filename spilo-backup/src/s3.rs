//! An archive in S3, or whatever speaks its protocol.
//!
//! An object is stored with `If-None-Match: *`, so that a store that knows the condition never
//! replaces one, however many write at the same time. One that does not know it is asked beforehand
//! by the archive, which leaves a moment in which two writers of the same name can meet.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, Credentials};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use bytes::{Bytes, BytesMut};
use spilo_core::backup::{BackupError, BackupErrorKind};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::body::Body;
use crate::objects::{Object, Objects};

/// Where in S3 an archive is, and how it is reached.
///
/// Credentials, and the region if none is given, come from where the AWS programs take them: the
/// environment, the profile in `~/.aws`, the role of a container or of the machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct S3Options {
    /// The bucket, which is there.
    pub bucket: String,
    /// What the names of all objects begin with, without a slash at either end; may be empty.
    pub prefix: String,
    /// The URL of a server that is not Amazon's.
    pub endpoint: Option<String>,
    /// The region, instead of that of the environment.
    pub region: Option<String>,
    /// Whether the bucket is part of the path and not of the host name.
    pub path_style: bool,
    /// The identifier and the secret of a key, instead of those of the environment.
    pub credentials: Option<(String, String)>,
    /// A file of certificates, in PEM, of authorities that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The storage class, if it is not the bucket's: `STANDARD_IA`, …
    pub storage_class: Option<String>,
    /// How the server encrypts what it stores, if it is not the bucket's way.
    pub encryption: Option<Encryption>,
    /// How long the parts are in which long objects are sent, in bytes; at least 5 MiB.
    pub part_bytes: usize,
    /// How many such parts are in memory at the same time, at least 2.
    pub parts_in_memory: usize,
}

/// How a server encrypts what it stores.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// With a key of its own: `AES256`.
    Aes256,
    /// With a key of the key management service: the one named, or else the account's.
    Kms(Option<String>),
}

/// Objects in a bucket.
#[derive(Clone, Debug)]
pub struct S3 {
    client: Client,
    options: Arc<S3Options>,
    memory: Arc<Semaphore>,
}

/// How often the rest of an object is asked for that broke off.
const RESUMES: u32 = 5;

impl S3Options {
    /// Takes the bucket and the prefix; everything else is as usual.
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
            endpoint: None,
            region: None,
            path_style: false,
            credentials: None,
            ca_file: None,
            storage_class: None,
            encryption: None,
            // A file of the log goes in one request, however badly it compresses.
            part_bytes: 20 << 20,
            parts_in_memory: 6,
        }
    }
}

impl S3 {
    /// Prepares a client. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// The file of certificates cannot be read, or has none.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn new(options: S3Options) -> Result<Self, BackupError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http_client(&options)?)
            .retry_config(
                // Who runs this tries again too; a store that is away is told soon.
                RetryConfig::standard()
                    .with_max_attempts(5)
                    .with_initial_backoff(Duration::from_millis(200)),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(5))
                    .read_timeout(Duration::from_secs(30))
                    .build(),
            );
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some((id, secret)) = &options.credentials {
            loader = loader.credentials_provider(Credentials::new(id, secret, None, None, "given"));
        }
        let loaded = loader.load().await;
        let mut config = Builder::from(&loaded).force_path_style(options.path_style);
        if loaded.region().is_none() {
            config = config.region(Region::new("us-east-1"));
        }
        if let Some(endpoint) = &options.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let memory = Arc::new(Semaphore::new(options.parts_in_memory.max(2)));
        Ok(Self {
            client: Client::from_conf(config.build()),
            options: Arc::new(options),
            memory,
        })
    }

    fn key(&self, key: &str) -> String {
        match &self.options.prefix[..] {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    async fn room(&self) -> Result<OwnedSemaphorePermit, BackupError> {
        let room = Arc::clone(&self.memory).acquire_owned().await;
        room.map_err(|error| {
            BackupError::new(
                "s3",
                BackupErrorKind::Unavailable,
                "take memory for a part",
                error.to_string(),
            )
        })
    }

    async fn put_at_once(&self, key: &str, bytes: Bytes) -> Result<(), BackupError> {
        let mut request = self
            .client
            .put_object()
            .bucket(&self.options.bucket)
            .key(self.key(key))
            .if_none_match("*")
            .set_storage_class(self.storage_class())
            .body(ByteStream::from(bytes));
        if let Some((encryption, key)) = self.encryption() {
            request = request
                .server_side_encryption(encryption)
                .set_ssekms_key_id(key);
        }
        let sent = request.send().await;
        sent.map_err(|error| self.error("write", key, error))?;
        Ok(())
    }

    /// Sends an object that does not fit into one part.
    async fn put_in_parts(
        &self,
        key: &str,
        first: (Bytes, OwnedSemaphorePermit),
        mut body: Body,
    ) -> Result<(), BackupError> {
        let mut request = self
            .client
            .create_multipart_upload()
            .bucket(&self.options.bucket)
            .key(self.key(key))
            .set_storage_class(self.storage_class());
        if let Some((encryption, key)) = self.encryption() {
            request = request
                .server_side_encryption(encryption)
                .set_ssekms_key_id(key);
        }
        let created = request.send().await;
        let created = created.map_err(|error| self.error("write", key, error))?;
        let upload = created.upload_id.unwrap_or_default();
        let mut begun = Begun {
            s3: self.clone(),
            key: self.key(key),
            upload,
            finished: false,
        };
        let mut sending = JoinSet::new();
        let mut sent = Vec::new();
        let mut next = Some(first);
        for number in 1.. {
            let Some((bytes, room)) = next.take() else {
                break;
            };
            let (s3, name, upload) = (self.clone(), key.to_owned(), begun.upload.clone());
            sending.spawn(async move {
                let part = s3.put_part(&name, &upload, number, bytes).await;
                drop(room);
                part
            });
            let room = self.room().await?;
            while let Some(part) = sending.try_join_next() {
                sent.push(joined(part)?);
            }
            let (bytes, _) = gather(&mut body, self.options.part_bytes).await?;
            next = (!bytes.is_empty()).then_some((bytes, room));
        }
        while let Some(part) = sending.join_next().await {
            sent.push(joined(part)?);
        }
        sent.sort_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(sent));
        let completed = self
            .client
            .complete_multipart_upload()
            .bucket(&self.options.bucket)
            .key(self.key(key))
            .upload_id(&begun.upload)
            .if_none_match("*")
            .multipart_upload(parts.build())
            .send()
            .await;
        completed.map_err(|error| self.error("write", key, error))?;
        begun.finished = true;
        Ok(())
    }

    async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: i32,
        bytes: Bytes,
    ) -> Result<CompletedPart, BackupError> {
        let sent = self
            .client
            .upload_part()
            .bucket(&self.options.bucket)
            .key(self.key(key))
            .upload_id(upload)
            .part_number(number)
            .body(ByteStream::from(bytes))
            .send()
            .await;
        let sent = sent.map_err(|error| self.error("write", key, error))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .set_checksum_crc32(sent.checksum_crc32)
            .build())
    }

    async fn get_from(
        &self,
        key: &str,
        etag: Option<&str>,
        from: u64,
    ) -> Result<GetObjectOutput, BackupError> {
        let mut request = self
            .client
            .get_object()
            .bucket(&self.options.bucket)
            .key(self.key(key));
        if from > 0 {
            request = request
                .range(format!("bytes={from}-"))
                .set_if_match(etag.map(str::to_owned));
        }
        let sent = request.send().await;
        sent.map_err(|error| self.error("read", key, error))
    }

    fn storage_class(&self) -> Option<StorageClass> {
        let class = self.options.storage_class.as_deref();
        class.map(StorageClass::from)
    }

    fn encryption(&self) -> Option<(ServerSideEncryption, Option<String>)> {
        Some(match self.options.encryption.as_ref()? {
            Encryption::Aes256 => (ServerSideEncryption::Aes256, None),
            Encryption::Kms(key) => (ServerSideEncryption::AwsKms, key.clone()),
        })
    }

    fn error<E>(&self, action: &str, key: &str, error: SdkError<E>) -> BackupError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let bucket = &self.options.bucket;
        let status = error.raw_response().map(|raw| raw.status().as_u16());
        let code = error.code().unwrap_or_default().to_owned();
        let said = error.message().map(|text| format!(": {text}"));
        let said = said.unwrap_or_default();
        let (kind, problem) = match (&code[..], status) {
            ("NoSuchBucket", _) => (
                BackupErrorKind::Refused,
                format!("there is no bucket {bucket}; create it, or correct its name"),
            ),
            // Nobody but the store itself knows that: what stands before it says 404 for much else.
            ("NoSuchKey", _) if action == "read" => {
                (BackupErrorKind::NotFound, "it is not there".to_owned())
            }
            (code, Some(404)) => (
                BackupErrorKind::Unavailable,
                format!("the server answers 404 ({code}{said})"),
            ),
            ("PreconditionFailed" | "ConditionalRequestConflict", _) => (
                BackupErrorKind::Conflict,
                "an object of this name is there".to_owned(),
            ),
            ("RequestTimeTooSkewed" | "RequestExpired", _) => (
                BackupErrorKind::Refused,
                format!("the clocks of the server and of this machine differ{said}; set them"),
            ),
            (code, Some(401 | 403)) => (
                BackupErrorKind::Refused,
                format!(
                    "the server forbids it ({code}{said}); give these credentials the right to \
                     list, read, write and delete in the bucket {bucket}"
                ),
            ),
            (code, status)
                if status == Some(507) || FULL.iter().any(|full| code.contains(full)) =>
            {
                (
                    BackupErrorKind::Unavailable,
                    format!("the store is full ({code}{said}); make room for the bucket {bucket}"),
                )
            }
            (code, Some(status)) if status < 500 && status != 429 && status != 408 => (
                BackupErrorKind::Refused,
                format!("the server refuses it with {status} ({code}{said})"),
            ),
            (code, Some(status)) => (
                BackupErrorKind::Unavailable,
                format!("the server answers {status} ({code}{said})"),
            ),
            (_, None) => {
                let text = DisplayErrorContext(&error).to_string();
                if text.contains("no providers in chain provided credentials")
                    || text.contains("CredentialsNotLoaded")
                {
                    let problem = "there are no credentials: set AWS_ACCESS_KEY_ID and \
                                   AWS_SECRET_ACCESS_KEY, a profile, or a role of the machine";
                    (BackupErrorKind::Refused, problem.to_owned())
                } else {
                    (BackupErrorKind::Unavailable, text)
                }
            }
        };
        let action = format!("{action} {}", self.place(key));
        BackupError::new("s3", kind, action, problem).because(error)
    }

    /// Everything came, and is not what was stored.
    fn damaged(&self, key: &str, problem: &str) -> BackupError {
        let action = format!("read {}", self.place(key));
        BackupError::new("s3", BackupErrorKind::Damaged, action, problem)
    }

    /// A request of which the answer broke off.
    fn broke_off(&self, key: &str, problem: &str) -> BackupError {
        let action = format!("read {}", self.place(key));
        BackupError::new("s3", BackupErrorKind::Unavailable, action, problem)
    }
}

#[async_trait]
impl Objects for S3 {
    fn kind(&self) -> &'static str {
        "s3"
    }

    fn place(&self, key: &str) -> String {
        format!("s3://{}/{}", self.options.bucket, self.key(key))
    }

    async fn put(&self, key: &str, mut body: Body) -> Result<(), BackupError> {
        let room = self.room().await?;
        let (first, ended) = gather(&mut body, self.options.part_bytes).await?;
        if ended {
            return self.put_at_once(key, first).await;
        }
        self.put_in_parts(key, (first, room), body).await
    }

    async fn get(&self, key: &str) -> Result<Body, BackupError> {
        let mut answer = self.get_from(key, None, 0).await?;
        let etag = answer.e_tag.take();
        let length = answer.content_length;
        let length = length.and_then(|length| u64::try_from(length).ok());
        let (s3, key) = (self.clone(), key.to_owned());
        Ok(Body::made_by(move |sender| async move {
            let mut stream = answer.body;
            let (mut done, mut resumes) = (0, 0);
            loop {
                let problem = match stream.next().await {
                    Some(Ok(bytes)) => {
                        done += bytes.len() as u64;
                        if !sender.send(bytes).await {
                            return Ok(());
                        }
                        continue;
                    }
                    None if length.is_none_or(|length| length == done) => return Ok(()),
                    None => format!("it broke off after {done} bytes"),
                    Some(Err(error)) => {
                        let why = DisplayErrorContext(error).to_string();
                        if length == Some(done) {
                            return Err(s3.damaged(&key, &why));
                        }
                        format!("it broke off after {done} bytes: {why}")
                    }
                };
                resumes += 1;
                // Without its tag, the rest could be that of another object.
                if resumes > RESUMES || etag.is_none() {
                    return Err(s3.broke_off(&key, &problem));
                }
                tokio::time::sleep(Duration::from_millis(100) * resumes).await;
                let rest = s3.get_from(&key, etag.as_deref(), done).await?;
                if done > 0 && rest.content_range.is_none() {
                    return Err(s3.broke_off(&key, &problem));
                }
                stream = rest.body;
            }
        }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, BackupError> {
        let mut pages = self
            .client
            .list_objects_v2()
            .bucket(&self.options.bucket)
            .prefix(self.key(prefix))
            .into_paginator()
            .send();
        let own = self.key("");
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.error("list", prefix, error))?;
            let objects = page.contents.unwrap_or_default().into_iter();
            found.extend(objects.filter_map(|object| {
                Some(Object {
                    key: object.key?.strip_prefix(&own)?.to_owned(),
                    size: u64::try_from(object.size?).ok()?,
                })
            }));
        }
        found.sort();
        // A store that lists while it is written to may name one on two pages.
        found.dedup_by(|next, object| next.key == object.key);
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<(), BackupError> {
        let deleted = self
            .client
            .delete_object()
            .bucket(&self.options.bucket)
            .key(self.key(key))
            .send()
            .await;
        deleted.map_err(|error| self.error("delete", key, error))?;
        Ok(())
    }
}

/// An upload in parts, which is given up if it does not come to its end.
struct Begun {
    s3: S3,
    key: String,
    upload: String,
    finished: bool,
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Without a runtime there is nobody to ask; the bucket's rules clear it away.
        if let Ok(runtime) = Handle::try_current()
            && !self.finished
        {
            let abort = self
                .s3
                .client
                .abort_multipart_upload()
                .bucket(&self.s3.options.bucket)
                .key(&self.key)
                .upload_id(&self.upload);
            runtime.spawn(async move {
                if let Err(error) = abort.send().await {
                    let why = DisplayErrorContext(error);
                    tracing::warn!("an upload that failed is left in the bucket: {why}");
                }
            });
        }
    }
}

/// Takes as much of a body as fits into a part, and whether that was all.
async fn gather(body: &mut Body, most: usize) -> Result<(Bytes, bool), BackupError> {
    let mut part = BytesMut::new();
    // What comes may be cut anywhere: a part is at least so long, and a piece longer at most.
    while part.len() < most {
        match body.next().await? {
            Some(bytes) => part.extend_from_slice(&bytes),
            None => return Ok((part.freeze(), true)),
        }
    }
    Ok((part.freeze(), false))
}

fn joined<T>(
    part: Result<Result<T, BackupError>, tokio::task::JoinError>,
) -> Result<T, BackupError> {
    part.unwrap_or_else(|error| {
        let kind = BackupErrorKind::Unavailable;
        Err(BackupError::new(
            "s3",
            kind,
            "send a part",
            error.to_string(),
        ))
    })
}

fn http_client(options: &S3Options) -> Result<aws_sdk_s3::config::SharedHttpClient, BackupError> {
    let mut trusted = TrustStore::default();
    if let Some(path) = &options.ca_file {
        let refused = |problem: String| {
            let action = format!("read {}", path.display());
            BackupError::new("s3", BackupErrorKind::Refused, action, problem)
        };
        let pem = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
        if !pem
            .windows(27)
            .any(|line| line == b"-----BEGIN CERTIFICATE-----")
        {
            return Err(refused("it has no certificate in PEM".to_owned()));
        }
        trusted = TrustStore::empty().with_pem_certificate(pem);
    }
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|error| {
        let kind = BackupErrorKind::Refused;
        BackupError::new("s3", kind, "prepare TLS", error.to_string())
    })?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}

/// What is in the codes by which stores say that they have no room.
const FULL: [&str; 3] = ["StorageFull", "QuotaExceeded", "InsufficientStorage"];

//! The access log: one JSON object for each request of a service, once its answer has ended.
//!
//! It never holds what is a secret: no header but the host, no query, no body. A worker hands a record over and
//! goes on; a thread of its own writes. If that cannot keep up, records are dropped, and counted.

mod file;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, StatusCode, Version};
use raftserve_model::{ReplicaId, ServiceName, ServiceVersion};
use serde_json::json;

use crate::metrics::count_shared;
use file::LogFile;

/// How many records may wait to be written: some megabytes, and a disk's pause of a tenth of a second at full load.
const RECORDS_MAX: usize = 8192;

/// What of a path is told.
pub(crate) const PATH_MAX: usize = 1024;

/// What of a method is told.
pub(crate) const METHOD_MAX: usize = 32;

/// What of a host is told: no legal one is longer (RFC 1035, 2.3.4).
pub(crate) const HOST_MAX: usize = 255;

/// Where requests are told.
#[derive(Clone, Debug)]
pub struct AccessLog {
    records: SyncSender<Box<Record>>,
    dropped: Arc<AtomicU64>,
}

/// What is told of one request.
#[derive(Debug)]
pub(crate) struct Record {
    log: AccessLog,
    service: ServiceName,
    client: HeaderValue,
    method: String,
    host: String,
    path: String,
    pub(crate) version: Version,
    status: Option<StatusCode>,
    first_byte: Option<Duration>,
    ended: SystemTime,
    pub(crate) trace: Option<HeaderValue>,
    pub(crate) replica: Option<(ReplicaId, ServiceVersion)>,
    pub(crate) tries: usize,
    pub(crate) refusal: Option<&'static str>,
    pub(crate) bytes: u64,
    pub(crate) broke_off: bool,
    duration: Duration,
}

impl Record {
    pub(crate) fn new(log: &AccessLog, service: &ServiceName, client: &HeaderValue) -> Self {
        Self {
            log: log.clone(),
            service: service.clone(),
            client: client.clone(),
            method: String::new(),
            host: String::new(),
            path: String::new(),
            version: Version::HTTP_11,
            status: None,
            first_byte: None,
            ended: UNIX_EPOCH,
            trace: None,
            replica: None,
            tries: 0,
            refusal: None,
            bytes: 0,
            broke_off: false,
            duration: Duration::ZERO,
        }
    }

    /// What the client asks for; `path` without a query.
    pub(crate) fn asked(&mut self, method: &str, host: &str, path: &str) {
        self.method = clipped(method, METHOD_MAX);
        self.host = clipped(host, HOST_MAX);
        self.path = clipped(path, PATH_MAX);
    }

    pub(crate) fn answered(&mut self, status: StatusCode, after: Duration) {
        self.status = Some(status);
        self.first_byte = Some(after);
    }

    /// Tells it, with this as its whole time.
    pub(crate) fn end(mut self: Box<Self>, after: Duration) {
        self.duration = after;
        let log = self.log.clone();
        log.tell(self);
    }

    fn line(&self) -> serde_json::Value {
        let millis = |duration: Duration| duration.as_micros() as f64 / 1000.0;
        let ended = self.ended.duration_since(UNIX_EPOCH).unwrap_or_default();
        let trace = self.trace.as_ref().and_then(|value| value.to_str().ok());
        json!({
            "time_ms": u64::try_from(ended.as_millis()).unwrap_or(u64::MAX),
            "service": self.service.as_str(),
            "version": self.replica.map(|(_, version)| version.0),
            "replica": self.replica.map(|(replica, _)| replica.number),
            "client": self.client.to_str().unwrap_or(""),
            "method": self.method,
            "host": self.host,
            "path": self.path,
            "protocol": format!("{:?}", self.version),
            "status": self.status.map(|status| status.as_u16()),
            "refusal": self.refusal,
            "tries": self.tries,
            "first_byte_ms": self.first_byte.map(millis),
            "duration_ms": millis(self.duration),
            "bytes": self.bytes,
            "broke_off": self.broke_off,
            "trace_id": trace.and_then(|value| value.split('-').nth(1)),
        })
    }
}

impl AccessLog {
    /// Starts a thread that writes to `sink`, and ends with the last proxy that tells it something.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (records, receiver) = sync_channel(RECORDS_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let lost = Arc::clone(&dropped);
        let write = move || write_all(BufWriter::new(sink), &receiver, &lost);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(write)?;
        Ok(Self { records, dropped })
    }

    /// Starts a thread that appends to the file of this name. It may be moved away at any time, and what is told from
    /// then on goes into a new one: nobody has to say so.
    ///
    /// # Errors
    /// The file cannot be opened, or the system gives no thread.
    pub fn in_file(path: PathBuf) -> io::Result<Self> {
        Self::start(LogFile::open(path)?)
    }

    fn tell(&self, mut record: Box<Record>) {
        #[expect(
            clippy::disallowed_methods,
            reason = "a line of the log tells the time of day"
        )]
        let now = SystemTime::now();
        record.ended = now;
        if self.records.try_send(record).is_err() {
            count_shared(&self.dropped);
        }
    }

    /// How many records were not written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes records as they come, and out of its buffer whenever none waits.
fn write_all(mut sink: impl Write, records: &Receiver<Box<Record>>, dropped: &AtomicU64) {
    let mut failing = false;
    while let Ok(first) = records.recv() {
        let mut written = 0;
        let mut next = Some(first);
        let mut outcome = Ok(());
        while let Some(record) = next {
            outcome = outcome.and_then(|()| writeln!(sink, "{}", record.line()));
            written += 1;
            next = records.try_recv().ok();
        }
        let outcome = outcome.and_then(|()| sink.flush());
        if let Err(error) = &outcome {
            dropped.fetch_add(written, Ordering::Relaxed);
            if !failing {
                tracing::error!(%error, "the access log cannot be written");
            }
        }
        failing = outcome.is_err();
    }
}

/// At most the first `max` bytes, in whole characters.
pub(crate) fn clipped(text: &str, max: usize) -> String {
    let end = text.floor_char_boundary(max);
    text[..end].to_owned()
}

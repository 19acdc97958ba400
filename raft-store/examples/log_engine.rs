//! Measures the log engine against the disk beneath it, and how fast a log is opened after a kill.
//!
//! ```text
//! log_engine append [--dir DIR] [--batch 64] [--size 256] [--seconds 0.5] [--rounds 11]
//! log_engine open [--dir DIR] [--entries 1000000] [--rounds 11]
//! ```
//! `append` makes batches durable, one after another, in turns: with a bare loop of `write` and `fdatasync`; with
//! the log, handing it the next batch while the last one is synced, as Raft does; and with the log, handing it the
//! next batch only when the last one is durable, which adds two changes of threads to each. Both take one sync for
//! each batch, and say so. Compare only figures of one run: disks change their mind within seconds, hence many
//! short rounds and the median of their ratios.
//!
//! `open` fills a store in a process of its own, kills that with SIGKILL in the middle of appending, and opens what it
//! left: the log alone (every record verified), and the whole store until its state has caught up, first
//! without any snapshot and then with one 100,000 entries behind.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use openraft::storage::{RaftLogStorage, RaftStateMachine, StorageHelper};
use openraft::{RaftLogReader, RaftSnapshotBuilder};
use raftserve_model::{LogIndex, LogTime, NodeId, WallTime};
use raftserve_store::DataDir;
use raftserve_store::codec::{self, CodecError};
use raftserve_store::command::{Action, Command, Request};
use raftserve_store::disk::RealDisk;
use raftserve_store::entry::{LogId, Payload};
use raftserve_store::raft::TypeConfig;
use raftserve_store::state::KvCondition;
use raftserve_store::store::{Opened, Store};
use raftserve_store::wal::{EncodedEntry, Failed, Wal, WalOptions};
use tokio::sync::oneshot;

type Failure = Box<dyn std::error::Error>;

/// How far the snapshot lies behind, as `SNAPSHOT_ENTRIES` lets it.
const BEHIND: u64 = raftserve_store::raft::SNAPSHOT_ENTRIES;

/// openraft's logs begin at 0.
const FIRST: u64 = 0;

/// One that is synced, and one that waits.
const UNDER_WAY: usize = 2;

#[derive(Debug)]
struct Options {
    dir: PathBuf,
    batch: usize,
    size: usize,
    time: Duration,
    rounds: usize,
    entries: u64,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self {
            dir: PathBuf::from("target/log-engine"),
            batch: 64,
            size: 256,
            time: Duration::from_millis(500),
            rounds: 11,
            entries: 1_000_000,
        };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{} needs a value", pair[0]).into());
            };
            match name.as_str() {
                "--dir" => options.dir = value.into(),
                "--batch" => options.batch = value.parse()?,
                "--size" => options.size = value.parse()?,
                "--seconds" => options.time = Duration::try_from_secs_f64(value.parse()?)?,
                "--rounds" => options.rounds = value.parse()?,
                "--entries" => options.entries = value.parse()?,
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(options)
    }

    /// An empty directory.
    fn fresh(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (verb, rest) = arguments
        .split_first()
        .ok_or("name a verb: append or open")?;
    let options = Options::parse(rest)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    match verb.as_str() {
        "append" => runtime.block_on(append(&options)),
        "open" => runtime.block_on(open(&options)),
        "fill" => runtime.block_on(fill(&options)),
        other => Err(format!("unknown verb {other}: append or open").into()),
    }
}

/// One run.
struct Rate {
    entries: f64,
    /// What each batch took, sorted.
    times: Vec<Duration>,
    batches_per_sync: f64,
}

impl Rate {
    fn of(took: Duration, batch: usize, mut times: Vec<Duration>, syncs: u64) -> Self {
        times.sort_unstable();
        Self {
            entries: (times.len() * batch) as f64 / took.as_secs_f64(),
            batches_per_sync: times.len() as f64 / syncs as f64,
            times,
        }
    }

    fn quantile(&self, of: f64) -> f64 {
        let at = (self.times.len() as f64 * of) as usize;
        let time = self.times.get(at.min(self.times.len().saturating_sub(1)));
        time.map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (median, slow) = (self.quantile(0.5), self.quantile(0.99));
        write!(f, "{:>9.0} ({median:>6.0}/{slow:>6.0})", self.entries)
    }
}

async fn append(options: &Options) -> Result<(), Failure> {
    println!(
        "batches of {} entries of {} bytes, {:?} a run; entries/s (p50/p99 us of a batch)",
        options.batch, options.size, options.time
    );
    println!(
        "round  bare loop                    log, next one handed over   ratio  batches/sync  log, one by one            ratio"
    );
    println!(
        "encoding an entry of {} bytes takes {:.0} ns",
        stored(1)?.payload().len(),
        encoding_ns()?
    );
    let (mut ratios, mut single_ratios) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let bare = bare_loop(options)?;
        let log = log_loop(options, UNDER_WAY).await?;
        let single = log_loop(options, 1).await?;
        let (ratio, single_ratio) = (log.entries / bare.entries, single.entries / bare.entries);
        println!(
            "{round:>5}  {bare}  {log}  {ratio:>5.2}  {:>12.2}  {single}  {single_ratio:>5.2}",
            log.batches_per_sync
        );
        ratios.push(ratio);
        single_ratios.push(single_ratio);
    }
    println!(
        "median ratio {:.2}; one by one {:.2}",
        median(ratios),
        median(single_ratios)
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What encoding one entry takes, the making of its command included: what would move to the writing thread.
fn encoding_ns() -> Result<f64, Failure> {
    const ENTRIES: u64 = 200_000;
    let began = Instant::now();
    for index in 1..=ENTRIES {
        std::hint::black_box(stored(index)?);
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / ENTRIES as f64)
}

/// The least that durable appending takes: no format, no checksum, no thread.
fn bare_loop(options: &Options) -> Result<Rate, Failure> {
    let path = options.fresh("bare")?.join("file");
    let file = File::create_new(&path)?;
    let payload = vec![7; options.size];
    let (began, mut times, mut offset) = (Instant::now(), Vec::new(), 0);
    while began.elapsed() < options.time {
        let batch_began = Instant::now();
        let bytes = payload.repeat(options.batch);
        file.write_all_at(&bytes, offset)?;
        file.sync_data()?;
        offset += bytes.len() as u64;
        times.push(batch_began.elapsed());
    }
    let syncs = times.len() as u64;
    let rate = Rate::of(began.elapsed(), options.batch, times, syncs);
    std::fs::remove_file(path)?;
    Ok(rate)
}

async fn log_loop(options: &Options, under_way: usize) -> Result<Rate, Failure> {
    let dir = options.fresh("log")?;
    let wal = Wal::open(Arc::new(RealDisk), &dir, WalOptions::default())?;
    let payload = vec![7; options.size];
    let (began, mut times, mut next) = (Instant::now(), Vec::new(), 1);
    let mut waiting = std::collections::VecDeque::new();
    while began.elapsed() < options.time {
        let batch_began = Instant::now();
        let mut entries = Vec::with_capacity(options.batch);
        for _ in 0..options.batch {
            entries.push(EncodedEntry::new(id(next), |buffer| {
                buffer.extend_from_slice(&payload);
                Ok::<(), CodecError>(())
            })?);
            next += 1;
        }
        waiting.push_back((batch_began, start(&wal, entries).await?));
        if waiting.len() == under_way
            && let Some((began, durable)) = waiting.pop_front()
        {
            durable.await??;
            times.push(began.elapsed());
        }
    }
    for (began, durable) in waiting {
        durable.await??;
        times.push(began.elapsed());
    }
    // Without the group that opening has written.
    let syncs = wal.work().groups - 1;
    let rate = Rate::of(began.elapsed(), options.batch, times, syncs);
    drop(wal);
    std::fs::remove_dir_all(dir)?;
    Ok(rate)
}

async fn start(
    wal: &Wal,
    entries: Vec<EncodedEntry>,
) -> Result<oneshot::Receiver<Result<(), Failed>>, Failure> {
    let (sender, receiver) = oneshot::channel();
    let done = move |outcome| {
        // Whoever does not wait any more has failed already.
        let _ = sender.send(outcome);
    };
    wal.append(entries, done).await?;
    Ok(receiver)
}

fn id(index: u64) -> LogId {
    LogId {
        term: 1,
        node: NodeId(1),
        index: LogIndex(index),
    }
}

/// Keys that entries write in turn.
const KEYS: u64 = 10_000;

/// An entry that puts a value under a key, of 256 bytes as it is stored.
fn stored(index: u64) -> Result<EncodedEntry, Failure> {
    let action = if index == FIRST {
        Action::OpenClient
    } else {
        Action::Client {
            client: LogIndex(FIRST),
            sequence: index,
            acknowledged: index - 1,
            request: Request::PutKey {
                key: format!("key-{:05}", index % KEYS).parse()?,
                value: vec![7; 223].into(),
                condition: KvCondition::Any,
            },
        }
    };
    let command = Command {
        now: LogTime::default(),
        wall: WallTime::default(),
        action,
    };
    Ok(EncodedEntry::new(id(index), |buffer| {
        codec::encode_into(&Payload::Command(command), buffer)
    })?)
}

/// Fills a store, says so, and goes on until it is killed.
async fn fill(options: &Options) -> Result<(), Failure> {
    let opened = Store::default().open(&mut DataDir::open(&options.dir)?)?;
    let mut next = FIRST;
    loop {
        let entries: Result<Vec<_>, _> = (next..next + 1000).map(stored).collect();
        next += 1000;
        start(&opened.wal, entries?).await?.await??;
        opened.wal.save_committed(Some(id(next - 1)));
        if next == options.entries {
            println!("filled");
            std::io::stdout().flush()?;
        }
    }
}

async fn open(options: &Options) -> Result<(), Failure> {
    let dir = options.fresh("store")?;
    fill_and_kill(options, &dir)?;
    let wal_dir = dir.join("wal");
    println!("opening the log alone; every record is verified");
    let mut times = Vec::new();
    for _ in 0..options.rounds {
        let floor = read_floor(&wal_dir)?;
        let resident = resident_kib()?;
        let began = Instant::now();
        let wal = Wal::open(Arc::new(RealDisk), &wal_dir, WalOptions::default())?;
        let took = began.elapsed();
        let range = wal.range();
        println!(
            "  {:>6.1} ms for {} entries, {} KiB more in memory; reading the bytes and one checksum over all of them: {:.1} ms",
            ms(took),
            range.end - range.start,
            resident_kib()?.saturating_sub(resident),
            ms(floor),
        );
        times.push(ms(took));
    }
    println!("  median {:.1} ms", median(times));

    println!("opening the store until its state has caught up, without a snapshot");
    catch_up(&dir).await?;
    snapshot(&dir, options.entries - BEHIND.min(options.entries - 1)).await?;
    println!("the same with a snapshot {BEHIND} entries behind");
    for _ in 0..options.rounds {
        catch_up(&dir).await?;
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn fill_and_kill(options: &Options, dir: &Path) -> Result<(), Failure> {
    let mut child = Process::new(std::env::current_exe()?)
        .args(["fill", "--entries", &options.entries.to_string(), "--dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("the child has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    child.kill()?;
    child.wait()?;
    match line.trim() {
        "filled" => Ok(()),
        other => Err(format!("the child said {other:?}").into()),
    }
}

/// What reading all bytes and one checksum over them takes, on one thread.
fn read_floor(dir: &Path) -> Result<Duration, Failure> {
    let began = Instant::now();
    let mut buffer = vec![0; 256 << 10];
    let mut crc = 0;
    for entry in std::fs::read_dir(dir)? {
        let mut file = File::open(entry?.path())?;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            crc = crc32c::crc32c_append(crc, &buffer[..read]);
        }
    }
    std::hint::black_box(crc);
    Ok(began.elapsed())
}

async fn catch_up(dir: &Path) -> Result<(), Failure> {
    let began = Instant::now();
    let mut opened = Store::default().open(&mut DataDir::open(dir)?)?;
    let opening = began.elapsed();
    let count = |last: Option<LogId>| last.map_or(0, |last| last.index.0 + 1);
    let from = count(opened.reader.last());
    let mut helper = StorageHelper::<TypeConfig, _, _>::new(&mut opened.log, &mut opened.machine);
    helper = helper.with_id(NodeId(1));
    helper.get_initial_state().await?;
    let took = began.elapsed();
    let to = count(opened.reader.last());
    println!(
        "  {:>6.1} ms, of which {:.1} ms opening, {:.1} ms applying {} entries",
        ms(took),
        ms(opening),
        ms(took - opening),
        to - from
    );
    Ok(())
}

/// Takes a snapshot of the state up to entry `upto`.
async fn snapshot(dir: &Path, upto: u64) -> Result<(), Failure> {
    let Opened {
        mut log,
        mut machine,
        ..
    } = Store::default().open(&mut DataDir::open(dir)?)?;
    let mut reader = log.get_log_reader().await;
    let entries = reader.entries_stream(FIRST..=upto).await;
    let entries = entries.map(|entry| entry.map(|entry| (entry, None)));
    machine.apply(Box::pin(entries)).await?;
    machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await?;
    Ok(())
}

fn resident_kib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no VmRSS in /proc/self/status")?.parse()?)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

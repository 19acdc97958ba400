//! Watches of keys and of events, while peers are killed, restarted and brought back by snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use jepsen_tests::admin::Admin;
use jepsen_tests::admin::v1::watch_keys_response::Change;
use jepsen_tests::cluster::{Cluster, PATIENCE};
use jepsen_tests::wait;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::growth;
use crate::members::eager;
use crate::stage::{self, TEST_TIME_MAX};

const WRITERS: usize = 4;

const PREFIX: &str = "watched/";

/// A writer deletes its key after so many puts.
const DELETED_EVERY: usize = 20;

/// After a refusal, before the next peer is asked.
const PAUSE: Duration = Duration::from_millis(20);

/// The pause between two changes of a service: so many that all events are kept, and some around every fault.
const SERVICE_PERIOD: Duration = Duration::from_millis(100);

/// A key that changed, with its version, or 0 where it was deleted.
type Changed = (String, u64);

/// What a watch tells: the index that it has come to, and what happened there, if it is of interest.
type Told<T> = BoxStream<'static, Result<(u64, Option<T>), Status>>;

/// Begins a watch at an index.
type Open<T> = fn(Admin, u64) -> BoxFuture<'static, Result<Told<T>, Status>>;

/// What a watch has seen, by index.
type Seen<T> = BTreeMap<u64, T>;

/// Puts a key of its own again and again at all peers in turn. Returns the indices of what was acknowledged.
async fn write(admins: Vec<Admin>, number: usize, stop: Arc<AtomicBool>) -> BTreeSet<u64> {
    let key = format!("{PREFIX}{number}");
    let mut acknowledged = BTreeSet::new();
    for admin in admins.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match admin.put_key(&key, "x", None, None).await {
            Ok(put) => _ = acknowledged.insert(put.modified_index),
            Err(_) => sleep(PAUSE).await,
        }
        if acknowledged.len() % DELETED_EVERY == DELETED_EVERY - 1 {
            // It may fail, or have been deleted already.
            let _ = admin.delete_key(&key, None, None).await;
        }
    }
    acknowledged
}

/// Gives a service version after version, at all peers in turn, which makes several events of one entry.
async fn update(admins: Vec<Admin>, stop: Arc<AtomicBool>) {
    for (number, admin) in admins.iter().cycle().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let yaml = format!(
            "name: watched\nservice: {{readiness_probe: {{path: /{number}}}}}\n_metadata: {{raftserve: {{provider: \
             {{static: {{addresses: [\"127.0.0.1:9\"]}}}}}}}}\n"
        );
        // Whether it is agreed, the watches tell.
        let _ = admin.apply_with(&yaml, Vec::new()).await;
        sleep(SERVICE_PERIOD).await;
    }
}

fn keys(admin: Admin, from: u64) -> BoxFuture<'static, Result<Told<Changed>, Status>> {
    Box::pin(async move {
        let stream = admin.watch_keys(PREFIX, from).await?;
        let told = stream.map_ok(|told| {
            let changed = match told.change {
                Some(Change::Put(entry)) => Some((entry.key, entry.version)),
                Some(Change::Deleted(key)) => Some((key, 0)),
                None => None,
            };
            (told.log_index, changed)
        });
        Ok(told.boxed())
    })
}

fn events(admin: Admin, from: u64) -> BoxFuture<'static, Result<Told<Vec<String>>, Status>> {
    Box::pin(async move {
        let stream = admin.watch_events(Some(from)).await?;
        let told = stream.map_ok(|told| {
            let all: Vec<String> = told.events.iter().map(|it| format!("{it:?}")).collect();
            (told.log_index, (!all.is_empty()).then_some(all))
        });
        Ok(told.boxed())
    })
}

/// Watches at one peer after the other, from the first on, each time where it last was, until it has seen `upto`.
async fn watch<T: std::fmt::Debug>(
    open: Open<T>,
    admins: Vec<Admin>,
    first: usize,
    mut upto: tokio::sync::watch::Receiver<Option<u64>>,
) -> anyhow::Result<(Seen<T>, usize)> {
    let (mut seen, mut streams) = (Seen::new(), 0);
    let mut next = 1;
    for admin in admins.iter().cycle().skip(first) {
        let mut stream = match open(admin.clone(), next).await {
            Ok(stream) => stream,
            Err(status) if status.code() == Code::OutOfRange => {
                return Err(status).context(format!("nothing from {next} on"));
            }
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        streams += 1;
        loop {
            let told = tokio::select! {
                told = stream.next() => told,
                changed = upto.changed() => {
                    changed?;
                    if upto.borrow().is_some_and(|upto| next > upto) {
                        return Ok((seen, streams));
                    }
                    continue;
                }
            };
            let (index, change) = match told {
                Some(Ok(told)) => told,
                Some(Err(status)) if status.code() == Code::OutOfRange => {
                    return Err(status).context(format!("nothing from {next} on"));
                }
                None | Some(Err(_)) => break,
            };
            ensure!(index + 1 >= next, "{index} after {next}");
            next = index + 1;
            if let Some(change) = change {
                let former = seen.insert(index, change);
                ensure!(former.is_none(), "twice: {former:?}");
            }
            if upto.borrow().is_some_and(|upto| next > upto) {
                return Ok((seen, streams));
            }
        }
    }
    unreachable!("admins are tried for ever")
}

/// What all watches have seen, which were each resumed.
async fn same<T: PartialEq + 'static>(
    watches: JoinSet<anyhow::Result<(Seen<T>, usize)>>,
) -> anyhow::Result<Seen<T>> {
    let all = tokio::time::timeout(Duration::from_secs(60), watches.join_all()).await;
    let mut all = all.context("a watch does not come to its end")?.into_iter();
    let (seen, streams) = all.next().context("no watch")??;
    ensure!(streams > 1, "it was never resumed");
    for other in all {
        ensure!(other?.0 == seen, "two watches have seen different changes");
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_is_seen_once_and_in_order_whatever_becomes_of_peers() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let mut options = eager(3);
        options.flags.extend(growth::flags());
        let mut cluster = Cluster::start_with(options).await?;
        let admins = stage::admins(&cluster);
        let stop = Arc::new(AtomicBool::new(false));
        let (end, upto) = tokio::sync::watch::channel(None);
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            writers.spawn(write(admins.clone(), number, Arc::clone(&stop)));
        }
        let updating = tokio::spawn(update(admins.clone(), Arc::clone(&stop)));
        let (mut of_keys, mut of_events) = (JoinSet::new(), JoinSet::new());
        for first in 0..cluster.size() {
            of_keys.spawn(watch(keys, admins.clone(), first, upto.clone()));
            of_events.spawn(watch(events, admins.clone(), first, upto.clone()));
        }

        for _ in 0..2 {
            let leader = cluster.leader().await?;
            let log = cluster.peer(leader).log_text().len();
            cluster.kill(leader)?;
            growth::leaves_behind(&cluster, leader).await?;
            cluster.restart(leader).await?;
            growth::installed(&cluster, leader, log).await?;
        }
        cluster.kill_all()?;
        cluster.restart_all().await?;
        let after = cluster.admin(0).status().await?.applied_index;
        wait::until("writes after it", PATIENCE, async || {
            let now = cluster.admin(0).status().await?.applied_index;
            ensure!(now > after + 50, "{now} after {after}");
            Ok(())
        })
        .await?;

        stop.store(true, Ordering::Relaxed);
        updating.await?;
        let acknowledged: BTreeSet<u64> = writers.join_all().await.into_iter().flatten().collect();
        let last = cluster.admin(0).status().await?.applied_index;
        end.send_replace(Some(last.max(acknowledged.last().copied().unwrap_or(0))));
        let seen = same(of_keys).await?;
        let happened = same(of_events).await?;
        let several = happened.values().filter(|events| events.len() > 1);
        ensure!(several.count() > 0, "no entry had more than one event");
        let missing: Vec<_> = acknowledged
            .iter()
            .filter(|at| !seen.contains_key(at))
            .collect();
        ensure!(missing.is_empty(), "acknowledged and not seen: {missing:?}");
        let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
        for (index, (key, version)) in &seen {
            let before = versions.insert(key, *version).unwrap_or(0);
            let follows = match *version {
                0 => before > 0,
                version => version == before + 1,
            };
            ensure!(follows, "{key} at {index}: {version} after {before}");
        }
        let deleted = seen.values().filter(|(_, version)| *version == 0);
        ensure!(deleted.count() > 0, "nothing was deleted");
        cluster.note(&format!(
            "{} changes and events of {} entries seen by each watch",
            seen.len(),
            happened.len()
        ));
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_printed_by_the_command_from_where_it_is_told_to_begin() -> anyhow::Result<()> {
    stage::run(TEST_TIME_MAX, async {
        let cluster = Cluster::start().await?;
        let admin = cluster.admin(0);
        let first = admin.put_key("a", "1", None, None).await?.modified_index;
        let second = admin.put_key("b", "2", None, None).await?.modified_index;
        admin.delete_key("a", None, None).await?;
        let cli = cluster.cli(1);
        let watch = async |more: &[&str]| -> anyhow::Result<Vec<String>> {
            let ran = cli
                .run(&[&["kv", "watch", "--no-follow"], more].concat())
                .await?;
            ensure!(ran.code == Some(0), "{ran:?}");
            Ok(ran.stdout.lines().map(|it| it.trim().to_owned()).collect())
        };
        let all = watch(&[]).await?;
        ensure!(
            all.len() == 3 && all[2].ends_with("  a  deleted"),
            "{all:?}"
        );
        ensure!(all[0] == format!("{first}  a  = 1"), "{all:?}");
        ensure!(all[1] == format!("{second}  b  = 2"), "{all:?}");
        let rest = watch(&["a", "--from", &second.to_string()]).await?;
        ensure!(rest == all[2..], "{rest:?}");
        let none = watch(&["none/"]).await?;
        ensure!(none.is_empty(), "{none:?}");
        cluster.pass();
        Ok(())
    })
    .await
}

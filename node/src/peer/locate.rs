//! Finds peers that have moved: asks at every place where one was ever said to be, and then where those who answer
//! know others to be. Only what a peer says about itself is believed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, interval};

use super::bootstrap::{Unanswered, greet};
use super::core::Core;
use super::directory::Stranger;
use super::wire::HelloRequest;

/// How often peers that do not answer are looked for.
const PERIOD: Duration = Duration::from_secs(1);

/// How often it is looked who is where peers once were.
pub(crate) const STRAY_PERIOD: Duration = Duration::from_secs(5);

/// A peer that has been silent for so long may have moved.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Looks for silent peers as long as this peer runs. `names` is where the flags say that peers are.
pub(crate) async fn run(core: Arc<Core>, names: Vec<String>) {
    let mut period = interval(PERIOD);
    let mut looked = Instant::now();
    loop {
        period.tick().await;
        if !all_answer(&core) {
            ask_everywhere(&core, &names).await;
        } else if looked.elapsed() >= STRAY_PERIOD {
            ask_strays(&core, &names).await;
        } else {
            continue;
        }
        looked = Instant::now();
    }
}

/// Asks where the flags say that peers are, and none of this cluster is: whoever is there now belongs elsewhere, or is about
/// to found another cluster, and is told of this one.
async fn ask_strays(core: &Core, names: &[String]) {
    let places = core.directory.places().into_iter();
    let mut known: BTreeSet<String> = places.collect();
    known.insert(core.announcement.peer_address.clone());
    ask(core, names.iter().cloned().collect(), &mut known).await;
}

fn all_answer(core: &Core) -> bool {
    let directory = &core.directory;
    let others = directory.others();
    // Without a membership, which only a leader can bring, nobody is known to be missing.
    !others.is_empty()
        && others.into_iter().all(|peer| {
            let answered = directory.last_answer(peer);
            answered.is_some_and(|at| at.elapsed() < SILENCE_MAX)
        })
}

async fn ask_everywhere(core: &Core, names: &[String]) {
    let roster = core.directory.roster();
    let recorded = roster.members.values().map(|record| &record.address);
    let mut asked: BTreeSet<String> = [core.announcement.peer_address.clone()].into();
    let known: BTreeSet<String> = recorded.chain(names).cloned().collect();
    let heard = ask(core, known, &mut asked).await;
    // Two that have both moved meet through one that has not.
    ask(core, heard, &mut asked).await;
}

/// Asks at those of `places` that were not yet asked. Returns where they know others to be.
async fn ask(
    core: &Core,
    places: BTreeSet<String>,
    asked: &mut BTreeSet<String>,
) -> BTreeSet<String> {
    let hello = HelloRequest {
        from: Some(core.announcement.clone()),
    };
    let places: Vec<String> = places.difference(asked).cloned().collect();
    asked.extend(places.iter().cloned());
    let answers = join_all(
        places
            .iter()
            .map(|place| greet(core.links.dialer(), place, &hello)),
    )
    .await;
    let mut further = BTreeSet::new();
    for answer in answers {
        let said = match answer {
            Ok(said) => said,
            Err(Unanswered::Copy(reason)) => {
                core.end(reason);
                continue;
            }
            Err(Unanswered::Other(_)) => continue,
        };
        if said.removed {
            core.removed
                .send_if_modified(|known| !std::mem::replace(known, true));
        }
        if let Some(said) = said.announcement
            && let Err(stranger) = core.meet(said).await
        {
            // Of another cluster it has been said, and is not said every time.
            if !matches!(stranger, Stranger::Cluster { .. }) {
                tracing::warn!(%stranger, "met a peer that does not belong here");
            }
            continue;
        }
        further.extend(said.places);
    }
    further
}

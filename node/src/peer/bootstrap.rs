//! From empty directories to a cluster, once.
//!
//! An empty directory never initialises by itself. The first-named peer waits until every peer named
//! is pristine, draws the cluster's id, and gives everybody an identity: ids 1..=N in the order of
//! the names, with the nonce of each directory. When all have theirs on disk it initialises Raft, on
//! itself only. What can be interrupted, in the order of the steps:
//!
//! 1. Before the plan is on disk nothing has happened.
//! 2. The plan is on the first peer's disk before anybody hears of it. A restart takes it up again,
//!    with the same cluster id. An adopted peer that is asked again says yes again. A peer that
//!    was emptied before it was adopted, and has another nonce, is planned anew: nobody has voted
//!    yet, so no nonce has been relied on.
//! 3. Raft is initialised when all identities are on disk. Its membership entry and its first vote
//!    are on the first peer's disk before anybody is asked for a vote. So while that peer's log is
//!    empty, no other has voted, and the steps may be repeated; once it is not, they never are.
//! 4. The cluster is named in the log by whoever leads first.
//!
//! The plan is sticky: a peer that has taken one identity never takes another. Two peers that both
//! hold themselves for the first therefore both fail, instead of both succeeding.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use raftserve_model::{ClusterId, Incarnation, NodeId, VersionRange};
use raftserve_store::identity::{DataDir, IdentityError};
use raftserve_store::raft::PeerRecord;
use raftserve_store::state::Promotion;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use self::greeting::{Answer, Teller, knows_a_cluster, missing, strangers_only};
use self::sought::Sought;
use super::dial::Dialer;
use super::lives::{are_two, copy_of};
use super::plan_file::PlanFile;
use super::store::{Identity, SharedDir};
use super::wire::{AdoptReply, AdoptRequest, Announcement, HelloReply, HelloRequest, Plan};

mod first;
mod founding;
mod greeting;
mod joining;
mod sought;

pub use self::founding::{Claim, Founding};
pub(crate) use self::greeting::{Unanswered, greet};

/// How often the other peers are asked.
const ROUND: Duration = Duration::from_millis(200);

/// How long a peer that has an identity waits for the others to say theirs: long beside an answer, short
/// beside a start, since others that are down must not hold it up.
const COMPANY: Duration = Duration::from_millis(500);

/// Why a peer cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The flags leave this peer out.
    #[error(
        "this peer's address {address:?} is not among the peers named at bootstrap ({}): name it as the others do",
        names.join(", ")
    )]
    NotNamed {
        /// Its own.
        address: String,
        /// Of all.
        names: Vec<String>,
    },
    /// A name occurs twice.
    #[error("{0:?} is named twice among the peers")]
    NamedTwice(String),
    /// The cluster does not take it.
    #[error("this peer cannot join the cluster of {name}: {reason}")]
    NotAdmitted {
        /// Who said so.
        name: String,
        /// Why.
        reason: String,
    },
    /// There is a cluster, and most of its volumes are not where they should be.
    #[error(
        "{empty} of the {named} peers that began a cluster, this one among them, have empty data directories, and those \
         that are left have no quorum: bring the lost volumes back, or start the cluster again from one that is left with \
         `raftserve cluster recover`, as docs/runbooks/lost-majority.md says"
    )]
    MajorityLost {
        /// How many have nothing, this one among them.
        empty: usize,
        /// How many were named.
        named: usize,
    },
    /// It was a member, and is none any more.
    #[error(
        "peer {node} was removed from cluster {cluster}, and neither it nor its data directory may come back: empty {} \
         and start it again with --join and the address of a present peer, and it joins under a new id",
        folder.display()
    )]
    Removed {
        /// The data directory.
        folder: PathBuf,
        /// Its cluster.
        cluster: ClusterId,
        /// Its id.
        node: NodeId,
    },
    /// Another process runs on the directory of which this one has a copy.
    #[error("data directory {} must not be used: {reason}", folder.display())]
    Copy {
        /// The data directory.
        folder: PathBuf,
        /// Which, and what to do.
        reason: String,
    },
    /// Another bootstrap got half-way, and its first peer is not this directory.
    #[error(
        "{name} has been given an identity in cluster {cluster}, which this peer did not bootstrap: if that \
         bootstrap will never be completed, empty the data directories of all peers and start them again"
    )]
    AnotherBootstrap {
        /// Who said so.
        name: String,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// The others go on without what this peer has lost.
    #[error(
        "this peer's log is empty, but {name} already takes part in the election of cluster {cluster}: this \
         peer's log was lost, so restore its volume, or empty its data directory, and it joins again under \
         a new id"
    )]
    LogLost {
        /// Who said so.
        name: String,
        /// The cluster of both.
        cluster: ClusterId,
    },
    /// The directory is of one cluster, and the peers named are of another.
    #[error(
        "data directory {} belongs to cluster {mine}, but {name}, which is named among this peer's peers, to \
         cluster {theirs}: start this peer with its own data directory, or name its own peers",
        folder.display()
    )]
    AmongStrangers {
        /// The data directory.
        folder: PathBuf,
        /// Its cluster.
        mine: ClusterId,
        /// A peer that answered.
        name: String,
        /// Its cluster.
        theirs: ClusterId,
    },
    /// There was a cluster here, whose volumes are not where they should be.
    #[error("this peer must not found a cluster: {0}")]
    Founded(String),
    /// The data directory is refused.
    #[error(transparent)]
    Directory(#[from] IdentityError),
    /// The plan could not be read or written.
    #[error("cannot keep the plan of the bootstrap in {}", folder.display())]
    Plan {
        /// The data directory.
        folder: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Raft did not take the membership.
    #[error("cannot initialise Raft: {0}")]
    Initialise(String),
}

/// How a peer wants to take part, if it joins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// When it becomes a voter.
    pub(crate) promotion: Promotion,
    /// The cluster versions that its release can work in.
    pub(crate) supports: VersionRange,
    /// This process's life.
    pub(crate) incarnation: Incarnation,
}

/// What a peer knows before it runs: its directory, its name and those of the others.
pub(crate) struct Cradle {
    folder: PathBuf,
    dir: SharedDir,
    names: Vec<String>,
    mine: String,
    /// Peers of a running cluster; none if there may be none yet.
    join: Vec<String>,
    wish: Wish,
    dialer: Dialer,
    /// Who knows of earlier clusters, beside the directories.
    founding: Option<Arc<dyn Founding>>,
    nonce: u64,
    /// Whether the directory is that of a peer that was removed.
    is_removed: bool,
    /// Locked while an identity is taken, so that there is only ever one.
    identity: Mutex<Option<Identity>>,
    taken: watch::Sender<Option<Identity>>,
    /// Who looked here for a peer of a running cluster.
    sought: Sought,
    /// What it waits for, in words.
    waits_for: watch::Sender<String>,
}

impl Cradle {
    /// The cradle of the peer whose directory this is.
    pub(crate) fn new(
        dir: DataDir,
        names: Vec<String>,
        mine: String,
        join: Vec<String>,
        wish: Wish,
        dialer: Dialer,
        founding: Option<Arc<dyn Founding>>,
    ) -> Self {
        let identity = Identity::held_by(&dir);
        Self {
            folder: dir.path().to_owned(),
            nonce: dir.identity().nonce(),
            is_removed: dir.is_removed(),
            dir: SharedDir::new(dir),
            names,
            mine,
            join,
            wish,
            dialer,
            founding,
            taken: watch::Sender::new(identity),
            identity: Mutex::new(identity),
            sought: Sought::default(),
            waits_for: watch::Sender::default(),
        }
    }

    /// The same, which says in `waits_for` what it waits for.
    pub(crate) fn telling(self, waits_for: watch::Sender<String>) -> Self {
        Self { waits_for, ..self }
    }

    /// Notes that a member of a cluster looks for a peer here, and says so.
    pub(crate) fn note_seeker(&self, said: &Announcement) {
        self.sought.note(said);
    }

    /// Where those are who looked here lately for a peer of a running cluster.
    pub(crate) fn seekers(&self) -> Vec<String> {
        self.sought.places()
    }

    /// The data directory.
    pub(crate) fn dir(&self) -> &SharedDir {
        &self.dir
    }

    /// Drawn when the directory was made.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// This peer's identity, once it has one.
    pub(crate) async fn identity(&self) -> Option<Identity> {
        *self.identity.lock().await
    }

    /// Takes the identity that the first-named peer gives, if it is the one to give it.
    pub(crate) async fn adopt(&self, request: AdoptRequest) -> AdoptReply {
        match self.try_adopt(request).await {
            Ok(()) => AdoptReply::Adopted,
            Err(reason) => AdoptReply::Refused(reason),
        }
    }

    async fn try_adopt(&self, request: AdoptRequest) -> Result<(), String> {
        let AdoptRequest { plan, node } = request;
        let record = record_of(&plan, node)
            .ok_or_else(|| format!("the plan has no peer {node}"))?
            .clone();
        let mut identity = self.identity.lock().await;
        let wanted = Identity {
            cluster: plan.cluster,
            node,
            nonce: record.nonce,
        };
        if let Some(held) = identity.as_ref() {
            return if *held == wanted {
                Ok(())
            } else {
                Err(format!(
                    "it already is peer {} of cluster {}",
                    held.node, held.cluster
                ))
            };
        }
        if record.nonce != self.nonce {
            return Err("its data directory is not the one that the plan means".to_owned());
        }
        let planned = plan.members.iter().map(|member| &member.address);
        if !planned.eq(&self.names) || record.address != self.mine {
            return Err(format!(
                "it was started as {} of the peers {}, in this order",
                self.mine,
                self.names.join(", ")
            ));
        }
        self.dir
            .join(wanted)
            .await
            .map_err(|error| error.to_string())?;
        *identity = Some(wanted);
        self.taken.send_replace(Some(wanted));
        Ok(())
    }

    fn failed(&self, source: io::Error) -> BootstrapError {
        BootstrapError::Plan {
            folder: self.folder.clone(),
            source,
        }
    }

    fn plan_file(&self) -> PlanFile {
        PlanFile::within(&self.folder)
    }

    fn check_names(&self) -> Result<(), BootstrapError> {
        for (place, name) in self.names.iter().enumerate() {
            if self.names[..place].contains(name) {
                return Err(BootstrapError::NamedTwice(name.clone()));
            }
        }
        if self.names.contains(&self.mine) {
            return Ok(());
        }
        Err(BootstrapError::NotNamed {
            address: self.mine.clone(),
            names: self.names.clone(),
        })
    }

    /// This peer's identity: the one on disk, or the one that bootstrap or a running cluster gives it. Waits
    /// for the other peers as long as it takes.
    ///
    /// # Errors
    /// [`BootstrapError`] if there is none to be had.
    pub(crate) async fn await_identity(&self) -> Result<Identity, BootstrapError> {
        if let Some(identity) = self.identity().await {
            if self.is_removed {
                return Err(self.removed(identity));
            }
            self.check_company(identity).await?;
            return Ok(identity);
        }
        if !self.join.is_empty() {
            return self.join_through(&self.join).await;
        }
        self.check_names()?;
        if self.names.first() == Some(&self.mine) {
            self.take_first().await
        } else {
            self.await_adoption().await
        }
    }

    fn removed(&self, held: Identity) -> BootstrapError {
        BootstrapError::Removed {
            folder: self.folder.clone(),
            cluster: held.cluster,
            node: held.node,
        }
    }

    /// Refuses a data directory that was put into the place of a peer of another cluster: some of the peers
    /// named answer, and all that do are of one cluster that is not this directory's. One that met its own
    /// cluster anywhere goes on, since a single wrong name must not keep it from serving.
    ///
    /// Refuses one of a peer that was removed, and a copy of one that runs, too.
    async fn check_company(&self, held: Identity) -> Result<(), BootstrapError> {
        let (folder, mine) = (self.folder.clone(), held.cluster);
        let introduction = self.introduction(held);
        let hello = HelloRequest {
            from: Some(introduction.clone()),
        };
        let replies = self.greet_company(&hello, COMPANY).await;
        if let Some(reason) = replies
            .iter()
            .find_map(|reply| runs_elsewhere(&introduction, reply))
        {
            return Err(BootstrapError::Copy { folder, reason });
        }
        let is_removed = |(_, reply): &(_, Result<HelloReply, _>)| {
            reply.as_ref().is_ok_and(|reply| reply.removed)
        };
        if replies.iter().any(is_removed) {
            self.dir.note_removed().await;
            return Err(self.removed(held));
        }
        let answers: Vec<Answer> = replies.into_iter().map(standing).collect();
        match strangers_only(&answers, mine) {
            Some((name, theirs)) => Err(BootstrapError::AmongStrangers {
                folder,
                mine,
                name,
                theirs,
            }),
            None => Ok(()),
        }
    }

    /// Waits to be adopted, unless there is a cluster that will never do so.
    async fn await_adoption(&self) -> Result<Identity, BootstrapError> {
        let mut taken = self.taken.subscribe();
        let mut teller = Teller::new(&self.waits_for);
        loop {
            let answers = self.greet_all().await;
            // An answer may be older than an adoption that came meanwhile.
            if let Some(identity) = self.identity().await {
                return Ok(identity);
            }
            if knows_a_cluster(&answers) {
                return self.join_through(&self.names).await;
            }
            teller.tell(|| {
                let first = self.names.first().map_or("", String::as_str);
                format!(
                    "waiting for {first} to bootstrap the cluster{}",
                    missing(&answers)
                )
            });
            let adopted = taken.wait_for(Option::is_some);
            // A timeout is the next round.
            let _ = timeout(ROUND, adopted).await;
        }
    }

    /// Asks every other named peer who it is, all at once.
    async fn greet_all(&self) -> Vec<Answer> {
        let hello = HelloRequest { from: None };
        let replies = self.greet_company(&hello, Duration::MAX).await;
        replies.into_iter().map(standing).collect()
    }

    /// The same with a greeting of one's own, and all that they reply; none is waited for any longer than `within`.
    async fn greet_company(&self, hello: &HelloRequest, within: Duration) -> Vec<Reply> {
        let places = self.names.iter().chain(&self.join);
        self.greet_places(places, hello, within).await
    }

    /// The same at these places, but for this peer's own.
    async fn greet_places(
        &self,
        places: impl Iterator<Item = &String>,
        hello: &HelloRequest,
        within: Duration,
    ) -> Vec<Reply> {
        let others = places.filter(|name| **name != self.mine);
        join_all(others.map(async |name| {
            let reply = timeout(within, greet(&self.dialer, name, hello)).await;
            let late = |_| Err(Unanswered::Other("it does not answer".to_owned()));
            (name.clone(), reply.unwrap_or_else(late))
        }))
        .await
    }

    /// Who this peer is, before it knows more about itself.
    fn introduction(&self, held: Identity) -> Announcement {
        Announcement {
            cluster: held.cluster,
            node: held.node,
            nonce: held.nonce,
            incarnation: self.wish.incarnation,
            peer_address: self.mine.clone(),
            admin_address: String::new(),
            proxy_address: String::new(),
            host: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            supports: self.wish.supports,
        }
    }
}

/// What a peer replied, by its name.
type Reply = (String, Result<HelloReply, Unanswered>);

fn standing((name, reply): Reply) -> Answer {
    let standing = reply.map(|reply| reply.standing);
    (name, standing.map_err(|error| error.to_string()))
}

/// What a reply says about another process that speaks for the peer that asked.
fn runs_elsewhere(mine: &Announcement, (_, reply): &Reply) -> Option<String> {
    match reply {
        Err(Unanswered::Copy(reason)) => Some(reason.clone()),
        Err(Unanswered::Other(_)) => None,
        Ok(reply) => {
            let said = reply.announcement.as_ref();
            let other = said.filter(|said| are_two(mine, said))?;
            Some(copy_of(other).to_string())
        }
    }
}

fn record_of(plan: &Plan, node: NodeId) -> Option<&PeerRecord> {
    let place = usize::try_from(node.0.checked_sub(1)?).ok()?;
    plan.members.get(place)
}

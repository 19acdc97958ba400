//! What the first-named peer does: plans, gives identities, initialises.

use std::collections::BTreeMap;
use std::time::Duration;

use raftserve_model::{ClusterId, NodeId};
use raftserve_store::raft::PeerRecord;
use tokio::time::sleep;

use super::greeting::{
    Answer, Teller, all_pristine, another_bootstrap, any_member, ask_to_adopt, greet,
    knows_a_cluster, missing,
};
use super::{BootstrapError, Claim, Cradle, ROUND, standing};
use crate::peer::store::{Identity, RaftHandle};
use crate::peer::wire::{AdoptReply, AdoptRequest, HelloReply, HelloRequest, Plan, Standing};

/// How the first-named peer may begin.
enum Beginning {
    /// With a cluster of its own.
    Found(Plan),
    /// In one that there is already, by way of these places.
    Join(Vec<String>),
}

impl Cradle {
    /// Makes the plan when every other is pristine, and takes the first identity in it.
    pub(super) async fn take_first(&self) -> Result<Identity, BootstrapError> {
        let plan = match self
            .plan_file()
            .load()
            .map_err(|error| self.failed(error))?
        {
            Some(plan) => plan,
            None => match self.make_plan().await? {
                Beginning::Found(plan) => plan,
                Beginning::Join(places) => return self.join_through(&places).await,
            },
        };
        let first = plan.members.first().expect("the plan holds this peer");
        let identity = Identity {
            cluster: plan.cluster,
            node: NodeId(1),
            nonce: first.nonce,
        };
        let mut held = self.identity.lock().await;
        if let Some(identity) = held.as_ref() {
            // Somebody else holds itself for the first and was faster; its plan will fail elsewhere.
            return Ok(*identity);
        }
        self.plan_file()
            .save(&plan)
            .map_err(|error| self.failed(error))?;
        self.dir.join(identity).await?;
        *held = Some(identity);
        self.taken.send_replace(Some(identity));
        Ok(identity)
    }

    async fn make_plan(&self) -> Result<Beginning, BootstrapError> {
        let mut teller = Teller::new(&self.waits_for);
        loop {
            let hello = HelloRequest { from: None };
            let replies = self.greet_company(&hello, Duration::MAX).await;
            let mut seekers = self.seekers();
            for (_, reply) in &replies {
                if let Ok(HelloReply {
                    standing: Standing::Pristine { .. },
                    places,
                    ..
                }) = reply
                {
                    seekers.extend(places.iter().cloned());
                }
            }
            let answers: Vec<Answer> = replies.into_iter().map(standing).collect();
            if knows_a_cluster(&answers) {
                return Ok(Beginning::Join(self.names.clone()));
            }
            if let Some(error) = another_bootstrap(&answers) {
                return Err(error);
            }
            let is_complete = all_pristine(&answers);
            // They may be at places that nobody has named.
            let others = match is_complete || !seekers.is_empty() {
                true => self.greet_unnamed().await,
                false => Ok(Vec::new()),
            };
            if let Ok(others) = &others
                && any_member(others)
            {
                let others = others.iter().map(|(place, _)| place);
                let places = self.names.iter().chain(others);
                return Ok(Beginning::Join(places.cloned().collect()));
            }
            if !seekers.is_empty() {
                teller.alarm(|| sought_after(seekers));
                sleep(ROUND).await;
                continue;
            }
            let nonces: Vec<u64> = answers
                .iter()
                .filter_map(|(_, answer)| match answer {
                    Ok(Standing::Pristine { nonce }) => Some(*nonce),
                    _ => None,
                })
                .collect();
            let claimed = match &others {
                _ if !is_complete => Err(missing(&answers)),
                Ok(others) if !all_pristine(others) => Err(missing(others)),
                Ok(_) => self.claim().await?.map_err(|reason| format!(": {reason}")),
                Err(reason) => Err(format!(": {reason}")),
            };
            match claimed {
                Ok(cluster) => return Ok(Beginning::Found(self.plan(cluster, nonces))),
                Err(reason) => teller.tell(|| format!("waiting to bootstrap a cluster{reason}")),
            }
            sleep(ROUND).await;
        }
    }

    /// Asks the peers that there are to be and were not named to this one who they are.
    async fn greet_unnamed(&self) -> Result<Vec<Answer>, String> {
        let Some(founding) = &self.founding else {
            return Ok(Vec::new());
        };
        let company = founding.company().await?;
        let unnamed = company.iter().filter(|place| !self.names.contains(place));
        let hello = HelloRequest { from: None };
        let replies = self.greet_places(unnamed, &hello, Duration::MAX).await;
        Ok(replies.into_iter().map(standing).collect())
    }

    /// The new cluster's id, or why there is none to be had yet.
    async fn claim(&self) -> Result<Result<ClusterId, String>, BootstrapError> {
        let drawn = ClusterId(rand::random());
        let Some(founding) = &self.founding else {
            return Ok(Ok(drawn));
        };
        match founding.claim(self.nonce, drawn).await {
            Claim::Granted(cluster) => Ok(Ok(cluster)),
            Claim::NotYet(reason) => Ok(Err(reason)),
            Claim::Refused(reason) => Err(BootstrapError::Founded(reason)),
        }
    }

    fn plan(&self, cluster: ClusterId, others: Vec<u64>) -> Plan {
        let nonces = std::iter::once(self.nonce).chain(others);
        let members = self.names.iter().zip(nonces);
        Plan {
            cluster,
            members: members
                .map(|(address, nonce)| PeerRecord {
                    nonce,
                    address: address.clone(),
                })
                .collect(),
        }
    }

    /// Completes a bootstrap that this peer began, if it did and it is not complete.
    ///
    /// # Errors
    /// [`BootstrapError`] if it cannot be completed.
    pub(crate) async fn complete(&self, raft: &RaftHandle) -> Result<(), BootstrapError> {
        let file = self.plan_file();
        let Some(mut plan) = file.load().map_err(|error| self.failed(error))? else {
            return Ok(());
        };
        let initialise = |error: String| BootstrapError::Initialise(error);
        let done = raft.is_initialized().await;
        if !done.map_err(|error| initialise(error.to_string()))? {
            self.adopt_all(&mut plan).await?;
            let numbers = (1..).map(NodeId);
            let members: BTreeMap<_, _> = numbers.zip(plan.members.iter().cloned()).collect();
            tracing::info!(cluster = %plan.cluster, peers = members.len(), "initialising a new cluster");
            raft.initialize(members)
                .await
                .map_err(|error| initialise(error.to_string()))?;
        }
        file.remove().map_err(|error| self.failed(error))
    }

    /// Returns once every planned peer has its identity on disk.
    async fn adopt_all(&self, plan: &mut Plan) -> Result<(), BootstrapError> {
        let mut teller = Teller::new(&self.waits_for);
        loop {
            let mut missing = Vec::new();
            for place in 1..plan.members.len() {
                if let Some(reason) = self.adopt_one(plan, place).await? {
                    missing.push(format!("{} ({reason})", plan.members[place].address));
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            teller.tell(|| {
                format!(
                    "waiting to bootstrap cluster {}, still for: {}",
                    plan.cluster,
                    missing.join(", ")
                )
            });
            sleep(ROUND).await;
        }
    }

    /// Sees to one peer's identity. What it still lacks is returned, and nothing once it has it.
    async fn adopt_one(
        &self,
        plan: &mut Plan,
        place: usize,
    ) -> Result<Option<String>, BootstrapError> {
        let name = plan.members[place].address.clone();
        let node = NodeId(u64::try_from(place).expect("there are few peers") + 1);
        let standing = match greet(&self.dialer, &name, &HelloRequest { from: None }).await {
            Ok(reply) => reply.standing,
            Err(reason) => return Ok(Some(reason.to_string())),
        };
        let nonce = match standing {
            Standing::Pristine { nonce } => nonce,
            Standing::Member {
                cluster,
                node: theirs,
                nonce,
                initialised,
            } => {
                if cluster != plan.cluster || theirs != node {
                    return Err(BootstrapError::AnotherBootstrap { name, cluster });
                }
                if initialised {
                    return Err(BootstrapError::LogLost { name, cluster });
                }
                nonce
            }
        };
        if plan.members[place].nonce != nonce {
            // It was restarted, or emptied, since it was planned. Nobody has voted yet.
            plan.members[place].nonce = nonce;
            self.plan_file()
                .save(plan)
                .map_err(|error| self.failed(error))?;
        }
        let request = AdoptRequest {
            plan: plan.clone(),
            node,
        };
        Ok(match ask_to_adopt(&self.dialer, &name, &request).await {
            Ok(AdoptReply::Adopted) => None,
            Ok(AdoptReply::Refused(reason)) => Some(format!("it refuses: {reason}")),
            Err(reason) => Some(reason),
        })
    }
}

/// Why nothing is founded while members of a running cluster look for peers at the founders' addresses.
fn sought_after(mut seekers: Vec<String>) -> String {
    seekers.sort_unstable();
    seekers.dedup();
    format!(
        "no cluster is founded: there is one, whose members at {0} look for peers at the addresses of these, which are \
         empty. To join it, start this peer with --join {0}; to found another one, start those members without these \
         addresses in --peers and --join first",
        seekers.join(",")
    )
}

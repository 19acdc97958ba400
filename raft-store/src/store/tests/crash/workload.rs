//! A random workload, and what a store that went through it may hold.

use std::collections::{BTreeMap, VecDeque};
use std::mem::Discriminant;
use std::sync::Mutex;

use futures_util::{FutureExt, StreamExt};
use openraft::alias::{OneshotReceiverOf, SnapshotMetaOf};
use openraft::type_config::TypeConfigExt;
use raftserve_model::spec::ServiceSpec;
use raftserve_model::{ClusterId, Incarnation, ReplicaId, ServiceVersion, SessionKey};

use super::peer::{Inline, drive};
use super::*;
use crate::codec;
use crate::command::{Change, Precondition, Request};
use crate::entry::Payload;
use crate::raft::log_id_from;
use crate::snapshot::{SnapshotHead, SnapshotId};
use crate::state::{Control, Digest, KvCondition, KvKey, Promotion, Record};

const ACTIONS: usize = 40;

/// What the log holds after a prefix of what was issued, were nothing purged that need not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    entries: BTreeMap<u64, (LogId, Vec<u8>)>,
    pub(super) last: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// Entries before this index may be gone.
    floor: u64,
}

impl Model {
    pub(super) fn of(wal: &Wal) -> Self {
        let entries = wal.read_blocking(0..u64::MAX).unwrap();
        let entries = entries
            .iter()
            .map(|it| (it.id.index.0, (it.id, it.payload().to_vec())));
        Self {
            entries: entries.collect(),
            last: wal.last(),
            vote: wal.vote(),
            committed: wal.committed(),
            floor: 0,
        }
    }

    /// Whether a log that holds `found`, from index `first`, may be this one.
    pub(super) fn allows(&self, found: &Self, first: u64) -> bool {
        let held = found.entries.iter();
        (self.last, self.vote, self.committed) == (found.last, found.vote, found.committed)
            && held
                .clone()
                .all(|(index, entry)| self.entries.get(index) == Some(entry))
            && self.entries.range(self.floor..).count() == found.entries.range(self.floor..).count()
            && (found.entries.is_empty() || first <= self.floor)
    }

    /// Everything up to `id` is replaced by a snapshot.
    fn replace(&mut self, id: LogId) {
        self.entries.clear();
        self.last = Some(id);
        self.floor = next(Some(id));
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// How many models there are.
    pub(super) issued: usize,
    /// How many of them are durable for certain.
    pub(super) durable: usize,
    /// The newest snapshot that may be there.
    pub(super) snapshot_issued: Option<LogIndex>,
    /// The newest snapshot that must be there, or one after it.
    pub(super) snapshot_durable: Option<LogIndex>,
    pub(super) nonce: Option<u64>,
    pub(super) joined: bool,
    /// On how many entries the cluster has agreed.
    agreed: usize,
}

/// What a run left behind at one moment.
pub(super) struct Moment {
    pub(super) image: Image,
    pub(super) progress: Progress,
}

type Acknowledgement = OneshotReceiverOf<Inline, Result<(), io::Error>>;

pub(super) struct Workload {
    disk: SimulatedDisk,
    pub(super) peer: Option<Peer>,
    random: Random,
    term: u64,
    /// After each thing issued.
    pub(super) models: Vec<Model>,
    progress: Arc<Mutex<Progress>>,
    /// Appends that are not acknowledged yet, with the models that will be durable then.
    waiting: VecDeque<(usize, Acknowledgement)>,
    failed: bool,
    /// What the cluster has agreed on, whether or not this peer holds it.
    agreed: Vec<EntryOf<TypeConfig>>,
    state: State,
    /// The state's digest after so many agreed entries.
    pub(super) digests: Vec<Digest>,
    spec: Arc<ServiceSpec>,
}

impl Workload {
    pub(super) fn new(disk: &SimulatedDisk, seed: u64) -> Self {
        let yaml = "service:\n  readiness_probe: /\n  replicas: 1\nresources:\n  ports: 8080\nrun: serve\n\
                    _metadata:\n  raftserve:\n    session_affinity: {header: x-session}\n";
        let spec = ServiceSpec::parse(yaml, Default::default()).unwrap();
        let state = State::default();
        Self {
            disk: disk.clone(),
            peer: None,
            random: Random(seed),
            term: 1,
            models: vec![Model::default()],
            progress: Arc::new(Mutex::new(Progress {
                issued: 1,
                ..Progress::default()
            })),
            waiting: VecDeque::new(),
            failed: false,
            agreed: Vec::new(),
            digests: vec![state.digest()],
            state,
            spec: Arc::new(spec.spec),
        }
    }

    /// The next life of the peer that had come as far as `progress`, crashed, and was found to be as `model` has it.
    pub(super) fn next_life(
        &self,
        progress: &Progress,
        model: &Model,
        revived: Revived,
        random: Random,
    ) -> Self {
        let Revived { disk, peer, found } = revived;
        let mut next = Self {
            random,
            // Of a leader who knows nothing of what was lost.
            term: self.term + 1,
            peer: Some(peer),
            models: vec![model.clone()],
            spec: Arc::clone(&self.spec),
            ..Self::new(&disk, 0)
        };
        next.tell(|next| {
            next.durable = 1;
            next.snapshot_issued = found.restored.map(|id| id.index);
            next.snapshot_durable = next.snapshot_issued;
            next.nonce = Some(found.identity.nonce());
            next.joined = matches!(found.identity, Identity::Member { .. });
        });
        for entry in &self.agreed[..progress.agreed] {
            next.agree(entry.clone());
        }
        next.is_found_restored(&found);
        next
    }

    /// Runs `life` of the peer, and notes the disk in the middle of each operation.
    pub(super) fn record(
        &mut self,
        life: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Vec<Moment> {
        let moments = Arc::new(Mutex::new(Vec::new()));
        let (noted, progress) = (Arc::clone(&moments), Arc::clone(&self.progress));
        self.disk.on_operation(move |image| {
            let progress = *progress.lock().unwrap();
            noted.lock().unwrap().push(Moment { image, progress });
        });
        life(self).unwrap();
        std::mem::take(&mut *moments.lock().unwrap())
    }

    /// What kinds of records the agreed state has.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Discriminant<Record>> + '_ {
        self.state.records().map(|it| std::mem::discriminant(&it))
    }

    pub(super) fn progress(&self) -> Progress {
        *self.progress.lock().unwrap()
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap());
    }

    /// Acts until something fails, as a peer does, or all is done.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let outcome = self.open().and_then(|()| self.act_on(ACTIONS));
        // What was written before the failure may still be acknowledged; nothing after it.
        let heard = self.hear();
        outcome.and(heard)
    }

    /// Goes on after a crash: the present leader voids what it does not know, and more follows.
    pub(super) fn go_on(&mut self, actions: usize) -> Result<(), String> {
        self.vote()?;
        let held = self.model().entries.iter();
        let conflict = held
            .map(|(index, (id, _))| (*index, *id))
            .find(|(index, id)| {
                let agreed = self.agreed.get(*index as usize);
                agreed.is_some_and(|agreed| log_id_from(&agreed.log_id) != *id)
            });
        if let Some((index, _)) = conflict {
            self.truncate_after(index)?;
        }
        self.act_on(actions)
    }

    fn act_on(&mut self, actions: usize) -> Result<(), String> {
        for _ in 0..actions {
            self.act()?;
        }
        self.peer().flush();
        self.hear()
    }

    fn open(&mut self) -> Result<(), String> {
        let mut peer = Peer::open(&self.disk).map_err(|error| error.to_string())?;
        let nonce = peer.dir.identity().nonce();
        self.tell(|progress| progress.nonce = Some(nonce));
        peer.start()?;
        self.peer = Some(peer);
        Ok(())
    }

    fn peer(&mut self) -> &mut Peer {
        self.peer.as_mut().unwrap()
    }

    fn model(&self) -> &Model {
        self.models.last().unwrap()
    }

    fn note(&mut self, change: impl FnOnce(&mut Model)) {
        let mut model = self.model().clone();
        change(&mut model);
        self.models.push(model);
        let issued = self.models.len();
        self.tell(|progress| progress.issued = issued);
    }

    fn is_durable(&self, models: usize) {
        self.tell(|progress| progress.durable = progress.durable.max(models));
    }

    /// Takes note of what was acknowledged meanwhile.
    fn hear(&mut self) -> Result<(), String> {
        while let Some((models, told)) = self.waiting.front_mut() {
            let models = *models;
            match told.now_or_never() {
                None => break,
                Some(Ok(Ok(()))) => {
                    assert!(!self.failed, "acknowledged after a failure");
                    self.is_durable(models);
                }
                Some(_) => self.failed = true,
            }
            self.waiting.pop_front();
        }
        if self.failed {
            return Err("the log failed".to_owned());
        }
        Ok(())
    }

    /// Nothing is acknowledged any more once the log has failed.
    pub(super) fn check_poisoned(&mut self, what: &str) {
        if let Some(peer) = &mut self.peer
            && peer.opened.wal.watch_failure().borrow().is_some()
        {
            assert!(peer.append_one(1 << 50).is_err(), "{what}: not poisoned");
        }
    }

    fn act(&mut self) -> Result<(), String> {
        match self.random.below(20) {
            0..=7 => self.append()?,
            8..=10 => self.commit()?,
            11 => self.vote()?,
            12 => self.truncate()?,
            13 | 14 => self.build()?,
            15 => self.install()?,
            16 => self.join()?,
            17 => self.restart()?,
            _ => self.peer().flush(),
        }
        self.hear()
    }

    fn command(&mut self) -> Command {
        let action = match self.random.below(16) {
            0..=3 => Action::OpenClient,
            4 => Action::Tick,
            5 => Action::Client {
                client: LogIndex(1 + self.random.below(8)),
                sequence: 1 + self.random.below(3),
                acknowledged: 0,
                request: self.put_service(),
            },
            6 | 7 => {
                let request = Request::PutKey {
                    key: self.key(),
                    value: vec![7; self.random.below(40) as usize].into(),
                    condition: KvCondition::Any,
                };
                Action::Request(request)
            }
            8 => Action::Request(Request::DeleteKey {
                key: self.key(),
                condition: KvCondition::Any,
            }),
            9 | 10 => Action::AdmitPeer {
                nonce: 1 + self.random.below(4),
                address: format!("127.0.0.1:{}", 7_001 + self.random.below(4)),
                promotion: Promotion::Automatic,
                replaces: None,
            },
            11 => self.dismissal(),
            _ => self.towards_sessions(),
        };
        Command {
            now: LogTime::default(),
            wall: raftserve_model::WallTime::default(),
            action,
        }
    }

    fn put_service(&mut self) -> Request {
        let name = ["a", "b", "c"][self.random.below(3) as usize];
        Request::PutService {
            name: name.parse().unwrap(),
            spec: Arc::clone(&self.spec),
            precondition: Precondition::Any,
        }
    }

    fn key(&mut self) -> KvKey {
        let name = ["k", "l", "m"][self.random.below(3) as usize];
        name.parse().unwrap()
    }

    /// Of a peer that was admitted, if there is one.
    fn dismissal(&self) -> Action {
        let known = self.state.peers().last();
        Action::DismissPeer {
            node: known.map_or(NodeId(9), |it| it.id),
            nonce: known.map_or(9, |it| it.nonce),
            address: "127.0.0.1:7009".to_owned(),
        }
    }

    /// The next step to sessions that are bound to a ready replica, by what is agreed; or some sessions.
    fn towards_sessions(&mut self) -> Action {
        let Some(service) = self.state.services().next().map(|it| it.id) else {
            return Action::Request(self.put_service());
        };
        let control = self.state.control();
        if control == Control::default() {
            return Action::StartControl {
                node: NodeId(1),
                incarnation: Incarnation(7),
            };
        }
        let replica = ReplicaId { service, number: 1 };
        if self.state.replicas_of(service).next().is_none() {
            let create = Change::Create {
                service,
                version: ServiceVersion(1),
                port: 10_000,
            };
            let address = "127.0.0.1:10000".to_owned();
            let started = Change::Started { replica, address };
            return Action::Control {
                generation: control.generation,
                changes: vec![create, started, Change::Ready { replica }],
            };
        }
        let count = 1 + self.random.below(4);
        let keys = (0..count).map(|_| SessionKey::of(service, &[self.random.below(8) as u8]));
        Action::BindSessions {
            service,
            keys: keys.collect(),
        }
    }

    fn new_entry(&mut self, index: u64) -> EntryOf<TypeConfig> {
        let id = LogId {
            term: self.term,
            node: NodeId(1 + self.term % 3),
            index: LogIndex(index),
        };
        let payload = match self.random.below(6) {
            0 => EntryPayload::Blank,
            _ => EntryPayload::Normal(self.command()),
        };
        EntryOf::<TypeConfig>::new(log_id_to(id), payload)
    }

    /// Appends what the cluster has agreed on, if the peer lacks that, or new entries.
    fn append(&mut self) -> Result<(), String> {
        let mut entries = Vec::new();
        for _ in 0..=self.random.below(3) {
            let index = next(self.model().last);
            let entry = match self.agreed.get(index as usize) {
                Some(entry) => entry.clone(),
                None => self.new_entry(index),
            };
            let id = log_id_from(&entry.log_id);
            let bytes = codec::encode(&payload_of(&entry)).unwrap();
            self.note(|model| {
                model.entries.insert(index, (id, bytes));
                model.last = Some(id);
            });
            entries.push(entry);
        }
        let (sender, told) = Inline::oneshot();
        self.waiting.push_back((self.models.len(), told));
        let peer = self.peer();
        let appending = peer.log.append(entries, IOFlushed::signal(sender));
        drive(&mut peer.writer, &peer.opened.wal, appending).map_err(|it| it.to_string())
    }

    /// Lets the cluster agree on some of the entries held, which need not be durable here, and applies them.
    fn commit(&mut self) -> Result<(), String> {
        let applied = next(self.peer().reader.last());
        let held = next(self.model().last);
        if held <= applied {
            return Ok(());
        }
        let upto = applied + 1 + self.random.below(held - applied);
        let peer = self.peer();
        let reading = peer.log.get_log_reader();
        let mut reader = drive(&mut peer.writer, &peer.opened.wal, reading);
        let reading = reader.try_get_log_entries(applied..upto);
        let entries = drive(&mut peer.writer, &peer.opened.wal, reading);
        let entries = entries.map_err(|it| it.to_string())?;
        for entry in &entries {
            self.agree(entry.clone());
        }
        let id = entries.last().map(|entry| entry.log_id);
        self.note(|model| model.committed = id.as_ref().map(log_id_from));
        let peer = self.peer();
        let saving = peer.log.save_committed(id);
        drive(&mut peer.writer, &peer.opened.wal, saving).map_err(|it| it.to_string())?;
        let entries = stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
        let applying = peer.machine.apply(entries.boxed());
        drive(&mut peer.writer, &peer.opened.wal, applying).map_err(|it| it.to_string())?;
        let digest = peer.reader.state().digest();
        assert_eq!(digest, self.digests[upto as usize]);
        Ok(())
    }

    fn agree(&mut self, entry: EntryOf<TypeConfig>) {
        let id = log_id_from(&entry.log_id);
        if let Some(agreed) = self.agreed.get(id.index.0 as usize) {
            assert_eq!(*agreed, entry, "an agreed entry was replaced");
            return;
        }
        if let EntryPayload::Normal(command) = &entry.payload {
            self.state.apply(id.index, command);
        }
        self.digests.push(self.state.digest());
        self.agreed.push(entry);
        let agreed = self.agreed.len();
        self.tell(|progress| progress.agreed = agreed);
    }

    fn vote(&mut self) -> Result<(), String> {
        self.term += 1;
        let vote = Vote {
            term: self.term,
            node: NodeId(1 + self.term % 3),
            committed: self.random.coin(),
        };
        self.note(|model| model.vote = Some(vote));
        let models = self.models.len();
        let peer = self.peer();
        let vote = vote_to(vote);
        let saving = peer.log.save_vote(&vote);
        let saved = drive(&mut peer.writer, &peer.opened.wal, saving);
        self.hear()?;
        saved.map_err(|error| error.to_string())?;
        self.is_durable(models);
        Ok(())
    }

    /// A new leader voids entries on which nobody agreed.
    fn truncate(&mut self) -> Result<(), String> {
        let agreed = self.agreed.len() as u64;
        let held = next(self.model().last);
        if held <= agreed {
            return Ok(());
        }
        let keep = agreed + self.random.below(held - agreed);
        self.term += 1;
        self.truncate_after(keep)
    }

    /// Voids all entries but the first `keep`.
    fn truncate_after(&mut self, keep: u64) -> Result<(), String> {
        let model = self.model();
        let before = keep.checked_sub(1);
        let id = match before.and_then(|index| model.entries.get(&index)) {
            Some((id, _)) => Some(*id),
            None => self.peer.as_ref().and_then(|peer| peer.opened.wal.purged()),
        };
        if next(id) != keep {
            return Ok(());
        }
        self.note(|model| {
            model.entries.split_off(&keep);
            model.last = id;
        });
        let models = self.models.len();
        let peer = self.peer();
        let truncating = peer.log.truncate_after(id.map(log_id_to));
        let truncated = drive(&mut peer.writer, &peer.opened.wal, truncating);
        self.hear()?;
        truncated.map_err(|error| error.to_string())?;
        self.is_durable(models);
        Ok(())
    }

    /// Builds a snapshot of what is applied, and purges the log up to some entry of it.
    fn build(&mut self) -> Result<(), String> {
        let Some(applied) = self.peer().reader.last() else {
            return Ok(());
        };
        self.tell(|progress| {
            progress.snapshot_issued = progress.snapshot_issued.max(Some(applied.index));
        });
        let peer = self.peer();
        let wal = &peer.opened.wal;
        let mut builder = drive(&mut peer.writer, wal, peer.machine.get_snapshot_builder());
        let built = drive(&mut peer.writer, wal, builder.build_snapshot());
        built.map_err(|error| error.to_string())?;
        self.tell(|progress| {
            progress.snapshot_durable = progress.snapshot_durable.max(Some(applied.index));
        });
        let held = self.peer().opened.wal.range();
        let purgeable = held.start..held.end.min(applied.index.0 + 1);
        if purgeable.is_empty() {
            return Ok(());
        }
        let upto = purgeable.start + self.random.below(purgeable.end - purgeable.start);
        let (id, _) = self.model().entries[&upto];
        self.purge(id)
    }

    fn purge(&mut self, upto: LogId) -> Result<(), String> {
        let floor = self.peer().opened.snapshots.log_floor();
        let replaced = self.model().last.is_none_or(|last| last.index < upto.index);
        self.note(|model| match floor {
            _ if replaced => model.replace(upto),
            Some(floor) => model.floor = model.floor.max(next(Some(floor.min(upto)))),
            None => {}
        });
        let peer = self.peer();
        let purging = peer.log.purge(log_id_to(upto));
        drive(&mut peer.writer, &peer.opened.wal, purging).map_err(|error| error.to_string())
    }

    /// Receives a snapshot from a leader that is ahead, and lets it replace the log.
    fn install(&mut self) -> Result<(), String> {
        self.vote()?;
        let agreed = self.agreed.len() as u64;
        let upto = agreed + 1 + self.random.below(6);
        for index in agreed..upto {
            let entry = self.new_entry(index);
            self.agree(entry);
        }
        let last = log_id_from(&self.agreed[upto as usize - 1].log_id);
        if next(self.model().last) >= upto {
            // Nothing of it is the leader's.
            let applied = next(self.peer().reader.last());
            self.truncate_after(applied)?;
            if next(self.model().last) >= upto {
                return Ok(());
            }
        }
        let (bytes, id) = self.snapshot_of_leader(last);
        let snapshots = Arc::clone(&self.peer().opened.snapshots);
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let (file, _) = snapshots.resume(&id).map_err(|it| it.to_string())?;
        file.write(0, head).map_err(|error| error.to_string())?;
        // The sender is lost, and comes again.
        let (file, has) = snapshots.resume(&id).map_err(|it| it.to_string())?;
        assert_eq!(has, head.len() as u64, "of what was received");
        file.write(has, tail).map_err(|error| error.to_string())?;
        let meta = SnapshotMetaOf::<Inline> {
            last_log_id: Some(log_id_to(last)),
            ..Default::default()
        };
        self.tell(|progress| progress.snapshot_issued = Some(last.index));
        let peer = self.peer();
        let installing = peer.machine.install_snapshot(&meta, file);
        let installed = drive(&mut peer.writer, &peer.opened.wal, installing);
        installed.map_err(|error| error.to_string())?;
        self.tell(|progress| progress.snapshot_durable = Some(last.index));
        self.purge(last)
    }

    /// A snapshot of all that is agreed, as another peer has it.
    fn snapshot_of_leader(&self, last: LogId) -> (Vec<u8>, SnapshotId) {
        let disk = Arc::new(SimulatedDisk::default());
        disk.mount(Path::new("/leader"));
        let snapshots = Snapshots::open(disk, Path::new("/leader")).unwrap();
        let head = SnapshotHead {
            last: Some(last),
            ..SnapshotHead::default()
        };
        let snapshot = snapshots.build(&head, self.state.records()).unwrap();
        let id = SnapshotId {
            last: Some(last),
            size: snapshot.file.size().unwrap(),
            checksum: snapshot.file.checksum().unwrap(),
        };
        (snapshot.file.read(0, usize::MAX).unwrap(), id)
    }

    fn join(&mut self) -> Result<(), String> {
        let joined = self.peer().dir.join(ClusterId([7; 16]), NodeId(1));
        joined.map_err(|error| error.to_string())?;
        self.tell(|progress| progress.joined = true);
        Ok(())
    }

    /// Stops in good order, or is killed, and starts again on the same disk.
    fn restart(&mut self) -> Result<(), String> {
        let mut peer = self.peer.take().unwrap();
        if self.random.coin() {
            peer.opened.wal.close();
            while peer.writer.step() {}
        }
        self.hear()?;
        drop(peer);
        self.waiting.clear();
        let mut peer = Peer::open(&self.disk).map_err(|error| error.to_string())?;
        let found = Found::of(&peer);
        let durable = self.progress().durable.max(1);
        let mut possible = self.models[durable - 1..].iter();
        let model = possible.find(|it| it.allows(&found.model, found.first));
        let model = model.unwrap_or_else(|| panic!("found {found:#?}")).clone();
        // What was found is durable before anything is done with it.
        self.note(|latest| *latest = model);
        self.is_durable(self.models.len());
        peer.start()?;
        self.is_found_restored(&found);
        self.peer = Some(peer);
        Ok(())
    }

    /// A start has given up a log that ends before the snapshot.
    fn is_found_restored(&mut self, found: &Found) {
        if let Some(restored) = found.restored
            && found
                .model
                .last
                .is_none_or(|last| last.index < restored.index)
        {
            self.note(|model| model.replace(restored));
        }
    }
}

/// The index after an entry's.
fn next(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index.0 + 1)
}

fn payload_of(entry: &EntryOf<TypeConfig>) -> Payload {
    match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(command) => Payload::Command(command.clone()),
        EntryPayload::Membership(_) => unreachable!("the workload makes none"),
    }
}

//! Linearizability of registers: is there one order of a history's calls that explains every answer, and in
//! which each call takes effect between its beginning and its end?
//!
//! The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", J. Parallel and Distributed
//! Computing, 1993) with Lowe's memory of what was tried before ("Testing for linearizability", Concurrency
//! and Computation, 2017). Linearizability is local, so each register is checked by itself (Herlihy and Wing,
//! TOPLAS 1990, section 3.3), which keeps the search small.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use crate::history::{Action, Answer, Operation};

/// Steps of the search for one register before it is given up as undecided: some seconds, and a hundred times
/// what a history of some thousand calls by a handful of clients takes.
const STEPS_MAX: usize = 5_000_000;

/// What a register holds: the value that was written last, if any. Values are unique.
type Value = Option<u64>;

/// What a call did to its register, or would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Read(Value),
    Write(u64),
    /// It held the first, and holds the second from then on.
    Swap(Value, u64),
    /// It did not hold this.
    Differs(Value),
}

impl Effect {
    /// What the register holds afterwards; none if this cannot happen to one that holds `value`.
    fn on(self, value: Value) -> Option<Value> {
        match self {
            Self::Read(read) => (read == value).then_some(value),
            Self::Write(new) => Some(Some(new)),
            Self::Swap(expected, new) => (expected == value).then_some(Some(new)),
            Self::Differs(expected) => (expected != value).then_some(value),
        }
    }
}

/// A call whose answer must be explained; or one without a known end, which may take effect at any time after
/// its beginning, or never.
#[derive(Clone, Copy, Debug)]
struct Call {
    effect: Effect,
    started: Instant,
    ended: Option<Instant>,
}

impl Call {
    /// What must be explained of an operation; nothing if it tells nothing.
    fn of(operation: &Operation) -> Option<Self> {
        let known = Some(operation.ended);
        let (effect, ended) = match (&operation.action, &operation.answer) {
            (Action::Read, Answer::Found { value, .. }) => (Effect::Read(*value), known),
            (Action::Write { value }, Answer::Written { .. }) => (Effect::Write(*value), known),
            (Action::Write { value }, Answer::Unknown(_)) => (Effect::Write(*value), None),
            (Action::Swap { from, value }, Answer::Written { .. }) => {
                (Effect::Swap(*from, *value), known)
            }
            (Action::Swap { from, value }, Answer::Unknown(_)) => {
                (Effect::Swap(*from, *value), None)
            }
            (Action::Swap { from, .. }, Answer::Conflict) => (Effect::Differs(*from), known),
            _ => return None,
        };
        Some(Self {
            effect,
            started: operation.started,
            ended,
        })
    }
}

/// Every register by itself has one order of its calls that explains all answers. Registers are empty at
/// first, and no value is written twice.
#[must_use]
pub fn registers_are_linearizable(operations: &[Operation]) -> Vec<String> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let wrong = |(key, operations): (&str, Vec<&Operation>)| {
        let known: Vec<(&Operation, Call)> = operations
            .into_iter()
            .filter_map(|operation| Some((operation, Call::of(operation)?)))
            .collect();
        let calls: Vec<Call> = known.iter().map(|(_, call)| *call).collect();
        match search(&calls) {
            Verdict::Explained => None,
            Verdict::Unexplained { call } => Some(format!(
                "register {key}: no order of its {} calls explains {}",
                calls.len(),
                known[call].0
            )),
            Verdict::Undecided => Some(format!(
                "register {key}: whether an order of its {} calls explains them was not found out in {STEPS_MAX} steps",
                calls.len()
            )),
        }
    };
    by_key.into_iter().filter_map(wrong).collect()
}

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Explained,
    /// The call that none of the longest orders found could take in before it ended.
    Unexplained {
        call: usize,
    },
    Undecided,
}

/// A call's beginning or end, linked to its neighbours in time.
#[derive(Clone, Copy, Debug)]
struct Event {
    call: usize,
    is_end: bool,
    before: usize,
    after: usize,
}

/// The events of all calls that the order does not hold yet, as a list in an array. Event 0 is before all.
struct Timeline {
    events: Vec<Event>,
    begin: Vec<usize>,
    end: Vec<Option<usize>>,
}

/// No event.
const NONE: usize = usize::MAX;

impl Timeline {
    fn new(calls: &[Call]) -> Self {
        let mut times: Vec<(Instant, bool, usize)> = Vec::with_capacity(2 * calls.len());
        for (call, it) in calls.iter().enumerate() {
            times.push((it.started, false, call));
            times.extend(it.ended.map(|ended| (ended, true, call)));
        }
        // Of events at the same instant beginnings come first: such calls count as concurrent.
        times.sort_unstable();
        let mut line = Self {
            events: vec![Event {
                call: NONE,
                is_end: false,
                before: NONE,
                after: NONE,
            }],
            begin: vec![NONE; calls.len()],
            end: vec![None; calls.len()],
        };
        for (_, is_end, call) in times {
            let at = line.events.len();
            line.events[at - 1].after = at;
            line.events.push(Event {
                call,
                is_end,
                before: at - 1,
                after: NONE,
            });
            match is_end {
                true => line.end[call] = Some(at),
                false => line.begin[call] = at,
            }
        }
        line
    }

    fn first(&self) -> usize {
        self.events[0].after
    }

    fn unlink(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        self.events[before].after = after;
        if after != NONE {
            self.events[after].before = before;
        }
    }

    fn relink(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        self.events[before].after = at;
        if after != NONE {
            self.events[after].before = at;
        }
    }

    /// Takes a call out, which `put_back` undoes: last out, first back.
    fn take_out(&mut self, call: usize) {
        self.unlink(self.begin[call]);
        if let Some(end) = self.end[call] {
            self.unlink(end);
        }
    }

    fn put_back(&mut self, call: usize) {
        if let Some(end) = self.end[call] {
            self.relink(end);
        }
        self.relink(self.begin[call]);
    }
}

/// Which calls an order holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held(Vec<u64>);

impl Held {
    fn none(calls: usize) -> Self {
        Self(vec![0; calls.div_ceil(64)])
    }

    fn flip(&mut self, call: usize) {
        self.0[call / 64] ^= 1 << (call % 64);
    }
}

/// Looks for an order.
fn search(calls: &[Call]) -> Verdict {
    let mut line = Timeline::new(calls);
    let mut owing = calls.iter().filter(|call| call.ended.is_some()).count();
    let mut held = Held::none(calls.len());
    let mut tried: HashSet<(Held, Value)> = HashSet::new();
    let mut order: Vec<(usize, Value)> = Vec::new();
    let mut value: Value = None;
    let (mut longest, mut stuck) = (0, NONE);
    let mut at = line.first();
    for _ in 0..STEPS_MAX {
        if owing == 0 {
            return Verdict::Explained;
        }
        // While a call with an end is owing, its end is in the list.
        let Event {
            call,
            is_end,
            after,
            ..
        } = line.events[at];
        if is_end {
            if order.len() >= longest {
                (longest, stuck) = (order.len(), call);
            }
            let Some((last, before)) = order.pop() else {
                return Verdict::Unexplained { call: stuck };
            };
            value = before;
            held.flip(last);
            owing += usize::from(calls[last].ended.is_some());
            line.put_back(last);
            at = line.events[line.begin[last]].after;
            continue;
        }
        held.flip(call);
        let next = calls[call].effect.on(value);
        match next {
            Some(next) if tried.insert((held.clone(), next)) => {
                order.push((call, value));
                value = next;
                owing -= usize::from(calls[call].ended.is_some());
                line.take_out(call);
                at = line.first();
            }
            _ => {
                held.flip(call);
                at = after;
            }
        }
    }
    Verdict::Undecided
}

#[cfg(test)]
mod tests;

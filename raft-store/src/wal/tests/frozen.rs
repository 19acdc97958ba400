//! Two whole segments, with every kind of record, that are never changed: part of the data directory that
//! `tests/formats` opens.

use bincode::Encode;
use raftserve_model::{LogIndex, NodeId};

use crate::codec;
use crate::entry::{LogId, Vote};
use crate::fixture;
use crate::wal::format::{HEADER_LEN, Header, Kind, Record, chain, parse_record, write_record};

/// The entries, by the names of their payloads' fixtures; the last is the membership.
const ENTRIES: [&str; 26] = [
    "init-cluster",
    "open-client",
    "put-service",
    "start-control",
    "create",
    "bind-sessions",
    "terminate",
    "stop",
    "advance-fence",
    "tick",
    "raise-version",
    "compare-states",
    "delete-service",
    "admit-peer",
    "admit-peer-in-place",
    "admit-peer-by-hand",
    "promote-peer",
    "dismiss-peer",
    "retire-peer",
    "put-key",
    "put-absent-key",
    "put-modified-key",
    "delete-key",
    "update-service",
    "put-service-with-files",
    "membership",
];

/// The first entry of the second segment.
const SECOND: u64 = 17;

fn id(index: u64) -> LogId {
    LogId {
        term: 3,
        node: NodeId(2),
        index: LogIndex(index),
    }
}

/// A record: kind, index, body.
type Line = (Kind, u64, Vec<u8>);

fn mark<T: Encode>(kind: Kind, value: &T) -> Line {
    (kind, 0, codec::encode(value).unwrap())
}

fn payload(index: u64, name: &str) -> Line {
    let head = [3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat();
    let frame = fixture::read(&format!("entry/{name}.frame"));
    (Kind::Entry, index, [head, frame].concat())
}

fn entries(indexes: std::ops::Range<u64>) -> Vec<Line> {
    let name = |index: u64| ENTRIES[index as usize - 1];
    indexes.map(|index| payload(index, name(index))).collect()
}

fn close() -> Line {
    (Kind::Close, 0, Vec::new())
}

/// The groups of both segments, but for the seal.
fn groups() -> [Vec<Vec<Line>>; 2] {
    let vote = Vote {
        term: 3,
        node: NodeId(2),
        committed: true,
    };
    let vote = || mark(Kind::Vote, &vote);
    let committed = |index: Option<u64>| mark(Kind::Committed, &index.map(id));
    // The last group was cut short by a crash, and ended by the next start.
    let cut_short = [
        entries(16..SECOND),
        vec![vote(), committed(Some(13)), close()],
    ]
    .concat();
    let first = vec![
        vec![committed(None), close()],
        vec![vote()],
        [entries(1..14), vec![committed(Some(13))]].concat(),
        [entries(14..15), vec![payload(15, "blank")]].concat(),
        vec![mark(Kind::Truncate, &Some(id(14)))],
        entries(15..16),
        cut_short,
    ];
    let purged = mark(Kind::Purge, &id(10));
    let second = vec![
        [
            entries(SECOND..ENTRIES.len() as u64 + 1),
            vec![vote(), purged, committed(Some(16)), close()],
        ]
        .concat(),
    ];
    [first, second]
}

/// A segment, as it is written.
fn segment(header: &Header, groups: &[Vec<Line>], sealed: bool) -> (Vec<u8>, u32) {
    let (mut bytes, salt) = header.encode();
    let (mut chained, mut crc) = (0, 0);
    let mut add = |group: u64, lines: &[Line], chained: &mut u32| {
        for (at, (kind, index, body)) in lines.iter().enumerate() {
            let place = (group, at + 1 == lines.len());
            crc = write_record(&mut bytes, salt, *kind, place, *index, body);
            *chained = chain(*chained, crc);
        }
    };
    let mut group = header.first_group;
    for lines in groups {
        add(group, lines, &mut chained);
        group += 1;
    }
    if sealed {
        let body = chained.to_le_bytes().to_vec();
        add(group, &[(Kind::Seal, 0, body)], &mut chained);
    }
    (bytes, crc)
}

/// The kinds of a segment's records, each record being read.
fn kinds(bytes: &[u8]) -> Vec<Kind> {
    let (_, salt) = Header::decode(bytes).unwrap();
    let (mut at, mut kinds) = (HEADER_LEN, Vec::new());
    while at < bytes.len() {
        let (Record { kind, .. }, length) = parse_record(&bytes[at..], salt).unwrap();
        kinds.push(kind);
        at += length;
    }
    kinds
}

/// One more for each kind that there is: a kind that is added does not compile before it is here, and in a segment.
fn number(kind: Kind) -> usize {
    match kind {
        Kind::Entry => 0,
        Kind::Vote => 1,
        Kind::Committed => 2,
        Kind::Truncate => 3,
        Kind::Purge => 4,
        Kind::Seal => 5,
        Kind::Close => 6,
    }
}

#[test]
fn whole_segments_have_the_bytes_they_always_had() {
    let groups = groups();
    let header = Header {
        number: 1,
        first_index: 1,
        first_group: 1,
        previous_crc: 0,
    };
    let (first, seal) = segment(&header, &groups[0], true);
    let header = Header {
        number: 2,
        first_index: SECOND,
        first_group: 2 + groups[0].len() as u64,
        previous_crc: seal,
    };
    let (second, _) = segment(&header, &groups[1], false);
    let mut seen = [false; 7];
    for (name, bytes) in [("00000001", first), ("00000002", second)] {
        let name = format!("data-directory/wal/{name}.wal");
        fixture::same_as(&name, &bytes);
        for kind in kinds(&bytes) {
            seen[number(kind)] = true;
        }
    }
    assert_eq!(seen, [true; 7]);
}

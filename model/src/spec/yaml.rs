//! A YAML document as a tree in which every node knows its line and column.
//!
//! Reads hostile input in bounded time and memory: the source, the depth and what aliases add are
//! bounded, and nothing recurses further than the depth bound. Stricter than YAML where a lenient
//! reading hides a mistake: a key written twice, a second document and an application's own tags
//! are refused.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::error::{ERRORS_MAX, Mark, SpecError};
use super::scalar;

/// The longest source, in bytes. A service file is a few kilobytes; one that carries whole scripts
/// stays far below this, and it still fits into one log entry.
pub const SPEC_SOURCE_BYTES_MAX: usize = 1 << 20;

/// The deepest nesting. A service file uses seven levels, and JSON to be posted a few more.
pub const SPEC_DEPTH_MAX: usize = 64;

/// What all aliases together may add to the tree, in bytes: as much again as the source may have.
const ALIAS_BYTES_MAX: usize = SPEC_SOURCE_BYTES_MAX;

/// What all anchored values together may hold, in bytes: each is kept once more for its aliases, and
/// anchors can be nested.
const ANCHORED_BYTES_MAX: usize = 8 * SPEC_SOURCE_BYTES_MAX;

/// The most values, each of which takes a hundred times the two bytes that it may have in the source.
/// A service file has a hundred, and JSON to be posted perhaps some thousands.
const NODES_MAX: usize = 100_000;

/// What a node counts for beside its text.
const NODE_BYTES: usize = size_of::<Node>();

/// A node and its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) mark: Mark,
    /// Where the node starts and ends in the source, in characters.
    pub(super) span: (usize, usize),
    pub(super) value: Value,
    /// The text before variables were put in. Messages quote this one: it holds no secret.
    pub(super) written: Option<String>,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value. A mapping's keys differ from one another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) mark: Mark,
    pub(super) value: Node,
}

impl Node {
    /// What the node and all within it count for against a bound, in bytes.
    fn weight(&self) -> usize {
        NODE_BYTES
            + match &self.value {
                Value::Str(text) => text.len(),
                Value::Seq(items) => items.iter().map(Self::weight).sum(),
                Value::Map(entries) => entries
                    .iter()
                    .map(|entry| entry.key.len() + entry.value.weight())
                    .sum(),
                Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
            }
    }

    /// How many collections are nested in the node, itself included.
    fn height(&self) -> usize {
        match &self.value {
            Value::Seq(items) => 1 + items.iter().map(Self::height).max().unwrap_or(0),
            Value::Map(entries) => {
                1 + entries
                    .iter()
                    .map(|entry| entry.value.height())
                    .max()
                    .unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// What the node holds, for a message. Texts are quoted and cut short.
    pub(super) fn describe(&self) -> String {
        /// Enough of a text to recognise it.
        const SHOWN_CHARS: usize = 40;
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => scalar::python_float(*value),
            Value::Str(text) => {
                let text = self.written.as_ref().unwrap_or(text);
                let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                format!("{shown:?}")
            }
            Value::Seq(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Reads the one document in `source`. `None` stands for a source without any content.
///
/// # Errors
/// Everything that keeps the source from being one tree: bad syntax ends the reading at once, while
/// keys written twice are all reported.
pub(super) fn read(source: &str) -> Result<Option<Node>, Vec<SpecError>> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    if let Err(error) = check_characters(source) {
        return Err(vec![error]);
    }
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(source);
    while let Some(event) = parser.next_event() {
        let step = match event {
            Ok((event, span)) => builder.take(event, (span.start, span.end)),
            Err(error) => Err(syntax_error(source, *error.marker(), error.info())),
        };
        if let Err(error) = step {
            builder.errors.push(error);
            break;
        }
        if builder.errors.len() >= ERRORS_MAX {
            break;
        }
    }
    if builder.errors.is_empty() {
        Ok(builder.root)
    } else {
        Err(builder.errors)
    }
}

/// Control characters are not YAML; the parser would take U+0000 for the end of the source.
fn check_characters(source: &str) -> Result<(), SpecError> {
    if source.len() > SPEC_SOURCE_BYTES_MAX {
        return Err(fault(
            "",
            Mark::default(),
            format!(
                "the file has {} bytes; at most {SPEC_SOURCE_BYTES_MAX} are allowed",
                source.len()
            ),
            "move scripts and data out of it",
        ));
    }
    let illegal = |c: char| {
        (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}'))
            || matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    let Some(at) = source.find(illegal) else {
        return Ok(());
    };
    let before = &source[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let mark = Mark {
        line: number(before.matches('\n').count() + 1),
        column: number(before[line_start..].chars().count() + 1),
    };
    let character = source[at..].chars().next().map_or(0, u32::from);
    Err(fault(
        "",
        mark,
        format!("the control character U+{character:04X} is not allowed in YAML"),
        "remove it, or write it as an escape in double quotes",
    ))
}

fn syntax_error(source: &str, at: Marker, info: &str) -> SpecError {
    let line = source
        .lines()
        .nth(at.line().saturating_sub(1))
        .unwrap_or("");
    let indentation = &line[..line.len() - line.trim_start().len()];
    if indentation.contains('\t') {
        return fault(
            "",
            mark(at),
            "a tab in the indentation".to_owned(),
            "indent with spaces",
        );
    }
    // The end of the source may be counted as one line more than it has.
    let last = number(source.lines().count().max(1));
    let mut at = mark(at);
    if at.line > last {
        let length = source.lines().last().map_or(0, |line| line.chars().count());
        (at.line, at.column) = (last, number(length + 1));
    }
    fault("", at, format!("not valid YAML: {info}"), "")
}

fn mark(at: Marker) -> Mark {
    Mark {
        line: number(at.line().max(1)),
        column: number(at.col() + 1),
    }
}

/// A line or column. The source is bounded far below where this could saturate.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn fault(field: &str, mark: Mark, problem: String, remedy: &str) -> SpecError {
    SpecError::new(field, mark, problem, remedy)
}

/// A collection that is being read.
struct Frame {
    mark: Mark,
    start: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    Seq(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// Where each key stands, to find one that is written twice.
        keys: BTreeMap<String, Mark>,
        /// The key whose value comes next, and whether it is the merge key `<<`.
        key: Option<(String, Mark, bool)>,
        /// Mappings to be merged, first ones first.
        merges: Vec<Node>,
    },
}

/// Turns the parser's events into a tree.
#[derive(Default)]
struct Builder {
    frames: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    anchored_bytes: usize,
    alias_bytes: usize,
    nodes: usize,
    documents: usize,
    root: Option<Node>,
    errors: Vec<SpecError>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, (start, end): (Marker, Marker)) -> Result<(), SpecError> {
        let at = mark(start);
        let span = (start.index(), end.index());
        let is_value = matches!(
            event,
            Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::MappingStart(..)
        );
        self.nodes += usize::from(is_value);
        if self.nodes > NODES_MAX {
            let problem = format!("more than {NODES_MAX} values");
            return Err(fault("", at, problem, "move data out of the file"));
        }
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents == 1 {
                    return Ok(());
                }
                Err(self.fault(
                    at,
                    "a second YAML document starts here".to_owned(),
                    "a service is one document: remove the '---' and what follows it",
                ))
            }
            Event::Alias(id) => {
                let node = self.alias(id, at)?;
                self.insert(node, 0, false)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag.as_deref(), at)?;
                let merge = style == ScalarStyle::Plain && text == "<<";
                let node = Node {
                    mark: at,
                    span,
                    value,
                    written: None,
                };
                self.insert_scalar(node, &text, anchor, merge)
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", at)?;
                self.open(at, span.0, anchor, Content::Seq(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", at)?;
                let content = Content::Map {
                    entries: Vec::new(),
                    keys: BTreeMap::new(),
                    key: None,
                    merges: Vec::new(),
                };
                self.open(at, span.0, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span.1),
        }
    }

    fn fault(&self, mark: Mark, problem: String, remedy: &str) -> SpecError {
        fault(&self.path(), mark, problem, remedy)
    }

    /// The dotted path of the value that comes next.
    fn path(&self) -> String {
        let mut path = String::new();
        for frame in &self.frames {
            match &frame.content {
                Content::Seq(items) => path.push_str(&format!("[{}]", items.len())),
                Content::Map { key, .. } => {
                    if let Some((key, ..)) = key {
                        if !path.is_empty() {
                            path.push('.');
                        }
                        path.push_str(key);
                    }
                }
            }
        }
        path
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Mark,
    ) -> Result<Value, SpecError> {
        let Some(tag) = tag else {
            return Ok(match style {
                ScalarStyle::Plain => scalar::resolve(text),
                _ => Value::Str(text.to_owned()),
            });
        };
        let resolved = scalar::resolve(text);
        let fits = match (tag.is_yaml_core_schema(), tag.suffix.as_str()) {
            (true, "str") | (false, "") => return Ok(Value::Str(text.to_owned())),
            (true, "null") => matches!(resolved, Value::Null),
            (true, "bool") => matches!(resolved, Value::Bool(_)),
            (true, "int") => matches!(resolved, Value::Int(_)),
            (true, "float") => match resolved {
                // The nearest double is what the tag asks for.
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a float is what the tag asks for"
                )]
                Value::Int(value) => return Ok(Value::Float(value as f64)),
                _ => matches!(resolved, Value::Float(_)),
            },
            _ => return Err(self.refuse_tag(tag, at)),
        };
        if fits {
            Ok(resolved)
        } else {
            Err(self.fault(
                at,
                format!("the value does not fit its tag !!{}", tag.suffix),
                "remove the tag",
            ))
        }
    }

    fn check_tag(&self, tag: Option<&Tag>, allowed: &str, at: Mark) -> Result<(), SpecError> {
        let Some(tag) = tag else { return Ok(()) };
        let core = tag.is_yaml_core_schema() && tag.suffix == allowed;
        let non_specific = tag.handle == "!" && tag.suffix.is_empty();
        if core || non_specific {
            Ok(())
        } else {
            Err(self.refuse_tag(tag, at))
        }
    }

    fn refuse_tag(&self, tag: &Tag, at: Mark) -> SpecError {
        self.fault(
            at,
            format!("the tag {tag} has no meaning here"),
            "remove it",
        )
    }

    fn open(
        &mut self,
        mark: Mark,
        start: usize,
        anchor: usize,
        content: Content,
    ) -> Result<(), SpecError> {
        if self.frames.len() >= SPEC_DEPTH_MAX {
            return Err(self.too_deep(mark));
        }
        if let Some(Frame {
            content: Content::Map { key: None, .. },
            ..
        }) = self.frames.last()
        {
            return Err(self.fault(
                mark,
                "a list or a mapping cannot be a key".to_owned(),
                "quote it if it is meant as text",
            ));
        }
        self.frames.push(Frame {
            mark,
            start,
            anchor,
            content,
        });
        Ok(())
    }

    fn too_deep(&self, mark: Mark) -> SpecError {
        fault(
            "",
            mark,
            format!("nested deeper than {SPEC_DEPTH_MAX} levels"),
            "",
        )
    }

    fn close(&mut self, end: usize) -> Result<(), SpecError> {
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let value = match frame.content {
            Content::Seq(items) => Value::Seq(items),
            Content::Map {
                mut entries,
                mut keys,
                merges,
                ..
            } => {
                // A key of the mapping itself wins over a merged one, and an earlier merge over a
                // later one.
                for merged in merges {
                    let Value::Map(merged) = merged.value else {
                        continue;
                    };
                    for entry in merged {
                        if !keys.contains_key(&entry.key) {
                            keys.insert(entry.key.clone(), entry.mark);
                            entries.push(entry);
                        }
                    }
                }
                Value::Map(entries)
            }
        };
        let node = Node {
            mark: frame.mark,
            span: (frame.start, end),
            value,
            written: None,
        };
        self.insert(node, frame.anchor, false)
    }

    fn alias(&mut self, id: usize, at: Mark) -> Result<Node, SpecError> {
        let Some(node) = self.anchors.get(&id) else {
            return Err(self.fault(
                at,
                "the alias stands inside what it names".to_owned(),
                "write the value out",
            ));
        };
        self.alias_bytes += node.weight();
        if self.alias_bytes > ALIAS_BYTES_MAX {
            return Err(self.fault(
                at,
                format!("the aliases up to here repeat more than {ALIAS_BYTES_MAX} bytes"),
                "use fewer aliases",
            ));
        }
        if self.frames.len() + node.height() > SPEC_DEPTH_MAX {
            return Err(self.too_deep(at));
        }
        let mut node = node.clone();
        node.mark = at;
        Ok(node)
    }

    /// Inserts a scalar, which may be a key: `text` is how it is written.
    fn insert_scalar(
        &mut self,
        node: Node,
        text: &str,
        anchor: usize,
        merge: bool,
    ) -> Result<(), SpecError> {
        let awaits_key = matches!(
            self.frames.last(),
            Some(Frame {
                content: Content::Map { key: None, .. },
                ..
            })
        );
        if !awaits_key {
            return self.insert(node, anchor, merge);
        }
        let key = Node {
            value: Value::Str(text.to_owned()),
            ..node.clone()
        };
        self.keep(anchor, &node)?;
        self.insert(key, 0, merge)
    }

    /// Keeps an anchored node for its aliases; 0 is the anchor of a node that has none.
    fn keep(&mut self, anchor: usize, node: &Node) -> Result<(), SpecError> {
        if anchor == 0 {
            return Ok(());
        }
        self.anchored_bytes += node.weight();
        if self.anchored_bytes > ANCHORED_BYTES_MAX {
            return Err(self.fault(
                node.mark,
                format!("the anchors up to here hold more than {ANCHORED_BYTES_MAX} bytes"),
                "use fewer anchors",
            ));
        }
        self.anchors.insert(anchor, node.clone());
        Ok(())
    }

    /// Puts a whole node where it belongs: as the root, an item, a key or a value.
    fn insert(&mut self, node: Node, anchor: usize, merge_key: bool) -> Result<(), SpecError> {
        self.keep(anchor, &node)?;
        let path = self.path();
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.content {
            Content::Seq(items) => items.push(node),
            Content::Map {
                entries,
                keys,
                key,
                merges,
            } => match key.take() {
                None => *key = Some(key_of(node, merge_key, &path)?),
                Some((_, at, true)) => merges.extend(merge_sources(node, at, &path)?),
                Some((name, at, false)) => match keys.get(&name) {
                    Some(first) => self.errors.push(fault(
                        &path,
                        at,
                        format!("the key is already on line {}", first.line),
                        "keep one of the two",
                    )),
                    None => {
                        keys.insert(name.clone(), at);
                        entries.push(Entry {
                            key: name,
                            mark: at,
                            value: node,
                        });
                    }
                },
            },
        }
        Ok(())
    }
}

fn key_of(node: Node, merge: bool, path: &str) -> Result<(String, Mark, bool), SpecError> {
    let text = match node.value {
        Value::Str(text) => text,
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => scalar::python_float(value),
        Value::Seq(_) | Value::Map(_) => {
            return Err(fault(
                path,
                node.mark,
                "a list or a mapping cannot be a key".to_owned(),
                "quote it if it is meant as text",
            ));
        }
    };
    Ok((text, node.mark, merge))
}

/// The mappings that a merge key names, the strongest first.
fn merge_sources(node: Node, at: Mark, path: &str) -> Result<Vec<Node>, SpecError> {
    let sources = match node.value {
        Value::Map(_) => vec![node],
        Value::Seq(items) => items,
        _ => Vec::new(),
    };
    if sources.is_empty()
        || sources
            .iter()
            .any(|node| !matches!(node.value, Value::Map(_)))
    {
        return Err(fault(
            path,
            at,
            "'<<' merges mappings only".to_owned(),
            "give it an alias of a mapping, such as <<: *defaults",
        ));
    }
    Ok(sources)
}

//! Builds the tree from the parser's events.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, ScalarStyle, Tag};

use super::super::error::{Mark, SpecError};
use super::super::scalar;
use super::{Entry, Node, SPEC_DEPTH_MAX, SPEC_SOURCE_BYTES_MAX, Value, fault, mark};

/// What all aliases together may add to the tree, in bytes: as much again as the source may have.
const ALIAS_BYTES_MAX: usize = SPEC_SOURCE_BYTES_MAX;

/// What all anchored values together may hold, in bytes: each is kept once more for its aliases, and
/// anchors can be nested.
const ANCHORED_BYTES_MAX: usize = 8 * SPEC_SOURCE_BYTES_MAX;

/// The most values, each of which takes a hundred times the two bytes that it may have in the source.
/// A service file has a hundred, and JSON to be posted perhaps some thousands.
const NODES_MAX: usize = 100_000;

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
pub(super) struct Builder {
    frames: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    anchored_bytes: usize,
    alias_bytes: usize,
    nodes: usize,
    documents: usize,
    pub(super) root: Option<Node>,
    pub(super) errors: Vec<SpecError>,
}

impl Builder {
    /// Takes the next event.
    ///
    /// # Errors
    /// What makes going on useless; lesser faults are noted in `errors`.
    pub(super) fn take(
        &mut self,
        event: Event<'_>,
        (start, end): (Marker, Marker),
    ) -> Result<(), SpecError> {
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
        self.check_place(&node)?;
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
                None => *key = Some((key_text(node.value), node.mark, merge_key)),
                Some((_, _, true)) => match node.value {
                    Value::Seq(sources) => merges.extend(sources),
                    _ => merges.push(node),
                },
                // The first of two equal keys stays; the other one is reported.
                Some((name, at, false)) if !keys.contains_key(&name) => {
                    keys.insert(name.clone(), at);
                    entries.push(Entry {
                        key: name,
                        mark: at,
                        value: node,
                    });
                }
                Some(_) => {}
            },
        }
        Ok(())
    }

    /// Refuses a node that cannot stand where it would go, and notes a key that is written twice.
    fn check_place(&mut self, node: &Node) -> Result<(), SpecError> {
        let Some(Frame {
            content: Content::Map { keys, key, .. },
            ..
        }) = self.frames.last()
        else {
            return Ok(());
        };
        match key {
            None if matches!(node.value, Value::Seq(_) | Value::Map(_)) => Err(self.fault(
                node.mark,
                "a list or a mapping cannot be a key".to_owned(),
                "quote it if it is meant as text",
            )),
            None => Ok(()),
            Some((_, at, true)) if !is_merge_source(&node.value) => Err(self.fault(
                *at,
                "'<<' merges mappings only".to_owned(),
                "give it an alias of a mapping, such as <<: *defaults",
            )),
            Some((_, _, true)) => Ok(()),
            Some((name, at, false)) => {
                if let Some(first) = keys.get(name) {
                    let problem = format!("the key is already on line {}", first.line);
                    let error = self.fault(*at, problem, "keep one of the two");
                    self.errors.push(error);
                }
                Ok(())
            }
        }
    }
}

/// The text of a key that is not a list or a mapping.
fn key_text(value: Value) -> String {
    match value {
        Value::Str(text) => text,
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => scalar::python_float(value),
        Value::Null | Value::Seq(_) | Value::Map(_) => "null".to_owned(),
    }
}

/// Whether a merge key can take its entries from `value`: a mapping, or a list of mappings.
fn is_merge_source(value: &Value) -> bool {
    match value {
        Value::Map(_) => true,
        Value::Seq(sources) => {
            !sources.is_empty()
                && sources
                    .iter()
                    .all(|source| matches!(source.value, Value::Map(_)))
        }
        _ => false,
    }
}

//! `docs/service-yaml.md` lists the fields that the parser knows, and no others.

use std::collections::BTreeSet;

use super::fields::{SECTIONS, Support};

#[test]
fn the_manual_lists_exactly_the_fields_that_there_are() {
    let listed: BTreeSet<(String, String)> = include_str!("../../../../docs/service-yaml.md")
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let field = cells.next()?.trim().strip_suffix('`')?;
            let status = cells.next()?.trim();
            ["built", "not built"]
                .contains(&status)
                .then(|| (field.to_owned(), status.to_owned()))
        })
        .collect();
    let known: BTreeSet<(String, String)> = SECTIONS
        .iter()
        .flat_map(|section| {
            section.fields.iter().map(|(name, support)| {
                let path = match section.path {
                    "" => (*name).to_owned(),
                    path => format!("{path}.{name}"),
                };
                let status = match support {
                    Support::Built => "built",
                    Support::NotBuilt => "not built",
                };
                (path, status.to_owned())
            })
        })
        .collect();
    assert_eq!(listed, known);
}

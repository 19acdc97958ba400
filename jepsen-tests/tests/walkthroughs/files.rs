//! What can be seen of the examples without a cluster.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use jepsen_tests::{binary, kube};

use crate::stage::examples;

fn folders() -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(examples())? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    ensure!(folders.len() >= 5, "{folders:?}");
    Ok(folders)
}

#[test]
fn each_walk_through_names_all_of_its_files_and_the_overview_each_walk_through()
-> anyhow::Result<()> {
    let overview = fs::read_to_string(examples().join("README.md"))?;
    for folder in folders()? {
        let name = folder.file_name().context("a name")?.to_string_lossy();
        ensure!(
            overview.contains(&format!("({name}/)")),
            "{name} is not in the overview"
        );
        let readme = fs::read_to_string(folder.join("README.md"))?;
        let files: BTreeSet<String> = fs::read_dir(&folder)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, _>>()?;
        for file in files.iter().filter(|file| *file != "README.md") {
            ensure!(
                readme.contains(file),
                "{name}/README.md does not name {file}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_chart_takes_the_values_of_each_walk_through() -> anyhow::Result<()> {
    if !binary::have_with("helm", "version") {
        return Ok(());
    }
    for folder in folders()? {
        let values = folder.join("values.yaml");
        let output = Command::new("helm")
            .args(["template", "raftserve"])
            .arg(kube::chart())
            .arg("--values")
            .arg(&values)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", values.display());
    }
    Ok(())
}

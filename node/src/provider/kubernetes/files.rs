//! The files of a replica that is a pod: a Secret, a volume of it, and where its parts are mounted. Pure.
//!
//! What has an absolute path is mounted there by the kubelet: a file as itself, a directory in place of whatever the image
//! has at its path. Where the home and the working directory are only the container knows, so that its first process copies
//! what goes there, by a manifest in the same volume.

use std::fmt::Write;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use raftserve_model::ClusterId;
use raftserve_model::spec::{Destination, FileMount, MountedFile};
use serde_json::{Map, Value, json};

use super::{labels, pod};

/// Where the container finds what it is to copy, and the manifest of it.
pub(super) const TO_COPY_DIR: &str = "/run/raftserve-files";

/// The volume's name.
const VOLUME: &str = "raftserve-files";

/// The entry of the Secret, and of the directory, that says what goes where.
const MANIFEST: &str = "manifest";

/// The directory of the volume with what is to be copied.
const TO_COPY: &str = "copy";

/// How the shell of the container puts files where only it knows: `place DIRECTORY` says why, in one line, if it cannot. The manifest has
/// three lines for each file: its name beside the manifest, its mode and its destination.
pub(super) const PLACE: &str = r#"put() {
  case $3 in "~/"*) to=${HOME%/}/${3#"~/"};; *) to=./$3;; esac
  if [ -d "$to" ]; then echo "there is a directory"; return 1; fi
  mkdir -p "${to%/*}/" && rm -f "$to" && (umask 077; cp "$1" "$to") && chmod "$2" "$to"
}
place() {
  while IFS= read -r key && IFS= read -r mode && IFS= read -r path; do
    said=$(put "$1/$key" "$mode" "$path" 2>&1) || {
      said=$(set -f; set -- $said; printf %s "$*")
      printf '%s\n' "file_mounts.$path cannot be put in place (HOME is $HOME, and it starts in $PWD): $said"
      return 1
    }
  done <"$1/manifest"
}
"#;

/// Whether `line` is what [`PLACE`] says of a file, and not of the replica's own output.
pub(super) fn is_of_place(line: &str) -> bool {
    line.starts_with("file_mounts.") && line.contains(" cannot be put in place (HOME is ")
}

/// Whether the kubelet mounts files for the replica, over what its image has there.
pub(super) fn are_mounted(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut mounts = containers
        .filter(|it| it.name == labels::CONTAINER)
        .flat_map(|it| it.volume_mounts.iter().flatten());
    mounts.any(|it| it.name == VOLUME && it.mount_path != TO_COPY_DIR)
}

/// Whether the container has something to copy.
pub(super) fn are_to_copy(mounts: &[FileMount]) -> bool {
    mounts.iter().any(is_to_copy)
}

fn is_to_copy(mount: &FileMount) -> bool {
    match mount.destination {
        Destination::Home(_) | Destination::Working(_) => true,
        Destination::Absolute(_) => false,
    }
}

/// The name of the Secret with the files of the pod whose other secrets are in `secret`.
pub(super) fn secret_name(secret: &str) -> String {
    format!("{secret}-files")
}

/// A file with its number among all, by which the Secret knows it, and its place.
struct Numbered<'a> {
    key: String,
    mount: usize,
    of: &'a FileMount,
    path: &'a str,
    file: &'a MountedFile,
}

fn numbered(mounts: &[FileMount]) -> impl Iterator<Item = Numbered<'_>> {
    let all = mounts.iter().enumerate().flat_map(|(at, mount)| {
        mount
            .files()
            .map(move |(path, file)| (at, mount, path, file))
    });
    all.enumerate()
        .map(|(number, (mount, of, path, file))| Numbered {
            key: format!("file-{number}"),
            mount,
            of,
            path,
            file,
        })
}

/// The volume of the Secret `secret`.
pub(super) fn volume(secret: &str, mounts: &[FileMount]) -> Value {
    let mut items: Vec<Value> = numbered(mounts)
        .map(|it| {
            let path = match (is_to_copy(it.of), it.path) {
                (true, _) => format!("{TO_COPY}/{}", it.key),
                (false, "") => directory(it.mount),
                (false, path) => format!("{}/{path}", directory(it.mount)),
            };
            json!({ "key": it.key, "path": path, "mode": mode_for_all(it.file.mode) })
        })
        .collect();
    if are_to_copy(mounts) {
        items.push(json!({ "key": MANIFEST, "path": format!("{TO_COPY}/{MANIFEST}") }));
    }
    json!({ "name": VOLUME, "secret": {
        "secretName": secret_name(secret),
        "defaultMode": mode_for_all(0),
        "items": items,
    } })
}

/// Where the container has parts of the volume.
pub(super) fn volume_mounts(mounts: &[FileMount]) -> Vec<Value> {
    let mounted = |path: &str, part: String| json!({ "name": VOLUME, "mountPath": path, "subPath": part, "readOnly": true });
    let mut all: Vec<Value> = mounts
        .iter()
        .enumerate()
        .filter_map(|(at, mount)| match &mount.destination {
            Destination::Absolute(path) => Some(mounted(path, directory(at))),
            Destination::Home(_) | Destination::Working(_) => None,
        })
        .collect();
    if are_to_copy(mounts) {
        all.push(mounted(TO_COPY_DIR, TO_COPY.to_owned()));
    }
    all
}

/// The part of the volume that is a mount of its own.
fn directory(mount: usize) -> String {
    format!("mount-{mount}")
}

/// The files in a volume belong to root, and whoever the container runs as is to read them, and to run what is a program.
/// Nobody writes there.
fn mode_for_all(mode: u32) -> u32 {
    match mode & 0o111 {
        0 => 0o444,
        _ => 0o555,
    }
}

/// The Secret with the files of the pod whose other secrets are in `secret`; it goes when the pod does, which is this one.
pub(super) fn secret(
    secret: &str,
    of_pod: (&str, &str),
    cluster: ClusterId,
    mounts: &[FileMount],
) -> Value {
    let mut data = Map::new();
    let mut manifest = String::new();
    for it in numbered(mounts) {
        if is_to_copy(it.of) {
            let to = it.of.path_of(it.path);
            let _ = writeln!(manifest, "{}\n{:o}\n{to}", it.key, it.file.mode);
        }
        data.insert(it.key, json!(ByteString(it.file.bytes.to_vec())));
    }
    if are_to_copy(mounts) {
        data.insert(MANIFEST.to_owned(), json!(ByteString(manifest.into())));
    }
    let mut secret = pod::owned_secret(&secret_name(secret), of_pod, cluster);
    secret["data"] = data.into();
    secret
}

#[cfg(test)]
mod tests;

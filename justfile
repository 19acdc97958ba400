# The verbs of this repository. CI (.ci/run) runs the same ones, cheapest first.

# Lists the verbs.
default:
    @just --list

# Builds everything.
build:
    cargo build --workspace --all-targets --locked

# Formats the sources.
fmt:
    cargo fmt --all

# Says whether the sources are formatted.
fmt-check:
    cargo fmt --all --check

# Lints; edits nothing.
lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Runs every test. One that needs a program which is not there says so and is skipped.
test *ARGS:
    cargo test --workspace {{ ARGS }}

# Simulates whole clusters, so many seeds from a random one on: just sim 500, or one seed again: just sim 1 1234. RAFTSERVE_SIM_TRACE=1 tells all.
sim SEEDS="200" FIRST="random":
    RAFTSERVE_SIM_SEEDS={{ SEEDS }} RAFTSERVE_SIM_FIRST={{ FIRST }} cargo test --locked -p raftserve-store --lib \
        --config profile.test.package.raftserve-store.opt-level=1 simulation::every_seed -- --nocapture

# Runs the black-box tests: three real peers, and the loss of any of them. ARGS as `cargo test` has them.
jepsen *ARGS:
    cargo build --locked -p raftserve-node
    cargo test --locked -p jepsen-tests {{ ARGS }}

# Kills one, two or all of three peers again and again, lets disks and volumes fail, under clients whose calls are all checked. SEED repeats a run.
kill-rounds ROUNDS="1000" SEED="":
    cargo build --release --locked -p raftserve-node
    {{ if SEED == "" { "" } else { "RAFTSERVE_KILL_SEED=" + SEED } }} RAFTSERVE_KILL_ROUNDS={{ ROUNDS }} \
        cargo test --release --locked -p jepsen-tests --test faults kill_rounds -- --nocapture

# Saturates every core with requests, for a minute by default: no election may come of it.
saturate SECONDS="60":
    cargo build --release --locked -p raftserve-node
    RAFTSERVE_SATURATE_SECONDS={{ SECONDS }} cargo test --release --locked -p jepsen-tests --test spine saturate -- --nocapture

# Kills the leader again and again, and measures how long writes fail: --kills N, --profile fast|lan|wan, --etcd.
bench-failover *ARGS:
    cargo build --release --locked -p raftserve-node
    cargo run --release --locked -p jepsen-tests --bin bench_failover -- {{ ARGS }}

# Crashes a whole store, its log, its checkpoint and a recovery at so many points each on a simulated disk, from a random seed on or from FIRST. RAFTSERVE_CRASH_SEED=N repeats one.
crash-points POINTS="100000" FIRST="random":
    RAFTSERVE_CRASH_POINTS={{ POINTS }} RAFTSERVE_CRASH_FIRST={{ FIRST }} \
        cargo test --release --locked -p raftserve-store --lib survives_a_crash_at_every_operation -- --nocapture

# Measures the log against a bare append and fdatasync loop, and how fast it is opened after a kill. DIR: on the disk in question.
bench-log DIR="target/log-engine":
    cargo build --release --locked -p raftserve-store --example log_engine
    target/release/examples/log_engine append --dir {{ DIR }}
    target/release/examples/log_engine open --dir {{ DIR }}

# Measures writes and reads beside three members of etcd, if it is installed: --rounds N, --seconds N, --systems etcd,grpc,raw.
bench-store *ARGS:
    cargo build --release --locked -p raftserve-node --features raw-frames
    cargo run --release --locked -p jepsen-tests --bin bench_store -- --raw target/release/raw_frames {{ ARGS }}

# Measures a store with a million sessions: apply, log, snapshots, memory, stop and start. ARGS: sessions, directory.
bench-state *ARGS:
    cargo run --release --locked -p raftserve-store --example state_scale -- {{ ARGS }}

# Measures clients' writes while peers with 10,000 replicas and a million sessions take snapshots: --sessions N, --snapshots N.
bench-snapshots *ARGS:
    cargo build --release --locked -p raftserve-node
    cargo run --release --locked -p jepsen-tests --bin bench_store -- --sessions 1000000 {{ ARGS }}

# Gives each parser of the proxy so many mutated inputs, from SEED on.
fuzz INPUTS="5000000" SEED="0":
    RAFTSERVE_FUZZ_INPUTS={{ INPUTS }} RAFTSERVE_FUZZ_SEED={{ SEED }} cargo test --locked -p raftserve-proxy --lib \
        --config profile.test.package.raftserve-proxy.opt-level=2 fuzz:: -- --nocapture

# Lets cargo fuzz look for inputs by the code that they reach, for so long on each of its targets. Needs cargo-fuzz and a nightly compiler.
fuzz-reached SECONDS="60":
    for target in $(cargo +nightly fuzz list --fuzz-dir proxy/fuzz); do \
        cargo +nightly fuzz run --fuzz-dir proxy/fuzz "$target" -- -max_total_time={{ SECONDS }} -max_len=4096 || exit 1; \
    done

# Measures the data plane beside HAProxy, nginx and Envoy, as far as they are installed: --rounds N, --scenarios h1,sse.
bench-proxy *ARGS:
    cargo build --release --locked -p raftserve-node
    cargo build --release --locked -p raftserve-proxy --example forward
    cargo run --release --locked -p jepsen-tests --bin bench_proxy -- --forward target/release/examples/forward \
        --node target/release/raftserve {{ ARGS }}

# Makes the image of the release binary, with buildah, docker or podman. IMAGE_BASE: another base.
image NAME="raftserve:dev":
    cargo build --release --locked -p raftserve-node
    .ci/image {{ NAME }}

# Builds target/profiled/raftserve, a release binary laid out by what ran under the benchmarks' load. Takes 40 minutes.
profiled:
    .ci/profiled

# The image of that binary.
image-profiled NAME="raftserve:dev": profiled
    .ci/image {{ NAME }} target/profiled/raftserve

# Says whether everything is ready for a release of that number. See docs/releasing.md.
release-check VERSION:
    .ci/release --check {{ VERSION }}

# Makes a release: binary, image, chart package, checksums and tag. Publishes nothing.
release VERSION:
    .ci/release {{ VERSION }}

# Runs the tests on Kubernetes in their short form: on RAFTSERVE_TEST_KUBECONFIG, or on the lab whose program RAFTSERVE_LAB is.
test-kube *ARGS:
    .ci/optimised
    RAFTSERVE_BIN=target/raftserve-optimised .ci/kubernetes {{ ARGS }}

# The same with 60,000 requests a case, and the release binary.
test-kube-full *ARGS:
    cargo build --release --locked -p raftserve-node
    RAFTSERVE_BIN=target/release/raftserve RAFTSERVE_TEST_REQUESTS=60000 KUBERNETES_MINUTES=120 .ci/kubernetes {{ ARGS }}

# Tests how the release before, whose binary is BEFORE, goes over to this one and back, also on Kubernetes. See docs/releasing.md.
test-upgrade BEFORE:
    cargo build --release --locked -p raftserve-node
    .ci/upgrade {{ BEFORE }} target/release/raftserve

# The same of this release and one to come, which has one cluster version more.
test-next-upgrade:
    cargo build --release --locked -p raftserve-node
    .ci/next --release
    .ci/upgrade target/release/raftserve target/next/raftserve

# Prints how fast a release on Kubernetes is installed and mended, and what peers use there. Takes 15 minutes.
bench-kube:
    cargo build --release --locked -p raftserve-node
    RAFTSERVE_BIN=target/release/raftserve KUBERNETES_MINUTES=60 .ci/kubernetes --ignored figures

# Builds the documentation.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Checks what is in the dependency tree: versions, licences, sources. Needs no network.
deny:
    cargo deny --locked check bans licenses sources

# Checks the dependencies against RustSec's advisories. Needs the network.
audit:
    cargo deny --locked check advisories

# Serves an example on three peers of this machine until Ctrl-C.
dev SERVICE="examples/http_server.yaml" *ARGS:
    cargo run --release --locked -- dev {{ SERVICE }} {{ ARGS }}

# Everything that CI checks.
ci:
    .ci/run

//! What the chart renders is what an API server takes, with no field that it does not know.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use jepsen_tests::kube::{Kube, chart};

/// The kind of the Gateway API, which not every cluster has.
const ROUTE: &str = "httproutes.gateway.networking.k8s.io";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_takes_every_object_of_each_file_of_values() -> anyhow::Result<()> {
    let Some(kube) = Kube::named().await? else {
        return Ok(());
    };
    let namespace = kube.namespace("renders").await?;
    let routes = kube.kubectl(&["api-resources", "-o", "name"]).await?;
    let routes = routes.lines().any(|line| line == ROUTE);
    let chart = chart().display().to_string();
    let mut taken = 0;
    for entry in fs::read_dir(Path::new(&chart).join("tests/values"))? {
        let values = entry?.path().display().to_string();
        if values.ends_with("gateway.yaml") && !routes {
            eprintln!("skipped: {values}: the cluster has no {ROUTE}");
            continue;
        }
        // No namespace but this one is there.
        let here = namespace.name.as_str();
        let here = format!("provider.namespace={here},provider.namespaces={{{here}}}");
        let render = ["template", "serve", &chart, "--values", &values];
        let arguments = [&render[..], &["--set", &here]].concat();
        let objects = namespace.helm(&arguments).await?;
        let said = namespace.try_create(&objects).await?;
        ensure!(said.contains("statefulset.apps/"), "{values}: {said}");
        taken += 1;
    }
    ensure!(taken > 0, "no values");
    namespace.delete().await
}

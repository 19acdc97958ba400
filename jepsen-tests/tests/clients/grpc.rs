//! gRPC by Google's own library, and by grpcurl.

use anyhow::ensure;

use crate::stage::{self, Stage, client, ended, program, python};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn googles_library_is_served() -> anyhow::Result<()> {
    stage::run(&[], &["grpc"], async {
        let stage = Stage::start("fast", &[]).await?;
        stage.serve_grpc("grpc_replica.py", 2).await?;
        let clear = python("grpc_client.py", &[&stage.clear().to_string()]).await?;
        ensure!(clear.lines().count() == 6, "{clear}");
        let tls = [&stage.tls.to_string()[..], &stage.authorities()];
        python("grpc_client.py", &tls).await?;
        stage.cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_is_served() -> anyhow::Result<()> {
    stage::run(&["grpcurl"], &["grpc"], async {
        let stage = Stage::start("fast", &[]).await?;
        stage.serve_grpc("grpc_replica.py", 1).await?;
        let folder = program("").to_string_lossy().into_owned();
        let (clear, tls, authorities) = (
            stage.clear().to_string(),
            stage.tls.to_string(),
            stage.authorities(),
        );
        let ways: [&[&str]; 2] = [&["-plaintext"], &["-cacert", &authorities]];
        for (way, address) in ways.into_iter().zip([&clear, &tls]) {
            let call = |data, method| {
                let given = ["-import-path", &folder, "-proto", "echo.proto", "-d", data];
                [way, &given, &[address.as_str(), method]].concat()
            };
            let hello = "{\"text\": \"hello\"}";
            for (method, answers) in [
                ("test.Echo/Unary", 1),
                ("test.Echo/ServerStream", 5),
                ("test.Echo/ClientStream", 1),
                ("test.Echo/Both", 1),
            ] {
                let (out, _) = client("grpcurl", &call(hello, method)).await?;
                ensure!(
                    out.matches("\"hello\"").count() == answers,
                    "{method}: {out}"
                );
            }
            let (code, _, said) = ended("grpcurl", &call(hello, "test.Echo/Fail")).await?;
            ensure!(code != Some(0) && said.contains("NotFound"), "{said}");
            ensure!(said.contains("nothing there: 100% sure"), "{said}");
        }
        stage.cluster.pass();
        Ok(())
    })
    .await
}

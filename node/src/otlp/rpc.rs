//! OpenTelemetry's collector service, as generated.
#![allow(missing_docs, clippy::all, unreachable_pub)]

tonic::include_proto!("opentelemetry.proto.collector.trace.v1");

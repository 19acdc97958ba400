//! `_metadata.raftserve.readiness_probe`: replicas that are not asked over HTTP, as Kubernetes calls it.

use super::fields::{GRPC_PROBE, OTHER_PROBE};
use super::raftserve::Settings;
use super::reader::{Field, Reader};
use super::yaml::Value;
use super::{ProbeKind, UpstreamProtocol};

/// The longest name of a service, in bytes: far beyond any, and no load on each probe.
const SERVICE_BYTES_MAX: usize = 1024;

/// Reads the section; `settings` has what else `_metadata.raftserve` says of replicas.
pub(super) fn read(reader: &mut Reader, field: &Field<'_>, settings: &Settings) -> ProbeKind {
    let Some(fields) = reader.section(field.node, &OTHER_PROBE) else {
        return ProbeKind::Http;
    };
    if settings.provider.tells_readiness() {
        let problem =
            "endpoints of a Kubernetes Service are not probed: Kubernetes tells which are ready";
        let remedy = "remove it, and let their pods have a readinessProbe";
        reader.fault(&field.path, field.node.mark, problem, remedy);
    }
    match (fields.get("grpc"), fields.get("tcp")) {
        (Some(grpc), None) => {
            if settings.traffic.upstream.protocol == UpstreamProtocol::Http1 {
                let problem = "gRPC and traffic.upstream.protocol: http1 contradict each other";
                let remedy = "write protocol: http2 or auto, or probe by tcp: {} or over HTTP";
                reader.fault(&grpc.path, grpc.node.mark, problem, remedy);
            }
            let service = service(reader, &grpc).unwrap_or_default();
            ProbeKind::Grpc { service }
        }
        (None, Some(tcp)) => {
            let empty = matches!(&tcp.node.value, Value::Map(entries) if entries.is_empty());
            if !empty {
                let remedy = "write tcp: {}, which asks at the service's port";
                reader.mismatch(&tcp, "an empty mapping", remedy);
            }
            ProbeKind::Tcp
        }
        (Some(_), Some(tcp)) => {
            let problem = "grpc and tcp contradict each other";
            reader.fault(&tcp.path, tcp.node.mark, problem, "keep one of them");
            ProbeKind::Tcp
        }
        (None, None) => {
            let problem = "names neither grpc nor tcp";
            let remedy = "write grpc: {} or tcp: {}; for HTTP, write service.readiness_probe";
            reader.fault(&field.path, field.node.mark, problem, remedy);
            ProbeKind::Http
        }
    }
}

fn service(reader: &mut Reader, grpc: &Field<'_>) -> Option<String> {
    if !matches!(grpc.node.value, Value::Map(_)) {
        let remedy =
            "write grpc: {}, or grpc: {service: NAME} to ask about one of the server's services";
        reader.mismatch(grpc, "a mapping", remedy);
        return None;
    }
    let fields = reader.section(grpc.node, &GRPC_PROBE)?;
    let field = fields.get("service")?;
    let name = reader.text(&field)?;
    if name.len() > SERVICE_BYTES_MAX {
        let problem = format!("the name has {} bytes", name.len());
        let allowed = format!("at most {SERVICE_BYTES_MAX} are allowed");
        reader.fault(&field.path, field.node.mark, problem, allowed);
    }
    Some(name.to_owned())
}

"""Talks to the admin port as any gRPC client does: health, reflection, a call and its error.

Messages are written by hand, so that nothing but grpcio is needed."""

import sys

import grpc


def plain(value):
    return value


def main(address):
    channel = grpc.insecure_channel(address)
    grpc.channel_ready_future(channel).result(timeout=10)

    def unary(method, request):
        call = channel.unary_unary(method, request_serializer=plain, response_deserializer=plain)
        return call(request, timeout=10)

    # HealthCheckResponse {status: SERVING}
    assert unary("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"

    # ServerReflectionRequest {list_services: ""}
    reflect = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=plain,
        response_deserializer=plain,
    )
    listed = next(iter(reflect(iter([b"\x3a\x00"]), timeout=10)))
    for name in ("Services", "Replicas", "Logs", "Events", "Sessions", "Cluster"):
        assert b"raftserve.v1." + name.encode() in listed, (name, listed)

    # GetServiceRequest {name: "nowhere"}
    try:
        unary("/raftserve.v1.Services/Get", b"\x0a\x07nowhere")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert b"NO_SUCH_SERVICE" in details, details
    else:
        raise AssertionError("a service that does not exist was found")


main(sys.argv[1])

"""A collector of OpenTelemetry's traces, from its own messages and Google's library. Prints its port, and each span as a
line of JSON."""

import json
import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages


def value(attribute):
    kind = attribute.value.WhichOneof("value")
    return getattr(attribute.value, kind)


def export(request, context):
    for resource in request.resource_spans:
        of = {attribute.key: value(attribute) for attribute in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = {
                    "of": of,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "nanos": span.end_time_unix_nano - span.start_time_unix_nano,
                    "state": span.trace_state,
                    "attributes": {attribute.key: value(attribute) for attribute in span.attributes},
                }
                print(json.dumps(told), flush=True)
    return messages.ExportTraceServiceResponse()


handler = grpc.unary_unary_rpc_method_handler(
    export,
    request_deserializer=messages.ExportTraceServiceRequest.FromString,
    response_serializer=messages.ExportTraceServiceResponse.SerializeToString,
)
service = "opentelemetry.proto.collector.trace.v1.TraceService"
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
threading.Event().wait()

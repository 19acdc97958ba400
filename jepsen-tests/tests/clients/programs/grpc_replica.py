"""A service of gRPC, by Google's library, that answers with the messages it got. It speaks nothing but HTTP/2, and says
that it serves by gRPC's own health checking.
"""

import os
import threading
from concurrent import futures

import grpc

OWN = os.environ["SKYPILOT_SERVE_REPLICA_ID"]
# Which calls of Wait have ended, by their messages.
cancelled = set()
changed = threading.Condition()


def unary(message, context):
    given = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-replica", OWN), ("x-text", given.get("x-text", ""))))
    context.set_trailing_metadata((("x-trailing-bin", given.get("x-data-bin", b"")),))
    return message


def server_stream(message, context):
    for _ in range(5):
        yield message


def client_stream(messages, context):
    return b"".join(messages)


def both(messages, context):
    yield from messages


def fail(message, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "nothing there: 100% sure")


def fail_late(message, context):
    yield message
    context.abort(grpc.StatusCode.DATA_LOSS, "it ends here")


def remaining(message, context):
    return b"%f" % context.time_remaining()


def wait(message, context):
    yield message
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()
    with changed:
        cancelled.add(message)
        changed.notify_all()


def was_cancelled(message, context):
    with changed:
        return b"yes" if changed.wait_for(lambda: message in cancelled, timeout=10) else b"no"


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "Wait": grpc.unary_stream_rpc_method_handler(wait),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
}


def health(message, context):
    # As protocol buffers have it: SERVING, in the first field.
    return b"\x08\x01"


HEALTH = {"Check": grpc.unary_unary_rpc_method_handler(health)}
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers(
    (
        grpc.method_handlers_generic_handler("test.Echo", METHODS),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", HEALTH),
    )
)
server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
server.start()
server.wait_for_termination()

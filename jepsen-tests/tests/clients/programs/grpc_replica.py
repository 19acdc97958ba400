"""A service of gRPC, by Google's library, that answers with the messages it got.

Readiness is asked by HTTP/1.1 on the same port, so what begins otherwise than HTTP/2 is answered here with 200.
"""

import os
import socket
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
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", METHODS),))
behind = server.add_insecure_port("127.0.0.1:0")
server.start()


def pump(source, sink):
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


def take(client):
    begin = client.recv(3, socket.MSG_PEEK | socket.MSG_WAITALL)
    if begin != b"PRI":
        with client:
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        return
    whole = socket.create_connection(("127.0.0.1", behind))
    for each in (client, whole):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=pump, args=(client, whole), daemon=True).start()
    pump(whole, client)


listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    threading.Thread(target=take, args=(listener.accept()[0],), daemon=True).start()

"""Client and servers of Hello. The messages are plain text: gRPC carries any bytes.

hello.py server          answers on port 50051 with its name before what it was told
hello.py client TARGET   sends ten concurrent Hellos, waits for all, prints the answers, and so on for ever
"""

import os
import signal
import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE, METHOD = "hello.Hello", "Hello"


def serve():
    name = os.environ["HOSTNAME"]
    answer = grpc.unary_unary_rpc_method_handler(
        lambda request, context: f"{name}: {request}",
        request_deserializer=bytes.decode,
        response_serializer=str.encode,
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=20))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: answer}),)
    )
    server.add_insecure_port("[::]:50051")
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    server.start()
    told.wait()
    # Calls that are under way are answered.
    server.stop(grace=5).wait()


def ask(target):
    name = os.environ["HOSTNAME"]
    # Every peer that the name stands for is used, as the servers of the seed's clients are.
    channel = grpc.insecure_channel(target, options=[("grpc.lb_policy_name", "round_robin")])
    hello = channel.unary_unary(
        f"/{SERVICE}/{METHOD}", request_serializer=str.encode, response_deserializer=bytes.decode
    )
    count = 0
    while True:
        calls = []
        for _ in range(10):
            count += 1
            calls.append(hello.future(f"{name} {count}", timeout=10, wait_for_ready=count <= 10))
        for call in calls:
            try:
                print(call.result(), flush=True)
            except grpc.RpcError as error:
                print(f"FAILED {error.code().name}: {error.details()}", flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    serve() if sys.argv[1] == "server" else ask(sys.argv[2])

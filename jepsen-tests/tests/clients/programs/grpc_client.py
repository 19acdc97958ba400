"""Calls of all kinds, by Google's library, through the proxy at HOST:PORT. Ends with 0 if all went as they should.

With a second argument, a file of authorities, it speaks TLS.
"""

import collections
import queue
import sys
import uuid

import grpc

target = sys.argv[1]
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as authorities:
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(authorities.read()))
else:
    channel = grpc.insecure_channel(target)
PATIENCE = 20


def of(kind, name):
    return getattr(channel, kind)(f"/test.Echo/{name}")


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it went well")


def the_four_kinds():
    messages = [b"\x0a\x01a", b"", b"x" * 300_000]
    for message in messages:
        assert of("unary_unary", "Unary")(message, timeout=PATIENCE) == message
    assert list(of("unary_stream", "ServerStream")(b"m", timeout=PATIENCE)) == [b"m"] * 5
    assert of("stream_unary", "ClientStream")(iter(messages), timeout=PATIENCE) == b"".join(messages)
    assert list(of("stream_stream", "Both")(iter(messages), timeout=PATIENCE)) == messages


def a_conversation_is_not_held_back():
    """Each message is sent only once the one before has come back."""
    to_send = queue.SimpleQueue()
    answers = of("stream_stream", "Both")(iter(to_send.get, None), timeout=PATIENCE)
    for number in range(5):
        to_send.put(b"%d" % number)
        assert next(answers) == b"%d" % number
    to_send.put(None)
    assert list(answers) == []


def metadata_passes_both_ways():
    metadata = (("x-text", "some text"), ("x-data-bin", bytes(range(256))))
    _, call = of("unary_unary", "Unary").with_call(b"m", timeout=PATIENCE, metadata=metadata)
    assert dict(call.initial_metadata())["x-text"] == "some text"
    assert dict(call.trailing_metadata())["x-trailing-bin"] == bytes(range(256))


def errors_keep_code_words_and_trailers():
    error = failure(lambda: of("unary_unary", "Fail")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.NOT_FOUND, error
    assert error.details() == "nothing there: 100% sure", error
    assert dict(error.trailing_metadata())["x-why"] == "because", error
    got = []
    error = failure(lambda: got.extend(of("unary_stream", "FailLate")(b"m", timeout=PATIENCE)))
    assert error.code() is grpc.StatusCode.DATA_LOSS, error
    error = failure(lambda: of("unary_unary", "Nowhere")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error


def deadlines_are_told_and_kept():
    left = float(of("unary_unary", "Remaining")(b"", timeout=PATIENCE))
    assert PATIENCE / 2 < left < PATIENCE + 1, left  # Both ends round.
    own = uuid.uuid4().bytes
    answers = of("unary_stream", "Wait")(own, timeout=2)
    assert next(answers) == own
    error = failure(lambda: next(answers))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
    # Two replicas: by turns, one of these asks the one that waited.
    told = queue.SimpleQueue()
    for call in [of("unary_unary", "WasCancelled").future(own, timeout=PATIENCE) for _ in range(2)]:
        call.add_done_callback(told.put)
    assert told.get(timeout=PATIENCE).result() == b"yes" or told.get(timeout=PATIENCE).result() == b"yes"


def each_call_of_a_channel_is_balanced():
    answered = collections.Counter()
    for _ in range(40):
        _, call = of("unary_unary", "Unary").with_call(b"m", timeout=PATIENCE)
        answered[dict(call.initial_metadata())["x-replica"]] += 1
    assert len(answered) == 2 and min(answered.values()) >= 15, answered


with channel:
    for check in (
        the_four_kinds,
        a_conversation_is_not_held_back,
        metadata_passes_both_ways,
        errors_keep_code_words_and_trailers,
        deadlines_are_told_and_kept,
        each_call_of_a_channel_is_balanced,
    ):
        check()
        print("ok:", check.__name__)

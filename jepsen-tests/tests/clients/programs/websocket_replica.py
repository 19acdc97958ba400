"""A server of WebSockets, by the library of that name, that answers with the messages it got."""

import asyncio
import http
import os

from websockets.asyncio.server import serve


async def converse(socket):
    async for message in socket:
        if message == "close":
            await socket.close(4001, "as you wish")
        else:
            await socket.send(message)


def readiness(connection, request):
    if request.headers.get("upgrade") is None:
        return connection.respond(http.HTTPStatus.OK, "ready\n")
    return None


async def main():
    port = int(os.environ["PORT"])
    async with serve(converse, "127.0.0.1", port, process_request=readiness, subprotocols=["chat.v2"], max_size=1 << 24):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())

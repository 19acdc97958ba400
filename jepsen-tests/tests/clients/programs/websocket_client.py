"""Conversations over WebSockets, by the library of that name, at URL. Ends with 0 if all went as they should.

With a second argument, a file of authorities, it speaks TLS.
"""

import asyncio
import os
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

URL = sys.argv[1]
TLS = ssl.create_default_context(cafile=sys.argv[2]) if len(sys.argv) > 2 else None


async def converse(number):
    async with connect(URL, ssl=TLS, subprotocols=["chat.v1", "chat.v2"], max_size=1 << 24) as socket:
        assert socket.subprotocol == "chat.v2", socket.subprotocol
        for message in (f"hello {number}", "", os.urandom(3), os.urandom(1 << 21)):
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
        await socket.send("close")
        try:
            await socket.recv()
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "as you wish"), closed
        else:
            raise AssertionError("it did not close")


async def main():
    await asyncio.wait_for(asyncio.gather(*(converse(number) for number in range(8))), 60)


asyncio.run(main())
print("ok")

"""A server of HTTP/1.1 that says what it got, byte for byte."""

import hashlib
import http.server
import json
import os
import threading

# What a large body is made of, again and again.
BLOCK = bytes(at % 251 for at in range(251 * 1024))
ETAG = '"pattern"'
# In a browser: three events as the replica sends them, and a word sent to the WebSocket that the query names. It tells
# what it got, and that is read from there.
PAGE = b"""<!doctype html><script>
const got = [];
const tell = () => fetch("told", {method: "PUT", body: got.join(" ")});
const events = new EventSource("events");
events.onmessage = async (event) => {
  got.push(event.data);
  if (got.length < 3) { await fetch("go-on"); return; }
  events.close();
  const socket = new WebSocket(new URLSearchParams(location.search).get("socket"), "chat.v2");
  socket.onopen = () => socket.send("word");
  socket.onmessage = (message) => { got.push(message.data); socket.send("close"); };
  socket.onclose = (end) => { got.push(end.code); tell(); };
};
</script>"""
go_on = threading.Semaphore(0)
told = b""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self):
        path, _, query = self.path.partition("?")
        if path == "/pattern":
            self.pattern(int(query.removeprefix("bytes=")))
        elif path == "/cookies":
            self.whole(200, b"", [("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2, and; Path=/")])
        elif path == "/trailers":
            self.trailers()
        elif path == "/events":
            self.events()
        elif path == "/go-on":
            go_on.release()
            self.whole(200, b"")
        elif path == "/page":
            self.whole(200, PAGE, [("content-type", "text/html")])
        elif path == "/told":
            self.told()
        elif path.startswith("/echo"):
            self.echo()
        else:
            self.whole(200, b"ready\n")

    def whole(self, status, body, fields=()):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if status != 304:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def echo(self):
        count, digest, trailers = self.body()
        said = {
            "method": self.command,
            "target": self.path,
            "fields": [[name.lower(), value] for name, value in self.headers.items()],
            "bytes": count,
            "sha256": digest,
            "trailers": trailers,
        }
        self.whole(200, json.dumps(said).encode(), [("content-type", "application/json")])

    def body(self):
        """How long the request's body is, its digest, and the trailer lines."""
        count, digest, trailers = 0, hashlib.sha256(), []
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data = self.rfile.read(size)
                assert len(data) == size and self.rfile.readline() == b"\r\n"
                count += size
                digest.update(data)
            while (line := self.rfile.readline().strip()):
                trailers.append(line.decode())
        else:
            left = int(self.headers.get("content-length", 0))
            while left:
                data = self.rfile.read(min(left, 1 << 18))
                assert data, "the body broke off"
                left -= len(data)
                count += len(data)
                digest.update(data)
        return count, digest.hexdigest(), trailers

    def told(self):
        global told
        if self.command == "PUT":
            told = self.rfile.read(int(self.headers["content-length"]))
        self.whole(200, told)

    def pattern(self, size):
        if self.headers.get("if-none-match") == ETAG:
            self.whole(304, b"", [("etag", ETAG)])
            return
        asked = self.headers.get("range")
        if asked is not None:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            part = bytes(at % 251 for at in range(first, last + 1))
            self.whole(206, part, [("content-range", f"bytes {first}-{last}/{size}")])
            return
        self.send_response(200)
        self.send_header("etag", ETAG)
        self.send_header("content-length", str(size))
        self.end_headers()
        while size and self.command != "HEAD":
            part = BLOCK[:size]
            self.wfile.write(part)
            size -= len(part)

    def trailers(self):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "x-sum")
        self.end_headers()
        self.wfile.write(b"5\r\nhello\r\n0\r\nx-sum: 99\r\n\r\n")

    def events(self):
        """Each event after the first waits until its client says that it has the one before."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(3):
            if number:
                go_on.acquire()
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024


Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()

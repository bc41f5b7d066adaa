"""An app that shows what happened to its microVM, and misbehaves when its environment says so.

READY_UNAVAILABLE   ready answers 503 this many times first
READY_STATUS        what ready answers then (200)
READY_HANGS         ready never answers
VALIDATE_STATUS     what validate answers (200)
RUN_STATUS          what run answers (200)

A run hook whose payload is "slow" answers after six seconds.
"""

import base64
import hashlib
import itertools
import json
import os
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOOKS = "/aws/lambda-microvms/runtime/v1/"

# A page that opens a WebSocket to where it came from, and says what it got. Its image comes when it has said so:
# until then a browser does not take the page for loaded.
PAGE = """<!doctype html>
<p id="cookies"></p>
<p id="socket"></p>
<img src="/said" alt="">
<script>
const say = (id, text) => { document.getElementById(id).textContent = id + ": " + text; };
const end = (text) => { say("socket", text); fetch("/said", { method: "POST", body: text }); };
say("cookies", document.cookie);
const socket = new WebSocket("wss://" + location.host + "/socket");
socket.onopen = () => socket.send("from the page");
socket.onmessage = (message) => { if (message.data === "from the page") end("echoed " + message.data); };
socket.onerror = () => end("failed");
</script>
"""
# Set when a page has said what it got.
said = threading.Event()
SAID_SECONDS_MAX = 30

requests = itertools.count(1)
# Every hook call: path, body, address of the caller, the clock below, whether it has been answered.
calls = []
# Counts twenty a second: how long the app has been alive, in its own time.
ticks = 0


def tick():
    global ticks
    while True:
        time.sleep(0.05)
        ticks += 1


def setting(name, default):
    return int(os.environ.get(name, default))


def answer_to(hook):
    """Status of a hook's answer."""
    earlier = sum(1 for call in calls if call["path"] == HOOKS + hook)
    if hook == "ready":
        if os.environ.get("READY_HANGS"):
            time.sleep(86400)
        if earlier <= setting("READY_UNAVAILABLE", 0):
            return 503
        return setting("READY_STATUS", 200)
    if hook == "validate":
        # On a microVM made from the snapshot, which has what ready left in memory.
        ready = any(call["path"] == HOOKS + "ready" for call in calls)
        return setting("VALIDATE_STATUS", 200) if ready else 500
    if hook == "run":
        return setting("RUN_STATUS", 200)
    return 200


GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def read_frame(stream):
    """One WebSocket frame of a client: its opcode and its payload."""
    opcode, length = stream.read(2)
    opcode, length = opcode & 0x0F, length & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", stream.read(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", stream.read(8))
    mask = stream.read(4)
    data = stream.read(length)
    return opcode, bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


def write_frame(stream, opcode, data):
    head = bytes([0x80 | opcode])
    if len(data) < 126:
        head += bytes([len(data)])
    else:
        head += bytes([126]) + struct.pack(">H", len(data))
    stream.write(head + data)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def page(self):
        """The page, with a cookie of the app's own and one that is not for apps to set."""
        said.clear()
        data = PAGE.encode()
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(data)))
        self.send_header("set-cookie", "own=1")
        self.send_header("set-cookie", "__Host-torpor=evil; Path=/; Secure")
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        if self.path == "/said":
            said.set()
            self.answer(200, {"said": body})
            return
        hook = self.path.rsplit("/", 1)[-1]
        print("hook", hook, flush=True)
        call = {"path": self.path, "body": body, "from": self.client_address[0], "tick": ticks, "answered": False}
        calls.append(call)
        if hook == "run" and '"slow"' in body:
            time.sleep(6)
        status = answer_to(hook)
        call["answered"] = True
        self.answer(status, {})

    def echo_socket(self):
        """A WebSocket that first says what it was asked for, and then sends everything back."""
        key = self.headers["sec-websocket-key"].encode()
        offered = self.headers.get("sec-websocket-protocol", "")
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(hashlib.sha1(key + GUID).digest()).decode())
        if offered:
            self.send_header("sec-websocket-protocol", offered.split(",")[0].strip())
        self.end_headers()
        write_frame(self.wfile, TEXT, json.dumps({"offered": offered, "pid": os.getpid()}).encode())
        while True:
            opcode, data = read_frame(self.rfile)
            write_frame(self.wfile, PONG if opcode == PING else opcode, data)
            if opcode == CLOSE:
                self.close_connection = True
                return

    def do_GET(self):
        if self.path == "/socket":
            self.echo_socket()
        elif self.path == "/page":
            self.page()
        elif self.path == "/said":
            said.wait(SAID_SECONDS_MAX)
            self.answer(404, {})
        elif self.path == "/":
            self.answer(200, {"count": next(requests), "pid": os.getpid()})
        elif self.path == "/hooks":
            self.answer(200, {"calls": calls})
        elif self.path == "/environment":
            self.answer(200, {"environment": dict(os.environ)})
        elif self.path == "/headers":
            self.answer(200, {"headers": {name.lower(): value for name, value in self.headers.items()}})
        else:
            self.answer(404, {"path": self.path})


threading.Thread(target=tick, daemon=True).start()
print("listening", flush=True)
server = ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
# A second port, to tell ports apart.
second = ThreadingHTTPServer(("0.0.0.0", 8081), Handler)
threading.Thread(target=second.serve_forever, daemon=True).start()
server.serve_forever()

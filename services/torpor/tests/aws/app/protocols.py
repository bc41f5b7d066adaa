"""An app that speaks plainly: bytes on sockets, without a library's help or its manners.

8080   requests by path, each on a connection of its own; see `PATHS`
8082   WebSockets: the process id, then an echo
8090   `bootstrap.py`
9001   the same answers as 8080, on ::1 only
9002   on every IPv6 address and no IPv4 address
9003   on 127.0.0.2 only
9004   nothing that anybody understands
9443   the same answers as 8080, over TLS only; a client that begins otherwise is closed without a word
50051  gRPC, which is HTTP/2 without TLS
50052  the same over TLS only

Certificate and key are in `tls.pem`. They are of this test, signed by themselves, and prove nothing to anybody.
"""

import base64
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from websockets.sync.server import serve as serve_sockets

# What clients ask about later.
state = {"pid": os.getpid(), "uploaded": -1, "gone": 0.0, "client_hellos": 0}
# Connections to the outside, by its address.
kept = {}
# By the same: who reads on it, and what came of it.
readers, heard = {}, {}
with open("/tmp/note", "w") as note:
    note.write("a file")


def read_head(connection):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return ""
        if not head and byte == b"\x16":
            # TLS would begin so.
            state["client_hellos"] += 1
        head += byte
    return head.decode("latin-1")


def answer(connection, body, status="200 OK"):
    data = body.encode("latin-1")
    connection.sendall(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)


def target(connection, head):
    """The request line, as it came."""
    answer(connection, head.split("\r\n", 1)[0])


def guest(connection, head):
    """What the guest looks like from inside."""
    def read(path):
        with open(path) as file:
            return file.read()

    disk = os.statvfs("/")
    answer(connection, json.dumps(state | {
        "note": read("/tmp/note"),
        "meminfo": read("/proc/meminfo"),
        "machine_id": read("/etc/machine-id").strip(),
        "uuid": read("/proc/sys/kernel/random/uuid").strip(),
        "disk_bytes": disk.f_blocks * disk.f_frsize,
        "wall": time.time(),
        "monotonic": time.monotonic(),
    }))


def refuse(connection, head):
    """Turns the body away and closes with it unread."""
    answer(connection, "that is too much", "413 Content Too Large")
    if "expect" in head.lower():
        # What still comes, until the other side closes too.
        state["uploaded"] = 0
        while data := connection.recv(65536):
            state["uploaded"] += len(data)


def old(connection, head):
    """HTTP/1.0 without a length: the answer ends with the connection."""
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nold and plain")


def events(connection, head):
    """An event ten times a second; the head comes two seconds before the first."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    state["gone"] = 0.0
    time.sleep(2)
    number = 0
    try:
        while True:
            event = b"data: %d\n\n" % number
            connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
            number += 1
            time.sleep(0.1)
    except OSError:
        state["gone"] = time.time()


def work(connection, head):
    """Keeps a processor busy for ten seconds."""
    spin = "import time\nend = time.time() + 10\nwhile time.time() < end: pass"
    subprocess.Popen([sys.executable, "-c", spin])
    answer(connection, "at it")


def outside(connection, head):
    """Sends a datagram to "/outside?ADDRESS:PORT", then connects there and keeps the connection; says how that went."""
    place = head.split(" ", 2)[1].partition("?")[2]
    address, port = place.split(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(b"x", (address, int(port)))
        kept[place] = socket.create_connection((address, int(port)), timeout=3)
        answer(connection, "connected")
    except OSError as error:
        answer(connection, type(error).__name__)


def listen(connection, head):
    """Reads on a connection that was kept, from another thread, for as long as it takes."""
    place = head.split(" ", 2)[1].partition("?")[2]

    def read():
        try:
            kept[place].settimeout(None)
            heard[place] = repr(kept[place].recv(100))
        except OSError as error:
            heard[place] = type(error).__name__

    heard.pop(place, None)
    readers[place] = threading.Thread(target=read, daemon=True)
    readers[place].start()
    answer(connection, "listening")


def listened(connection, head):
    """What that reader came to, once it did."""
    place = head.split(" ", 2)[1].partition("?")[2]
    readers[place].join(30)
    answer(connection, heard.get(place, "nothing yet"))


def again(connection, head):
    """Sends on a connection that was kept and waits for the echo; says how that went."""
    try:
        with kept.pop(head.split(" ", 2)[1].partition("?")[2]) as stream:
            stream.settimeout(10)
            stream.sendall(b"x")
            answer(connection, "echoed" if stream.recv(1) else "closed")
    except OSError as error:
        answer(connection, type(error).__name__)


def upload(connection, head):
    """Reads the body and says how long it was."""
    names = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
    wanted, read = int(names["content-length"]), 0
    while read < wanted and (data := connection.recv(65536)):
        read += len(data)
    answer(connection, str(read))


def echo(connection, head):
    """Becomes a WebSocket, as far as the handshake goes, and sends back what comes."""
    names = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
    key = {name.lower(): value for name, value in names.items()}["sec-websocket-key"]
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "connection: Upgrade", "upgrade: websocket"]
    connection.sendall("\r\n".join([*lines, f"sec-websocket-accept: {accept}", "", ""]).encode())
    while data := connection.recv(65536):
        connection.sendall(data)


PATHS = {
    "/guest": guest,
    "/refuse": refuse,
    "/old": old,
    "/events": events,
    "/work": work,
    "/outside": outside,
    "/again": again,
    "/listen": listen,
    "/listened": listened,
    "/upload": upload,
    "/echo": echo,
}
TLS_FILE = "/srv/tls.pem"
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(TLS_FILE)


def serve_tls(connection):
    with connection:
        try:
            connection = tls.wrap_socket(connection, server_side=True)
        except OSError:
            return
        serve_one(connection)


def serve_noise(connection):
    """As a database would: an answer, and none of HTTP's."""
    with connection:
        connection.recv(65536)
        connection.sendall(b"-ERR unknown command\r\n")


def serve_one(connection):
    with connection:
        head = read_head(connection)
        if head:
            PATHS.get(head.split(" ", 2)[1].partition("?")[0], target)(connection, head)


def listen(family, address, port):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    listener.listen(64)
    return listener


def serve(listener, serve_one=serve_one):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()


class Echo(grpc.GenericRpcHandler):
    """Four methods on bytes: one of each kind."""

    def service(self, details):
        metadata = dict(details.invocation_metadata)
        return {
            "/echo/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/echo/Many": grpc.unary_stream_rpc_method_handler(lambda request, _: (request * n for n in (1, 2, 3))),
            "/echo/Gather": grpc.stream_unary_rpc_method_handler(lambda requests, _: b"".join(requests)),
            "/echo/Talk": grpc.stream_stream_rpc_method_handler(lambda requests, _: (request for request in requests)),
        }.get(details.method) if "x-aws-proxy-auth" not in metadata else None

    def unary(self, request, context):
        if request == b"sleep":
            time.sleep(30)
        if request == b"fail":
            context.set_trailing_metadata((("x-why", "told to"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
        context.set_trailing_metadata((("x-pid", str(os.getpid())),))
        return request


def echo_socket(socket):
    socket.send(str(os.getpid()))
    for message in socket:
        socket.send(message)


subprocess.Popen([sys.executable, "/srv/bootstrap.py", "first"])
while True:
    try:
        socket.create_connection(("127.0.0.1", 8090)).close()
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
server = grpc.server(ThreadPoolExecutor(8), handlers=(Echo(),))
server.add_insecure_port("0.0.0.0:50051")
with open(TLS_FILE, "rb") as file:
    pair = file.read()
server.add_secure_port("0.0.0.0:50052", grpc.ssl_server_credentials([(pair, pair)]))
server.start()
for family, address, port, how in (
    (socket.AF_INET6, "::1", 9001, serve_one),
    (socket.AF_INET6, "::", 9002, serve_one),
    (socket.AF_INET, "127.0.0.2", 9003, serve_one),
    (socket.AF_INET, "0.0.0.0", 9004, serve_noise),
    (socket.AF_INET, "0.0.0.0", 9443, serve_tls),
):
    threading.Thread(target=serve, args=(listen(family, address, port), how), daemon=True).start()
threading.Thread(target=serve_sockets(echo_socket, "0.0.0.0", 8082).serve_forever, daemon=True).start()
serve(listen(socket.AF_INET, "0.0.0.0", 8080))

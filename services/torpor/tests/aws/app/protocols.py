"""An app that speaks plainly: bytes on sockets, without a library's help or its manners.

8080   requests by path, each on a connection of its own; see `PATHS`
8082   WebSockets: the process id, then an echo
8090   `bootstrap.py`
9001   the same answers as 8080, on ::1 only
9002   on every IPv6 address and no IPv4 address
9003   on 127.0.0.2 only
50051  gRPC, which is HTTP/2 without TLS
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from websockets.sync.server import serve as serve_sockets

# What clients ask about later.
state = {"pid": os.getpid(), "uploaded": -1, "gone": 0.0}
with open("/tmp/note", "w") as note:
    note.write("a file")


def read_head(connection):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return ""
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


PATHS = {"/guest": guest, "/refuse": refuse, "/old": old, "/events": events}


def serve_one(connection):
    with connection:
        head = read_head(connection)
        if head:
            PATHS.get(head.split(" ", 2)[1], target)(connection, head)


def listen(family, address, port):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    listener.listen(64)
    return listener


def serve(listener):
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
server.start()
for family, address, port in (
    (socket.AF_INET6, "::1", 9001),
    (socket.AF_INET6, "::", 9002),
    (socket.AF_INET, "127.0.0.2", 9003),
):
    threading.Thread(target=serve, args=(listen(family, address, port),), daemon=True).start()
threading.Thread(target=serve_sockets(echo_socket, "0.0.0.0", 8082).serve_forever, daemon=True).start()
serve(listen(socket.AF_INET, "0.0.0.0", 8080))

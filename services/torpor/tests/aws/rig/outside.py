"""An outside that guests reach where there is no internet: a network namespace behind the host, with a public address.

What serves there sends back what a TCP connection brings, and says of every connection and every datagram that it came.
"""

import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

ADDRESS = "45.90.28.77"
PORT = 8080
_SECONDS = 30
_NAMESPACE, _DEVICE = "torpor-aws-far", "torpor-aws-net"
# Not public: while it is the host's own, other tests look whether guests reach it.
_NEAR, _FAR = "10.255.250.1", "10.255.250.2"
_SERVE = f"""
import socket, threading
def echo(connection):
    with connection:
        while data := connection.recv(1024):
            connection.sendall(data)
def datagrams(receiver):
    while True:
        receiver.recvfrom(1024)
        print("datagram", flush=True)
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("{ADDRESS}", {PORT}))
listener = socket.create_server(("{ADDRESS}", {PORT}))
threading.Thread(target=datagrams, args=(receiver,), daemon=True).start()
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    print("connection", flush=True)
    threading.Thread(target=echo, args=(connection,), daemon=True).start()
"""


@dataclass
class Outside:
    """What came, in its order."""

    seen: queue.Queue = field(default_factory=queue.Queue)

    def next(self) -> str:
        """What came next: "connection" or "datagram"."""
        return self.seen.get(timeout=_SECONDS)


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """Makes it, and takes all of it away again."""
    with contextlib.ExitStack() as stack:
        # With the namespace goes its end of the pair, and with that the other.
        _ip(f"netns add {_NAMESPACE}")
        stack.callback(_ip, f"netns delete {_NAMESPACE}")
        _ip(f"link add {_DEVICE} type veth peer name eth0 netns {_NAMESPACE}")
        stack.callback(_ip, f"link delete {_DEVICE}")
        _ip(f"addr add {_NEAR}/30 dev {_DEVICE}")
        _ip(f"link set {_DEVICE} up")
        for command in (
            "link set lo up",
            f"addr add {_FAR}/30 dev eth0",
            f"addr add {ADDRESS}/32 dev lo",
            "link set eth0 up",
            f"route add default via {_NEAR}",
        ):
            _ip(f"-n {_NAMESPACE} {command}")
        _ip(f"route add {ADDRESS}/32 via {_FAR}")
        command = ["ip", "netns", "exec", _NAMESPACE, sys.executable, "-c", _SERVE]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        found = Outside()
        reader = threading.Thread(target=_read, args=(server.stdout, found.seen), daemon=True)
        reader.start()
        # It reads to the end of what the server says, which its death ends.
        stack.callback(reader.join)
        stack.callback(server.kill)
        assert found.next() == "up"
        yield found


def _read(lines, seen: queue.Queue) -> None:
    for line in lines:
        seen.put(line.strip())


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, timeout=_SECONDS)

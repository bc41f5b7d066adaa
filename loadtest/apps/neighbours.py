"""A microVM among others on one host: who is called, who looks on, and who takes all it can get.

GET /                                   answers "ok"
GET /do?kinds=disk,log&seconds=30...    does each kind for so long, in a process of its own; answers what each got to

Every kind stays within the microVM: what it reaches is what its host lets it.
"""

import collections
import errno
import http.server
import ipaddress
import json
import multiprocessing
import os
import random
import resource
import socket
import struct
import time
import urllib.parse

PORT = 8080
CHUNK = 1 << 20
FILLER = "/var/tmp/filler"
# Connections that are kept open, as far as the kernel lets a process have files.
FLOWS_MAX = 16384
# Ports of a flow's far end, in turn.
FLOW_PORTS = (80, 443, 9)
ETH_P_ARP = 0x0806
ARP_REQUEST, ARP_REPLY = 1, 2
LINE = b"a line of a log that nobody wants to keep, " * 24 + b"\n"


def spin(until, _):
    """Uses the processor and nothing else: what every other kind is compared with."""
    rounds = 0
    while time.monotonic() < until:
        for _ in range(10_000):
            pass
        rounds += 10_000
    return {"rounds": rounds}


def disk(until, asked):
    """Writes its disk full, syncing all the while, and begins anew."""
    limit = int(asked["disk_mib"]) << 20
    chunk = os.urandom(CHUNK)
    written = syncs = full = 0
    file = os.open(FILLER, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        while time.monotonic() < until:
            try:
                written += os.write(file, chunk)
                os.fsync(file)
                syncs += 1
                filled = os.lseek(file, 0, os.SEEK_CUR) >= limit
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                filled = True
            if filled:
                full += 1
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
    finally:
        os.close(file)
        os.unlink(FILLER)
    return {"bytes": written, "syncs": syncs, "times_full": full}


def flows(until, asked):
    """Begins connections to as many addresses and ports as it can, and keeps them."""
    network = ipaddress.ip_network(asked["network"])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    keep = min(FLOWS_MAX, most - 64)
    kept = collections.deque()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setblocking(False)
    begun = refused = sent = 0
    while time.monotonic() < until:
        address = str(network[begun % network.num_addresses])
        port = FLOW_PORTS[begun % len(FLOW_PORTS)]
        if len(kept) >= keep:
            kept.popleft().close()
        flow = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        flow.setblocking(False)
        code = flow.connect_ex((address, port))
        refused += code not in (0, errno.EINPROGRESS)
        kept.append(flow)
        begun += 1
        try:
            datagrams.sendto(b"x", (address, port))
            sent += 1
        except OSError:
            # The guest's own queue is full.
            pass
    return {"begun": begun, "refused": refused, "opened": sum(map(connected, kept)), "datagrams": sent}


def connected(flow):
    try:
        flow.getpeername()
    except OSError:
        return False
    return True


def arp(until, _):
    """Asks and answers by ARP in the names of all addresses that its link might have."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
    link.bind(("eth0", ETH_P_ARP))
    with open("/sys/class/net/eth0/address", encoding="ascii") as stream:
        own = bytes.fromhex(stream.read().strip().replace(":", ""))
    gateway = socket.inet_aton(gateway_address())
    frames = dropped = 0
    while time.monotonic() < until:
        sender = struct.pack("!I", int.from_bytes(gateway, "big") & 0xFFFF0000 | random.getrandbits(16))
        hardware = b"\x02" + random.randbytes(5)
        kind = (ARP_REQUEST, ARP_REPLY)[frames % 2]
        target = gateway if frames % 4 < 2 else struct.pack("!I", random.getrandbits(32))
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, kind, hardware, sender, b"\xff" * 6, target)
        try:
            link.send(b"\xff" * 6 + own + struct.pack("!H", ETH_P_ARP) + body)
            frames += 1
        except OSError:
            dropped += 1
    return {"frames": frames, "dropped": dropped}


def gateway_address():
    with open("/proc/net/route", encoding="ascii") as stream:
        for line in stream:
            fields = line.split()
            if fields[1] == "00000000":
                return socket.inet_ntoa(struct.pack("<I", int(fields[2], 16)))
    raise RuntimeError("no default route")


def log(until, _):
    """Writes its log as fast as it is taken."""
    written = 0
    while time.monotonic() < until:
        written += os.write(1, LINE * 16)
    return {"bytes": written}


def dns(until, _):
    """Asks for names that nobody has, as fast as it can."""
    asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asker.connect((resolver_address(), 53))
    asker.setblocking(False)
    asked = answered = dropped = 0
    while time.monotonic() < until:
        label = b"x%012x" % random.getrandbits(48)
        name = bytes([len(label)]) + label + b"\x07invalid\x00"
        head = struct.pack("!HHHHHH", random.getrandbits(16), 0x0100, 1, 0, 0, 0)
        try:
            asker.send(head + name + struct.pack("!HH", 1, 1))
            asked += 1
        except OSError:
            dropped += 1
        answered += drained(asker)
    return {"asked": asked, "answered": answered, "dropped": dropped}


def drained(asker):
    count = 0
    try:
        while True:
            asker.recv(4096)
            count += 1
    except OSError:
        return count


def resolver_address():
    with open("/etc/resolv.conf", encoding="ascii") as stream:
        for line in stream:
            words = line.split()
            if words[:1] == ["nameserver"]:
                return words[1]
    raise RuntimeError("no resolver")


KINDS = {"cpu": spin, "disk": disk, "flows": flows, "arp": arp, "log": log, "dns": dns}


def carried_out(kind, asked, answer):
    try:
        answer.send(KINDS[kind](time.monotonic() + float(asked["seconds"]), asked))
    except Exception as error:  # told to whoever asked, and not lost with this process
        answer.send({"error": f"{type(error).__name__}: {error}"})


def do(asked):
    under_way = []
    for kind in asked["kinds"].split(","):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=carried_out, args=(kind, asked, theirs))
        process.start()
        theirs.close()
        under_way.append((kind, ours, process))
    done = {}
    for kind, ours, process in under_way:
        try:
            done[kind] = ours.recv()
        except EOFError:
            done[kind] = {"error": "its process ended"}
        process.join()
    return done


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one write: the kernel would hold the second back for the first's acknowledgement.
    wbufsize = 1 << 16

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        body = b"ok"
        if url.path == "/do":
            body = json.dumps(do(dict(urllib.parse.parse_qsl(url.query)))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()

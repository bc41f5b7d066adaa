"""An app that writes at a given rate, and says how fast it was and how long it stood still.

GET /                                                   answers "ok"
GET /write?what=memory&bytes_per_second=N&working_set=N writes over and over the same working set, until told otherwise
GET /written                                            what was written since the last time it was asked, and the longest gap
"""

import http.server
import json
import mmap
import multiprocessing
import os
import time
import urllib.parse

PORT = 8080
CHUNK = 256 * 1024
FILE = "/var/tmp/written"
# Longest rest between two writes, in seconds.
REST = 0.005


def write(what, rate, working_set, written, longest_gap):
    """Writes at `rate`, and never more to make up for a time in which it could not."""
    chunk = os.urandom(CHUNK)
    places = max(1, working_set // CHUNK)
    memory = mmap.mmap(-1, places * CHUNK) if what in ("memory", "both") else None
    file = os.open(FILE, os.O_RDWR | os.O_CREAT, 0o600) if what in ("disk", "both") else None
    place, due, before = 0, time.monotonic(), time.time()
    while True:
        at = place * CHUNK
        if memory is not None:
            memory[at : at + CHUNK] = chunk
        if file is not None:
            os.pwrite(file, chunk, at)
            os.fdatasync(file)
        with written.get_lock():
            written.value += CHUNK
        place = (place + 1) % places
        due = max(due + CHUNK / rate, time.monotonic() - REST)
        while True:
            # The wall clock is put right after a pause; the other one does not count it.
            now = time.time()
            with longest_gap.get_lock():
                longest_gap.value = max(longest_gap.value, now - before)
            before = now
            rest = due - time.monotonic()
            if rest <= 0:
                break
            time.sleep(min(rest, REST))


class Writer:
    def __init__(self):
        self.process = None
        self.reset()

    def reset(self):
        # Of this process alone: one that is killed may hold the locks of its own.
        self.written = multiprocessing.Value("q", 0)
        self.longest_gap = multiprocessing.Value("d", 0.0)
        self.since = time.monotonic()

    def begin(self, asked):
        self.end()
        self.reset()
        arguments = (asked["what"], int(asked["bytes_per_second"]), int(asked["working_set"]))
        counters = (self.written, self.longest_gap)
        self.process = multiprocessing.Process(target=write, args=arguments + counters, daemon=True)
        self.process.start()
        return self.taken()

    def end(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def taken(self):
        now = time.monotonic()
        with self.written.get_lock(), self.longest_gap.get_lock():
            told = {"bytes": self.written.value, "seconds": now - self.since, "gap_seconds": self.longest_gap.value}
            self.written.value, self.longest_gap.value = 0, 0.0
        self.since = now
        return told


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one write: the kernel would hold the second back for the first's acknowledgement.
    wbufsize = 1 << 16
    writer = Writer()

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        body = b"ok"
        if url.path == "/write":
            body = json.dumps(self.writer.begin(dict(urllib.parse.parse_qsl(url.query)))).encode()
        elif url.path == "/written":
            body = json.dumps(self.writer.taken()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()

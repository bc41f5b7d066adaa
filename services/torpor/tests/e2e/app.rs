//! The app the tests run: Python's standard library only, one file, made to show
//! a microVM's insides and to misbehave on request.

use std::io::{Cursor, Write as _};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// The Dockerfile of a well-behaved app. Every image of these tests shares its
/// first layers, so that only the first build pays for them.
pub const DOCKERFILE: &str = "\
FROM debian-12
RUN apt-get update && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib && rm -rf /var/lib/apt/lists/*
WORKDIR /srv
COPY app.py /srv/app.py
EXPOSE 8080
CMD [\"python3\", \"-u\", \"/srv/app.py\"]
";

/// The app. `GET /count` counts in memory; `/file` counts on disk.
pub const APP: &str = r#"
import json, os, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse, parse_qs

count = 0
hooks = []
READY = os.environ.get("READY_STATUS", "200")
RUN = os.environ.get("RUN_STATUS", "200")

def read(path):
    with open(path) as f:
        return f.read().strip()

def reach(host, port):
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(kind, socket.SOCK_STREAM)
    s.settimeout(1.0)
    try:
        s.connect((host, port))
        return "connected"
    except OSError as error:
        return "failed: %s" % error
    finally:
        s.close()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args):
        pass
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        hook = self.path.rsplit("/", 1)[-1]
        hooks.append([hook, body, self.client_address[0]])
        self.answer(int({"ready": READY, "run": RUN}.get(hook, "200")), {})
    def do_GET(self):
        global count
        url = urlparse(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        if url.path == "/count":
            count += 1
            self.answer(200, {"count": count, "pid": os.getpid()})
        elif url.path == "/file":
            n = int(read("/srv/n")) + 1 if os.path.exists("/srv/n") else 1
            with open("/srv/n", "w") as f:
                f.write(str(n))
            self.answer(200, {"count": n})
        elif url.path == "/identity":
            self.answer(200, {
                "uuid": read("/proc/sys/kernel/random/uuid"), "host": socket.gethostname(),
                "urandom": os.urandom(16).hex(), "machine": read("/etc/machine-id"), "time": time.time(),
                "uid": os.getuid(), "caps": [l for l in open("/proc/self/status") if l.startswith("CapEff")],
                "memory_kib": int(open("/proc/meminfo").readline().split()[1])})
        elif url.path == "/hooks":
            self.answer(200, {"hooks": hooks})
        elif url.path == "/headers":
            self.answer(200, {"headers": {k.lower(): v for k, v in self.headers.items()}})
        elif url.path == "/environment":
            self.answer(200, {"environment": dict(os.environ)})
        elif url.path == "/reach":
            self.answer(200, {"result": reach(query["host"], int(query["port"]))})
        elif url.path == "/awake":
            with socket.socket(socket.AF_UNIX) as s:
                s.connect("/run/torpor/awake.sock")
                head = "PUT /keep-awake HTTP/1.1\r\nHost: torpor\r\nContent-Length: %d\r\n\r\n"
                s.sendall((head % len(query["seconds"]) + query["seconds"]).encode())
                self.answer(200, {"status": int(s.makefile().readline().split()[1])})
        elif url.path == "/fill":
            with open("/srv/fill", "wb") as f:
                for _ in range(int(query["mib"])):
                    f.write(os.urandom(1 << 20))
                f.flush(); os.fsync(f.fileno())
            self.answer(200, {})
        elif url.path == "/memory":
            global held
            held = bytearray(os.urandom(1 << 20) * int(query["mib"]))
            self.answer(200, {})
        elif url.path == "/flood":
            def flood(seconds):
                line = "x" * 1023 + "\n"
                end = time.time() + seconds
                while time.time() < end:
                    sys.stdout.write(line * 64)
            threading.Thread(target=flood, args=(float(query["seconds"]),), daemon=True).start()
            self.answer(200, {})
        elif url.path == "/say":
            print(query["text"], flush=True)
            self.answer(200, {})
        elif url.path == "/exit":
            self.answer(200, {})
            self.wfile.flush()
            threading.Timer(0.2, lambda: os._exit(3)).start()
        elif url.path == "/sysrq":
            self.answer(200, {})
            self.wfile.flush()
            def trigger():
                open("/proc/sysrq-trigger", "w").write(query["key"])
            threading.Timer(0.2, trigger).start()
        else:
            self.answer(404, {"path": url.path})

if os.environ.get("EXIT_AT_ONCE"):
    sys.exit(7)
if os.environ.get("NEVER_LISTEN"):
    time.sleep(86400)
print("listening", flush=True)
ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"#;

/// The app's zip with another Dockerfile.
pub fn zip_with(dockerfile: &str) -> Vec<u8> {
    zip_of(&[("Dockerfile", dockerfile.as_bytes()), ("app.py", APP.as_bytes())])
}

pub fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

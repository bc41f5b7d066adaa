"""A small server that becomes the real one: told to start, it answers 503, closes its listener and executes itself anew.
The process id stays, and for two seconds nothing listens.
"""

import json
import os
import socket
import sys
import time

real = sys.argv[1] == "real"
if real:
    time.sleep(2)
listener = socket.create_server(("0.0.0.0", 8090))
starting = False
while not starting:
    connection, _ = listener.accept()
    with connection:
        # To the head's end, or to that of a connection without one.
        lines = list(iter(lambda reader=connection.makefile("rb"): reader.readline().strip(), b""))
        starting = any(line.lower() == b"x-start: 1" for line in lines)
        if starting:
            listener.close()
        body = "starting" if starting else json.dumps({"pid": os.getpid(), "real": real})
        status = "503 Starting" if starting else "200 OK"
        head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
os.execv(sys.executable, [sys.executable, sys.argv[0], "real"])

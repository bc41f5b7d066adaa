"""A counter in memory: what survives a sleep, and what is its own in each microVM."""

import itertools
import os
import socket

from flask import Flask, jsonify

app = Flask(__name__)
counter = itertools.count(1)


@app.get("/")
def index():
    return jsonify(count=next(counter), host=socket.gethostname())


@app.get("/identity")
def identity():
    """Things that two microVMs of one image must not share."""
    with open("/proc/sys/kernel/random/uuid", encoding="ascii") as stream:
        kernel = stream.read().strip()
    with open("/etc/machine-id", encoding="ascii") as stream:
        machine = stream.read().strip()
    return jsonify(
        host=socket.gethostname(), machine=machine, kernel_uuid=kernel, random=os.urandom(16).hex()
    )

"""Writes botocore-requests.json: requests as botocore signs and sends them.

    python generate.py        (needs boto3 with the lambda-microvms model)

Nothing leaves the machine: a socket on the loopback interface takes each
request's bytes and answers with an empty object. Credentials and clock are
fixed. Signed by the service's own client where an operation can say it, and by
botocore's signer alone where only odder requests can.
"""

import datetime
import http.client
import json
import pathlib
import socket
import threading

import boto3
import botocore
import botocore.auth
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

PORT = 38711
HOST = f"localhost:{PORT}"
REGION = "us-east-1"
KEY = "AKIATORPOREXAMPLE001"
SECRET = "bW9ja2luZ2JpcmRz/c2Vjcm+ldHNlY3JldDAwMDE"
TOKEN = "Rk9P//session+token=="
NOW = datetime.datetime(2026, 3, 1, 23, 59, 58, tzinfo=datetime.timezone.utc)

ACCOUNT = "arn:aws:lambda:us-east-1:000000000000"
IMAGE = f"{ACCOUNT}:microvm-image:web-1"
CONNECTOR = f"{ACCOUNT}:network-connector:office"
ROLE = "arn:aws:iam::000000000000:role/build"
BASE = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1"
VM = "mvm-0123456789abcdef0"

OPERATIONS = [
    ("create_microvm_auth_token", dict(microvmIdentifier=VM, expirationInMinutes=15, allowedPorts=[{"port": 8080}])),
    ("create_microvm_image", dict(name="web-1", baseImageArn=BASE, buildRoleArn=ROLE, clientToken="token-1",
                                  description="caf\u00e9 \u2615 \"quoted\"", codeArtifact={"uri": "s3://code/web.zip"},
                                  tags={"team": "a b+c", "\u00e9": ""})),
    ("create_microvm_shell_auth_token", dict(microvmIdentifier=VM, expirationInMinutes=1)),
    ("delete_microvm_image", dict(imageIdentifier=IMAGE)),
    ("delete_microvm_image_version", dict(imageIdentifier=IMAGE, imageVersion="3")),
    ("get_microvm", dict(microvmIdentifier=VM)),
    ("get_microvm", dict(microvmIdentifier="a name/with every~thing (odd)!*'&=?#%25+\u00e9")),
    ("get_microvm_image", dict(imageIdentifier="web-1")),
    ("get_microvm_image", dict(imageIdentifier=IMAGE)),
    ("get_microvm_image_build", dict(imageIdentifier=IMAGE, imageVersion="1", buildId="build-1")),
    ("get_microvm_image_version", dict(imageIdentifier=IMAGE, imageVersion="$LATEST")),
    ("list_managed_microvm_images", dict(maxResults=50)),
    ("list_managed_microvm_image_versions", dict(imageIdentifier=BASE, nextToken="a+b/c==")),
    ("list_microvm_image_builds", dict(imageIdentifier=IMAGE, imageVersion="1", maxResults=1)),
    ("list_microvm_image_versions", dict(imageIdentifier=IMAGE)),
    ("list_microvm_images", {}),
    ("list_microvm_images", dict(nameFilter="we b&=+%2F~\u00e9", nextToken="zzz", maxResults=7)),
    ("list_microvms", dict(imageIdentifier=IMAGE, imageVersion="2", maxResults=10)),
    ("list_tags", dict(Resource=IMAGE)),
    ("resume_microvm", dict(microvmIdentifier=VM)),
    ("run_microvm", dict(imageIdentifier=IMAGE, imageVersion="1", clientToken="token-2",
                         runHookPayload="{\"x\": \"\u00fc\"}")),
    ("suspend_microvm", dict(microvmIdentifier=VM)),
    ("tag_resource", dict(Resource=IMAGE, Tags={"k": "v", "stage/x": "a=b"})),
    ("terminate_microvm", dict(microvmIdentifier=VM)),
    ("untag_resource", dict(Resource=IMAGE, TagKeys=["b", "a", "stage/x", "with space", "plus+", "\u00e9"])),
    ("update_microvm_image", dict(imageIdentifier=IMAGE, baseImageArn=BASE, buildRoleArn=ROLE, clientToken="token-3",
                                  codeArtifact={"uri": "s3://code/web.zip"})),
    ("update_microvm_image_version", dict(imageIdentifier=IMAGE, imageVersion="1", status="INACTIVE")),
]

CORE_OPERATIONS = [
    ("create_network_connector", dict(Name="office", ClientToken="token-4", OperatorRole=ROLE, Configuration={
        "VpcEgressConfiguration": {"SubnetIds": ["subnet-0123456789abcdef0"],
                                   "SecurityGroupIds": ["sg-0123456789abcdef0"], "NetworkProtocol": "IPv4",
                                   "AssociatedComputeResourceTypes": ["MicroVm"]}})),
    ("get_network_connector", dict(Identifier=CONNECTOR)),
    ("list_network_connectors", dict(MaxItems=5)),
    ("list_network_connector_versions", dict(Identifier=CONNECTOR, Marker="m==")),
    ("update_network_connector", dict(Identifier="office", ClientToken="token-5")),
    ("delete_network_connector", dict(Identifier=CONNECTOR)),
]

# name, method, path and query, headers, body
BY_HAND = [
    ("HEAD", "HEAD", "/2025-09-09/microvms", [], b""),
    ("OPTIONS", "OPTIONS", "/", [], b""),
    ("an ARN with raw colons", "GET", f"/2025-09-09/microvm-images/{IMAGE}", [], b""),
    ("an ARN half encoded", "GET", "/2025-09-09/microvm-images/arn%3aaws:lambda%3Aus-east-1", [], b""),
    ("a final slash", "GET", "/2025-09-09/microvms/", [], b""),
    ("sub-delimiters in the path", "GET", "/a/!$&'()*+,;=@b/-._~", [], b""),
    ("empty values", "GET", "/2025-09-09/microvms?nextToken=&a=", [], b""),
    ("keys that begin alike", "DELETE", "/2017-03-31/tags/x?tagKeys=b&tagKeys=a&tagKeys=a&tagKey=z&tagKeys-=0&tagKeys2=1", [], b""),
    ("encoded keys", "DELETE", "/2017-03-31/tags/x?tag%20Keys=b%2Bc&tag%20Keys=%20&%C3%A9=%E2%98%95", [], b""),
    ("upper and lower case", "GET", "/x?b=1&B=2&a=3&A=4&_=5&~=6&-=7&.=8&0=9", [], b""),
    ("spaces in a header", "POST", "/2025-09-09/microvms", [("X-Amz-Meta", "  a   b\t c  "), ("Content-Type", "application/json; charset=utf-8")], b"{}"),
    ("a header sent twice", "POST", "/2025-09-09/microvms", [("X-Amz-Meta", "z"), ("X-Amz-Meta", "a"), ("X-Amz-Meta", " m  n ")], b"{}"),
    ("an empty header", "POST", "/2025-09-09/microvms", [("X-Amz-Meta", "")], b"{}"),
    ("a header that repeats the host", "GET", "/2025-09-09/microvms", [("X-Amz-Meta", HOST)], b""),
    ("Date instead of X-Amz-Date", "GET", "/2025-09-09/microvms", [("Date", "set by the signer")], b""),
    ("a declared hash", "POST", "/2025-09-09/microvms",
     [("X-Amz-Content-SHA256", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")], b"{}"),
    ("an unsigned payload", "POST", "/2025-09-09/microvms", [("X-Amz-Content-SHA256", "UNSIGNED-PAYLOAD")], b"{\"any\": 1}"),
    ("a body of all bytes", "PUT", "/2025-09-09/microvms", [("Content-Type", "application/octet-stream")], bytes(range(256))),
]

PRESIGNED = [
    ("presigned", "GET", "/2025-09-09/microvms?maxResults=5", [], 300),
    ("presigned for a second", "GET", f"/2025-09-09/microvm-images/{IMAGE.replace(':', '%3A')}", [], 1),
    ("presigned for a week", "DELETE", f"/2025-09-09/microvm-images/{IMAGE}", [], 604800),
    ("presigned with a header", "POST", "/2025-09-09/microvms/x/suspend", [("X-Amz-Meta", "a  b")], 60),
    ("presigned odd values", "GET", "/2025-09-09/microvms?nameFilter=a%20b%2Bc%26d%3De&nextToken=", [], 60),
]

# Never signed, and of this machine or of this run.
VARYING = ("user-agent", "amz-sdk-invocation-id")


class Taker:
    """Takes one request at a time from the socket, whole, and answers `{}`."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", PORT))
        self.taken = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head, body = data.split(b"\r\n\r\n", 1)
                line, *lines = head.split(b"\r\n")
                headers = [tuple(part.decode("latin-1") for part in line.split(b": ", 1)) for line in lines]
                headers = [pair for pair in headers if pair[0].lower() not in VARYING]
                length = next((int(v) for k, v in headers if k.lower() == "content-length"), 0)
                while len(body) < length:
                    body += connection.recv(65536)
                method, target, _ = line.decode("ascii").split(" ")
                path, _, query = target.partition("?")
                self.taken.append(dict(method=method, path=path, query=query, headers=headers, body=body.hex()))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


def send(method, target, headers, body):
    connection = http.client.HTTPConnection("localhost", PORT)
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    connection.getresponse().read()
    connection.close()


def main():
    botocore.auth.get_current_datetime = lambda *_, **__: NOW
    taker = Taker()
    cases = []

    def took(name):
        (request,) = taker.taken
        taker.taken.clear()
        cases.append(dict(name=name, **request))

    for token in (None, TOKEN):
        session = boto3.Session(aws_access_key_id=KEY, aws_secret_access_key=SECRET, aws_session_token=token, region_name=REGION)
        clients = [
            (session.client(name, endpoint_url=f"http://{HOST}", config=Config(parameter_validation=False, retries={"max_attempts": 0})), operations)
            for name, operations in (("lambda-microvms", OPERATIONS), ("lambda-core", CORE_OPERATIONS))
        ]
        for client, operations in clients:
            for method, parameters in operations if token is None else operations[:3]:
                getattr(client, method)(**parameters)
                took(f"{method}{' with a session token' if token else ''}")
            for method, parameters in operations[1:12] if token is None else operations[5:6]:
                if not method.startswith(("get", "list", "delete")):
                    continue
                url = client.generate_presigned_url(method, Params=parameters, ExpiresIn=900)
                verb = "DELETE" if method.startswith("delete") else "GET"
                send(verb, url.removeprefix(f"http://{HOST}"), [], b"")
                took(f"{method} presigned{' with a session token' if token else ''}")

    credentials = Credentials(KEY, SECRET)
    for name, method, target, headers, body in BY_HAND:
        request = AWSRequest(method, f"http://{HOST}{target}", data=body)
        for header, value in headers:
            request.headers.add_header(header, value)
        SigV4Auth(credentials, "lambda", REGION).add_auth(request)
        send(method, target, request.headers.items(), body)
        took(name)
    for name, method, target, headers, expires in PRESIGNED:
        request = AWSRequest(method, f"http://{HOST}{target}")
        for header, value in headers:
            request.headers.add_header(header, value)
        SigV4QueryAuth(credentials, "lambda", REGION, expires).add_auth(request)
        send(method, request.url.removeprefix(f"http://{HOST}"), request.headers.items(), b"")
        took(name)

    document = dict(signer=f"botocore {botocore.__version__}", access_key_id=KEY, secret_access_key=SECRET, session_token=TOKEN,
                    region=REGION, service="lambda", signed_at=int(NOW.timestamp()), requests=cases)
    path = pathlib.Path(__file__).with_name("botocore-requests.json")
    path.write_text(json.dumps(document, indent=1, ensure_ascii=True) + "\n")
    print(len(cases), "requests")


main()

"""Who is let in: signatures in headers and queries, their age, and every way in which one is not good."""

import re

import pytest

from rig.fleet import Fleet
from rig.waiting import until
from rig.wire import Answer, Prepared, Signing, Wire

IMAGES = "/2025-09-09/microvm-images"
MICROVMS = "/2025-09-09/microvms"
MISMATCH = (
    "The request signature we calculated does not match the signature you provided. "
    "Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
)
SKEW_SECONDS = 5 * 60


def refused(answer: Answer, error: str, message: str | None = None) -> None:
    """A 403 of this class."""
    assert (answer.status, answer.error) == (403, error), answer
    if message is not None:
        assert answer.message == message


def test_a_signature_in_the_headers(wire: Wire) -> None:
    assert wire.request("GET", IMAGES).status == 200


@pytest.mark.parametrize("seconds", [1, 60, 604800])
def test_a_signature_in_the_query(wire: Wire, seconds: int) -> None:
    assert wire.request("GET", IMAGES, query="maxResults=1", signing=Signing(presigned_for=seconds)).status == 200


@pytest.mark.parametrize("seconds", [0, 604801, -1])
def test_a_signature_in_the_query_for_too_long(wire: Wire, seconds: int) -> None:
    refused(wire.request("GET", IMAGES, signing=Signing(presigned_for=seconds)), "IncompleteSignatureException")


def test_an_unsigned_payload(wire: Wire) -> None:
    signing = Signing(unsigned_payload=True)
    answer = wire.request("POST", MICROVMS, {"imageIdentifier": "bare"}, signing=signing)
    # It came through to the operation.
    assert (answer.status, answer.error) == (400, "ValidationException"), answer


def test_a_key_that_nobody_has(wire: Wire) -> None:
    answer = wire.request("GET", IMAGES, signing=Signing(key=("AKIAAAAAAAAAAAAAAAAA", "x" * 40)))
    refused(answer, "UnrecognizedClientException", "The security token included in the request is invalid.")


def test_another_secret(wire: Wire, fleet: Fleet) -> None:
    signing = Signing(key=(fleet.variables["AWS_ACCESS_KEY_ID"], "x" * 40))
    refused(wire.request("GET", IMAGES, signing=signing), "InvalidSignatureException", MISMATCH)


def test_a_session_token(wire: Wire) -> None:
    answer = wire.request("GET", IMAGES, signing=Signing(session_token="a session that is none"))
    refused(answer, "UnrecognizedClientException")


def test_another_region(wire: Wire) -> None:
    answer = wire.request("GET", IMAGES, signing=Signing(region="mars-north-1"))
    refused(answer, "InvalidSignatureException")
    assert "valid region" in answer.message


@pytest.mark.parametrize("skew", [-(SKEW_SECONDS - 30), SKEW_SECONDS - 30])
def test_clocks_may_differ(wire: Wire, skew: int) -> None:
    assert wire.request("GET", IMAGES, signing=Signing(skew=skew)).status == 200


@pytest.mark.parametrize(
    ("skew", "start"), [(-SKEW_SECONDS - 30, "Signature expired: "), (SKEW_SECONDS + 30, "Signature not yet current: ")]
)
def test_clocks_may_not_differ_more(wire: Wire, skew: int, start: str) -> None:
    answer = wire.request("GET", IMAGES, signing=Signing(skew=skew))
    refused(answer, "InvalidSignatureException")
    assert answer.message.startswith(start)
    assert re.search(r"\d{8}T\d{6}Z .* 5 min\.\)$", answer.message), answer.message


def test_a_signature_is_not_good_for_ever(wire: Wire) -> None:
    """What was let in once is refused when its time is over."""
    prepared = wire.prepare("GET", IMAGES, signing=Signing(presigned_for=2))
    assert wire.send(prepared).status == 200

    def no_longer_good() -> Answer | None:
        answer = wire.send(prepared)
        return None if answer.status == 200 else answer

    answer = until("a signature for two seconds to be over", no_longer_good, within=15)
    refused(answer, "InvalidSignatureException")
    assert answer.message.startswith("Signature expired: ")


def test_no_signature(wire: Wire) -> None:
    answer = wire.send(Prepared("GET", IMAGES, {}))
    refused(answer, "MissingAuthenticationTokenException", "Missing Authentication Token")


@pytest.mark.parametrize(
    "authorization",
    [
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=x",
        "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/lambda/aws4_request, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=AKIA, SignedHeaders=host, Signature=00",
        "AWS4-ECDSA-P256-SHA256 Credential=AKIA/20260101/us-east-1/lambda/aws4_request, SignedHeaders=host, Signature=0",
        "Bearer something",
        "Basic eDp5",
    ],
)
def test_half_a_signature(wire: Wire, authorization: str) -> None:
    good = wire.prepare("GET", IMAGES)
    answer = wire.send(Prepared("GET", IMAGES, good.headers | {"Authorization": authorization}))
    assert answer.status == 403, answer
    assert answer.error in ("IncompleteSignatureException", "MissingAuthenticationTokenException"), answer


def test_a_signature_without_its_date(wire: Wire) -> None:
    prepared = wire.prepare("GET", IMAGES)
    del prepared.headers["X-Amz-Date"]
    refused(wire.send(prepared), "IncompleteSignatureException")


@pytest.mark.parametrize("part", ["path", "query", "method", "body", "header", "signature"])
def test_what_was_signed_is_what_counts(wire: Wire, part: str) -> None:
    prepared = wire.prepare("POST", MICROVMS, {"imageIdentifier": "bare"}, query="a=1")
    if part == "path":
        prepared.target = prepared.target.replace("/microvms", "/microvm-images")
    elif part == "query":
        prepared.target = prepared.target.replace("a=1", "a=2")
    elif part == "method":
        prepared.method = "PUT"
    elif part == "body":
        prepared.body = prepared.body.replace(b"bare", b"rare")
    elif part == "header":
        prepared.headers["Content-Type"] = "text/plain"
    else:
        authorization = prepared.headers["Authorization"]
        last = "0" if authorization[-1] != "0" else "1"
        prepared.headers["Authorization"] = authorization[:-1] + last
    refused(wire.send(prepared), "InvalidSignatureException", MISMATCH)


def test_headers_that_must_be_signed(wire: Wire) -> None:
    """An X-Amz header that the signature does not cover could have been added by anybody."""
    prepared = wire.prepare("GET", IMAGES)
    prepared.headers["X-Amz-Target"] = "something"
    answer = wire.send(prepared)
    refused(answer, "InvalidSignatureException")


def test_two_dates(wire: Wire) -> None:
    prepared = wire.prepare("GET", IMAGES)
    prepared.raw_headers.append(("X-Amz-Date", "20260101T000000Z"))
    assert wire.send(prepared).status == 403


def test_refusals_say_nothing_of_the_key(wire: Wire, fleet: Fleet) -> None:
    secret = fleet.variables["AWS_SECRET_ACCESS_KEY"].encode()
    for signing in (Signing(key=(fleet.variables["AWS_ACCESS_KEY_ID"], "x")), Signing(region="x"), Signing(skew=-9999)):
        answer = wire.request("GET", IMAGES, signing=signing)
        assert answer.status == 403 and secret not in answer.body

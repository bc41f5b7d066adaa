"""Whose key it is, as set-up tools ask STS before anything else."""

import pytest
from botocore.exceptions import ClientError

from rig.clients import Boto, Cli, refusal
from rig.fleet import Fleet
from rig.journal import Journal


def test_boto3_learns_whose_key_it_has(boto: Boto, fleet: Fleet) -> None:
    answer = boto.client("sts").get_caller_identity()
    assert answer["Account"] == fleet.account
    assert answer["UserId"] == fleet.variables["AWS_ACCESS_KEY_ID"]
    assert answer["Arn"].startswith(f"arn:aws:iam::{fleet.account}:user/")


def test_the_cli_learns_the_same(aws: Cli, boto: Boto) -> None:
    expected = boto.client("sts").get_caller_identity()
    del expected["ResponseMetadata"]
    assert aws("sts", "get-caller-identity") == expected


@pytest.mark.parametrize(
    ("key", "code"),
    [(None, "SignatureDoesNotMatch"), ("AKIANOBODY0000000000", "InvalidClientTokenId")],
)
def test_strangers_are_refused(fleet: Fleet, journal: Journal, key: str | None, code: str) -> None:
    stranger = Boto(fleet, journal, (key or fleet.variables["AWS_ACCESS_KEY_ID"], "x" * 40))
    with pytest.raises(ClientError) as refused:
        stranger.client("sts").get_caller_identity()
    assert refusal(refused.value)[:2] == (403, code)


def test_other_operations_are_unknown(boto: Boto, fleet: Fleet) -> None:
    with pytest.raises(ClientError) as refused:
        boto.client("sts").assume_role(RoleArn=fleet.role_arn, RoleSessionName="test")
    assert refusal(refused.value)[:2] == (400, "InvalidAction")

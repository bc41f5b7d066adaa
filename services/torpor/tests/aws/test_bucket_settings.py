"""The settings of buckets that set-up tools put and look at again: kept and shown by the embedded S3."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from botocore.exceptions import ClientError

from rig.clients import Boto, refusal
from rig.fleet import Fleet

POLICY = json.dumps({"Version": "2012-10-17", "Statement": []})


@dataclass(frozen=True)
class Setting:
    """One setting: its operations, what is put, what is shown, and the error of one that nobody put."""

    put: str
    get: str
    delete: str
    document: dict
    unset: str


SETTINGS = {
    "public-access-block": Setting(
        "put_public_access_block",
        "get_public_access_block",
        "delete_public_access_block",
        {
            "PublicAccessBlockConfiguration": {
                "BlockPublicAcls": True,
                "IgnorePublicAcls": True,
                "BlockPublicPolicy": True,
                "RestrictPublicBuckets": True,
            }
        },
        "NoSuchPublicAccessBlockConfiguration",
    ),
    "encryption": Setting(
        "put_bucket_encryption",
        "get_bucket_encryption",
        "delete_bucket_encryption",
        {
            "ServerSideEncryptionConfiguration": {
                "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": True}]
            }
        },
        "ServerSideEncryptionConfigurationNotFoundError",
    ),
    "lifecycle": Setting(
        "put_bucket_lifecycle_configuration",
        "get_bucket_lifecycle_configuration",
        "delete_bucket_lifecycle",
        {
            "LifecycleConfiguration": {
                "Rules": [{"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "a/"}, "Expiration": {"Days": 7}}]
            }
        },
        "NoSuchLifecycleConfiguration",
    ),
    "tagging": Setting(
        "put_bucket_tagging",
        "get_bucket_tagging",
        "delete_bucket_tagging",
        {"Tagging": {"TagSet": [{"Key": "team", "Value": "a"}]}},
        "NoSuchTagSet",
    ),
    "policy": Setting(
        "put_bucket_policy", "get_bucket_policy", "delete_bucket_policy", {"Policy": POLICY}, "NoSuchBucketPolicy"
    ),
    "ownership-controls": Setting(
        "put_bucket_ownership_controls",
        "get_bucket_ownership_controls",
        "delete_bucket_ownership_controls",
        {"OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}},
        "OwnershipControlsNotFoundError",
    ),
}
# The answers of these have the members of the document, not the document.
UNWRAPPED = {"LifecycleConfiguration", "Tagging"}


@pytest.fixture(scope="module")
def bucket(boto: Boto, fleet: Fleet) -> Iterator[str]:
    """A bucket of this module's own."""
    name = fleet.name("settings")
    boto.s3.create_bucket(Bucket=name)
    yield name
    boto.s3.delete_bucket(Bucket=name)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_is_put_is_shown_until_it_is_deleted(boto: Boto, bucket: str, setting: Setting) -> None:
    s3 = boto.s3

    def unset() -> None:
        with pytest.raises(ClientError) as refused:
            getattr(s3, setting.get)(Bucket=bucket)
        assert refusal(refused.value)[:2] == (404, setting.unset)

    unset()
    getattr(s3, setting.put)(Bucket=bucket, **setting.document)
    ((name, document),) = setting.document.items()
    shown = getattr(s3, setting.get)(Bucket=bucket)
    assert {k: v for k, v in shown.items() if k != "ResponseMetadata"} == (
        document if name in UNWRAPPED else {name: document}
    )
    for _ in range(2):
        getattr(s3, setting.delete)(Bucket=bucket)
        unset()


def test_versioning_is_off_until_it_is_put(boto: Boto, bucket: str) -> None:
    assert "Status" not in boto.s3.get_bucket_versioning(Bucket=bucket)
    for status in ("Enabled", "Suspended"):
        boto.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})
        assert boto.s3.get_bucket_versioning(Bucket=bucket)["Status"] == status


def test_a_bucket_that_is_not_there(boto: Boto, fleet: Fleet) -> None:
    for get in ("get_bucket_versioning", "get_bucket_tagging", "get_bucket_policy"):
        with pytest.raises(ClientError) as refused:
            getattr(boto.s3, get)(Bucket=fleet.name("never-was"))
        assert refusal(refused.value)[:2] == (404, "NoSuchBucket")


def test_objects_are_where_they_were(boto: Boto, bucket: str) -> None:
    boto.s3.put_object(Bucket=bucket, Key="key", Body=b"content")
    assert [item["Key"] for item in boto.s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["key"]
    assert boto.s3.get_object(Bucket=bucket, Key="key")["Body"].read() == b"content"
    boto.s3.delete_object(Bucket=bucket, Key="key")

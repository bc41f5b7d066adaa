"""Images that tests make, share and remove again."""

from dataclasses import dataclass

from botocore.exceptions import ClientError

from . import apps
from .clients import Boto, refusal
from .fleet import Fleet
from .waiting import until

BUILD_SECONDS = 300.0
SETTLED = ("CREATED", "CREATE_FAILED", "UPDATED", "UPDATE_FAILED", "DELETE_FAILED")
# All the app's hooks, on the app's own port.
EVERY_HOOK = {
    "port": 8080,
    "microvmHooks": {
        "run": "ENABLED",
        "runTimeoutInSeconds": 20,
        "resume": "ENABLED",
        "resumeTimeoutInSeconds": 20,
        "suspend": "ENABLED",
        "suspendTimeoutInSeconds": 20,
        "terminate": "ENABLED",
        "terminateTimeoutInSeconds": 20,
    },
    "microvmImageHooks": {
        "ready": "ENABLED",
        "readyTimeoutInSeconds": 120,
        "validate": "ENABLED",
        "validateTimeoutInSeconds": 120,
    },
}
# What the answer to a create has, as recorded from the live service.
CREATED_MEMBERS = {
    "additionalOsCapabilities",
    "baseImageArn",
    "baseImageVersion",
    "buildPhaseOverrides",
    "buildRoleArn",
    "codeArtifact",
    "cpuConfigurations",
    "createdAt",
    "description",
    "egressNetworkConnectors",
    "environmentVariables",
    "hooks",
    "id",
    "imageArn",
    "imageVersion",
    "latestActiveImageVersion",
    "latestFailedImageVersion",
    "logging",
    "name",
    "resources",
    "roleConfiguration",
    "state",
    "tags",
    "updatedAt",
}
READY_HOOK = {"port": 8080, "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 120}}


@dataclass(frozen=True)
class Image:
    """An image by its two names."""

    name: str
    arn: str


class Images:
    """Makes images and knows them for the end."""

    def __init__(self, fleet: Fleet, boto: Boto) -> None:
        self.fleet = fleet
        self.api = boto.microvms
        self._s3 = boto.s3
        self._made: dict[str, Image] = {}

    def upload(self, label: str, data: bytes) -> str:
        """Puts an artifact into the fleet's bucket and returns its URI."""
        key = f"aws-tests/{self.fleet.tag}/{label}.zip"
        self._s3.put_object(Bucket=self.fleet.bucket, Key=key, Body=data)
        return f"s3://{self.fleet.bucket}/{key}"

    def app(self) -> str:
        """URI of the well-behaved app."""
        return self.upload("app", apps.app_zip())

    def absent(self) -> str:
        """URI of an artifact that is not there: its build fails at the first step, within a second."""
        return f"s3://{self.fleet.bucket}/aws-tests/absent.zip"

    def slow(self) -> str:
        """URI of an artifact whose build takes some seconds and fails then: for what happens meanwhile."""
        dockerfile = "FROM debian-12\nRUN sleep 5 && exit 1\n"
        return self.upload("slow", apps.zip_of({"Dockerfile": dockerfile}))

    def configuration(self, uri: str, **changes) -> dict:
        """Members that every create and update needs, with the smallest memory; `None` takes a member out."""
        members = {
            "baseImageArn": self.fleet.base_arn,
            "buildRoleArn": self.fleet.role_arn,
            "codeArtifact": {"uri": uri},
            "resources": [{"minimumMemoryInMiB": 512}],
        } | changes
        return {name: value for name, value in members.items() if value is not None}

    def create(self, label: str, uri: str, **changes) -> dict:
        """Creates an image and returns the answer.

        Waits while the account builds as much as it may: five at once, which other tests may take up.
        """
        name = self.fleet.name(label)
        arguments = self.configuration(uri, **changes)

        def ask():
            try:
                return self.api.create_microvm_image(name=name, **arguments)
            except ClientError as error:
                if "concurrent builds" in refusal(error)[2]:
                    return None
                raise

        answer = until(f"{name} to be taken for building", ask, within=BUILD_SECONDS, every=0.5)
        self.note(Image(name, answer["imageArn"]))
        return answer

    def note(self, image: Image) -> None:
        """An image to be removed at the end."""
        self._made[image.arn] = image

    def build(self, label: str, uri: str, **changes) -> Image:
        """Creates an image and waits until its first version is built."""
        answer = self.create(label, uri, **changes)
        self.settled(answer["imageArn"], "CREATED")
        return Image(answer["name"], answer["imageArn"])

    def broken(self, label: str, **changes) -> Image:
        """An image whose only build failed: quick to have where no microVM is needed."""
        answer = self.create(label, self.absent(), **changes)
        self.settled(answer["imageArn"], "CREATE_FAILED")
        return Image(answer["name"], answer["imageArn"])

    def settled(self, arn: str, state: str | None = None) -> dict:
        """Waits until nothing is built, and checks the state that came of it."""

        def ask():
            image = self.api.get_microvm_image(imageIdentifier=arn)
            return image if image["state"] in SETTLED else None

        image = until(f"{arn} to be built", ask, within=BUILD_SECONDS)
        assert state in (None, image["state"]), f"{arn}: {image['state']}, {self.why(arn)}"
        return image

    def builds(self, arn: str, version: str = "1.0") -> list[dict]:
        """Builds of a version in full, newest first."""
        items = self.api.list_microvm_image_builds(imageIdentifier=arn, imageVersion=version)["items"]
        return [
            self.api.get_microvm_image_build(imageIdentifier=arn, imageVersion=version, buildId=item["buildId"])
            for item in items
        ]

    def why(self, arn: str) -> str:
        """What the builds say, for a failure's text."""
        versions = self.api.list_microvm_image_versions(imageIdentifier=arn)["items"]
        return "; ".join(
            f"{version['imageVersion']}: {build['buildState']} {build.get('stateReason')}"
            for version in versions
            for build in self.builds(arn, version["imageVersion"])
        )

    def delete(self, arn: str) -> None:
        """Deletes an image and waits until it is gone."""
        until(f"{arn} to be deletable", lambda: self._deleting(arn), within=BUILD_SECONDS)
        until(f"{arn} to be gone", lambda: self.gone(arn))
        self._made.pop(arn, None)

    def _deleting(self, arn: str) -> bool:
        try:
            self.api.delete_microvm_image(imageIdentifier=arn)
        except ClientError as error:
            # Its build or its microVMs are still ending; anything else fails the wait by its message.
            if refusal(error)[1] == "ValidationException":
                return False
            if refusal(error)[1] != "ResourceNotFoundException":
                raise
        return True

    def gone(self, arn: str) -> bool:
        """Whether reading it answers 404."""
        try:
            self.api.get_microvm_image(imageIdentifier=arn)
        except ClientError as error:
            assert refusal(error)[:2] == (404, "ResourceNotFoundException"), error
            return True
        return False

    def remove_all(self) -> None:
        """Ends every microVM of these images and deletes the images, all at once."""
        for arn in self._made:
            self._end_microvms(arn)
        for arn in self._made:
            until(f"{arn} to be deletable", lambda arn=arn: self._deleting(arn), within=BUILD_SECONDS)
        for arn in self._made:
            until(f"{arn} to be gone", lambda arn=arn: self.gone(arn))
        self._made.clear()

    def _end_microvms(self, arn: str) -> None:
        try:
            pages = list(self.api.get_paginator("list_microvms").paginate(imageIdentifier=arn))
        except ClientError as error:
            # A test deleted it itself.
            if refusal(error)[1] == "ResourceNotFoundException":
                return
            raise
        for page in pages:
            for item in page["items"]:
                if item["state"] != "TERMINATED":
                    self.api.terminate_microvm(microvmIdentifier=item["microvmId"])

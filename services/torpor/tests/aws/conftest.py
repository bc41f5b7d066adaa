"""Fixtures of the tests with AWS clients. All of a session shares one fleet and three images."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from rig import apps
from rig.clients import Boto, Cli
from rig.fleet import Fleet
from rig.images import EVERY_HOOK, Image, Images
from rig.journal import Journal
from rig.microvms import Microvms
from rig.wire import Wire

pytest_plugins = ("rig.table",)


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The running fleet; from here on this process's environment is that of its AWS clients."""
    fleet = Fleet.open()
    environment = fleet.environment()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(environment)
    return fleet


@pytest.fixture(scope="session")
def journal() -> Journal:
    """What clients saw."""
    return Journal()


@pytest.fixture(scope="session")
def boto(fleet: Fleet, journal: Journal) -> Boto:
    """boto3 with the fleet's own key."""
    return Boto(fleet, journal)


@pytest.fixture(scope="session")
def api(boto: Boto):
    """boto3's client of lambda-microvms."""
    return boto.microvms


@pytest.fixture(scope="session")
def core(boto: Boto):
    """boto3's client of lambda-core."""
    return boto.core


@pytest.fixture(scope="session")
def aws(fleet: Fleet, journal: Journal) -> Cli:
    """The AWS CLI."""
    return Cli(fleet, journal)


@pytest.fixture(scope="session")
def wire(fleet: Fleet, journal: Journal) -> Iterator[Wire]:
    """Signed HTTP."""
    wire = Wire(fleet, journal)
    yield wire
    wire.close()


@pytest.fixture(scope="module")
def images(fleet: Fleet, boto: Boto) -> Iterator[Images]:
    """Images that are gone with the module: an account has at most a hundred."""
    images = Images(fleet, boto)
    yield images
    images.remove_all()


@dataclass
class Shared:
    """Images of the whole session, being built side by side from the first use of one on."""

    images: Images
    plain: dict
    hooked: dict

    def built(self, created: dict) -> Image:
        """Waits for one."""
        self.images.settled(created["imageArn"], "CREATED")
        return Image(created["name"], created["imageArn"])


@pytest.fixture(scope="session")
def shared(fleet: Fleet, boto: Boto) -> Iterator[Shared]:
    """Both shared images."""
    images = Images(fleet, boto)
    uri = images.app()
    yield Shared(
        images,
        plain=images.create("plain", uri),
        # Two 503s before it is ready: ready is asked again.
        hooked=images.create("hooked", uri, hooks=EVERY_HOOK, environmentVariables={"READY_UNAVAILABLE": "2"}),
    )
    images.remove_all()


@pytest.fixture(scope="session")
def plain(shared: Shared) -> Image:
    """The app without hooks, 512 MiB."""
    return shared.built(shared.plain)


@pytest.fixture(scope="session")
def hooked(shared: Shared) -> Image:
    """The app with every hook, 512 MiB."""
    return shared.built(shared.hooked)


@pytest.fixture(scope="session")
def protocols(fleet: Fleet, boto: Boto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The app that speaks bytes, gRPC and WebSockets, 512 MiB."""
    images = Images(fleet, boto)
    artifact = apps.protocols_zip(tmp_path_factory.mktemp("protocols"))
    yield images.build("protocols", images.upload("protocols", artifact))
    images.remove_all()


@pytest.fixture
def microvms(fleet: Fleet, boto: Boto) -> Iterator[Microvms]:
    """MicroVMs that end with the test."""
    microvms = Microvms(fleet, boto)
    yield microvms
    microvms.end_all()


@pytest.fixture(scope="module")
def module_microvms(fleet: Fleet, boto: Boto) -> Iterator[Microvms]:
    """MicroVMs that end with the module."""
    microvms = Microvms(fleet, boto)
    yield microvms
    microvms.end_all()


@pytest.fixture(autouse=True)
def _no_server_errors(request: pytest.FixtureRequest, journal: Journal) -> Iterator[None]:
    """No request of any test is answered with a 5xx, unless the test is about that."""
    yield
    # Those of shared fixtures too, which were made before this one.
    seen, journal.server_errors = journal.server_errors, []
    if request.node.get_closest_marker("server_errors") is None:
        assert not seen, f"answers that are the server's fault: {seen}"

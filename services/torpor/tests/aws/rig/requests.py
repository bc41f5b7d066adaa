"""For every operation a request that is refused in a given way, by boto3: what the model lists, systematically."""

from . import models
from .fleet import Fleet

# Well-formed, and of nobody.
NOBODY = "0190a5e2-7c3b-4f00-8000-000000000001"
# One character more than an identifier has.
LONG = "x" * 257


def of_nobody(fleet: Fleet, operation: str) -> dict:
    """Arguments that name a resource which does not exist, and are right otherwise; {} for operations that name none."""
    image = {"imageIdentifier": fleet.image_arn(fleet.name("never-was"))}
    version = image | {"imageVersion": "1.0"}
    microvm = {"microvmIdentifier": f"microvm-{NOBODY}"}
    tags = {"Resource": image["imageIdentifier"]}
    connector = {"Identifier": fleet.name("never-was")}
    configuration = {
        "baseImageArn": fleet.base_arn,
        "buildRoleArn": fleet.role_arn,
        # No S3 URI: nothing is ever made of it.
        "codeArtifact": {"uri": "none"},
    }
    egress = {"SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"]}
    return {
        "CreateMicrovmAuthToken": microvm | {"expirationInMinutes": 1, "allowedPorts": [{"allPorts": {}}]},
        "CreateMicrovmImage": configuration | {"name": fleet.name("never-made")},
        "CreateMicrovmShellAuthToken": microvm | {"expirationInMinutes": 1},
        "CreateNetworkConnector": {
            "Name": fleet.name("never-made"),
            # Without its role nothing is made.
            "Configuration": {"VpcEgressConfiguration": egress},
        },
        "DeleteMicrovmImage": image,
        "DeleteMicrovmImageVersion": version,
        "DeleteNetworkConnector": connector,
        "GetMicrovm": microvm,
        "GetMicrovmImage": image,
        "GetMicrovmImageBuild": version | {"buildId": NOBODY},
        "GetMicrovmImageVersion": version,
        "GetNetworkConnector": connector,
        "ListManagedMicrovmImageVersions": {"imageIdentifier": fleet.managed_arn("microvm-image", "never-was")},
        "ListManagedMicrovmImages": {},
        "ListMicrovmImageBuilds": version,
        "ListMicrovmImageVersions": image,
        "ListMicrovmImages": {},
        "ListMicrovms": {},
        "ListNetworkConnectorVersions": connector,
        "ListNetworkConnectors": {},
        "ListTags": tags,
        "ResumeMicrovm": microvm,
        "RunMicrovm": image,
        "SuspendMicrovm": microvm,
        "TagResource": tags | {"Tags": {"a": "b"}},
        "TerminateMicrovm": microvm,
        "UntagResource": tags | {"TagKeys": ["a"]},
        "UpdateMicrovmImage": image | configuration,
        "UpdateMicrovmImageVersion": version | {"status": "ACTIVE"},
        "UpdateNetworkConnector": connector | {"ClientToken": "never-was"},
    }[operation]


def invalid(fleet: Fleet, operation: str) -> dict:
    """Arguments that break a constraint which no client checks."""
    members = models.operation(_service(operation), operation).input_shape.members
    arguments = of_nobody(fleet, operation)
    for name, value in {
        "maxResults": 51,
        "MaxItems": 101,
        "name": "bad name!",
        "Name": "bad name!",
        "imageIdentifier": LONG,
        "microvmIdentifier": LONG,
        "Resource": "not-an-arn",
        "Identifier": "x" * 141,
    }.items():
        if name in members:
            return arguments | {name: value}
    raise AssertionError(f"{operation} has no member to spoil")


def _service(operation: str) -> str:
    return next(service for service, name in models.every_operation() if name == operation)

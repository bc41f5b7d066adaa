"""The public walkthrough, as printed, in a shell that did `eval "$(torpor env)"` and nothing else."""

import json
import subprocess
from pathlib import Path

from rig.clients import Cli
from rig.fleet import AWS_VARIABLES, Fleet, required_program

HERE = Path(__file__).resolve().parent
LONGEST_SECONDS = 600


def test_the_walkthrough(fleet: Fleet, aws: Cli) -> None:
    # What the shell gets from torpor env is all it has: no variable of this process's own is left in it.
    bare = {k: v for k, v in aws.environment().items() if not k.startswith(("AWS_", "TORPOR_"))}
    isolation = {k: v for k, v in aws.environment().items() if k in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    script = 'eval "$("$1" --data-dir "$2" env)" && exec "$3" "$4" "$5"'
    done = subprocess.run(
        [
            required_program("bash"),
            *("-euo", "pipefail", "-c", script, "walkthrough"),
            *(str(fleet.program), str(fleet.data_dir)),
            *(str(HERE / "walkthrough.sh"), str(HERE / "app"), fleet.name("walkthrough")),
        ],
        capture_output=True,
        text=True,
        env=bare | isolation,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    counts = [json.loads(line)["count"] for line in done.stdout.splitlines() if line.startswith('{"count"')]
    # Two calls, one after a resume, one that woke it: one app, with one memory.
    assert counts == [1, 2, 3, 4], done.stdout


def test_what_torpor_env_exports(fleet: Fleet) -> None:
    shell = fleet.torpor("env")
    for name in AWS_VARIABLES:
        assert f"export {name}=" in shell
    assert fleet.variables["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"].startswith("https://")
    assert Path(fleet.variables["AWS_CA_BUNDLE"]).is_file()
    assert fleet.variables["AWS_REGION"] == fleet.variables["AWS_DEFAULT_REGION"]

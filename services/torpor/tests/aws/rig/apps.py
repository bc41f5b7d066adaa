"""Artifacts: zips with a Dockerfile at their root, of the app next door."""

import io
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

APP = Path(__file__).resolve().parent.parent / "app"
# That of the base image.
GUEST_PYTHON = "3.11"
_INSTALL_SECONDS = 120


def dockerfile() -> str:
    """The Dockerfile of the well-behaved app."""
    return (APP / "Dockerfile").read_text()


def app_zip(dockerfile_text: str | None = None) -> bytes:
    """The app, with its own Dockerfile or another."""
    return zip_of({"Dockerfile": dockerfile_text or dockerfile(), "app.py": (APP / "app.py").read_text()})


def zip_of(files: dict[str, str]) -> bytes:
    """A zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def protocols_zip(into: Path) -> bytes:
    """The app that speaks bytes, gRPC and WebSockets, put together in a directory; its packages are these tests' own."""
    for name in ("protocols.py", "bootstrap.py", "tls.pem"):
        shutil.copy(APP / name, into)
    # As the other apps have it, so that its layer is made once.
    lines = [line for line in dockerfile().splitlines() if line.startswith(("FROM", "RUN"))]
    lines += ["COPY . /srv", "EXPOSE 8080", 'CMD ["python3", "-u", "/srv/protocols.py"]']
    (into / "Dockerfile").write_text("\n".join(lines) + "\n")
    names = ("grpcio", "typing_extensions", "websockets")
    install([f"{name}=={metadata.version(name)}" for name in names], into)
    return zip_tree(into)


def install(requirements: list[str], into: Path) -> None:
    """Packages for the guest's Python, in a directory: the base image has no pip."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-compile", "--python-version", GUEST_PYTHON, "--target", str(into)]
    subprocess.run([*command, *requirements], check=True, timeout=_INSTALL_SECONDS)


def zip_tree(directory: Path) -> bytes:
    """A zip of what is in a directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in directory.rglob("*"):
            archive.write(path, path.relative_to(directory))
    return buffer.getvalue()

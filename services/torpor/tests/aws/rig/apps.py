"""Artifacts: zips with a Dockerfile at their root, of the app next door."""

import io
import zipfile
from pathlib import Path

_APP = Path(__file__).resolve().parent.parent / "app"


def dockerfile() -> str:
    """The Dockerfile of the well-behaved app."""
    return (_APP / "Dockerfile").read_text()


def app_zip(dockerfile_text: str | None = None) -> bytes:
    """The app, with its own Dockerfile or another."""
    return zip_of({"Dockerfile": dockerfile_text or dockerfile(), "app.py": (_APP / "app.py").read_text()})


def zip_of(files: dict[str, str]) -> bytes:
    """A zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()

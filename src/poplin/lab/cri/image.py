"""Images made here, without a registry or a builder: files -> an OCI image layout in a tar archive.

Source: OCI image specification 1.0: image-layout.md, manifest.md, config.md. The same files give the same bytes.
"""

import hashlib
import io
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from poplin.model.errors import PoplinError

BUSYBOX: Final = "docker.io/library/busybox:latest"
"""What a pod gets that asks for `busybox`."""
PAUSE: Final = "poplin.lab/pause:1"
"""What holds a sandbox's namespaces: the echo server without a port."""
ECHO: Final = "poplin.lab/echo:1"
"""What stands in for an image that is not in the store."""
ECHO_PROGRAM: Final = "/echo"

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BINARIES: Final = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_STATIC_BYTES: Final = 1 << 20
"""A busybox is larger with its libraries in it, and does not run in an image without them."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of an image: its content, or where it is a link its target."""

    content: bytes = b""
    mode: int = 0o644
    link: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one layer. `files` by path, one that ends with a slash is a directory; `names` with their tags."""

    names: Sequence[str]
    files: Mapping[str, File]
    command: Sequence[str]


def make_archive(images: Sequence[Image]) -> bytes:
    """An OCI archive of the images."""
    blobs: dict[str, bytes] = {}
    manifests = [entry for image in images for entry in _add_image(image, blobs)]
    files = {"blobs/" + digest.replace(":", "/"): File(blob) for digest, blob in blobs.items()}
    files["oci-layout"] = File(b'{"imageLayoutVersion":"1.0.0"}')
    files["index.json"] = File(_encode({"schemaVersion": 2, "manifests": manifests}))
    return _pack(files)


def lab_images() -> list[Image]:
    """The images that every lab has. Raises PoplinError where they cannot be made."""
    echo = Path(__file__).parent / "echo"
    if not echo.exists():
        raise PoplinError("the echo server is not built", where=str(echo), remedy="run `make setup`")
    busybox = find_busybox()
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    return [
        Image([BUSYBOX], busybox_files(busybox.read_bytes(), applets), ["/bin/sh"]),
        Image([PAUSE, ECHO], {"/echo": File(echo.read_bytes(), 0o755)}, [ECHO_PROGRAM]),
    ]


def busybox_files(busybox: bytes, applets: Sequence[str]) -> dict[str, File]:
    """A root file system that is busybox and nothing else, a link for each applet."""
    files = {f"bin/{name}": File(link="busybox", mode=0o777) for name in applets if name != "busybox"}
    return files | {
        "bin/busybox": File(busybox, 0o755),
        "etc/passwd": File(b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        "etc/group": File(b"root:x:0:\nnogroup:x:65534:\n"),
        "root/": File(mode=0o700),
        "tmp/": File(mode=0o1777),
        "var/": File(mode=0o755),
    }


def find_busybox() -> Path:
    """The machine's static busybox. Raises PoplinError where there is none."""
    found = next((path for path in _BINARIES if path.is_file()), None)
    if found is None or found.stat().st_size < _STATIC_BYTES:
        raise PoplinError(
            "there is no static busybox to make an image from",
            where=", ".join(map(str, _BINARIES)),
            remedy="install Debian's package busybox-static",
        )
    return found


def architecture() -> str:
    """This machine as Go and OCI name it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _add_image(image: Image, blobs: dict[str, bytes]) -> list[dict[str, Any]]:
    """Add an image's blobs to the others by digest; its entries in the index, one for each name."""
    layer = _pack(image.files)
    config = {
        "architecture": architecture(),
        "os": "linux",
        "config": {"Env": [f"PATH={_PATH}"], "Cmd": list(image.command)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": _add("config.v1+json", _encode(config), blobs),
        "layers": [_add("layer.v1.tar", layer, blobs)],
    }
    entry = _add("manifest.v1+json", _encode(manifest), blobs)
    entry["platform"] = {"architecture": architecture(), "os": "linux"}
    # The first is what containerd reads, the second what everybody else does.
    keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    return [{**entry, "annotations": dict.fromkeys(keys, name)} for name in image.names]


def _add(kind: str, blob: bytes, blobs: dict[str, bytes]) -> dict[str, Any]:
    digest = _digest(blob)
    blobs[digest] = blob
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(blob)}


def _pack(files: Mapping[str, File]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, file in sorted(files.items()):
            entry = tarfile.TarInfo(path.rstrip("/"))
            entry.mode, entry.size = file.mode, len(file.content)
            if path.endswith("/"):
                entry.type = tarfile.DIRTYPE
            elif file.link:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.link
            archive.addfile(entry, io.BytesIO(file.content))
    return out.getvalue()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _encode(document: Any) -> bytes:
    return msgspec.json.encode(document, order="deterministic")

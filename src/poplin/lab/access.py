"""The kubeconfigs of a lab: the embedded server's, or the user's own with the fabric's gateway as the server."""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from poplin.apiserver.certificates import write_private
from poplin.datastore.access import Access
from poplin.lab.addressing import API_PORT
from poplin.model.errors import InvalidInputError
from poplin.model.kernel import IPAddress


def split_server(access: Access) -> tuple[str, int]:
    """Host and port of the API server. Raises InvalidInputError where the URL has none."""
    url = urlsplit(access.server)
    if not url.hostname:
        raise InvalidInputError(
            f"{access.server!r} names no server", where=access.origin, remedy="correct it"
        )
    return url.hostname, url.port or (443 if url.scheme == "https" else 80)


def server_url(scheme: str, address: IPAddress, port: int = API_PORT) -> str:
    """The URL of a server."""
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{scheme}://{host}:{port}"


def write_fabric_kubeconfig(path: Path, access: Access, gateway: IPAddress) -> None:
    """Write a kubeconfig that is the same user at the fabric's gateway.

    The server's certificate is still checked for the name that it had in the user's file. Raises
    InvalidInputError for an exec plugin: it would run where it reaches nobody.
    """
    if access.identity.plugin is not None:
        raise InvalidInputError(
            "a credential plugin cannot work inside the fabric",
            where=access.origin,
            remedy="give a kubeconfig with a token or a client certificate",
        )
    host, _ = split_server(access)
    cluster: dict[str, Any] = {"server": server_url(urlsplit(access.server).scheme, gateway)}
    if access.server.startswith("https:"):
        cluster["tls-server-name"] = access.tls_server_name or host
        if not access.verify:
            cluster["insecure-skip-tls-verify"] = True
        elif access.certificate_authority:
            cluster["certificate-authority-data"] = _encode(access.certificate_authority)
    identity = access.identity
    user: dict[str, Any] = {
        "token": identity.token,
        "tokenFile": str(identity.token_file.absolute()) if identity.token_file else "",
        "username": identity.username,
        "password": identity.password,
        "client-certificate-data": _encode(identity.certificate) if identity.certificate else "",
        "client-key-data": _encode(identity.key) if identity.key else "",
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {key: value for key, value in user.items() if value}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    }
    write_private(path, yaml.safe_dump(document).encode())


def _encode(pem: bytes | Path) -> str:
    return base64.b64encode(pem.read_bytes() if isinstance(pem, Path) else pem).decode()

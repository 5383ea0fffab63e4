"""How to reach an API server and as whom: what a kubeconfig or a pod's service account comes to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that prints an ExecCredential (client.authentication.k8s.io).

    `environment` is added to ours. `cluster` is the JSON to be passed in KUBERNETES_EXEC_INFO, None where
    the plugin does not ask for it.
    """

    api_version: str
    command: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    install_hint: str = ""
    cluster: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to the server. Of the ways to say so, at most one of token, password and exec is set.

    PEM texts given in the file stand as bytes, those kept in files of their own as paths.
    """

    token: str = field(default="", repr=False)
    token_file: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    certificate: bytes | Path | None = None
    key: bytes | Path | None = field(default=None, repr=False)
    plugin: ExecPlugin | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """One server and one identity. `origin` says where they were read, for messages.

    `certificate_authority` None means the machine's own trust store; `tls_server_name` "" the host of the
    URL; `proxy_url` "" no proxy. `namespace` is the one to use where the user names none.
    """

    server: str
    origin: str
    certificate_authority: bytes | Path | None = None
    tls_server_name: str = ""
    verify: bool = True
    proxy_url: str = ""
    namespace: str = "default"
    identity: Identity = field(default_factory=Identity)

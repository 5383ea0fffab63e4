"""Kubeconfig files and the service account of a pod, read into an `Access`.

Source: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files", "kubeconfig (v1)",
"Client Authentication (v1)", and "Accessing the Kubernetes API from a Pod".
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from poplin.datastore.access import Access, ExecPlugin, Identity
from poplin.datastore.documents import load_documents
from poplin.datastore.parse import describe
from poplin.model.errors import InvalidInputError

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EXEC_VERSIONS: Final = frozenset(
    {
        "client.authentication.k8s.io/v1",
        "client.authentication.k8s.io/v1beta1",
    }
)
EXEC_EXTENSION: Final = "client.authentication.k8s.io/exec"


class KubeconfigError(InvalidInputError):
    """A kubeconfig, or the lack of one: `where` names the file and key."""


class Kebab(msgspec.Struct, rename="kebab"):
    """A part of a kubeconfig; keys are spelt with hyphens, unknown ones skipped as kubectl does."""


class Extension(Kebab):
    name: str
    extension: Any = None


class Cluster(Kebab):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    proxy_url: str = ""
    extensions: list[Extension] | None = None


class EnvironmentVariable(msgspec.Struct):
    name: str
    value: str


class Exec(msgspec.Struct, rename="camel"):
    api_version: str = ""
    command: str = ""
    args: list[str] | None = None
    env: list[EnvironmentVariable] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = ""


class User(Kebab):
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    exec: Exec | None = None
    auth_provider: Any = None
    impersonate: str = msgspec.field(default="", name="as")


class Context(Kebab):
    cluster: str = ""
    user: str = ""
    namespace: str = ""


class NamedCluster(msgspec.Struct):
    name: str
    cluster: Cluster


class NamedUser(msgspec.Struct):
    name: str
    user: User


class NamedContext(msgspec.Struct):
    name: str
    context: Context


class Kubeconfig(Kebab):
    current_context: str = ""
    clusters: list[NamedCluster] | None = None
    users: list[NamedUser] | None = None
    contexts: list[NamedContext] | None = None


def find_access(
    environment: Mapping[str, str],
    *,
    kubeconfig: Path | None = None,
    context: str = "",
    service_account: Path = SERVICE_ACCOUNT,
) -> Access:
    """The way to the API server: a file named by the user, KUBECONFIG, the pod's own, ~/.kube/config.

    Raises InvalidInputError where the first of them that exists is no good, or none does.
    """
    if kubeconfig is not None:
        return read_kubeconfig([kubeconfig], context=context)
    if paths := [Path(name) for name in environment.get("KUBECONFIG", "").split(":") if name]:
        return read_kubeconfig(paths, context=context)
    if "KUBERNETES_SERVICE_HOST" in environment:
        return read_service_account(environment, service_account)
    default = Path(environment.get("HOME", "/root"), ".kube", "config")
    if default.exists():
        return read_kubeconfig([default], context=context)
    raise KubeconfigError(
        f"no cluster: KUBECONFIG is not set, {default} does not exist, and this is no pod",
        remedy="set KUBECONFIG to the path of a kubeconfig file",
    )


def read_service_account(environment: Mapping[str, str], directory: Path = SERVICE_ACCOUNT) -> Access:
    """The access of a pod's service account. The token stays in its file, which kubelet renews."""
    origin = f"service account {directory}"
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise KubeconfigError(
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not both set",
            where=origin,
            remedy="run in a pod, or set KUBECONFIG",
        )
    for name in ("token", "ca.crt"):
        if not (directory / name).is_file():
            raise KubeconfigError(
                f"{directory / name} does not exist",
                where=origin,
                remedy="leave automountServiceAccountToken at true for this pod",
            )
    namespace = directory / "namespace"
    return Access(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        origin=origin,
        certificate_authority=directory / "ca.crt",
        namespace=namespace.read_text("utf-8").strip() if namespace.is_file() else "default",
        identity=Identity(token_file=directory / "token"),
    )


Named = TypeVar("Named", NamedCluster, NamedUser, NamedContext)


def read_kubeconfig(paths: Sequence[Path], *, context: str = "") -> Access:
    """The access that a context of these files gives; "" is the current context.

    The first file to name something wins, and relative paths start from the file that holds them. Of
    several files, those that do not exist are skipped. Raises InvalidInputError.
    """
    files = [(path, _load(path)) for path in paths if len(paths) == 1 or path.exists()]
    where = ", ".join(str(path) for path, _ in files) or ":".join(map(str, paths))
    name = context or next((config.current_context for _, config in files if config.current_context), "")
    if not name:
        raise KubeconfigError(
            "no current-context", where=where, remedy="name a context, or run `kubectl config use-context`"
        )
    _, chosen = _pick(
        name, "context", where, ((path, item) for path, c in files for item in c.contexts or ())
    )
    wanted = chosen.context
    path, cluster = _pick(
        wanted.cluster, "cluster", where, ((path, item) for path, c in files for item in c.clusters or ())
    )
    access = _read_cluster(cluster.cluster, path, f"{path}: clusters[{cluster.name}]")
    identity = Identity()
    if wanted.user:
        path, user = _pick(
            wanted.user, "user", where, ((path, item) for path, c in files for item in c.users or ())
        )
        identity = _read_user(user.user, path, f"{path}: users[{user.name}]", cluster.cluster, access)
    return replace(
        access,
        origin=f"{where} (context {name})",
        namespace=wanted.namespace or "default",
        identity=identity,
    )


def _load(path: Path) -> Kubeconfig:
    try:
        documents = load_documents(path.read_bytes(), str(path))
    except OSError as error:
        raise KubeconfigError(
            error.strerror or str(error), where=str(path), remedy="name a kubeconfig file that can be read"
        ) from None
    document = documents[0] if documents else {}
    if not isinstance(document, dict):
        raise KubeconfigError("is no kubeconfig", where=str(path), remedy="name a kubeconfig file")
    try:
        return msgspec.convert(document, Kubeconfig)
    except msgspec.ValidationError as error:
        raise KubeconfigError(describe(error), where=str(path), remedy="correct this key") from None


def _pick(name: str, kind: str, where: str, items: Iterable[tuple[Path, Named]]) -> tuple[Path, Named]:
    found = list(items)
    for path, item in found:
        if item.name == name:
            return path, item
    names = ", ".join(item.name for _, item in found) or "none"
    raise KubeconfigError(
        f"no {kind} is named {name!r}", where=where, remedy=f"choose one of those it has: {names}"
    )


def _read_cluster(cluster: Cluster, path: Path, where: str) -> Access:
    url = urlsplit(cluster.server)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise KubeconfigError(
            f"server: {cluster.server!r} is not a URL",
            where=where,
            remedy="write it as https://HOST:PORT",
        )
    if cluster.proxy_url and urlsplit(cluster.proxy_url).scheme not in {"http", "https"}:
        raise KubeconfigError(
            f"proxy-url: {cluster.proxy_url!r} is not an HTTP proxy",
            where=where,
            remedy="use a proxy whose URL begins with http:// or https://",
        )
    authority = _pem(cluster, "certificate-authority", path, where)
    if cluster.insecure_skip_tls_verify and authority is not None:
        raise KubeconfigError(
            "insecure-skip-tls-verify is true beside a certificate-authority", where=where, remedy="drop one"
        )
    return Access(
        server=cluster.server.rstrip("/"),
        origin=where,
        certificate_authority=authority,
        tls_server_name=cluster.tls_server_name,
        verify=not cluster.insecure_skip_tls_verify,
        proxy_url=cluster.proxy_url,
    )


def _read_user(user: User, path: Path, where: str, cluster: Cluster, access: Access) -> Identity:
    if user.auth_provider is not None:
        raise KubeconfigError(
            "auth-provider is gone from Kubernetes since 1.26",
            where=where,
            remedy="use the cloud provider's exec plugin instead",
        )
    if user.impersonate:
        # Leaving the key out of account would act with the rights of someone else.
        raise KubeconfigError(
            "as: impersonation is not supported", where=where, remedy="use a user with its own credentials"
        )
    ways = {
        "token": bool(user.token or user.token_file),
        "username": bool(user.username or user.password),
        "exec": user.exec is not None,
    }
    if sum(ways.values()) > 1:
        both = " and ".join(name for name, given in ways.items() if given)
        raise KubeconfigError(f"more than one way to authenticate: {both}", where=where, remedy="keep one")
    certificate = _pem(user, "client-certificate", path, where)
    key = _pem(user, "client-key", path, where)
    if (certificate is None) != (key is None):
        missing = "client-key" if key is None else "client-certificate"
        raise KubeconfigError(f"{missing} is missing", where=where, remedy=f"give {missing} beside its pair")
    return Identity(
        token="" if user.token_file else user.token,  # the file's content is the newer
        token_file=path.parent / user.token_file if user.token_file else None,
        username=user.username,
        password=user.password,
        certificate=certificate,
        key=key,
        plugin=_read_exec(user.exec, path, where, cluster, access) if user.exec else None,
    )


def _read_exec(exec_: Exec, path: Path, where: str, cluster: Cluster, access: Access) -> ExecPlugin:
    if exec_.api_version not in EXEC_VERSIONS:
        raise KubeconfigError(
            f"exec.apiVersion: {exec_.api_version!r} is not supported",
            where=where,
            remedy=f"use one of {', '.join(sorted(EXEC_VERSIONS))}",
        )
    if not exec_.command:
        raise KubeconfigError("exec.command is missing", where=where, remedy="name the plugin's program")
    if exec_.interactive_mode == "Always":
        raise KubeconfigError(
            "exec.interactiveMode is Always, and there is no terminal here",
            where=where,
            remedy="use a plugin that can do without one",
        )
    # As in a shell: a name with a slash is a path, here from the file that has it; another is on PATH.
    command = str(path.parent / exec_.command) if "/" in exec_.command else exec_.command
    return ExecPlugin(
        api_version=exec_.api_version,
        command=command,
        arguments=tuple(exec_.args or ()),
        environment=tuple((variable.name, variable.value) for variable in exec_.env or ()),
        install_hint=exec_.install_hint.strip(),
        cluster=_exec_cluster(cluster, access) if exec_.provide_cluster_info else None,
    )


def _exec_cluster(cluster: Cluster, access: Access) -> dict[str, Any]:
    """ExecCredential's spec.cluster: the CA always as data, and the extension meant for plugins as config."""
    authority = access.certificate_authority
    if isinstance(authority, Path):
        authority = authority.read_bytes()
    config = next((e.extension for e in cluster.extensions or () if e.name == EXEC_EXTENSION), None)
    fields = {
        "server": cluster.server,
        "tls-server-name": cluster.tls_server_name,
        "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
        "certificate-authority-data": base64.b64encode(authority).decode() if authority else "",
        "proxy-url": cluster.proxy_url,
        "config": config,
    }
    return {key: value for key, value in fields.items() if value}


def _pem(part: Cluster | User, key: str, path: Path, where: str) -> bytes | Path | None:
    """The text under KEY-data, or the path under KEY; data wins, as the reference says."""
    attribute = key.replace("-", "_")
    data: str = getattr(part, f"{attribute}_data")
    if not data:
        name: str = getattr(part, attribute)
        return path.parent / name if name else None
    try:
        pem = base64.b64decode(data, validate=True)
    except ValueError as error:  # binascii.Error is one; so is what a letter beyond ASCII raises
        raise KubeconfigError(
            f"{key}-data: {error}", where=where, remedy="give the PEM text in one line of base64"
        ) from None
    if b"-----BEGIN " not in pem:
        raise KubeconfigError(
            f"{key}-data: no PEM text inside the base64", where=where, remedy="encode the whole PEM file"
        )
    return pem

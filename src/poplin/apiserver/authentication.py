"""Who a request comes from: a client certificate, a static token, or a service account's token.

https://kubernetes.io/docs/reference/access-authn-authz/authentication/. There is no authorization: RBAC
objects are stored, and every authenticated user may do everything. Anonymous requests reach health only.
"""

import base64
import csv
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from poplin.apiserver import status
from poplin.model.errors import InvalidInputError

ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
ACCOUNT: Final = "system:serviceaccount:"
SIGNATURE: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class User:
    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, list[str]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As authentication.k8s.io UserInfo."""
        parts = {
            "username": self.name,
            "uid": self.uid,
            "groups": list(self.groups),
            "extra": dict(self.extra),
        }
        return {key: value for key, value in parts.items() if value}


AUTHENTICATED: Final = "system:authenticated"
EXTRA: Final = "impersonate-extra-"
ANONYMOUS: Final = User("system:anonymous", ("system:unauthenticated",))
PUBLIC: Final = frozenset({"/healthz", "/livez", "/readyz", "/version"})
"""What is answered without credentials."""


def read_tokens(path: Path) -> dict[str, User]:
    """A static token file: lines of token,user,uid and optionally "group1,group2". Raises InvalidInputError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InvalidInputError(
            f"cannot read: {reason}", where=str(path), remedy="name a file of static tokens"
        ) from error
    users: dict[str, User] = {}
    for number, row in enumerate(csv.reader(lines), start=1):
        if not row or row[0].startswith("#"):
            continue
        if len(row) < 3:
            raise InvalidInputError(
                "has fewer than three fields",
                where=f"{path}, line {number}",
                remedy="write token,user,uid[,groups]",
            )
        token, name, uid, *groups = (cell.strip() for cell in row)
        listed = tuple(groups[0].split(",")) if groups and groups[0] else ()
        users[token] = User(name, (*listed, AUTHENTICATED), uid)
    return users


class TokenIssuer:
    """Signs and checks service account tokens: JSON Web Tokens (RFC 7519) with ES256.

    `lives(namespace, name, uid)` tells whether the account still exists.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, lives: Callable[[str, str, str], bool]) -> None:
        self._key = key
        self._lives = lives

    def issue(
        self, namespace: str, name: str, uid: str, lifetime_s: int, audiences: list[str]
    ) -> tuple[str, int]:
        """A token and the time it expires at (seconds since the epoch)."""
        now = int(time.time())
        account = {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}}
        claims = {
            "aud": audiences or [ISSUER],
            "exp": now + lifetime_s,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "sub": f"{ACCOUNT}{namespace}:{name}",
            "kubernetes.io": account,
        }
        signed = (
            _encode(msgspec.json.encode({"alg": "ES256", "typ": "JWT"}))
            + b"."
            + _encode(msgspec.json.encode(claims))
        )
        first, second = utils.decode_dss_signature(self._key.sign(signed, SIGNATURE))
        signature = first.to_bytes(32, "big") + second.to_bytes(32, "big")
        return (signed + b"." + _encode(signature)).decode(), now + lifetime_s

    def check(self, token: str) -> User | None:
        """The account a token speaks for, None where it is not ours, has expired, or the account is gone."""
        signed, _, signature_text = token.rpartition(".")
        try:
            signature = _decode(signature_text)
            pair = utils.encode_dss_signature(
                int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            )
            self._key.public_key().verify(pair, signed.encode(), SIGNATURE)
            claims = msgspec.json.decode(_decode(signed.partition(".")[2]))
            account = claims["kubernetes.io"]
            namespace, identity = account["namespace"], account["serviceaccount"]
        except (ValueError, InvalidSignature, msgspec.DecodeError, KeyError):
            return None
        if claims["exp"] < time.time() or not self._lives(namespace, identity["name"], identity["uid"]):
            return None
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
        return User(claims["sub"], groups, identity["uid"])


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Authenticator:
    """Finds the user of a request. Static tokens are kept as digests, so that no comparison leaks one."""

    def __init__(self, tokens: Mapping[str, User], issuer: TokenIssuer) -> None:
        self._tokens = {_digest(token): user for token, user in tokens.items()}
        self._issuer = issuer

    def identify(self, request: web.BaseRequest) -> User | None:
        """The user, ANONYMOUS where the request has no credentials, None where it has bad ones.

        Who has good ones may speak for anybody else, as they may do everything else. Raises StatusError.
        """
        user = self._identify(request)
        if user is None or user is ANONYMOUS:
            return user
        return impersonate(request) or user

    def _identify(self, request: web.BaseRequest) -> User | None:
        header = request.headers.get("Authorization", "")
        scheme, _, token = header.partition(" ")
        if header:
            return self.check(token.strip()) if scheme.lower() == "bearer" else None
        certificate = request.get_extra_info("peercert")
        return read_certificate(certificate) if certificate else ANONYMOUS

    def check(self, token: str) -> User | None:
        return self._tokens.get(_digest(token)) or self._issuer.check(token)


def impersonate(request: web.BaseRequest) -> User | None:
    """The user that the Impersonate-* headers of a request name, None without any. Raises StatusError where they name nobody.

    https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation
    """
    given = request.headers
    name = given.get("Impersonate-User", "")
    groups, extra = given.getall("Impersonate-Group", []), dict[str, list[str]]()
    for key, value in given.items():
        if key.lower().startswith(EXTRA):
            extra.setdefault(unquote(key[len(EXTRA) :].lower()), []).append(value)
    uid = given.get("Impersonate-Uid", "")
    if not name:
        if groups or extra or uid:
            raise status.bad_request("requested groups, uid or extra without impersonating a user")
        return None
    if name == ANONYMOUS.name:
        return ANONYMOUS
    if name.startswith(ACCOUNT) and not groups:
        namespace = name.removeprefix(ACCOUNT).partition(":")[0]
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]
    return User(name, tuple(dict.fromkeys([*groups, AUTHENTICATED])), uid, extra)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def read_certificate(certificate: Mapping[str, Any]) -> User:
    """The user of a verified client certificate, in the form of SSLSocket.getpeercert."""
    parts = [pair for name in certificate.get("subject", ()) for pair in name]
    name = next((value for key, value in parts if key == "commonName"), "")
    groups = tuple(value for key, value in parts if key == "organizationName")
    return User(name, (*groups, AUTHENTICATED))

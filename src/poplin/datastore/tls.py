"""TLS towards the API server: its certificate authority, our client certificate."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poplin.datastore.access import Access
from poplin.datastore.credential import Credential
from poplin.datastore.kubeconfig import KubeconfigError


def make_context(access: Access, credential: Credential) -> ssl.SSLContext:
    """A context that trusts the access' authority and shows the credential's certificate.

    Raises KubeconfigError where either is not what it should be.
    """
    authority = access.certificate_authority
    try:
        if isinstance(authority, Path):
            authority = authority.read_bytes()
        context = ssl.create_default_context(cadata=authority.decode("ascii") if authority else None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise KubeconfigError(
            f"certificate-authority: {_reason(error)}",
            where=access.origin,
            remedy="give the PEM certificate of the cluster's authority",
        ) from None
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if credential.certificate:
        _load_certificate(context, access, credential)
    return context


def _load_certificate(context: ssl.SSLContext, access: Access, credential: Credential) -> None:
    try:
        with _memory_file(credential.certificate) as certificate, _memory_file(credential.key) as key:
            context.load_cert_chain(certificate, key, password=_refuse_password)
    except (OSError, ValueError) as error:
        raise KubeconfigError(
            f"client certificate and key: {_reason(error)}",
            where=access.origin,
            remedy="give a PEM certificate and the PEM key that belongs to it, without a passphrase",
        ) from None


def _refuse_password() -> str:
    # Without this OpenSSL asks on the terminal.
    raise ValueError("the key has a passphrase")


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """A path to these bytes: OpenSSL loads certificates from paths only, and a key has no place on a disk."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

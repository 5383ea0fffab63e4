"""The cluster's own certificate authority and what it signs, made at the first start.

Files in a directory: ca.crt, ca.key, apiserver.crt, apiserver.key, sa.key (signs service account tokens).
Keys are P-256 and readable by their owner only.
"""

import datetime as dt
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME: Final = dt.timedelta(days=3650)
SERVER_NAMES: Final = (
    "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local", "127.0.0.1", "::1",
)  # fmt: skip


class Authority:
    """A certificate authority kept in `directory`, made there if there is none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.certificate_path = directory / "ca.crt"
        self._key = load_key(directory / "ca.key")
        if not self.certificate_path.exists():
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "poplin-ca")])
            usage = x509.KeyUsage(True, False, True, False, False, True, True, False, False)
            builder = (
                _builder(name, name, self._key.public_key())
                .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
                .add_extension(usage, critical=True)
                .add_extension(
                    x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
                )
            )
            write_private(self.certificate_path, _pem(builder.sign(self._key, hashes.SHA256())), mode=0o644)
        self._certificate = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())

    @property
    def pem(self) -> bytes:
        return self.certificate_path.read_bytes()

    def issue_server(self, names: Iterable[str]) -> tuple[Path, Path]:
        """The server's certificate and key for `names` (DNS names and addresses), new if those changed."""
        wanted = sorted({*SERVER_NAMES, *names})
        certificate, key = self._directory / "apiserver.crt", self._directory / "apiserver.key"
        if not certificate.exists() or _names_of(certificate) != wanted:
            alternatives = x509.SubjectAlternativeName([_general_name(name) for name in wanted])
            pem = self._issue(
                "kube-apiserver", (), load_key(key), ExtendedKeyUsageOID.SERVER_AUTH, alternatives
            )
            write_private(certificate, pem, mode=0o644)
        return certificate, key

    def issue_client(self, user: str, groups: Iterable[str]) -> tuple[bytes, bytes]:
        """A new client certificate and key (PEM): the user is its common name, the groups its organizations."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = self._issue(user, groups, key, ExtendedKeyUsageOID.CLIENT_AUTH, None)
        return pem, encode_key(key)

    def _issue(
        self,
        user: str,
        groups: Iterable[str],
        key: ec.EllipticCurvePrivateKey,
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> bytes:
        organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        builder = (
            _builder(subject, self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return _pem(builder.sign(self._key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks of clients may be a little behind.
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(path: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return sorted(str(name.value) for name in extension.value)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in `path`, made there if there is none."""
    if not path.exists():
        write_private(path, encode_key(ec.generate_private_key(ec.SECP256R1())))
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} is not an elliptic curve key")
    return key


def encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `path` whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.touch(mode=mode)
    draft.write_bytes(data)
    draft.replace(path)

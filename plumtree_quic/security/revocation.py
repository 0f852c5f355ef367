"""Revocation: the certificate revocation lists (RFC 5280, section 5) that an operator gives us.

Reads a file, or every list in a directory; a list counts when a CA that we trust has signed it.
Which certificates a deny list names is policy.py's matter.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from plumtree_quic.errors import CredentialsError

__all__ = ["ON_STALE", "Revocation", "read_lists"]

ON_STALE = ("open", "closed")
"""What a list past its nextUpdate means: "open" goes on with it, "closed" refuses everybody below
its CA until there is a newer one."""
LIST_BYTES_MAX = 4 << 20
LISTS_MAX = 256
_PEM = b"-----BEGIN X509 CRL-----"
_PEM_END = b"-----END X509 CRL-----"


@attrs.frozen
class _List:
    """One list that counts. issuer: its CA's name, as DER."""

    issuer: bytes
    serials: frozenset[int]
    next_update: datetime.datetime | None


@attrs.frozen
class Revocation:
    """What is revoked, and what is wrong with the lists that say so.

    problems: for the operator, one sentence each; none of them stops a node.
    """

    lists: tuple[_List, ...] = ()
    on_stale: str = "open"
    problems: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        contents: Sequence[tuple[str, bytes]],
        anchors: Sequence[x509.Certificate],
        *,
        on_stale: str = "open",
    ) -> "Revocation":
        """Judge lists that were read (see `read_lists`): (name, bytes) each, PEM or DER."""
        lists: list[_List] = []
        problems: list[str] = []
        for name, content in contents:
            for der in _split(content):
                try:
                    lists.append(_judge(der, anchors))
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        return cls(tuple(lists), on_stale, tuple(problems))

    def is_revoked(self, path: Sequence[x509.Certificate], now: datetime.datetime) -> bool:
        """Whether a list names a certificate of `path`, leaf first."""
        if not self.lists and not (self.problems and self.on_stale == "closed"):
            return False
        for certificate in path:
            issuer = certificate.issuer.public_bytes()
            for each in self.lists:
                if each.issuer != issuer:
                    continue
                if certificate.serial_number in each.serials:
                    return True
        return self.on_stale == "closed" and (bool(self.problems) or bool(self.stale(now)))

    def stale(self, now: datetime.datetime) -> list[datetime.datetime]:
        """When each list that is past its nextUpdate should have been replaced."""
        newest: dict[bytes, datetime.datetime] = {}
        for each in self.lists:
            if each.next_update is not None:
                newest[each.issuer] = max(
                    newest.get(each.issuer, each.next_update), each.next_update
                )
        return [due for due in newest.values() if due < now]


def read_lists(path: Path) -> list[tuple[str, bytes]]:
    """The content of `path`, or of every file in that directory: (name, bytes) each.

    Raises:
        CredentialsError: it does not exist or cannot be read; names the file and the fix.
    """
    try:
        files = (
            sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
        )
        if len(files) > LISTS_MAX:
            raise CredentialsError(f"{path} (crl_path) holds more than {LISTS_MAX} files")
        out = []
        for file in files:
            with file.open("rb") as opened:
                content = opened.read(LIST_BYTES_MAX + 1)
            if len(content) > LIST_BYTES_MAX:
                raise CredentialsError(
                    f"{file} (crl_path) is larger than {LIST_BYTES_MAX >> 20} MiB"
                )
            out.append((str(file), content))
    except FileNotFoundError:
        raise CredentialsError(
            f"{path} (crl_path) does not exist; for a development CA: plumtree-quic certs revoke"
        ) from None
    except OSError as error:
        raise CredentialsError(f"{path} (crl_path) cannot be read: {error.strerror}") from None
    return out


def _split(content: bytes) -> list[bytes]:
    if _PEM not in content:
        return [content]
    return [
        _PEM + part.partition(_PEM_END)[0] + _PEM_END + b"\n" for part in content.split(_PEM)[1:]
    ]


def _judge(content: bytes, anchors: Sequence[x509.Certificate]) -> _List:
    """Raises ValueError with the reason why a list does not count."""
    try:
        if content.startswith(_PEM):
            crl = x509.load_pem_x509_crl(content)
        else:
            crl = x509.load_der_x509_crl(content)
        issuer, next_update = crl.issuer, crl.next_update_utc
        serials = frozenset(entry.serial_number for entry in crl)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise ValueError("is no certificate revocation list (PEM or DER)")
    signers = [each for each in anchors if each.subject == issuer and _may_sign(each)]
    if not any(_is_signed_by(crl, each) for each in signers):
        raise ValueError("is not signed by a CA that we trust; is it that of ca_path?")
    return _List(issuer.public_bytes(), serials, next_update)


def _is_signed_by(crl: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    key = signer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return False
    try:
        return crl.is_signature_valid(key)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False


def _may_sign(ca: x509.Certificate) -> bool:
    try:
        return ca.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True

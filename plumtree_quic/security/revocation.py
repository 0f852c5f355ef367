"""Revocation: the certificate revocation lists (RFC 5280, section 5) that an operator gives us.

Reads a file, or every list in a directory; a list counts when a CA that we trust has signed it.
Which certificates a deny list names is policy.py's matter.
"""

import datetime
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from plumtree_quic.errors import CredentialsError

__all__ = ["ON_STALE", "Revocation", "read_lists"]

ON_STALE = ("open", "closed")
"""What a list past its nextUpdate means: "open" goes on with it, "closed" refuses everybody below
its CA until there is a newer one. A file that cannot be used at all, and none that was good before
it, refuses everybody when "closed"."""
LIST_BYTES_MAX = 4 << 20
LISTS_MAX = 256
# All of it is read once a second, and parsed, at some 60 MB/s, whenever any of it changes.
TOTAL_BYTES_MAX = 16 << 20
_PEM = b"-----BEGIN X509 CRL-----"
_PEM_END = b"-----END X509 CRL-----"
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_NEVER = datetime.datetime.min.replace(tzinfo=datetime.UTC)


@attrs.frozen
class _List:
    """One list.

    issuer: its CA's name, as DER.
    crl: of a CA that is no anchor of ours, to be held against the one on the path that is judged;
        None when an anchor has signed it.
    is_known: an anchor, or a CA that is or was on our own path, has signed it.
    """

    source: str
    issuer: bytes
    serials: frozenset[int]
    last_update: datetime.datetime
    next_update: datetime.datetime
    crl: x509.CertificateRevocationList | None = attrs.field(default=None, eq=False)
    is_known: bool = True

    def counts(self, ca: x509.Certificate | None) -> bool:
        """Whether it speaks of what `ca` has issued, when `ca` has its issuer's name."""
        return self.crl is None or (
            ca is not None and _may_sign(ca) and _is_signed_by(self.crl, ca)
        )


@attrs.frozen
class Revocation:
    """What is revoked, and what is wrong with the lists that say so.

    problems: for the operator, one sentence each; none of them stops a node.
    is_blind: a file is of no use, and none was good before it: who is revoked cannot be known.
    """

    lists: tuple[_List, ...] = ()
    on_stale: str = "open"
    problems: tuple[str, ...] = ()
    is_blind: bool = False

    @classmethod
    def load(
        cls,
        contents: Sequence[tuple[str, bytes]],
        anchors: Sequence[x509.Certificate],
        *,
        intermediates: Sequence[x509.Certificate] = (),
        on_stale: str = "open",
        before: "Revocation | None" = None,
    ) -> "Revocation":
        """Judge lists that were read (see `read_lists`): (name, bytes) each, PEM or DER.

        Args:
            contents: an empty sequence revokes nobody.
            anchors: whose lists count for everybody.
            intermediates: CAs whose lists are known to be no mistake. Theirs, and those of any
                other CA, count for whoever comes with that CA's certificate.
            on_stale: see `ON_STALE`.
            before: what counted until now. Of a file that is of no use any more (half written,
                another CA's, older than it was), what it said before goes on, until it is stale.
        """
        known = {each.issuer for each in before.lists if each.is_known} if before else set()
        lists: list[_List] = []
        problems: list[str] = []
        is_blind = False
        for name, content in contents:
            good: list[_List] = []
            faults: list[str] = []
            for part in _split(content):
                try:
                    each = _judge(name, part, anchors)
                except ValueError as error:
                    faults.append(f"{name}: {error}")
                    continue
                if each.issuer in known or any(each.counts(ca) for ca in intermediates):
                    each = attrs.evolve(each, is_known=True)
                if not each.is_known:
                    problems.append(
                        f"{name}: its CA is not in ca_path; it counts for those alone who send "
                        "that CA's certificate along"
                    )
                good.append(each)
            former = [each for each in before.lists if each.source == name] if before else []
            newer = _newer(former, good)
            if newer:
                faults.append(f"{name}: is older than it was; what was revoked stays revoked")
            if faults:
                renewed = {each.issuer for each in good}
                good += newer
                good += [each for each in former if each.issuer not in renewed]
                is_blind = is_blind or not good
            problems += faults
            lists += good
        is_blind = is_blind or (bool(lists) and not any(each.is_known for each in lists))
        return cls(tuple(lists), on_stale, tuple(problems), is_blind)

    def is_revoked(self, path: Sequence[x509.Certificate], now: datetime.datetime) -> bool:
        """Whether a list names a certificate of `path`, leaf first.

        When "closed", also whether nobody can tell: see `ON_STALE`.
        """
        is_closed = self.on_stale == "closed"
        if is_closed and self.is_blind:
            return True
        if not self.lists:
            return False
        for certificate, ca in zip_longest(path, path[1:]):
            issuer = certificate.issuer.public_bytes()
            due = None
            for each in self.lists:
                if each.issuer != issuer or not each.counts(ca):
                    continue
                if certificate.serial_number in each.serials:
                    return True
                due = max(due or _NEVER, each.next_update)
            if is_closed and due is not None and due < now:
                return True
        return False

    def stale(self, now: datetime.datetime) -> tuple[str, ...]:
        """One sentence for each CA whose newest list is past its nextUpdate."""
        newest: dict[bytes, _List] = {}
        for each in self.lists:
            other = newest.setdefault(each.issuer, each)
            if each.next_update > other.next_update:
                newest[each.issuer] = each
        past = [each for each in newest.values() if each.next_update < now]
        return tuple(
            f"{each.source}: does not say when it wants to be renewed (nextUpdate)"
            if each.next_update == _NEVER
            else f"{each.source}: was to be renewed by {each.next_update:%Y-%m-%d %H:%M:%S} UTC"
            for each in past
        )


def read_lists(path: Path) -> list[tuple[str, bytes]]:
    """The content of `path`, or of every file in that directory: (name, bytes) each.

    Raises:
        CredentialsError: it does not exist or cannot be read; names the file and the fix.
    """
    try:
        files = _files_in(path) if path.is_dir() else [path]
        if len(files) > LISTS_MAX:
            raise CredentialsError(f"{path} (crl_path) holds more than {LISTS_MAX} files")
        if not files:
            raise CredentialsError(
                f"{path} (crl_path) holds no list; put one there, were it one that revokes nobody"
            )
        out = []
        left = TOTAL_BYTES_MAX
        for file in files:
            with file.open("rb") as opened:
                content = opened.read(LIST_BYTES_MAX + 1)
            if len(content) > LIST_BYTES_MAX:
                raise CredentialsError(
                    f"{file} (crl_path) is larger than {LIST_BYTES_MAX >> 20} MiB"
                )
            left -= len(content)
            if left < 0:
                raise CredentialsError(
                    f"{path} (crl_path) holds more than {TOTAL_BYTES_MAX >> 20} MiB"
                )
            out.append((str(file), content))
    except FileNotFoundError:
        raise CredentialsError(
            f"{path} (crl_path) does not exist; for a development CA: plumtree-quic certs revoke"
        ) from None
    except OSError as error:
        raise CredentialsError(f"{path} (crl_path) cannot be read: {error.strerror}") from None
    return out


def _files_in(directory: Path) -> list[Path]:
    """Hidden files are halves of something: another program writes them, and then renames them."""
    return sorted(
        each for each in directory.iterdir() if not each.name.startswith(".") and each.is_file()
    )


def _split(content: bytes) -> list[bytes]:
    if _PEM not in content:
        return [content]
    return [
        _PEM + part.partition(_PEM_END)[0] + _PEM_END + b"\n" for part in content.split(_PEM)[1:]
    ]


def _judge(name: str, content: bytes, anchors: Sequence[x509.Certificate]) -> _List:
    """Raises ValueError with the reason why a list does not count."""
    try:
        if content.startswith(_PEM):
            crl = x509.load_pem_x509_crl(content)
        else:
            crl = x509.load_der_x509_crl(content)
        issuer, last_update = crl.issuer, crl.last_update_utc
        next_update = crl.next_update_utc
        algorithm = crl.signature_hash_algorithm
        scope = _foreign_scope(crl.extensions)
        serials = frozenset(entry.serial_number for entry in crl)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise ValueError("is no certificate revocation list (PEM or DER)")
    if scope:
        raise ValueError(f"{scope}; give the CA's full list")
    if not isinstance(algorithm, _HASHES):
        raise ValueError("is signed with a hash that is weak or unknown; SHA-256, -384, -512 are")
    signers = [each for each in anchors if each.subject == issuer and _may_sign(each)]
    made = _List(name, issuer.public_bytes(), serials, last_update, next_update or _NEVER)
    if not any(each.subject == issuer for each in anchors):
        return attrs.evolve(made, crl=crl, is_known=False)
    if not any(_is_signed_by(crl, each) for each in signers):
        raise ValueError("is not signed by a CA that we trust; is it that of ca_path?")
    return made


def _newer(former: Sequence[_List], fresh: Sequence[_List]) -> list[_List]:
    """The newest former list of each CA whose fresh ones are all older: replayed, or a mistake."""
    newest: dict[bytes, _List] = {}
    for each in former:
        other = newest.setdefault(each.issuer, each)
        if each.last_update > other.last_update:
            newest[each.issuer] = each
    latest: dict[bytes, datetime.datetime] = {}
    for each in fresh:
        latest[each.issuer] = max(latest.get(each.issuer, _NEVER), each.last_update)
    return [
        newest[issuer]
        for issuer, updated in latest.items()
        if issuer in newest and updated < newest[issuer].last_update
    ]


def _foreign_scope(extensions: x509.Extensions) -> str:
    """Why these entries are not, or not all, of certificates that the issuer itself revoked."""
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.DeltaCRLIndicator):
            return "is a delta list"
        if isinstance(value, x509.IssuingDistributionPoint):
            if value.indirect_crl or value.only_contains_attribute_certs:
                return "is a list of other CAs' certificates, or of attribute certificates"
        elif extension.critical and isinstance(value, x509.UnrecognizedExtension):
            # RFC 5280, section 5.2: such a list must not be used.
            return f"has a critical extension that we do not know ({extension.oid.dotted_string})"
    return ""


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

"""Our own certificate, key and CA: loaded once, checked as a peer would check them, immutable.

The rules stand in identity.py, and what to tell of a broken one in explain.py; neither is here.
"""

import datetime
import logging
import os
import re
import stat
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning

from plumtree_quic.errors import ConfigError, CredentialsError
from plumtree_quic.ids import NodeId
from plumtree_quic.security.explain import NEW_CERT, explain, public_key_of
from plumtree_quic.security.identity import (
    CHAIN_CERTIFICATES_MAX,
    CheckFailed,
    check_chain,
    check_clock,
    check_key,
    parse_certificates,
    parse_identity,
)
from plumtree_quic.security.revocation import ON_STALE, Revocation, read_lists

__all__ = ["CLUSTER_BYTES_MAX", "Credentials", "PrivateKey", "QuicConfig", "load_certificates"]

logger = logging.getLogger("plumtree_quic.security")

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

CLUSTER_BYTES_MAX = 64
_FILE_BYTES_MAX = 1 << 20
_UNPARSABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)
# All that cryptography raises for malformed certificates; only some of it is a ValueError.
_KEY_BLOCK = re.compile(
    rb"-----BEGIN (?P<kind>[A-Z0-9 ]*PRIVATE KEY)-----.*?-----END (?P=kind)-----\s*", re.DOTALL
)


@attrs.frozen(kw_only=True, eq=False)
class Credentials:
    """Who we are and whom we trust, at one moment. A rotation makes a new one."""

    leaf: x509.Certificate
    leaf_der: bytes = attrs.field(repr=False)
    chain_der: tuple[bytes, ...] = attrs.field(repr=False)
    """The intermediates, without the leaf and without the root."""
    key: PrivateKey = attrs.field(repr=False)
    anchors: tuple[x509.Certificate, ...] = attrs.field(repr=False)
    node_id: NodeId
    trust_domain: str
    cluster: str
    generation: int
    """Raised by whatever changes."""
    link_generation: int = 1
    """Raised when links must be made anew: by another certificate, key or CA, not by a list."""
    revocation: Revocation = attrs.field(factory=Revocation)


@attrs.frozen
class _Files:
    """What was read: PEM text, and the revocation lists with their names."""

    cert: bytes
    key: bytes = attrs.field(repr=False)
    ca: bytes
    lists: tuple[tuple[str, bytes], ...] = ()
    lists_problem: str = ""
    """Why they are those that were read before."""

    def has_same_keys_as(self, other: "_Files") -> bool:
        """Whether at most the lists differ."""
        return (self.cert, self.key, self.ca) == (other.cert, other.key, other.ca)


class QuicConfig:
    """Identity and trust of one node: its certificate, its key, and the CA of everybody.

    There is no way to make a link without one, and no option that weakens it. All files are PEM.
    Everything that a peer would refuse is refused here first.

    Args:
        cert_path: this node's certificate, then its intermediates if there are any (at most 2).
            It names the node: exactly one URI in subjectAltName, ``spiffe://domain/path``.
        key_path: its private key: P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits.
        ca_path: the CA certificates that every node's certificate must chain to; several while
            one CA replaces another.
        crl_path: certificate revocation lists of the CA, PEM or DER, full ones (no deltas): a
            file, or a directory of at most 256 (hidden ones aside), 4 MiB each and 16 MiB in all.
            Those of a CA that is no anchor count for whoever sends its certificate along.
        crl_on_stale: a list past its nextUpdate, or a file that was never of use: "open" goes on
            with what there is, "closed" refuses everybody below its CA, or everybody when it
            cannot be known whose it is. Either is told. A list that was good goes on to count
            while its file is damaged, until it is stale.
        key_password: of an encrypted key.
        trust_domain: None takes that of the certificate.
        cluster: 1 to 64 bytes, printable; nodes of different cluster names never link.

    A running node looks at the files once a second, and takes what is good there at once.

    Raises:
        CredentialsError: a file is missing, unreadable or wrong; names the file and the fix.
        ConfigError: another argument is wrong, or Python runs with -O.
    """

    _paths: tuple[Path, Path, Path] | None
    _crl_path: Path | None = None
    _crl_on_stale: str = "open"
    _pems: "_Files"
    _looked_at: "_Files | None"
    _credentials: Credentials
    _names: tuple[str, str, str]
    _key_password: str | bytes | None

    def __init__(
        self,
        cert_path: str | os.PathLike[str],
        key_path: str | os.PathLike[str],
        ca_path: str | os.PathLike[str],
        *,
        crl_path: str | os.PathLike[str] | None = None,
        crl_on_stale: str = "open",
        key_password: str | bytes | None = None,
        trust_domain: str | None = None,
        cluster: str = "default",
    ) -> None:
        if crl_on_stale not in ON_STALE:
            raise ConfigError(f"crl_on_stale is {crl_on_stale!r}; allowed: 'open', 'closed'")
        if crl_on_stale == "closed" and crl_path is None:
            raise ConfigError("crl_on_stale is 'closed' without lists; give crl_path, too")
        self._paths = (Path(cert_path), Path(key_path), Path(ca_path))
        self._crl_path = Path(crl_path) if crl_path is not None else None
        self._crl_on_stale = crl_on_stale
        self._key_password = key_password
        lists = tuple(read_lists(self._crl_path)) if self._crl_path is not None else ()
        pems, key_mode = self._read_files(lists)
        self._load(
            pems=pems,
            names=(os.fspath(cert_path), os.fspath(key_path), os.fspath(ca_path)),
            key_password=key_password,
            trust_domain=trust_domain,
            cluster=cluster,
            unwise=_readable_by_others(os.fspath(key_path), key_mode),
            crl_on_stale=crl_on_stale,
        )

    @classmethod
    def from_pem(
        cls,
        *,
        cert: str | bytes,
        key: str | bytes,
        ca: str | bytes,
        key_password: str | bytes | None = None,
        trust_domain: str | None = None,
        cluster: str = "default",
    ) -> "QuicConfig":
        """The same from PEM text, for credentials that never touch a disk.

        Raises:
            CredentialsError, ConfigError: as the constructor.
        """
        config = cls.__new__(cls)
        config._paths = config._key_password = None
        config._load(
            pems=_Files(_bytes(cert), _bytes(key), _bytes(ca)),
            names=("cert", "key", "ca"),
            key_password=key_password,
            trust_domain=trust_domain,
            cluster=cluster,
            unwise=(),
        )
        return config

    def reload(self) -> bool:
        """Read the files again; True when they hold something else, which counts from now on.

        All of it is checked before any of it counts, as at construction, and it must name the same
        node. Links that are up stay as they are: a running node replaces them (see
        `Node.reload_credentials`).

        Raises:
            CredentialsError: what the files hold now is no good; the old credentials stay.
            ConfigError: they came from `from_pem`, so there is nothing to read.
        """
        if self._paths is None:
            raise ConfigError("these credentials did not come from files; make a new QuicConfig")
        pems = self._read_again()
        if pems == self._pems:
            return False
        old = self._credentials
        other = QuicConfig.__new__(QuicConfig)
        other._load(
            pems=pems,
            names=self._names,
            key_password=self._key_password,
            trust_domain=old.trust_domain,
            cluster=old.cluster,
            unwise=(),
            generation=old.generation + 1,
            link_generation=old.link_generation + (not pems.has_same_keys_as(self._pems)),
            crl_on_stale=self._crl_on_stale,
            before=old.revocation,
        )
        if other.node_id != old.node_id:
            raise CredentialsError(
                f"{self._names[0]} now names {other.node_id}, and this node is {old.node_id}; a "
                "running node cannot become another one: restart it"
            )
        self._pems, self._credentials = pems, other._credentials
        return True

    def changed(self) -> bool:
        """Whether the files hold something else than when this was last asked; never raises."""
        if self._paths is None:
            return False
        try:
            pems: _Files | None = self._read_again()
        except CredentialsError:
            pems = None
        changed = pems != self._looked_at
        self._looked_at = pems
        return changed

    def _read_files(self, lists: tuple[tuple[str, bytes], ...]) -> tuple["_Files", int]:
        """What the files hold, beside `lists`, and the permission bits of the key's."""
        assert self._paths is not None
        cert_path, key_path, ca_path = self._paths
        cert, _ = _read(cert_path, "cert_path")
        key, key_mode = _read(key_path, "key_path")
        ca, _ = _read(ca_path, "ca_path")
        return _Files(cert, key, ca, lists), key_mode

    def _read_again(self) -> "_Files":
        """What the files hold now. Lists that cannot be read keep no certificate from renewal."""
        lists, problem = self._pems.lists, ""
        try:
            if self._crl_path is not None:
                lists = tuple(read_lists(self._crl_path))
        except CredentialsError as error:
            problem = f"{error}; what was there before goes on to count"
        return attrs.evolve(self._read_files(lists)[0], lists_problem=problem)

    def _load(
        self,
        *,
        pems: "_Files",
        names: tuple[str, str, str],
        key_password: str | bytes | None,
        trust_domain: str | None,
        cluster: str,
        unwise: tuple[str, ...],
        generation: int = 1,
        link_generation: int = 1,
        crl_on_stale: str = "open",
        before: Revocation | None = None,
    ) -> None:
        _refuse_optimized()
        _check_cluster(cluster)
        cert_name, key_name, ca_name = names
        certificates = load_certificates(pems.cert, cert_name)
        key = _private_key(pems.key, key_name, key_password)
        anchors = load_certificates(pems.ca, ca_name)
        _check_anchors(anchors, ca_name)
        leaf, *chain = certificates
        _check_pair(certificates, cert_name, key, key_name)
        # A root sent along is of no use to the peer, which has its own. An intermediate may be:
        # not everybody need trust the same level.
        chain = [each for each in chain if each not in anchors or each.subject != each.issuer]
        if 1 + len(chain) > CHAIN_CERTIFICATES_MAX:
            raise CredentialsError(
                f"{cert_name} holds {1 + len(chain)} certificates; at most "
                f"{CHAIN_CERTIFICATES_MAX} are sent: keep the leaf and its intermediates"
            )
        try:
            node_id = _judge(leaf, chain, anchors, trust_domain)
        except CheckFailed as failed:
            raise CredentialsError(
                explain(failed, leaf, chain, anchors, cert_name=cert_name, ca_name=ca_name)
            ) from None
        revocation = Revocation.load(
            pems.lists, anchors, intermediates=chain, on_stale=crl_on_stale, before=before
        )
        if pems.lists_problem:
            problems = (*revocation.problems, pems.lists_problem)
            revocation = attrs.evolve(revocation, problems=problems)
        self._credentials = Credentials(
            leaf=leaf,
            leaf_der=_der(leaf),
            chain_der=tuple(_der(each) for each in chain),
            key=key,
            anchors=tuple(anchors),
            node_id=node_id,
            trust_domain=node_id.trust_domain,
            cluster=cluster,
            generation=generation,
            link_generation=link_generation,
            revocation=revocation,
        )
        self._pems = self._looked_at = pems
        self._names = names
        self.warnings = unwise
        """What is unwise but works; each was logged too."""
        for warning in unwise:
            logger.warning("%s", warning, extra={"event": "credentials.warning"})

    @property
    def has_files(self) -> bool:
        """Whether the credentials came from files, which `reload` can read again."""
        return self._paths is not None

    @property
    def credentials(self) -> Credentials:
        """The checked certificate, key and anchors."""
        return self._credentials

    @property
    def node_id(self) -> NodeId:
        """Who we are: the URI in our certificate."""
        return self._credentials.node_id

    @property
    def trust_domain(self) -> str:
        """The trust domain whose identities may link with us."""
        return self._credentials.trust_domain

    @property
    def cluster(self) -> str:
        """The name of the cluster."""
        return self._credentials.cluster

    def __repr__(self) -> str:
        return f"QuicConfig({str(self.node_id)!r}, cluster={self.cluster!r})"


def _refuse_optimized() -> None:
    if sys.flags.optimize:
        raise ConfigError(
            "Python runs with -O (or PYTHONOPTIMIZE), which removes the assertions that guard "
            "this library's invariants, security included; run it without"
        )


def _check_cluster(cluster: str) -> None:
    if not 1 <= len(cluster.encode("utf-8", "replace")) <= CLUSTER_BYTES_MAX:
        raise ConfigError(f"cluster is {cluster!r}; allowed are 1 to {CLUSTER_BYTES_MAX} bytes")
    # What no peer's decoder would take must not even start.
    if not cluster.isprintable():
        raise ConfigError(f"cluster is {cluster!r}; allowed are printable characters only")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _der(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.DER)


# --- files --------------------------------------------------------------------------------------


def _read(path: Path, argument: str) -> tuple[bytes, int]:
    """The content of a file and its permission bits."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise CredentialsError(
            f"{path} ({argument}) does not exist; "
            "for development certificates run: plumtree-quic certs NAME"
        ) from None
    except PermissionError:
        raise CredentialsError(
            f"{path} ({argument}) cannot be read by uid {os.geteuid()}; give that user the right"
        ) from None
    except OSError as error:
        raise CredentialsError(f"{path} ({argument}) cannot be read: {error.strerror}") from None
    if len(content) > _FILE_BYTES_MAX:
        raise CredentialsError(f"{path} ({argument}) is larger than 1 MiB; is it the right file?")
    return content, mode


def _readable_by_others(key_path: str, mode: int) -> tuple[str, ...]:
    if not mode & 0o077:
        return ()
    return (
        f"{key_path} is open to others than its owner (mode {mode:04o}); run: chmod 600 "
        f"{key_path} (in Kubernetes: defaultMode: 0400 on the Secret's volume)",
    )


def load_certificates(pem: bytes, name: str) -> list[x509.Certificate]:
    """Parse all certificates in `pem`, which errors call `name`.

    Raises:
        CredentialsError: there is none, or one is damaged.
    """
    if not pem.strip():
        raise CredentialsError(f"{name} is empty; it must hold PEM certificates")
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        if b"PRIVATE KEY-----" in pem:
            raise CredentialsError(f"{name} holds a private key and no certificate; swapped?")
        raise CredentialsError(
            f"{name} holds no PEM certificate (DER becomes PEM with: openssl x509 -inform der)"
        )
    try:
        with warnings.catch_warnings():
            # What the parser only warns of, a serial number below 1 for one, a peer refuses.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            certificates = x509.load_pem_x509_certificates(pem)
            for each in certificates:
                # Parsed when they are first read, which must not be elsewhere.
                _ = (each.extensions, each.subject, each.issuer)
                _ = (each.not_valid_before_utc, each.not_valid_after_utc)
                _ = each.signature_hash_algorithm
    except _UNPARSABLE:
        raise CredentialsError(f"{name} holds a damaged certificate; {NEW_CERT}") from None
    return certificates


def _private_key(pem: bytes, name: str, password: str | bytes | None) -> PrivateKey:
    # The block alone: openssl puts curve parameters before it, others the certificate.
    block = _KEY_BLOCK.search(pem)
    if block is None:
        swapped = "; cert and key swapped?" if b"-----BEGIN CERTIFICATE-----" in pem else ""
        raise CredentialsError(f"{name} holds no whole PEM private key{swapped}")
    pem = block.group()
    encrypted = b"-----BEGIN ENCRYPTED" in pem or b"Proc-Type: 4,ENCRYPTED" in pem
    if encrypted and not password:
        raise CredentialsError(
            f"{name} is encrypted; give its password as key_password or PLUMTREE_KEY_PASSWORD"
        )
    if not encrypted and password:
        raise CredentialsError(f"{name} is not encrypted; leave key_password out")
    try:
        key = serialization.load_pem_private_key(pem, _bytes(password) if password else None)
    except (ValueError, TypeError):
        raise CredentialsError(
            f"{name} cannot be decrypted: key_password is wrong"
            if encrypted
            else f"{name} holds a damaged private key; {NEW_CERT}"
        ) from None
    except UnsupportedAlgorithm:
        raise CredentialsError(f"{name}: this kind of key is not supported; {NEW_CERT}") from None
    if not isinstance(key, PrivateKey):
        raise CredentialsError(
            f"{name} is a key of an unsupported kind; use P-256, P-384, Ed25519 or RSA"
        )
    return key


def _check_pair(
    certificates: Sequence[x509.Certificate], cert_name: str, key: PrivateKey, key_name: str
) -> None:
    public_key = key.public_key()
    if public_key_of(certificates[0]) == public_key:
        return
    if any(public_key_of(each) == public_key for each in certificates[1:]):
        raise CredentialsError(
            f"{key_name} belongs to a later certificate in {cert_name}; put the node's own first"
        )
    raise CredentialsError(f"{key_name} is not the key of {cert_name}; were they issued together?")


def _check_anchors(anchors: Sequence[x509.Certificate], name: str) -> None:
    """A node's certificate among the anchors would be believed whoever holds its key."""
    for anchor in anchors:
        try:
            is_ca = anchor.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
            is_ca = False
        if not is_ca:
            subject = ascii(anchor.subject.rfc4514_string())
            raise CredentialsError(
                f"{name} holds a certificate that is no CA's ({subject}); give the certificate of "
                "the CA that issues your nodes' certificates"
            )


# --- the rules ----------------------------------------------------------------------------------


def _judge(
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    trust_domain: str | None,
) -> NodeId:
    """Steps 4, 5, 8, 9 and 10 of a peer's check, on ourselves."""
    parse_certificates([_der(each) for each in (leaf, *chain)])
    check_key(public_key_of(leaf))
    now = datetime.datetime.now(datetime.UTC)
    check_clock(now)
    check_chain(leaf, chain, anchors, now)
    return parse_identity(leaf, trust_domain)

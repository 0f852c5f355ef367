"""A development CA: certificates in one command. Not for production, where SPIRE or Vault issue.

No checking of certificates here (identity.py, credentials.py).
"""

import datetime
import os
import secrets
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plumtree_quic.errors import ConfigError, CredentialsError
from plumtree_quic.ids import NodeId
from plumtree_quic.security.credentials import load_certificates

__all__ = ["CA_DAYS", "DAYS_MAX", "KEY_TYPES", "LEAF_DAYS", "DevCa", "Issued", "check_name"]

KEY_TYPES = ("p256", "p384", "ed25519", "rsa")
LEAF_DAYS = 365
CRL_DAYS = 30
"""A guess: long enough to forget, short enough to be noticed."""
CA_DAYS = 3650
"""A guess: no development cluster lives ten years."""
DAYS_MAX = 3650

_BACKDATED = datetime.timedelta(minutes=5)
# Clocks of the machines that share a development CA may differ by so much: a guess.

_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@attrs.frozen
class Issued:
    """What `DevCa.issue` wrote."""

    node_id: NodeId
    cert_path: Path
    key_path: Path
    not_after: datetime.datetime


class DevCa:
    """A CA whose key lies beside its certificate, in `directory`: ``ca.crt`` and ``ca.key``.

    Its key is P-256: the chain verifier takes EC and RSA authorities only. Its trust domain
    stands in its own certificate, as ``URI:spiffe://<trust-domain>`` (SPIFFE X509-SVID,
    section 4.2).
    """

    def __init__(
        self,
        directory: Path,
        trust_domain: str,
        cert: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
    ) -> None:
        self.directory = directory
        self.trust_domain = trust_domain
        self.cert = cert
        self._key = key

    @classmethod
    def create(
        cls, directory: str | Path, *, trust_domain: str = "dev", days: int = CA_DAYS
    ) -> "DevCa":
        """Make a CA in `directory`, which is created when it is missing.

        Args:
            directory: where ca.crt and ca.key go.
            trust_domain: the first part of every identity that it issues.
            days: how long it is valid, 1 to 3650.

        Raises:
            ConfigError: bad trust domain or days.
            CredentialsError: a CA is there already, or the directory cannot be written.
        """
        directory = Path(directory)
        if NodeId.parse(f"spiffe://{trust_domain}/node/ca").trust_domain != trust_domain:
            raise ConfigError(f"trust domain {trust_domain!r} must not contain '/'")
        _check_days(days)
        cert_path, key_path = directory / "ca.crt", directory / "ca.key"
        for path in (cert_path, key_path):
            if os.path.lexists(path):
                raise CredentialsError(
                    f"{path} exists; use that CA, or choose another directory for a new one"
                )
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} CA")])
        now = _now()
        cert = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]
                ),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        _make_directory(directory)
        _write(key_path, _key_pem(key), mode=0o600, replace=False)
        _write(cert_path, cert.public_bytes(serialization.Encoding.PEM), mode=0o644, replace=False)
        return cls(directory, trust_domain, cert, key)

    @classmethod
    def open(cls, directory: str | Path) -> "DevCa":
        """Open the CA that an earlier `create` left in `directory`.

        Raises:
            CredentialsError: ca.crt or ca.key is missing, unreadable, expired, or does not belong
                to the other, or ca.crt names no trust domain.
        """
        directory = Path(directory)
        cert_path, key_path = directory / "ca.crt", directory / "ca.key"
        cert_pem, pem = _read(cert_path), _read(key_path)
        cert = load_certificates(cert_pem, str(cert_path))[0]
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            raise CredentialsError(f"{key_path} is not a PEM private key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
            raise CredentialsError(f"{key_path} is not the key of {cert_path}")
        if cert.not_valid_after_utc <= _now():
            raise CredentialsError(
                f"{cert_path} expired at {cert.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC; "
                "move it and ca.key away and run again for a new CA"
            )
        return cls(directory, _trust_domain(cert, cert_path), cert, key)

    @classmethod
    def open_or_create(cls, directory: str | Path, *, trust_domain: str | None = None) -> "DevCa":
        """Open the CA in `directory`, or make one there when there is neither ca.crt nor ca.key.

        Args:
            directory: where it is, or will be.
            trust_domain: None takes that of the existing CA, or "dev" for a new one.

        Raises:
            CredentialsError: as `open`, or the existing CA is of another trust domain.
        """
        directory = Path(directory)
        if not any(os.path.lexists(directory / name) for name in ("ca.crt", "ca.key")):
            return cls.create(directory, trust_domain=trust_domain or "dev")
        ca = cls.open(directory)
        if trust_domain is not None and trust_domain != ca.trust_domain:
            raise CredentialsError(
                f"{directory / 'ca.crt'} is of trust domain {ca.trust_domain!r}, not "
                f"{trust_domain!r}; choose another directory for another trust domain"
            )
        return ca

    def check_issue(self, name: str, *, force: bool = False) -> NodeId:
        """Return the identity that `issue` would give to `name`; write nothing.

        Raises:
            ConfigError: `name` cannot be part of an identity, or is "ca".
            CredentialsError: one of its files exists and not `force`.
        """
        check_name(name)
        node_id = NodeId.parse(f"spiffe://{self.trust_domain}/node/{name}")
        for path in self._paths(name):
            if os.path.lexists(path) and not force:
                raise CredentialsError(f"{path} exists; --force (force=True) overwrites it")
        return node_id

    def issue(
        self, name: str, *, key_type: str = "p256", days: int = LEAF_DAYS, force: bool = False
    ) -> Issued:
        """Write NAME.crt and NAME.key, for ``spiffe://<trust-domain>/node/NAME``.

        The key file has mode 0600 from the moment at which it exists. Each file appears whole or
        not at all.

        Args:
            name: letters a to z, digits, ``.``, ``_`` and ``-``.
            key_type: p256, p384, ed25519 or rsa (3072 bits: the strength of p256).
            days: how long it is valid, 1 to 3650; never longer than the CA.
            force: overwrite existing files.

        Raises:
            ConfigError: bad name, key type or days.
            CredentialsError: a file exists and not `force`, or cannot be written.
        """
        node_id = self.check_issue(name, force=force)
        _check_days(days)
        key = _generate(key_type)
        now = _now()
        not_after = min(now + datetime.timedelta(days=days), self.cert.not_valid_after_utc)
        authority = self.cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
            .issuer_name(self.cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _BACKDATED, self.cert.not_valid_before_utc))
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(node_id)]),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority.value),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        cert_path, key_path = self._paths(name)
        _write(key_path, _key_pem(key), mode=0o600, replace=force)
        _write(cert_path, cert.public_bytes(serialization.Encoding.PEM), mode=0o644, replace=force)
        return Issued(node_id, cert_path, key_path, not_after)

    def revoke(self, *names: str, days: int = CRL_DAYS) -> Path:
        """Write DIR/ca.crl: what was revoked before, and the certificates of `names`.

        Args:
            names: nodes of this CA; their NAME.crt is read.
            days: after how many the list wants to be renewed, 1 to 3650; revoke() without names
                does that.

        Raises:
            ConfigError: bad name or days.
            CredentialsError: a certificate is missing or another CA's, or the list cannot be
                read or written.
        """
        _check_days(days)
        path = self.directory / "ca.crl"
        now = _now()
        entries: dict[int, x509.RevokedCertificate] = {}
        number = 0
        if os.path.lexists(path):
            pem = _read(path)
            try:
                former = x509.load_pem_x509_crl(pem)
                entries = {each.serial_number: each for each in former}
                numbers = (each.value for each in former.extensions)
                number = max(
                    (each.crl_number for each in numbers if isinstance(each, x509.CRLNumber)),
                    default=0,
                )
            except ValueError:
                raise CredentialsError(f"{path} is damaged; remove it to begin a new one") from None
            if not former.is_signature_valid(self._key.public_key()):
                raise CredentialsError(
                    f"{path} is not the list of {self.directory / 'ca.crt'}; move it away to "
                    "begin a new one"
                )
        for name in names:
            check_name(name)
            cert_path, _ = self._paths(name)
            pem = _read(cert_path)
            try:
                cert = x509.load_pem_x509_certificate(pem)
                cert.verify_directly_issued_by(self.cert)
            except (ValueError, TypeError, InvalidSignature):
                raise CredentialsError(f"{cert_path} is not a certificate of this CA") from None
            entries.setdefault(
                cert.serial_number,
                x509.RevokedCertificateBuilder()
                .serial_number(cert.serial_number)
                .revocation_date(now)
                .build(),
            )
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.cert.subject)
            .last_update(now)
            .next_update(now + datetime.timedelta(days=days))
            # Both are a must (RFC 5280, sections 5.2.1 and 5.2.3).
            .add_extension(x509.CRLNumber(number + 1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        for entry in entries.values():
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self._key, hashes.SHA256())
        _write(path, crl.public_bytes(serialization.Encoding.PEM), mode=0o644, replace=True)
        return path

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a node.

    Raises:
        ConfigError: `name` is "ca", or not one path segment of an identity.
    """
    if name == "ca":
        raise ConfigError("name 'ca' is taken by the CA's own files; choose another")
    if "/" in name:
        raise ConfigError(f"name {name!r}: '/' is not allowed; a name is one path segment")
    NodeId.parse(f"spiffe://dev/node/{name}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _check_days(days: int) -> None:
    if not 1 <= days <= DAYS_MAX:
        raise ConfigError(f"days is {days}; allowed are 1 to {DAYS_MAX}")


def _generate(key_type: str) -> _PrivateKey:
    match key_type:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "rsa":
            return rsa.generate_private_key(public_exponent=65537, key_size=3072)
    raise ConfigError(f"key type is {key_type!r}; allowed are {', '.join(KEY_TYPES)}")


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: _PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _trust_domain(cert: x509.Certificate, path: Path) -> str:
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return NodeId.parse(f"{uri}/node/ca").trust_domain
    except (x509.ExtensionNotFound, ValueError):
        raise CredentialsError(
            f"{path} was not made by this command: it names no trust domain "
            "(URI:spiffe://<trust-domain>)"
        ) from None


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CredentialsError(f"cannot make directory {directory}: {error.strerror}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, content: bytes, *, mode: int, replace: bool) -> None:
    """Let `path` appear with all of `content` and `mode`, at once; overwrite only to `replace`."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(fresh, path)
            else:
                os.link(fresh, path)  # unlike rename, fails when another was faster
        finally:
            fresh.unlink(missing_ok=True)
    except FileExistsError:
        raise CredentialsError(f"{path} exists; --force (force=True) overwrites it") from None
    except OSError as error:
        raise CredentialsError(f"cannot write {path}: {error.strerror}") from None

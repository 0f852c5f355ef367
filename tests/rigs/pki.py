"""Certificates of every good and bad kind, for tests. Shares no code with plumtree_quic."""

import datetime
import functools
import hashlib
import os
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import (
    dsa,
    ec,
    ed448,
    ed25519,
    padding,
    rsa,
    x25519,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def utc(*, seconds=0.0, days=0.0):
    """Now plus so much, without microseconds (X.509 has none)."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return now + datetime.timedelta(seconds=seconds, days=days)


@functools.cache
def _shared_rsa(bits, number):
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def _rsa_with_exponent(exponent):
    """The shared key's primes with another exponent, which no library would generate."""
    numbers = _shared_rsa(2048, 0).private_numbers()
    p, q = numbers.p, numbers.q
    d = pow(exponent, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(exponent, p * q)
    return rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), numbers.iqmp, public
    ).private_key()


_CURVES = {
    "p256": ec.SECP256R1,
    "p384": ec.SECP384R1,
    "p521": ec.SECP521R1,
    "secp256k1": ec.SECP256K1,
}


def make_key(key_type="p256", number=0):
    """A private key. p256, p384, p521, secp256k1, ed25519, ed448, x25519, dsa, rsa, rsa<bits>
    or rsa-exponent (one that makes verifying dear).

    RSA keys are made once a process for each (bits, number): they are slow.
    """
    if key_type in _CURVES:
        return ec.generate_private_key(_CURVES[key_type]())
    if key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if key_type == "ed448":
        return ed448.Ed448PrivateKey.generate()
    if key_type == "x25519":
        return x25519.X25519PrivateKey.generate()
    if key_type == "dsa":
        return dsa.generate_private_key(key_size=2048)
    if key_type == "rsa-exponent":
        return _rsa_with_exponent((1 << 33) + 17)  # a prime
    if key_type.startswith("rsa"):
        return _shared_rsa(int(key_type[3:] or 2048), number)
    raise ValueError(key_type)


def key_pem(key, password=None):
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password is not None
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@attrs.frozen(eq=False)
class Cert:
    """A certificate, its key, and the certificates between it and the root."""

    cert: x509.Certificate
    key: object
    chain: tuple = ()

    @property
    def der(self):
        return self.cert.public_bytes(serialization.Encoding.DER)

    @property
    def chain_der(self):
        return tuple(each.public_bytes(serialization.Encoding.DER) for each in self.chain)

    @property
    def leaf_pem(self):
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def cert_pem(self):
        """The leaf and then its intermediates: what a certificate file holds."""
        return b"".join(
            each.public_bytes(serialization.Encoding.PEM) for each in (self.cert, *self.chain)
        )

    @property
    def key_pem(self):
        return key_pem(self.key)

    def write(self, directory, name, *, mode=0o600):
        """Write NAME.crt and NAME.key; returns both paths."""
        cert_path, key_path = Path(directory) / f"{name}.crt", Path(directory) / f"{name}.key"
        cert_path.write_bytes(self.cert_pem)
        key_path.write_bytes(self.key_pem)
        os.chmod(key_path, mode)
        return cert_path, key_path


_SHA256_RSA = bytes.fromhex("06092a864886f70d01010b")
_SHA1_RSA = bytes.fromhex("06092a864886f70d010105")
_SHA1_PREFIX = bytes.fromhex("3021300906052b0e03021a05000414")


def _with_sha1(cert, ca_key):
    """The same certificate signed with SHA-1, by hand: no library does it any more (RSA CA only).

    Both algorithm identifiers have the length of the former ones, and so has the signature.
    """
    tbs = cert.tbs_certificate_bytes.replace(_SHA256_RSA, _SHA1_RSA)
    numbers, size = ca_key.private_numbers(), ca_key.key_size // 8
    told = _SHA1_PREFIX + hashlib.sha1(tbs).digest()
    padded = b"\x00\x01" + b"\xff" * (size - len(told) - 3) + b"\x00" + told
    signature = pow(int.from_bytes(padded), numbers.d, numbers.public_numbers.n).to_bytes(size)
    der = cert.public_bytes(serialization.Encoding.DER)
    der = der.replace(cert.tbs_certificate_bytes, tbs).replace(_SHA256_RSA, _SHA1_RSA)
    return x509.load_der_x509_certificate(der.replace(cert.signature, signature))


def _usage(names):
    return x509.KeyUsage(**{each: each in names for each in KEY_USAGES})


class Pki:
    """One root CA and whatever it is asked to sign, rightly or wrongly."""

    def __init__(self, trust_domain="test", *, key_type="p256", common_name=None, **options):
        self.trust_domain = trust_domain
        self.ca = self.authority(
            common_name or f"{trust_domain} CA", key_type=key_type, issuer="self", **options
        )

    @property
    def ca_pem(self):
        return self.ca.leaf_pem

    def authority(
        self,
        common_name="intermediate",
        *,
        issuer=None,
        key_type="p256",
        key_usage=("key_cert_sign", "crl_sign", "digital_signature"),
        path_length=None,
        **options,
    ):
        """A CA: an intermediate below our root, or issuer="self" for another root."""
        return self.node(
            common_name,
            uris=(),
            eku=None,
            ca=True,
            issuer=issuer,
            key_type=key_type,
            key_usage=key_usage,
            path_length=path_length,
            **options,
        )

    def node(
        self,
        name,
        *,
        key_type="p256",
        key=None,
        uris=None,
        sans=(),
        not_before=None,
        not_after=None,
        eku=(SERVER, CLIENT),
        key_usage=("digital_signature",),
        ca=False,
        path_length=None,
        issuer=None,
        issuer_name=None,
        aki=True,
        ski=True,
        basic_constraints=True,
        hash_algorithm=None,
        rsa_pss=False,
        serial=None,
        extensions=(),
    ):
        """A certificate that is right in everything that no argument makes wrong.

        key_type, key: the subject's key (or a given one). uris: URI SANs; default the one identity
        spiffe://TRUST-DOMAIN/node/NAME. sans: further x509.GeneralNames. not_before, not_after:
        aware datetimes; default an hour ago, tomorrow. eku, key_usage: None leaves the extension
        out. issuer: a Cert, None for our root, "self" for self-signed. issuer_name: CommonName to
        put in place of the issuer's. hash_algorithm: SHA1 needs an RSA issuer.
        extensions: further (extension, critical) pairs.
        """
        key = key if key is not None else make_key(key_type)
        public_key = key.public_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        if issuer == "self":
            issuer_subject, signing_key, chain = subject, key, ()
            issuer_public_key = public_key
        else:
            parent = issuer if issuer is not None else self.ca
            issuer_subject, signing_key = parent.cert.subject, parent.key
            issuer_public_key = parent.cert.public_key()
            is_root = parent.cert.subject == parent.cert.issuer
            chain = () if is_root else (parent.cert, *parent.chain)
        if issuer_name is not None:
            issuer_subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_subject)
            .public_key(public_key)
            .serial_number(serial if serial is not None else x509.random_serial_number())
            .not_valid_before(not_before if not_before is not None else utc(seconds=-3600))
            .not_valid_after(not_after if not_after is not None else utc(days=1))
        )
        if basic_constraints:
            builder = builder.add_extension(
                x509.BasicConstraints(ca=ca, path_length=path_length), critical=True
            )
        if key_usage is not None:
            builder = builder.add_extension(_usage(key_usage), critical=True)
        if eku is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(eku)), critical=False)
        if uris is None:
            uris = (f"spiffe://{self.trust_domain}/node/{name}",)
        names = [x509.UniformResourceIdentifier(each) for each in uris] + list(sans)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if ski:
            builder = builder.add_extension(
                x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False
            )
        if aki:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public_key),
                critical=False,
            )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        sha1 = isinstance(hash_algorithm, hashes.SHA1)
        algorithm = hashes.SHA256() if sha1 or hash_algorithm is None else hash_algorithm
        if isinstance(signing_key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
            algorithm = None
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32) if rsa_pss else None
        cert = builder.sign(signing_key, algorithm, rsa_padding=pss)
        return Cert(_with_sha1(cert, signing_key) if sha1 else cert, key, chain)

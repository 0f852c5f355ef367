"""`plumtree-quic certs`: issue development certificates, and say what any certificate is.

The CA is security/certs.py; the check is security/identity.py. Here is only what people read.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from plumtree_quic.errors import ConfigError, CredentialsError
from plumtree_quic.security.certs import CRL_DAYS, DAYS_MAX, KEY_TYPES, LEAF_DAYS, DevCa, check_name
from plumtree_quic.security.credentials import load_certificates
from plumtree_quic.security.explain import (
    NEW_CERT,
    describe_key,
    explain,
    extension_of,
    public_key_of,
    uris_of,
)
from plumtree_quic.security.identity import (
    CHECKS,
    Alert,
    CheckFailed,
    check_chain,
    check_key,
    parse_identity,
)
from plumtree_quic.security.revocation import Revocation, read_lists

__all__ = ["certs"]

_STEP_REVOKED = 11  # of identity.py's CHECKS


class _CertsCommand(click.Command):
    """`certs NAME...` issues; `certs inspect` and `certs revoke` are commands of their own."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        for name, command in (("inspect", inspect), ("revoke", revoke)):
            if args[:1] == [name]:
                return command.make_context(f"{info_name} {name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_CertsCommand, no_args_is_help=True)
@click.option(
    "--out",
    metavar="DIR",
    default="certs/dev",
    show_default=True,
    help="Where the files go; its CA is used again, or made.",
)
@click.option("--trust-domain", metavar="D", help="Of a new CA (default: dev).")
@click.option(
    "--days", type=click.IntRange(1, DAYS_MAX), default=LEAF_DAYS, show_default=True, metavar="N"
)
@click.option("--key-type", type=click.Choice(KEY_TYPES), default="p256", show_default=True)
@click.option("--force", is_flag=True, help="Overwrite certificates and keys (never the CA).")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def certs(
    out: str,
    trust_domain: str | None,
    days: int,
    key_type: str,
    force: bool,
    names: tuple[str, ...],
) -> None:
    """Issue development certificates: DIR/NAME.crt and DIR/NAME.key for each NAME.

    A node that uses them is spiffe://D/node/NAME. Whoever has DIR/ca.key can be any node: for
    development only.

    `certs inspect FILE...` says what a certificate is and whether a node would accept it;
    `certs revoke NAME...` puts certificates on the CA's list of revoked ones.
    """
    for command in ("inspect", "revoke"):
        if command in names:
            raise ConfigError(f"name {command!r} is a command (certs {command}); choose another")
    for name in names:
        check_name(name)  # before a CA is made
        if names.count(name) > 1:
            raise ConfigError(f"name {name!r} is given twice")
    ca = DevCa.open_or_create(out, trust_domain=trust_domain)
    for name in names:
        ca.check_issue(name, force=force)  # all or none
    for name in names:
        issued = ca.issue(name, key_type=key_type, days=days, force=force)
        click.echo(
            f"{issued.cert_path}  {issued.key_path}  {issued.node_id}  "
            f"until {issued.not_after:%Y-%m-%d}"
        )
    click.echo(f"CA: {ca.directory / 'ca.crt'} (trust domain {ca.trust_domain})")


@click.command(no_args_is_help=True)
@click.option("--out", metavar="DIR", default="certs/dev", show_default=True, help="Of the CA.")
@click.option(
    "--days",
    type=click.IntRange(1, DAYS_MAX),
    default=CRL_DAYS,
    show_default=True,
    metavar="N",
    help="Until the list wants to be renewed.",
)
@click.argument("names", metavar="[NAME...]", nargs=-1)
def revoke(out: str, days: int, names: tuple[str, ...]) -> None:
    """Put the certificates of NAME... on DIR/ca.crl, the list of what this CA has revoked.

    A node that is started with --crl DIR/ca.crl looks at it once a second: it cuts its links with
    them, refuses their dials, and takes nothing that is signed under them. Nothing is taken off
    the list. Revoke DIR/NAME.crt before you issue NAME again with --force, not after.

    The list is to be renewed every --days: with --out alone it is written again, or a first one
    that revokes nobody. The issuer's key (DIR/ca.key) is needed for it.
    """
    path = DevCa.open(out).revoke(*names, days=days)
    click.echo(f"{path}: {'revoked ' + ', '.join(names) if names else 'renewed'}")


@click.command(no_args_is_help=True)
@click.option("--ca", "ca_file", metavar="FILE", help="Default: the ca.crt beside each file.")
@click.option("--crl", "crl", metavar="PATH", help="Default: the ca.crl beside the CA, if any.")
@click.option("--trust-domain", metavar="D", help="Default: any.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
def inspect(
    ca_file: str | None, crl: str | None, trust_domain: str | None, files: tuple[str, ...]
) -> int:
    """Say who each certificate is, its dates and usages, and what a node's check would say.

    Exits with 1 when a node would refuse one of them.
    """
    refused = 0
    for number, file in enumerate(files):
        if number:
            click.echo()
        refused += not _inspect(Path(file), ca_file, crl, trust_domain)
    return 1 if refused else 0


def _inspect(path: Path, ca_file: str | None, crl: str | None, trust_domain: str | None) -> bool:
    leaf, *chain = _load(path)
    click.echo(str(path))
    uris = uris_of(leaf)
    _line("identity", ", ".join(_shown(each) for each in uris) or "none")
    _line("subject", _shown(leaf.subject.rfc4514_string()))
    _line("issuer", _shown(leaf.issuer.rfc4514_string()))
    _line("serial", f"{leaf.serial_number:x}")
    _line("valid", _validity(leaf))
    _line("key", describe_key(public_key_of(leaf)))
    _line("usages", ", ".join(_usages(leaf)) or "none")
    _line("sent along", f"{len(chain)} intermediates" if chain else "no intermediates")
    _line("SHA-256", leaf.fingerprint(hashes.SHA256()).hex())
    constraints = extension_of(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        _line("check", "none: this is a CA's certificate, which signs and is never a node's")
        return True
    ca_path = Path(ca_file) if ca_file is not None else path.parent / "ca.crt"
    if ca_file is None and not ca_path.exists():
        # What needs no CA is judged all the same: no node takes what has expired.
        if not _check(path, leaf, chain, None, None, trust_domain):
            return False
        _line("check", f"not whole: there is no {ca_path}; name the CA with --ca FILE")
        return True
    beside = ca_path.parent / "ca.crl"
    crl_path = Path(crl) if crl is not None else beside if beside.exists() else None
    if not _check(path, leaf, chain, ca_path, crl_path, trust_domain):
        return False
    _line("check", f"accepted by every node that trusts {ca_path}")
    return True


def _check(
    path: Path,
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    ca_path: Path | None,
    crl_path: Path | None,
    trust_domain: str | None,
) -> bool:
    """Say why a node would refuse it, if one would. Without a CA the chain is not judged."""
    anchors = _load(ca_path) if ca_path is not None else [leaf]
    now = datetime.datetime.now(datetime.UTC)
    way: list[x509.Certificate] = []
    try:
        check_key(public_key_of(leaf))
        try:
            way = check_chain(leaf, chain, anchors, now)
        except CheckFailed as failed:
            if ca_path is not None or failed.alert != Alert.UNKNOWN_CA:
                raise
        parse_identity(leaf, trust_domain)
    except CheckFailed as failed:
        why = explain(failed, leaf, chain, anchors, cert_name=str(path), ca_name=str(ca_path))
        _refused(failed.step, failed.alert, why)
        return False
    if crl_path is None:
        return True
    lists = Revocation.load(read_lists(crl_path), anchors)
    for problem in lists.problems:
        _line("lists", _shown(problem))
    if lists.is_revoked(way, now):
        why = f"{path} is revoked: every node that is started with --crl {crl_path} refuses it"
        _refused(_STEP_REVOKED, Alert.CERTIFICATE_REVOKED, f"{why}; {NEW_CERT}")
        return False
    return True


def _refused(number: int, alert: int, why: str) -> None:
    step = next(each for each in CHECKS if each.step == number)
    _line("check", f"REFUSED at step {step.step}, {step.name} (TLS alert {alert})")
    _line("", why)


def _load(path: Path) -> list[x509.Certificate]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from None
    return load_certificates(content, str(path))


def _validity(cert: x509.Certificate) -> str:
    now = datetime.datetime.now(datetime.UTC)
    left = cert.not_valid_after_utc - now
    if left < datetime.timedelta():
        state = "EXPIRED"
    elif now < cert.not_valid_before_utc:
        state = "NOT YET VALID"
    elif left.days:
        state = f"{left.days} days left"
    else:
        state = f"{left.seconds // 60} minutes left"
    dates = (
        f"{cert.not_valid_before_utc:%Y-%m-%d %H:%M} to {cert.not_valid_after_utc:%Y-%m-%d %H:%M}"
    )
    return f"{dates} UTC ({state})"


def _usages(cert: x509.Certificate) -> list[str]:
    names = {
        ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
        ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    }
    purposes = extension_of(cert, x509.ExtendedKeyUsage)
    found = [names.get(each, each.dotted_string) for each in purposes or ()]
    usage = extension_of(cert, x509.KeyUsage)
    if usage is not None:
        found += [
            name
            for name, given in (
                ("digitalSignature", usage.digital_signature),
                ("keyEncipherment", usage.key_encipherment),
                ("keyCertSign", usage.key_cert_sign),
                ("cRLSign", usage.crl_sign),
            )
            if given
        ]
    return found


def _line(label: str, text: str) -> None:
    click.echo(f"  {label:<11} {text}")


def _shown(text: str) -> str:
    """Escaped and cut: a certificate may say anything to a terminal."""
    return ascii(text)[1:-1][:160]

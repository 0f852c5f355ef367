"""Stateless Retry: proof that a dialler receives at the address it sends from.

A token is an AEAD over the address, both connection IDs and the time; nothing is remembered for
a dialler that has not shown one (RFC 9000, section 8.1.2). One that has made a connection is
remembered for as long as it would be good, so that a copy of it makes no second one (section
8.1.4). Never any socket or engine here.
"""

import os
import struct

from aioquic.quic.packet import encode_quic_retry
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["SPENT_MAX", "TOKEN_LIFE_S", "RetryTokens"]

TOKEN_LIFE_S = 10.0
SPENT_MAX = 16_384
"""Spent tokens that are remembered at most: more than a node can greet in their life, by far."""
KEY_LIFE_S = 60.0
_VERSION_1 = 1
_NONCE_BYTES = 12


class RetryTokens:
    """Makes and checks Retry tokens of one socket. `now` is monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._key = AESGCM(os.urandom(16))
        self._older: AESGCM | None = None
        self._turned_at = now
        # By nonce, in the order in which they were spent.
        self._spent: dict[bytes, float] = {}

    def make_retry(
        self,
        address: tuple[str, int],
        *,
        destination_cid: bytes,
        source_cid: bytes,
        retry_cid: bytes,
        now: float,
    ) -> bytes:
        """Return the Retry datagram for an Initial without a token.

        destination_cid, source_cid: the Initial's. retry_cid: the connection ID that the dialler
        must address next; the token is good for it alone.
        """
        self._turn(now)
        nonce = os.urandom(_NONCE_BYTES)
        plain = struct.pack(">d", now) + destination_cid
        token = nonce + self._key.encrypt(nonce, plain, _bound_to(address, retry_cid))
        return encode_quic_retry(
            version=_VERSION_1,
            source_cid=retry_cid,
            destination_cid=source_cid,
            original_destination_cid=destination_cid,
            retry_token=token,
        )

    def check(
        self, token: bytes, address: tuple[str, int], retry_cid: bytes, now: float
    ) -> bytes | None:
        """Return the original destination connection ID; None for a bad, old or spent token."""
        self._turn(now)
        if len(token) < _NONCE_BYTES + 16 + 8:
            return None
        nonce, sealed = token[:_NONCE_BYTES], token[_NONCE_BYTES:]
        if nonce in self._spent:
            return None
        bound_to = _bound_to(address, retry_cid)
        for key in (self._key, self._older):
            if key is None:
                continue
            try:
                plain = key.decrypt(nonce, sealed, bound_to)
            except InvalidTag:
                continue
            made_at = struct.unpack(">d", plain[:8])[0]
            if not 0 <= now - made_at <= TOKEN_LIFE_S:
                return None
            return plain[8:]
        return None

    def spend(self, token: bytes, now: float) -> None:
        """This token has made a connection: it makes no other."""
        spent = self._spent
        while spent:
            nonce, at = next(iter(spent.items()))
            if now - at <= TOKEN_LIFE_S and len(spent) < SPENT_MAX:
                break
            del spent[nonce]
        spent[token[:_NONCE_BYTES]] = now

    def _turn(self, now: float) -> None:
        if now - self._turned_at >= KEY_LIFE_S:
            # After two lives of a key without a packet even the older one is too old.
            self._older = self._key if now - self._turned_at < 2 * KEY_LIFE_S else None
            self._key = AESGCM(os.urandom(16))
            self._turned_at = now


def _bound_to(address: tuple[str, int], retry_cid: bytes) -> bytes:
    return f"{address[0]}\n{address[1]}\n".encode() + retry_cid

"""Every error that this package raises on purpose; whose fault each one is.

The tree::

    PlumtreeError
      ConfigError (ValueError)     yours, before anything started
        CredentialsError           a certificate, key or CA file that cannot be used
      LocalProtocolError           yours, while running
        MessageTooLarge            the payload is above max_message_size; nothing was sent
        NodeClosed                 the node is not running (or no longer)
        NotAllowed                 the policy does not let this node do that
      RemoteProtocolError          the peer's: its link is closed, nothing else changes
        WireError                  undecodable, oversized or unknown bytes
      IdentityError                a peer's certificate is absent, untrusted or not the one meant
        IdentityConflict           another live process runs under our own identity
      LinkError                    the network's: a dial or a link failed; retried by itself
      JoinError                    no seed answered in time; the background retry goes on
      NotCovered (TimeoutError)    nobody's: too few had a message in time, or said so
      StoreError                   the disk's, or what is in a store's file; nothing was lost

A message says what happened, to what, and what to do. Anything else that escapes is a bug.
"""

__all__ = [
    "ConfigError",
    "CredentialsError",
    "IdentityConflict",
    "IdentityError",
    "JoinError",
    "LinkError",
    "LocalProtocolError",
    "MessageTooLarge",
    "NodeClosed",
    "NotAllowed",
    "NotCovered",
    "PlumtreeError",
    "RemoteProtocolError",
    "StoreError",
    "WireError",
]


class PlumtreeError(Exception):
    """Root of the tree: catch this to catch everything that is ours."""


class ConfigError(PlumtreeError, ValueError):
    """A setting is wrong; the message names the field, the value and what is allowed."""


class CredentialsError(ConfigError):
    """A certificate, key or CA cannot be used; the message names the file and the fix."""


class LocalProtocolError(PlumtreeError):
    """The caller asked for something that the protocol does not allow; nothing was changed."""


class MessageTooLarge(LocalProtocolError):
    """The payload is larger than max_message_size; nothing was sent."""


class NodeClosed(LocalProtocolError):
    """The node has not been started, or has been shut down or drained."""


class NotAllowed(LocalProtocolError):
    """The policy does not let this node do that; others would refuse it."""


class RemoteProtocolError(PlumtreeError):
    """The peer broke the protocol; its link is closed and nothing else changes."""


class WireError(RemoteProtocolError):
    """Bytes from a peer are undecodable, oversized or unknown."""


class IdentityError(PlumtreeError):
    """A peer's certificate is absent, untrusted, or not the identity that was meant."""


class IdentityConflict(IdentityError):
    """Another live process runs under our identity; the latest start wins and this node stops."""


class LinkError(PlumtreeError):
    """The network or the peer ended a dial or a link; it is retried by itself."""


class JoinError(PlumtreeError):
    """No seed answered in time; joining goes on in the background."""


class StoreError(PlumtreeError):
    """A message store cannot be opened, read or written; the message names the file and the fix."""


class NotCovered(PlumtreeError, TimeoutError):
    """Fewer than were waited for had a message in time. missing: the members that had not."""

    def __init__(self, said: str, missing: tuple[str, ...]) -> None:
        super().__init__(said)
        self.missing = missing

"""Who may speak: identities, credentials, the development CA. Never a socket."""

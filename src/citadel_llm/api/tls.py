"""The server's certificate: one TLS context, whose certificate is exchanged while connections go on.

certificate = Certificate(config.tls)     # raises ConfigError
loop.create_server(..., ssl=certificate.context)
certificate.reload()                      # new handshakes get the new one
"""

from __future__ import annotations

import ssl

from citadel_llm.utils.config import ConfigError, Tls

__all__ = ["HANDSHAKE_S", "Certificate"]

HANDSHAKE_S = 10.0  # a caller that does not finish its handshake holds a connection no longer


class Certificate:
    """What the files of the configuration hold."""

    def __init__(self, config: Tls) -> None:
        self._config = config
        self._in_force = self._read()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        # Called in each handshake, also where the caller names no server. A context keeps one certificate of each
        # type of key, so that to load a pair of another type into it would only add that one: it is exchanged whole.
        self.context.sni_callback = self._give

    def reload(self) -> None:
        """Read the files again. Raises ConfigError; the certificate that was in force then stays."""
        self._in_force = self._read()

    def _give(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._in_force

    def _read(self) -> ssl.SSLContext:
        files = (self._config.certificate_file, self._config.key_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(*files, password=_no_passphrase)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"tls: {files[0]} and {files[1]} are no pair of certificate and key: {reason}") from error
        return context


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")

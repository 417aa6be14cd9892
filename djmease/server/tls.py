"""TLS without a proxy: the context of a certificate, and sockets of it that behave as plain ones that do not block."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
from contextlib import suppress
from errno import EAGAIN
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from djmease.server.complaints import Complaints

logger = logging.getLogger("djmease.server")

WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
SEND_SIZE = 256 * 1024
"""Bytes that one call of ``send`` encrypts at most: the others have their turn too."""
RECORD_SIZE = 16384
"""Bytes that a TLS record holds, and OpenSSL reads or writes at once."""
BYTES_ACKED = slice(120, 128)
"""Where Linux has ``tcpi_bytes_acked`` in its ``struct tcp_info``, from 4.2 on."""

if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview


class CertificateError(Exception):
    """A certificate or key that cannot be used: a sentence with the file, the reason and the cure."""


class TLSSocket(ssl.SSLSocket):
    """A TLS socket that says it is not ready as a plain one does, and never keeps what has been deciphered.

    The kernel tells of ciphered bytes only. What a read leaves within OpenSSL would wait there until more comes.
    """

    context: TLSContext
    peer = "a Unix socket"
    """Who is at the other end; the kernel does not know any more once it is gone."""

    def recv(self, size: int = RECORD_SIZE, flags: int = 0) -> bytes:
        """Return the next record, even where it is longer than ``size``; nothing deciphered is left behind."""
        try:
            data = super().recv(size, flags)
            while self.pending():
                data += super().recv(self.pending(), flags)
            return data
        except WANTS:
            raise BlockingIOError(EAGAIN, "TLS has nothing yet") from None

    def send(self, data: Buffer, flags: int = 0) -> int:  # type: ignore[override]
        """Return how many bytes were taken.

        The rest has to begin the next call: OpenSSL may hold a record of it that it could not write whole.
        """
        if len(data) <= RECORD_SIZE:
            return self._send_record(data, flags)
        sent = 0
        with memoryview(data) as view:
            # A record for each write. An error comes again with the next call, where something has been taken before.
            while sent < min(len(data), SEND_SIZE):
                try:
                    with view[sent : sent + RECORD_SIZE] as record:
                        sent += self._send_record(record, flags)
                except OSError:
                    if not sent:
                        raise
                    break
        return sent

    def _send_record(self, record: Buffer, flags: int) -> int:
        try:
            return super().send(record, flags)
        except WANTS:
            raise BlockingIOError(EAGAIN, "TLS cannot write yet") from None

    def recv_into(self, *arguments: Any) -> int:
        """Read for Tornado, which logs what is wrong unless it is an end."""
        try:
            return super().recv_into(*arguments)
        except WANTS:
            raise
        except ssl.SSLError as error:
            raise_end(error)

    def do_handshake(self, block: bool = False) -> None:
        """Go on with the handshake; one that fails is complained of here, and is an end to Tornado."""
        try:
            super().do_handshake(block)
        except WANTS:
            raise
        except OSError as error:
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                self.context.complaints.say("no TLS with %s: %s", self.peer, error.reason or error)
            raise_end(error)

    def shutdown(self, how: int) -> None:
        """End our side; what the other one still sends is read from here on, and not deciphered."""
        self._say_end()
        super().shutdown(how)

    def close(self) -> None:
        self._say_end()
        super().close()

    def _say_end(self) -> None:
        """Send close_notify, by which the other side knows that nothing was cut off; its own is not waited for."""
        with suppress(OSError, ValueError):
            self.unwrap()

    def acknowledged(self) -> int | None:
        """Return how many bytes the other side's kernel has acknowledged in all, ciphered; ``None`` if unknown."""
        if sys.platform != "linux":
            return None
        try:
            told = self.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED.stop)
        except OSError:
            return None
        return int.from_bytes(told[BYTES_ACKED], sys.byteorder) if len(told) == BYTES_ACKED.stop else None


class TLSContext(ssl.SSLContext):
    """Makes ``TLSSocket``s; made by ``make_context``."""

    sslsocket_class = TLSSocket
    complaints: Complaints

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> TLSSocket:
        """Wrap a connection; one that is gone already is an end, which Tornado closes without a word."""
        try:
            # Asked before it is wrapped: what fails within would leave a socket that nobody closes.
            address = sock.getpeername()
            wrapped = super().wrap_socket(sock, *arguments, **options)
        except OSError as error:
            raise_end(error)
        assert isinstance(wrapped, TLSSocket)
        if address and isinstance(address, tuple):
            wrapped.peer = address[0]
        return wrapped


def raise_end(error: OSError) -> NoReturn:
    """Raise what Tornado takes for an end of the connection, which it does not log."""
    raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection has ended") from error


def make_context(certificate: str, key: str | None = None) -> TLSContext:
    """Return the server's context of a certificate and its key, which may be in the same file; both PEM.

    Raises ``CertificateError`` for what cannot be used.
    """
    context = TLSContext(ssl.PROTOCOL_TLS_SERVER)
    context.complaints = Complaints(logger)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could ask for one handshake after the other, each of which costs us more than it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load(context, certificate, key)
    return context


def reload(context: TLSContext, certificate: str, key: str | None = None) -> None:
    """Use the certificate as it is now for all new connections. Raises ``CertificateError``, and keeps the old one."""
    make_context(certificate, key)  # One that is broken would leave the context without any.
    _load(context, certificate, key)


def _load(context: TLSContext, certificate: str, key: str | None) -> None:
    key_file = key or certificate
    if b"-----BEGIN CERTIFICATE-----" not in _read(certificate):
        raise CertificateError(f"{certificate} holds no certificate: name a PEM file that does, as fullchain.pem.")
    if b"PRIVATE KEY-----" not in _read(key_file):
        raise CertificateError(f"{key_file} holds no private key: name a PEM file that does with --key.")

    def refuse_to_ask() -> NoReturn:
        raise CertificateError(
            f"The private key in {key_file} is encrypted: decrypt it (openssl pkey -in {key_file} -out FILE), "
            "and let only the server's user read it."
        )

    try:
        # Without a function OpenSSL would ask at the terminal, and wait there.
        context.load_cert_chain(certificate, key, password=refuse_to_ask)
    except ssl.SSLError as error:
        raise CertificateError(_reason(error, certificate, key_file)) from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CertificateError(
            f"{path} cannot be read ({error.strerror}): name a file that is there, and that the server's user may read."
        ) from error


def _reason(error: ssl.SSLError, certificate: str, key_file: str) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"The private key in {key_file} is not that of the first certificate in {certificate}: name the key that "
            "belongs to it, and put the site's own certificate before those of its chain."
        )
    return (
        f"The certificate in {certificate} and the key in {key_file} cannot be used ({error.reason or error}): "
        "have them made anew."
    )

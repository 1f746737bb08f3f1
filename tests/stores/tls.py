"""Certificates, and TLS in front of a server that has none: the wheels bring servers without it."""

import datetime
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from select import select
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.stores.ports import Port

__all__ = ["Authority", "Pair", "Terminator", "before_postgres"]

SSL_REQUEST = (8).to_bytes(4) + (80877103).to_bytes(4)


class Pair(NamedTuple):
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


class Authority:
    """Who signs certificates, and is believed by those who are given `certificate`.

    Args:
        folder: Where its files are; none of another one's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        signed = self._signed(self._name, self._key.public_key(), x509.BasicConstraints(True, None))
        self.certificate = folder / "authority.pem"
        self.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def sign(self, host: str) -> Pair:
        """A certificate for a host, by name or by address."""
        try:
            name: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        signed = self._signed(subject, key.public_key(), x509.SubjectAlternativeName([name]))
        pair = Pair(self._folder / f"{host}.pem", self._folder / f"{host}.key")
        pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(0o600)  # libpq takes no key that others can read
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return pair

    def context(self, host: str, *, wants_certificate: bool = False) -> ssl.SSLContext:
        """What a server of this host needs; which may want one of its clients too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.sign(host))
        if wants_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        return context

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(extension, critical=True)
            .sign(self._key, hashes.SHA256())
        )


class Terminator:
    """A port on which clients speak TLS, and behind which a server hears plain text.

    Args:
        connect: Connects to the server.
        context: With a certificate.
        before: Called with a client's socket before TLS begins.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        context: ssl.SSLContext,
        before: Callable[[socket.socket], object] = lambda client: None,
    ) -> None:
        self._connect = connect
        self._context = context
        self._before = before
        self.secured = 0
        """How many connections were made."""
        port = Port(self._serve)
        self.port, self.close = port.number, port.close

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(10)
            self._before(client)
            with self._context.wrap_socket(client, server_side=True) as secured:
                self.secured += 1
                with self._connect() as server:
                    _pass_on(secured, server)


def _pass_on(client: ssl.SSLSocket, server: socket.socket) -> None:
    client.settimeout(None)
    while True:
        readable = [client] if client.pending() else select([client, server], [], [])[0]
        for source in readable:
            data = source.recv(1 << 16)
            if not data:
                return
            (server if source is client else client).sendall(data)


def before_postgres(client: socket.socket) -> None:
    """A client of PostgreSQL asks in plain text whether there is TLS."""
    assert client.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
    client.sendall(b"S")

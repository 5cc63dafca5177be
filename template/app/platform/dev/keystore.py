"""Key store and password of a broker with SASL and TLS."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from app.platform.dev import java
from app.platform.dev.process import LOOPBACK

_DAYS = "3650"


@dataclass(frozen=True)
class SaslSsl:
    """SASL over TLS for clients: SCRAM-SHA-256, SCRAM-SHA-512 and PLAIN, one user."""

    username: str = "app"
    password: str = field(default="app-password", repr=False)


class KeyStore:
    """A key for loopback and its self-signed certificate, made by Java's own keytool."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "broker.p12"
        self.ca_file = folder / "ca.pem"
        self._password_file = folder / "password"

    @property
    def password(self) -> str:
        return self._password_file.read_text().strip()

    def ensure(self) -> None:
        if self.ca_file.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(f"{secrets.token_hex(16)}\n")
        self._keytool(
            *("-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", _DAYS),
            *("-dname", "CN=localhost", "-ext", f"SAN=dns:localhost,ip:{LOOPBACK}"),
            # Python's strict verification requires both of a trusted authority.
            *("-ext", "bc:c=ca:true", "-ext", "ku:c=digitalSignature,keyCertSign"),
        )
        # Written last: its existence marks the key store as complete.
        self._keytool("-exportcert", "-rfc", "-file", str(self.ca_file))

    def _keytool(self, *arguments: str) -> None:
        tool = str(java.java_home() / "bin" / "keytool")
        store = ["-keystore", str(self.path), "-storetype", "PKCS12", "-alias", "broker"]
        java.run_tool(
            [tool, *arguments, *store, "-storepass:file", str(self._password_file)], "keytool"
        )

"""HTTPS, which browsers demand for microphones on other machines."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from signaling.main import running_server
from tests.support.server import serving
from voice_rtc.config import Settings
from voice_rtc.errors import ConfigError


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Certificate and key for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "server.pem", folder / "server.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


async def test_the_server_speaks_https(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    async with serving(server={"tls_certificate": certificate, "tls_key": key}) as server:
        assert server.url.startswith("https://")
        url = f"{server.url}/readyz"
        async with aiohttp.ClientSession() as http, http.get(url, ssl=trust) as response:
            assert response.status == 200


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
async def test_half_of_a_pair_is_a_config_error(tmp_path: Path, missing: str) -> None:
    certificate, key = self_signed(tmp_path)
    given = {"tls_certificate": certificate, "tls_key": key, "host": "127.0.0.1", "port": 0}
    del given[missing]
    with pytest.raises(ConfigError, match="belong together"):
        async with running_server(Settings(server=given, engines="fake")):
            pass

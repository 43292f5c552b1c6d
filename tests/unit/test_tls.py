"""HTTPS beside HTTP: the certificate is exchanged while connections go on, and a bad one never replaces a good one."""

import asyncio
import os
import signal
import ssl
import subprocess

import pytest

from callers import KEY
from citadel_llm.api.tls import Certificate
from citadel_llm.utils.config import ConfigError, Tls
from gateways import listening_socket
from upstreams import answers
from waiting import in_time, until

CHAT = b'{"model": "phi3", "messages": [{"role": "user", "content": "Hello"}]}'


EC, RSA = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"), ("rsa:2048",)


def make_pair(folder, name="localhost", kind=EC):
    """A self-signed certificate and its key."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", *kind, "-nodes"],
            *["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", "2"],
            *["-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        ],
        check=True,
        capture_output=True,
    )
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "tls")


@pytest.fixture
def secured():
    """A listening socket for TLS."""
    with listening_socket() as sock:
        yield sock


@pytest.fixture
def start(serve, upstream, pair, secured):
    def started():
        upstream.script = answers()
        tls = {"port": secured.getsockname()[1], "certificate_file": str(pair[0]), "key_file": str(pair[1])}
        return serve(models={"phi3": [upstream]}, sockets=[secured], tls=tls)

    return started


class Secured:
    """A connection over TLS."""

    def __init__(self, sock, pair, **options):
        self._port = sock.getsockname()[1]
        self._context = ssl.create_default_context(cafile=str(pair[0]))
        for name, value in options.items():
            setattr(self._context, name, value)

    async def __aenter__(self):
        self.reader, self.writer = await in_time(
            asyncio.open_connection("127.0.0.1", self._port, ssl=self._context, server_hostname="localhost")
        )
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()

    @property
    def serial(self):
        return self.writer.get_extra_info("peercert")["serialNumber"]

    async def chat(self):
        """Status line of a chat on this connection, its answer read to the end."""
        self.writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (KEY.encode(), len(CHAT), CHAT)
        )
        head = await in_time(self.reader.readuntil(b"\r\n\r\n"))
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await in_time(self.reader.readexactly(int(length.split(b":")[1])))
        return head.split(b"\r\n")[0]


async def test_a_chat_over_https_is_answered_as_over_http(start, secured, pair):
    async with start() as gateway, Secured(secured, pair) as caller:
        assert await caller.chat() == b"HTTP/1.1 200 OK"
        assert (await gateway.get("/health/live")).status == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the old versions are named here to be refused
async def test_an_old_tls_is_refused(start, secured, pair):
    async with start():
        with pytest.raises(ssl.SSLError):
            async with Secured(
                secured, pair, maximum_version=ssl.TLSVersion.TLSv1_1, minimum_version=ssl.TLSVersion.TLSv1
            ):
                pass


async def test_a_caller_that_speaks_http_to_the_https_port_gets_nothing(start, secured):
    async with start():
        reader, writer = await asyncio.open_connection(*secured.getsockname())
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP/1.1 200" not in await in_time(reader.read())
        writer.close()


@pytest.mark.parametrize("kind", [EC, RSA], ids=["same type of key", "another type of key"])
async def test_a_reload_takes_the_new_certificate_and_keeps_the_connections(start, secured, pair, kind):
    async with start() as gateway, Secured(secured, pair) as kept:
        before = kept.serial
        make_pair(pair[0].parent, kind=kind)
        os.kill(os.getpid(), signal.SIGHUP)
        await gateway.logged("certificate_reloaded")
        async with Secured(secured, pair) as fresh:
            assert fresh.serial != before
            assert await fresh.chat() == b"HTTP/1.1 200 OK"
        assert await kept.chat() == b"HTTP/1.1 200 OK"


async def test_a_caller_that_names_no_server_gets_the_certificate_too(start, secured, pair):
    async with start():
        context = ssl.create_default_context(cafile=str(pair[0]))
        context.check_hostname = False
        _, writer = await in_time(asyncio.open_connection(*secured.getsockname(), ssl=context, server_hostname=""))
        assert writer.get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)
        writer.close()


async def test_a_bad_certificate_leaves_the_good_one_in_force(start, secured, pair, tmp_path):
    async with start() as gateway:
        good = tmp_path / "good.pem"
        good.write_bytes(pair[0].read_bytes())
        _, other_key = make_pair(tmp_path / "other")
        pair[1].write_bytes(other_key.read_bytes())
        os.kill(os.getpid(), signal.SIGHUP)
        [line] = await until(lambda: gateway.lines("certificate_not_reloaded"), what="the refusal is in the log")
        assert str(pair[0]) in line["message"]
        async with Secured(secured, (good, None)) as caller:
            assert await caller.chat() == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("damage", ["absent", "garbage", "passphrase", "another key"])
def test_files_that_are_no_pair_are_named(pair, tmp_path, damage):
    certificate, key = pair
    if damage == "absent":
        key.unlink()
    elif damage == "garbage":
        key.write_text("no key at all")
    elif damage == "passphrase":
        locked = ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:secret", "-out", tmp_path / "locked.pem"]
        subprocess.run(locked, check=True, capture_output=True)
        key.write_bytes((tmp_path / "locked.pem").read_bytes())
    else:
        key.write_bytes(make_pair(tmp_path / "other")[1].read_bytes())
    with pytest.raises(ConfigError, match="no pair of certificate and key") as refused:
        Certificate(Tls(certificate_file=str(certificate), key_file=str(key)))
    assert str(key) in str(refused.value)

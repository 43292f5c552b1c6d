"""The `citadel` command's verbs: what they print, and their exit status."""

import asyncio
import contextlib
import io
import json
import os
import socket

import pytest

from callers import KEY
from citadel_llm import __version__
from citadel_llm.cli import main
from citadel_llm.cli.api import table
from gateways import write_config
from upstreams import refused_port
from waiting import in_time


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, {"phi3": ["http://127.0.0.1:11403"], "hermes": ["http://127.0.0.1:11401"]})


async def citadel(*arguments):
    """The verb, while this loop goes on; exit status, output, errors."""

    def run():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
        return status, out.getvalue(), err.getvalue()

    return await in_time(asyncio.to_thread(run))


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"citadel {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nonsense"], ["config"], ["config", "check"], ["gateway", "--port", "x"], ["gateway", "--port", "70000"],
        ["keys"], ["keys", "add", "x", "--expires", "soon"], ["users"], ["roles"], ["identity"], ["identity", "import"],
        ["models"], ["models", "drain"], ["database"], ["database", "downgrade"],
        ["database", "upgrade", "--audit-retention-months", "0"],
    ],
)  # fmt: skip
def test_a_wrong_call_is_status_2_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: citadel" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", ["config", "database", "gateway", "identity", "keys", "models", "roles", "status", "users"]
)
def test_every_verb_explains_itself(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: citadel {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(("trouble", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 1)])
def test_a_verb_that_is_interrupted_ends_quietly(monkeypatch, config, trouble, status):
    def interrupted(arguments):
        raise trouble

    monkeypatch.setattr("citadel_llm.cli.config.run_check", interrupted)
    monkeypatch.setattr("sys.stderr", open(os.devnull, "w"))  # noqa: SIM115
    assert main(["config", "check", str(config)]) == status


# -- config check -----------------------------------------------------------------------------------------------


def test_a_good_configuration_is_told_with_its_models(capsys, config):
    assert main(["config", "check", str(config)]) == 0
    assert capsys.readouterr().out == f"{config}: good; models: phi3, hermes\n"


def test_a_bad_configuration_is_told_with_file_and_place(capsys, config):
    config.write_text(config.read_text().replace("http://127.0.0.1:11401", "127.0.0.1:11401"))
    assert main(["config", "check", str(config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"citadel: {config}: ")
    assert "$.models.hermes.upstreams[0]" in said


# -- gateway: what keeps it from starting -----------------------------------------------------------------------


@pytest.fixture
def refusal(capfd):
    """What `citadel gateway` says where it can't start."""

    def run(*arguments):
        assert main(["gateway", *map(str, arguments)]) == 1
        said = capfd.readouterr()
        assert said.out == ""
        return said.err

    return run


def test_a_gateway_without_a_configuration_says_which_file_is_missing(refusal, tmp_path):
    path = tmp_path / "none.yaml"
    assert refusal("--config", path) == f"citadel: {path}: can't be read: No such file or directory\n"


def test_a_gateway_without_keys_says_so(refusal, config):
    keys = config.parent / "keys.json"
    keys.unlink()
    assert refusal("--config", config, "--port", 0) == f"citadel: {keys}: can't be read: No such file or directory\n"


def test_a_port_that_is_taken_is_told(refusal, config):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        said = refusal("--config", config, "--port", port)
    assert said == f"citadel: can't listen on 127.0.0.1:{port}: Address already in use\n"


def test_an_address_that_is_not_here_is_told(refusal, config):
    said = refusal("--config", config, "--host", "2001:db8::1")
    assert said.startswith("citadel: can't listen on 2001:db8::1:8000: ")


def test_a_folder_for_metrics_that_cannot_be_made_is_told(refusal, config, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(config / "metrics"))
    assert refusal("--config", config, "--port", 0) == f"citadel: {config}/metrics: Not a directory\n"


# -- status -----------------------------------------------------------------------------------------------------


async def test_status_shows_every_model_and_engine(serve, upstream):
    with refused_port() as port:
        models = {"phi3": [upstream], "hermes": [f"http://127.0.0.1:{port}"]}
        async with serve(models=models) as gateway:
            status, out, _ = await citadel("status", "--url", gateway.url)
            assert status == 1  # not all is well
            title, head, phi3, hermes = out.splitlines()
            assert title == f"{gateway.url}: degraded (instance 1, version {__version__})"
            assert head.split() == ["MODEL", "STATE", "ENGINE", "LATENCY", "IN", "FLIGHT", "QUEUED"]
            assert phi3.split()[:3] == ["phi3", "up", upstream.address]
            assert hermes.split()[:4] == ["hermes", "starting", f"127.0.0.1:{port}", "-"]
            assert "refused" in hermes


async def test_status_of_a_gateway_where_all_is_well_is_0_and_json_is_the_answer_as_it_came(gateway):
    assert (await citadel("status", "--url", gateway.url + "/"))[0] == 0
    status, out, _ = await citadel("status", "--url", gateway.url, "--json")
    assert (status, json.loads(out)["models"]["phi3"]["state"]) == (0, "up")


async def test_status_of_a_gateway_where_nothing_is_well_is_shown_too(serve):
    with refused_port() as port:
        async with serve(models={"phi3": [f"http://127.0.0.1:{port}"]}) as gateway:
            status, out, _ = await citadel("status", "--url", gateway.url)
            assert (status, ": down (" in out) == (1, True)


async def test_status_asks_where_the_configuration_says(tmp_path):
    with refused_port() as port:
        path = write_config(tmp_path, {"phi3": ["http://127.0.0.1:1"]}, server={"url": f"http://127.0.0.1:{port}"})
        status, out, err = await citadel("status", "--config", path)
    assert (status, out) == (1, "")
    assert err.startswith(f"citadel: no answer from http://127.0.0.1:{port}: ")
    assert "systemctl status" in err


def test_status_without_a_configuration_says_how_to_do_without(capsys, tmp_path):
    assert main(["status", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "Name the gateway with --url." in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [
        b"hello\r\n\r\n",
        b"",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"models": {}}',
        b'HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n{"status": "ok", "models": []}',
        b'HTTP/1.1 503 Down\r\ncontent-length: 4\r\n\r\n"\xff"',
    ],
)
async def test_status_of_something_else_is_no_gateways_and_no_traceback(said):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        status, out, err = await citadel("status", "--url", f"http://127.0.0.1:{port}")
    assert (status, out) == (1, "")
    assert err.startswith("citadel: no answer from ")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1:8000", "file:///etc/passwd", "http://[::1"])
def test_status_takes_only_addresses_of_the_web(capsys, url):
    assert main(["status", "--url", url]) == 1
    assert capsys.readouterr().err.startswith("citadel: no answer from ")


# -- what talks to the admin API --------------------------------------------------------------------------------------


def test_without_a_key_it_is_told_where_one_would_be(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("CITADEL_API_KEY", raising=False)
    monkeypatch.setenv("CITADEL_API_KEY_FILE", str(tmp_path / "none"))
    assert main(["keys", "list", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == (
        f"citadel: no key: $CITADEL_API_KEY is not set, and {tmp_path}/none: No such file or directory\n"
    )


async def test_a_gateway_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setenv("CITADEL_API_KEY", KEY)
    status, out, err = await citadel("users", "list", "--url", f"http://127.0.0.1:{refused_port()}")
    assert (status, out) == (1, "")
    assert "no answer from http://127.0.0.1:" in err


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8000"])
def test_only_http_is_spoken(capsys, monkeypatch, url):
    monkeypatch.setenv("CITADEL_API_KEY", KEY)
    assert main(["roles", "list", "--url", url]) == 1
    assert "expected an address that begins with http://" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["two words", "sk-\r\nx-evil: 1", "sk-\u00fc", "x" * 513])
def test_what_is_no_key_is_not_sent_and_not_shown(capsys, monkeypatch, key):
    monkeypatch.setenv("CITADEL_API_KEY", key)
    assert main(["users", "list", "--url", "http://127.0.0.1:1"]) == 1
    assert (
        capsys.readouterr().err == "citadel: the key is not one: expected letters, digits and signs, without spaces\n"
    )


async def test_a_gateway_without_a_database_says_so(monkeypatch, gateway):
    monkeypatch.setenv("CITADEL_API_KEY", KEY)
    status, _, err = await citadel("users", "list", "--url", gateway.url)
    assert (status, "database_unavailable" in err) == (1, True)


async def test_a_key_does_not_follow_a_redirection(monkeypatch):
    monkeypatch.setenv("CITADEL_API_KEY", KEY)
    asked = []

    async def redirect(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        there = b"location: http://127.0.0.1:%d/elsewhere" % server.sockets[0].getsockname()[1]
        writer.write(b"HTTP/1.1 307 Moved\r\n" + there + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        status, _, err = await citadel("users", "list", "--url", f"http://127.0.0.1:{port}")
    assert (status, len(asked), "answered 307" in err) == (1, 1, True)


# -- models -----------------------------------------------------------------------------------------------------


async def test_a_replica_is_taken_out_of_service_and_put_back(monkeypatch, serve, upstream, second_upstream):
    async with serve(models={"lab/phi3": [upstream, second_upstream]}) as gateway:
        monkeypatch.setenv("CITADEL_API_KEY", KEY)

        async def models(*words):
            return await citadel("models", *words, "--url", gateway.url)

        async def drained():
            _, out, _ = await models("list", "--json")
            [model] = json.loads(out)
            return [replica["drained"] for replica in model["replicas"]]

        status, out, err = await models("drain", "lab/phi3", "--replica", upstream.address)
        assert (status, err) == (0, "")
        head, first, second = out.splitlines()
        assert head.split()[:3] == ["MODEL", "STATE", "REPLICA"]
        assert first.split() == ["lab/phi3", "up", upstream.address, "draining", "yes", "0"]
        assert second.split() == ["lab/phi3", "up", second_upstream.address, "up", "no", "0"]
        assert await drained() == [True, False]
        assert (await models("drain", "lab/phi3"))[0] == 0
        assert await drained() == [True, True]
        assert (await models("undrain", "lab/phi3"))[0] == 0
        assert await drained() == [False, False]


async def test_what_can_not_be_taken_out_of_service_is_told(monkeypatch, gateway):
    monkeypatch.setenv("CITADEL_API_KEY", KEY)
    for words, said in (
        (["phi4"], "404 model_not_found"),
        (["phi3", "--replica", "10.0.0.1:1"], "has no such replica. It has: `127.0.0.1:"),
    ):
        status, out, err = await citadel("models", "drain", *words, "--url", gateway.url)
        assert (status, out) == (1, "")
        assert said in err


def test_what_somebody_has_written_moves_no_cursor():
    assert table(["NAME"], [["a\x1b[2Jb\r\n"]]) == "NAME\na?[2Jb??"

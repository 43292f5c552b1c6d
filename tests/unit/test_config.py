"""The configuration file: what it may hold, and where an error is said to be."""

import os

import pytest
import yaml

from citadel_llm.utils.config import ConfigError, load_config, parse_config

GOOD = {
    "auth": {"keys_file": "/keys.json"},
    "models": {
        "phi3": {"upstreams": [{"url": "http://127.0.0.1:11403"}]},
        "lab/hermes-2": {"upstreams": [{"url": "http://[::1]:11401/"}, {"url": "http://gpu-2.lan:11401"}]},
    },
}


def changed(*path, to):
    """GOOD, with another value at a path."""
    if not path:
        return to
    config = yaml.safe_load(yaml.safe_dump(GOOD))
    place = config
    for key in path[:-1]:
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
    place[path[-1]] = to
    return config


def test_a_short_file_has_sensible_bounds_for_everything_else():
    config = parse_config(GOOD, created=7)
    assert config.created == 7
    assert config.auth.public_model_list is True
    assert (config.limits.body_bytes, config.limits.queue, config.limits.concurrency) == (8 << 20, 256, 256)
    assert config.timeouts.body_s < config.timeouts.first_byte_s < config.timeouts.total_s
    assert list(config.models) == ["phi3", "lab/hermes-2"]


def test_an_upstreams_host_and_port_are_taken_from_its_url():
    one, two = parse_config(GOOD).models["lab/hermes-2"].upstreams
    assert (one.host, one.port) == ("::1", 11401)
    assert (two.host, two.port) == ("gpu-2.lan", 11401)


URL = ("models", "phi3", "upstreams", 0, "url")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (changed(to=None), ["mapping", "`auth`", "`models`"]),
        (changed(to=[]), ["mapping"]),
        (changed(to="text"), ["mapping"]),
        (changed(to={}), ["missing", "`auth`"]),
        (changed("models", to={}), ["length >= 1", "$.models"]),
        (changed("models", to=None), ["$.models"]),
        (changed("created", to=1), ["unknown field `created`"]),
        (changed("modles", to={}), ["unknown field `modles`"]),
        (changed("auth", to={}), ["`auth.keys_file`", "`database`"]),
        (changed("auth", "keys_file", to=7), ["Expected `str | null`, got `int`", "$.auth.keys_file"]),
        (changed("auth", "public_model_list", to="perhaps"), ["Expected `bool`", "$.auth.public_model_list"]),
        (changed("timeouts", "body_s", to=0), ["> 0", "$.timeouts.body_s"]),
        (changed("timeouts", "body_s", to=float("inf")), ["86400", "$.timeouts.body_s"]),
        (changed("timeouts", "body_s", to=float("nan")), ["$.timeouts.body_s"]),
        (changed("timeouts", "chunk_s", to="soon"), ["Expected `float`, got `str`", "$.timeouts.chunk_s"]),
        (changed("timeouts", "chunks", to=1), ["unknown field `chunks`", "$.timeouts"]),
        (changed("limits", "queue", to=-1), [">= 0", "$.limits.queue"]),
        (changed("limits", "concurrency", to=0), [">= 1", "$.limits.concurrency"]),
        (changed("limits", "concurrency", to=1.5), ["Expected `int`", "$.limits.concurrency"]),
        (changed("limits", "body_bytes", to=1), ["1024", "$.limits.body_bytes"]),
        (changed("limits", "retry_after_s", to=0), ["$.limits.retry_after_s"]),
        (changed("probe", "failures", to=0), ["$.probe.failures"]),
        (changed("server", "drain_s", to=-1), ["$.server.drain_s"]),
        (changed("models", "phi3", to=None), ["$.models.phi3"]),
        (changed("models", "phi3", "upstreams", to=[]), ["length >= 1", "$.models.phi3.upstreams"]),
        (changed("models", "phi3", "upstream", to=[]), ["unknown field `upstream`", "$.models.phi3"]),
        (changed("models", "phi3", "max_tokens", to=0), ["$.models.phi3.max_tokens"]),
        (changed("models", "phi3", "concurrency", to="4"), ["$.models.phi3.concurrency"]),
        (changed("models", "a b", to=GOOD["models"]["phi3"]), ["Model name `a b`", "letters"]),
        (changed("models", "", to=GOOD["models"]["phi3"]), ["Model name ``"]),
        (changed("models", "/a", to=GOOD["models"]["phi3"]), ["Model name `/a`"]),
        (changed("models", "n" * 129, to=GOOD["models"]["phi3"]), ["Model name", "128"]),
        (changed("models", 7, to=GOOD["models"]["phi3"]), ["Expected `str`, got `int`", "$.models"]),
        (changed(*URL, to="127.0.0.1:11403"), ["http://HOST:PORT", "127.0.0.1:11403", "$.models.phi3.upstreams[0]"]),
        (changed(*URL, to="https://a:1"), ["http://HOST:PORT", "$.models.phi3.upstreams[0]"]),
        (changed(*URL, to="http://:11403"), ["http://HOST:PORT"]),
        (changed(*URL, to="http://a:1/v1"), ["http://HOST:PORT"]),
        (changed(*URL, to="http://a:1/?x=1"), ["http://HOST:PORT"]),
        (changed(*URL, to="http://a"), ["port", "http://127.0.0.1:11400"]),
        (changed(*URL, to="http://a:0"), ["1 to 65535"]),
        (changed(*URL, to="http://a:99999"), ["1 to 65535"]),
        (changed(*URL, to="http://a:b"), ["1 to 65535"]),
        (changed(*URL, to="http://[::1"), ["$.models.phi3.upstreams[0]"]),
        (changed(*URL, to="http://größe.lan:1"), ["http://HOST:PORT"]),
        (changed(*URL, to="http://a b:1"), ["http://HOST:PORT"]),
        (changed(*URL, to="http://user:secret@a:1"), ["http://HOST:PORT"]),
        (changed(*URL, to=""), ["http://HOST:PORT"]),
        (changed(*URL, to=7), ["Expected `str`, got `int`", "$.models.phi3.upstreams[0].url"]),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_what_was_expected(data, says):
    with pytest.raises(ConfigError) as refused:
        parse_config(data)
    for words in says:
        assert words in str(refused.value)


def test_the_second_of_two_models_is_named_where_it_is_the_wrong_one():
    with pytest.raises(ConfigError, match=r"\$\.models\.lab/hermes-2\.upstreams\[1\]"):
        parse_config(changed("models", "lab/hermes-2", "upstreams", 1, "url", to="http://a"))


def test_a_file_is_read_and_its_age_is_kept(tmp_path):
    path = tmp_path / "citadel.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    os.utime(path, (1000, 1000))
    assert load_config(path).created == 1000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "can't be read: No such file or directory"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"a: [", "is not YAML"),
        (b"a: b: c", "is not YAML"),
        (b"!!python/object:os.system {}", "is not YAML"),
        (b"", "Expected a mapping"),
        (b"auth: {}", "`models`"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, says):
    path = tmp_path / "citadel.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert says in str(refused.value) or "missing" in str(refused.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load_config(tmp_path)

"""No change of a secret goes past a running gateway: it reads the file again, or the role `gateway` restarts it."""

import typing
from pathlib import Path

import msgspec
import pytest
import yaml

from citadel_llm.utils.config import Config

ROLE = Path(__file__).resolve().parents[2] / "roles/gateway"
READ_AGAIN = {
    "auth.keys_file", "auth.pepper_file", "tls.certificate_file", "tls.key_file",  # when it is told to
    "cache.credentials_file", "vector.credentials_file",  # at the next connection, or when the key is refused
}  # fmt: skip
READ_ONCE = {
    "audit.hash_key_file": "{{ __gateway_hash_key_file }}",
    "database.credentials_file": "{{ __gateway_database_credentials }}",
}
ITS_OWN = {"auth.snapshot_file", "limits.table_file"}  # what it writes itself


def test_of_every_file_that_a_configuration_names_it_is_known_when_it_is_read():
    found = set()
    for section in msgspec.structs.fields(Config):
        for kind in (section.type, *typing.get_args(section.type)):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                names = [field.name for field in msgspec.structs.fields(kind)]
                found |= {f"{section.name}.{name}" for name in names if name.endswith("_file")}
    assert found == READ_AGAIN | READ_ONCE.keys() | ITS_OWN


@pytest.mark.parametrize("path", READ_ONCE.values(), ids=READ_ONCE.keys())
def test_an_instance_runs_with_something_else_when_a_file_that_it_reads_once_was_written(path):
    tasks = yaml.safe_load((ROLE / "tasks/host.yml").read_text())
    (seen,) = [task for task in tasks if task.get("register") == "__gateway_read_once"]
    assert path in seen["loop"]
    assert "__gateway_read_once" in yaml.safe_load((ROLE / "vars/main.yml").read_text())["__gateway_spec"]

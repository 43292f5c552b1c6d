"""What of the database needs none: where it is, the migrations as files, and what the gateway's role is given."""

import io
import json
import re
import sys

import pytest
from alembic.script import ScriptDirectory

from citadel_llm.cli import main
from citadel_llm.integration.database.migrate import MIGRATIONS, Outcome, is_newer, revisions
from citadel_llm.integration.database.privileges import WANTED
from citadel_llm.integration.database.target import DatabaseError, Target, load_target

PLACE = {"host": "192.168.10.35", "port": 5433, "database": "citadel_ai", "user": "citadel_admin", "password": "secret"}


def statements(kind):
    """{revision: text} of all `up` or all `down` files."""
    return {path.name[:4]: path.read_text() for path in (MIGRATIONS / "sql").glob(f"*.{kind}.sql")}


# -- where it is ------------------------------------------------------------------------------------------------


def test_a_target_is_read_from_a_file_and_from_standard_input(tmp_path, monkeypatch):
    (tmp_path / "there.json").write_text(json.dumps(PLACE))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(PLACE)))
    assert load_target(str(tmp_path / "there.json")) == load_target("-") == Target(**PLACE)


def test_a_target_shown_keeps_its_password_to_itself():
    assert "secret" not in repr(Target(**PLACE))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("secret", "expected JSON"),
        ("[]", "expected an object"),
        (json.dumps({**PLACE, "port": "5433"}), "`port`: expected a number"),
        (json.dumps({name: PLACE[name] for name in PLACE if name != "password"}), "`password`: expected text"),
    ],
)
def test_a_target_that_is_none_is_told_with_the_place_and_without_its_content(tmp_path, text, said):
    path = tmp_path / "there.json"
    path.write_text(text)
    with pytest.raises(DatabaseError) as refused:
        load_target(str(path))
    assert str(refused.value) == f"{path}: {said}"


def test_a_credentials_file_that_is_not_there_is_status_1_and_told(capsys, tmp_path):
    assert main(["database", "current", "--credentials", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"citadel: {tmp_path}/none: No such file or directory\n"


def test_a_python_without_the_migrations_tools_is_told_where_they_are(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "alembic", None)
    assert main(["database", "current"]) == 1
    assert "env/database" in capsys.readouterr().err


# -- the migrations ---------------------------------------------------------------------------------------------


def test_revisions_are_numbers_in_one_line_that_older_releases_can_compare():
    known = revisions()
    assert known == [f"{number:04}" for number in range(1, len(known) + 1)]
    assert len(ScriptDirectory(str(MIGRATIONS)).get_heads()) == 1


def test_every_revision_goes_both_ways():
    assert sorted(statements("up")) == sorted(statements("down")) == revisions()


def test_a_later_releases_schema_is_known_as_such():
    newest = revisions()[-1]
    assert not is_newer(None)
    assert not is_newer(newest)
    assert is_newer(f"{int(newest) + 1:04}")
    with pytest.raises(DatabaseError, match="no release has"):
        is_newer("3f2a9c81")


def test_a_migration_ends_no_transaction_and_makes_nothing_outside_the_schema():
    for text in [*statements("up").values(), *statements("down").values()]:
        bare = re.sub(r"\$\$.*?\$\$|--[^\n]*|'[^']*'", "", text, flags=re.DOTALL).lower()
        assert not re.search(r"\b(begin|commit|rollback|concurrently|vacuum)\b", bare)
        made = re.findall(r"\bcreate (?:or replace )?(?:table|function|view|sequence|type) (\S+)", bare)
        assert all(name.startswith("llm.") for name in made), made


def test_no_function_of_the_owners_takes_names_from_its_callers_search_path():
    for text in statements("up").values():
        for head in re.findall(r"create (?:or replace )?function.*?\$\$", text, flags=re.DOTALL):
            assert "set search_path = pg_catalog, pg_temp" in head


def test_the_expected_schema_is_sorted_lines_of_this_schema_and_no_month():
    lines = (MIGRATIONS / "schema.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    assert not [line for line in lines if re.search(r"audit_log_\d{4}", line)]


# -- what the gateway's role is given ---------------------------------------------------------------------------


def test_every_table_has_its_privileges_said_and_none_is_said_that_is_not_there():
    there = {line.split()[1] for line in (MIGRATIONS / "schema.txt").read_text().splitlines() if line[:6] == "table "}
    said = {thing.removeprefix("table llm.") for thing, _ in WANTED if thing.startswith("table ")}
    assert said == there


def test_the_audit_log_is_given_to_be_read_and_added_to():
    assert {privilege for thing, privilege in WANTED if thing == "table llm.audit_log"} == {"INSERT", "SELECT"}


def test_nothing_is_given_that_changes_the_schema():
    assert {privilege for _, privilege in WANTED} == {"USAGE", "EXECUTE", "SELECT", "INSERT", "UPDATE", "DELETE"}


def test_an_outcome_is_a_change_where_anything_was_done():
    assert not Outcome("0001", "0001").changed
    assert Outcome(None, "0001", applied=["0001"]).changed
    assert Outcome("0001", "0001", privileges=["grant"]).changed
    assert Outcome("0001", "0001", partitions=1).facts()["changed"] is True

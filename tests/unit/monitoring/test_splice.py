"""Pieces of our own in somebody else's configuration: put in, found again, and taken out without a trace."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from citadel_monitoring.peers import alertmanager_config, drop_in, prometheus_config, without
from citadel_monitoring.splice import Piece, SpliceError, covered, insert, items, remove

OWNERS = """\
# ours, by hand
route:
    receiver: "team"   # everyone
    routes:
      - matchers: [a="b"]
        receiver: team

# who is told
receivers:
- name: team
"""
RECEIVER = {"webhook_configs": [{"url": "http://sink/"}]}


def test_what_is_put_in_is_there_and_the_owners_lines_are_as_they_were():
    text = alertmanager_config(OWNERS, RECEIVER, {})
    found = yaml.safe_load(text)
    assert [one["receiver"] for one in found["route"]["routes"]] == ["citadel", "team"]
    assert [one["name"] for one in found["receivers"]] == ["team", "citadel", "citadel-heartbeat"]
    assert found["inhibit_rules"]
    assert [line for line in OWNERS.splitlines() if line not in text.splitlines()] == []
    assert without(text) == OWNERS


def test_putting_it_in_again_changes_nothing():
    text = alertmanager_config(OWNERS, RECEIVER, {})
    assert alertmanager_config(text, RECEIVER, {}) == text


def test_another_receiver_takes_the_place_of_the_one_before():
    text = alertmanager_config(alertmanager_config(OWNERS, RECEIVER, {}), {"email_configs": [{"to": "a@b"}]}, {})
    ours = next(one for one in yaml.safe_load(text)["receivers"] if one["name"] == "citadel")
    assert ours == {"name": "citadel", "email_configs": [{"to": "a@b"}]}
    assert without(text) == OWNERS


def test_without_a_receiver_of_ours_the_owners_default_one_is_told():
    found = yaml.safe_load(alertmanager_config(OWNERS, {}, {}))
    assert "receiver" not in found["route"]["routes"][0]
    assert [one["name"] for one in found["receivers"]] == ["team", "citadel-heartbeat"]


def test_a_receiver_of_the_owner_with_our_name_is_not_taken_over():
    with pytest.raises(SpliceError, match="named citadel already"):
        alertmanager_config(OWNERS.replace("name: team", "name: citadel"), RECEIVER, {})


@pytest.mark.parametrize(
    "owners",
    [
        "route: {receiver: team}\nreceivers:\n- name: team\n",
        "route:\n  receiver: team\n  routes: []\nreceivers:\n- name: team\n",
        "route:\n  receiver: team\nreceivers: [{name: team}]\n",
    ],
)
def test_a_place_that_is_written_in_one_line_is_said_to_be(owners):
    with pytest.raises(SpliceError, match=r"(?s)written in one line.*add by hand"):
        alertmanager_config(owners, RECEIVER, {})


def test_an_empty_file_is_no_configuration():
    with pytest.raises(SpliceError, match="empty"):
        insert("# nothing\n", [Piece(("rule_files",), ["x"])])


def test_a_piece_without_its_end_is_not_guessed_at():
    text = alertmanager_config(OWNERS, RECEIVER, {}).replace("# END citadel", "", 1)
    with pytest.raises(SpliceError, match="does not end"):
        remove(text[: text.index("# END citadel")])


@pytest.mark.parametrize(
    "owners",
    [
        "rule_files:\n",
        "rule_files:\n  # - first.yml\n\nscrape_configs:\n",
        "rule_files:\n- a.yml\nscrape_configs:\n- job_name: x\n",
        "rule_files:\n    - a.yml\n\n\n# the end\n",
        "global: {}\n",
        "global:\n  scrape_interval: 15s",
        "---\nrule_files:\n- a.yml\n...\n",
    ],
)
def test_prometheus_reads_our_files_whatever_the_owner_has(owners):
    text = prometheus_config(owners, "/etc/p/citadel/rules.yml", "/etc/p/citadel/scrape.yml", "/etc/p")
    assert items(text, ["rule_files"])[-1] == "/etc/p/citadel/rules.yml"
    assert items(text, ["scrape_config_files"]) == ["/etc/p/citadel/scrape.yml"]
    assert without(text) == owners


def test_where_the_owner_has_drop_ins_they_are_used_and_the_configuration_stays_as_it_is():
    owners = "rule_files: ['rules/*.yml', other.yml]\nscrape_config_files: [/etc/p/scrape.d/*.yaml, jobs/*.yml]\n"
    rules = drop_in(owners, "rule_files", "citadel.yml", "/etc/p", "/etc/p/citadel/rules.yml")
    scrape = drop_in(owners, "scrape_config_files", "citadel.yml", "/etc/p", "/etc/p/citadel/scrape.yml")
    assert (rules, scrape) == ("/etc/p/rules/citadel.yml", "/etc/p/jobs/citadel.yml")
    assert prometheus_config(owners, rules, scrape, "/etc/p") == owners


def test_a_pattern_that_does_not_take_our_file_in_is_no_drop_in():
    owners = "rule_files: ['rules/team-*.yml', 'r*/citadel.yml']\n"
    assert drop_in(owners, "rule_files", "citadel.yml", "/etc/p", "own") == "own"
    assert not covered(owners, "rule_files", "/etc/p/rules/citadel.yml", "/etc/p")


keys = st.sampled_from(["global", "rule_files", "scrape_configs", "remote_write", "x"])
scalars = st.sampled_from(["1", "'two'", '"3 # no comment"', "a: b: c".replace(": ", "_"), "null"])


@st.composite
def configurations(draw):
    """Block mappings of block lists and scalars, with comments, blank lines and odd indents."""
    lines = []
    for key in draw(st.lists(keys, unique=True, min_size=1)):
        if draw(st.booleans()):
            lines.append(f"{key}: {draw(scalars)}" if key != "rule_files" else f"{key}:")
        else:
            indent = " " * draw(st.integers(0, 4))
            lines.append(f"{key}:")
            for _ in range(draw(st.integers(1, 3))):
                lines.append(f"{indent}- {draw(scalars)}")
                lines += draw(st.lists(st.sampled_from(["", "# note", "   # more"]), max_size=2))
    return "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n", "\n# last\n"]))


@given(configurations())
def test_taken_out_again_every_configuration_is_what_it_was(owners):
    text = insert(owners, [Piece(("rule_files",), ["ours.yml"]), Piece(("scrape_config_files",), ["ours"], first=True)])
    assert "ours.yml" in items(text, ["rule_files"])
    assert remove(text) == owners
    before = {key: value for key, value in yaml.safe_load(owners).items() if key != "rule_files"}
    after = {
        key: value for key, value in yaml.safe_load(text).items() if key not in ("rule_files", "scrape_config_files")
    }
    assert after == before

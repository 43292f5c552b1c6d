"""The dashboards: Grafana's own schema takes them, and they are placed in Grafana beside what is others'."""

import importlib.util
import json
import sys
import threading
from http.server import ThreadingHTTPServer

import pytest

from citadel_monitoring.__main__ import REPO, production
from citadel_monitoring.dashboards import ALL, dashboards
from citadel_monitoring.dashboards.panels import BOARDS


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, REPO / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


stand_in = load("lab_grafana", "molecule/lab/grafana.py")
module = load("citadel_grafana", "roles/monitoring/library/citadel_grafana.py")
MADE = {name: json.loads(text) for name, text in dashboards(production()).items()}
FOLDER = {"uid": "citadel", "title": "Citadel LLM"}
SOURCE = {"uid": "citadel-prometheus", "name": "Citadel Prometheus", "type": "prometheus", "url": "http://p:9090"}
OWNERS = {
    "folders": {"theirs": {"id": 1, "uid": "theirs", "title": "Theirs", "version": 1}},
    "dashboards": {
        "nodes": {
            "dashboard": {"id": 1, "uid": "nodes", "title": "Nodes", "version": 1},
            "meta": {"folderUid": "theirs", "version": 1},
        }
    },
}


@pytest.fixture
def grafana(tmp_path):
    """The lab's Grafana, on its own thread, and what a client of it is made of."""
    store = stand_in.Store(tmp_path / "state.json", json.loads(json.dumps(OWNERS)))
    bound = type("Bound", (stand_in.Handler,), {"grafana": stand_in.Grafana(store), "token": "secret"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield store
    server.shutdown()
    server.server_close()


def client(store, token="secret", dry=False):
    return module.Grafana(store.url, token, dry)


def test_every_board_is_made():
    assert set(MADE) == set(BOARDS) == {board.name for board in ALL}


@pytest.mark.parametrize("name", MADE)
def test_grafanas_own_schema_takes_it(name):
    stand_in.check_dashboard(MADE[name])


@pytest.mark.parametrize("name", MADE)
def test_panels_are_on_the_page_and_do_not_lie_on_each_other(name):
    taken = set()
    for panel in MADE[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in MADE[name]["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", MADE)
def test_every_panel_asks_our_data_source_for_the_chosen_server(name):
    for panel in MADE[name]["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "citadel-prometheus"
            assert panel["targets"]


def test_what_is_not_of_the_schema_is_refused_with_its_place():
    wrong = json.loads(json.dumps(MADE["overview"]))
    wrong["panels"][1]["colour"] = "red"
    with pytest.raises(stand_in.Refusal, match=r"panels\[1\]\.colour"):
        stand_in.check_dashboard(wrong)


def test_the_folder_is_made_once_and_asking_again_writes_nothing(grafana):
    first, again = client(grafana), client(grafana)
    module.present(first, FOLDER, SOURCE, list(MADE.values()))
    assert len(first.written) == 2 + len(MADE)
    module.present(again, FOLDER, SOURCE, list(MADE.values()))
    assert again.written == []


def test_it_is_all_there_after_a_restart_of_grafana(grafana, tmp_path):
    module.present(client(grafana), FOLDER, SOURCE, list(MADE.values()))
    kept = stand_in.Store(tmp_path / "state.json", {})
    assert set(kept.state["dashboards"]) == {"nodes", *(made["uid"] for made in MADE.values())}


def test_a_dry_run_writes_nothing_and_says_what_it_would(grafana):
    dry = client(grafana, dry=True)
    module.present(dry, FOLDER, SOURCE, [MADE["overview"]])
    assert dry.written == ["folder citadel", "source citadel-prometheus", "dashboard citadel-overview"]
    assert "citadel" not in grafana.state["folders"]


def test_what_somebody_changed_is_put_right(grafana):
    module.present(client(grafana), FOLDER, SOURCE, [MADE["overview"]])
    grafana.state["dashboards"]["citadel-overview"]["dashboard"]["panels"].pop()
    grafana.state["datasources"]["citadel-prometheus"]["url"] = "http://elsewhere"
    again = client(grafana)
    module.present(again, FOLDER, SOURCE, [MADE["overview"]])
    assert again.written == ["source citadel-prometheus", "dashboard citadel-overview"]


def test_a_dashboard_that_is_no_more_goes_from_the_folder_and_from_no_other(grafana):
    module.present(client(grafana), FOLDER, SOURCE, [MADE["overview"], MADE["model"]])
    module.present(client(grafana), FOLDER, SOURCE, [MADE["overview"]])
    assert set(grafana.state["dashboards"]) == {"nodes", "citadel-overview"}


def test_decommissioned_grafana_is_as_its_owner_had_it(grafana):
    before = json.loads(json.dumps(grafana.state))
    module.present(client(grafana), FOLDER, SOURCE, list(MADE.values()))
    module.absent(client(grafana), FOLDER, SOURCE)
    assert grafana.state == before


def test_a_wrong_token_is_refused_in_grafanas_own_words(grafana):
    with pytest.raises(module.Refused, match="401") as refused:
        module.present(client(grafana, token="wrong"), FOLDER, SOURCE, [])
    assert refused.value.status == 401


def test_a_grafana_that_is_away_is_named():
    with pytest.raises(module.Refused, match=r"http://127\.0\.0\.1:9"):
        module.present(module.Grafana("http://127.0.0.1:9", "t", False), FOLDER, SOURCE, [])


def test_a_call_that_the_lab_does_not_know_is_no_success(grafana):
    with pytest.raises(module.Refused, match="501"):
        client(grafana).call("GET", "/api/org/users")

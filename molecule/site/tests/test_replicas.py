"""Two engines serve one model, and one of them is killed while requests go on."""

import json
import time
import urllib.request

import pytest

HOST = "hx-llm-server-01"
PORT = 11413
UNIT = "second-phi3.service"
ENVIRONMENT = [
    "HOME=/tmp", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "OMP_NUM_THREADS=1",
    "VLLM_CPU_OMP_THREADS_BIND=0", "TORCH_COMPILE_DISABLE=1", "PYTHONDONTWRITEBYTECODE=1",
]  # fmt: skip
START_LIMIT_S = 240

pytestmark = [pytest.mark.disruptive, pytest.mark.site]


def engines(gateway_url):
    """State by address of the engines of phi3, as an instance of the gateway sees them."""
    with urllib.request.urlopen(f"{gateway_url}/health", timeout=10) as answer:
        return {e["address"]: e["state"] for e in json.load(answer)["models"]["phi3"]["engines"]}


def await_engines(gateway_url, wanted):
    deadline = time.monotonic() + START_LIMIT_S
    # Each instance looks for itself, and which one answers is chance: all of several answers have to say so.
    while not all(wanted(list(engines(gateway_url).values())) for _ in range(8)):
        assert time.monotonic() < deadline, engines(gateway_url)
        time.sleep(0.5)


@pytest.fixture
def second_replica(play, on_host, credentials):
    """Another engine of phi3's on the same host, which the gateway knows."""
    settings = [word for setting in ENVIRONMENT for word in ("-E", setting)]
    on_host(
        *["systemd-run", "--quiet", f"--unit={UNIT}", "--uid=citadel", "--gid=citadel", "-p", "WorkingDirectory=/tmp"],
        *settings,
        *["/opt/citadel/env/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"],
        *["--config", "/opt/citadel/config/models/phi3.yaml", "--port", str(PORT)],
    )
    try:
        extra = json.dumps({"gateway_extra_upstreams": {"phi3": [f"http://127.0.0.1:{PORT}"]}})
        played = play("--tags", "gateway", "-e", extra)
        assert played.code == 0, played.text
        await_engines(credentials["gateway_url"], lambda states: states == ["up", "up"])
        yield
    finally:
        on_host("systemctl", "stop", UNIT)
        assert play("--tags", "gateway").code == 0
        # Whatever became of the test, the tests after it find the site whole.
        await_engines(credentials["gateway_url"], lambda states: states == ["up"])


def test_a_replica_killed_under_load_fails_no_request_that_had_not_begun(second_replica, traffic, on_host, credentials):
    pid = on_host("systemctl", "show", "citadel-model@phi3.service", "--property=MainPID", "--value").strip()
    engine = on_host("pgrep", "--parent", pid, "--full", "EngineCore").split()[0]
    with traffic() as outcomes:
        while len(outcomes) < 40:
            time.sleep(0.05)
        on_host("kill", "-9", engine)
        killed = len(outcomes)
        while len(outcomes) < killed + 100:
            time.sleep(0.05)
    assert set(outcomes) <= {"whole", "cut"}, [o for o in outcomes if o not in ("whole", "cut")]
    assert outcomes.count("cut") <= 2, "more streams were cut than there were"
    await_engines(credentials["gateway_url"], lambda states: states == ["up", "up"])

"""One fault, one page: each reaches the receiver within two minutes, by its right name, once, and says when it is over.

The faults that do not touch each other happen at the same time. Then one model is made three times as slow; at last
the whole gateway is gone.
"""

import contextlib
import json
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field

import pytest
from integration.metrics import Metrics, rate, wait_for

from citadel_monitoring.__main__ import REPO

LLM, SQL = "hx-llm-server-01", "hx-sql-server-01"
WITHIN_S = 120
OVER_WITHIN_S = 420  # a model takes its time to load again
KILLED, SLOWED = "phi3", "hermes"
MACHINE = {"cpu", "memory", "clock"}
FULL = "/srv/citadel-full"

pytestmark = pytest.mark.disruptive


@dataclass(frozen=True)
class Fault:
    """What is done on a host, what heals it, and the alert that is to come of it."""

    alert: str
    host: str
    cause: str
    heal: str
    labels: dict[str, str] = field(default_factory=dict)


FAULTS = [
    Fault(
        "CitadelModelDown", LLM,
        f"systemctl kill -s KILL citadel-model@{KILLED}; systemctl stop citadel-model@{KILLED}",
        f"systemctl reset-failed citadel-model@{KILLED}; systemctl start --no-block citadel-model@{KILLED}",
        {"model": KILLED},
    ),
    Fault("CitadelRedisDown", LLM, "systemctl stop citadel-redis", "systemctl start citadel-redis"),
    Fault("CitadelDatabaseDown", SQL, "systemctl stop pgpool2", "systemctl start pgpool2"),
    Fault(
        "CitadelDiskFull", LLM,
        f"mkdir -p {FULL} && mount -t tmpfs -o size=8m tmpfs {FULL} && "
        f"dd if=/dev/zero of={FULL}/x bs=1M count=8 2>/dev/null; test -s {FULL}/x",
        f"umount {FULL}; rmdir {FULL}",
        {"mountpoint": FULL},
    ),
    Fault(
        "CitadelCertificateExpired", LLM,
        # As the gateway's own, and over within the day.
        "cd /opt/citadel/config && cp -p secrets/gateway.key tls/gateway.crt /root/ && "
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=short "
        "-keyout /root/k -out /root/c 2>/dev/null && "
        "cat /root/k >secrets/gateway.key && cat /root/c >tls/gateway.crt && systemctl reload 'citadel-gateway@*'",
        "cd /opt/citadel/config && cat /root/gateway.key >secrets/gateway.key && "
        "cat /root/gateway.crt >tls/gateway.crt && "
        "rm /root/gateway.key /root/gateway.crt /root/k /root/c && systemctl reload 'citadel-gateway@*'",
    ),
]  # fmt: skip
EVERYTHING_AWAY = Fault(
    "CitadelGatewayDown", LLM, "systemctl stop citadel-gateway.socket 'citadel-gateway@*'",
    "systemctl start citadel-gateway.socket 'citadel-gateway@1' 'citadel-gateway@2'",
)  # fmt: skip


def on(host, command):
    done = subprocess.run(
        [str(REPO / "bin/lab"), "exec", host, "sh", "-c", command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{host}: {command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def metrics(credentials):
    return Metrics(credentials)


def firing(metrics):
    return {
        (sample["metric"]["alertname"], sample["metric"].get("model"))
        for sample in metrics.query('ALERTS{product="citadel", alertstate="firing", kind!="heartbeat"}')
        if not of_the_machine(sample["metric"]) and sample["metric"]["kind"] != "anomaly"
    }


def of_the_machine(labels):
    """Whether it is of the machine that the lab runs on, which may be busy or full itself."""
    return labels["component"] in MACHINE or labels.get("mountpoint") == "/"


def begun(alerts, fault):
    """The notifications that the fault's alert fires."""
    wanted = {"alertname": fault.alert, **fault.labels}
    return [one for one in alerts if one.status == "firing" and wanted.items() <= one.labels.items()]


def ended(alerts, fault):
    """The notifications that it is over; not those of what was before."""
    wanted, first = {"alertname": fault.alert, **fault.labels}, begun(alerts, fault)
    resolved = [one for one in alerts if one.status == "resolved" and wanted.items() <= one.labels.items()]
    return [one for one in resolved if first and one.at > first[0].at]


class Traffic:
    """Requests to a model at an even pace, whatever they take, until the end of the tests."""

    def __init__(self, credentials, model, pace_s=0.5):
        self._url, self._key, self._model, self._pace_s = (
            credentials["gateway_url"],
            credentials["admin_key"],
            model,
            pace_s,
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.took = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _run(self):
        while not self._ended.wait(self._pace_s):
            threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self):
        body = {"model": self._model, "max_tokens": 4, "messages": [{"role": "user", "content": f"at {time.time()}"}]}
        request = urllib.request.Request(f"{self._url}/v1/chat/completions", json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {self._key}")
        request.add_header("Content-Type", "application/json")
        began = time.monotonic()
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            self.took.append(time.monotonic() - began)


@pytest.fixture(scope="module")
def traffic(credentials, metrics):
    """The traffic to the model that is to become slow: its bands need some minutes of it."""
    rate(credentials)  # what opinions come to is recorded after some minutes: other tests need not wait for it
    wait_for(f"a quiet site; firing: {firing(metrics)}", lambda: not firing(metrics), 300)
    with Traffic(credentials, SLOWED) as running:
        yield running


@dataclass
class Course:
    """What was told, and when each fault began and was healed, in seconds of the epoch."""

    since: float
    began: dict[str, float] = field(default_factory=dict)
    healed: dict[str, float] = field(default_factory=dict)
    told: list = field(default_factory=list)


def run(metrics, faults):
    """Lets the faults happen, waits for their alerts, heals them, and waits for the ends."""
    course = Course(time.time())
    try:
        for fault in faults:
            course.began[fault.alert] = time.time()
            on(fault.host, fault.cause)
        deadline = max(course.began.values()) + WITHIN_S
        while time.time() < deadline:
            told = metrics.told(course.since)
            if all(begun(told, fault) for fault in faults):
                break
            time.sleep(1)
        time.sleep(45)  # what follows from a fault, and should be silent, would have been told by now
    finally:
        failed = []
        for fault in faults:
            course.healed[fault.alert] = time.time()
            try:
                on(fault.host, fault.heal)
            except AssertionError as error:
                failed.append(error)
        assert not failed, failed
    over = time.time() + OVER_WITHIN_S
    while time.time() < over:
        course.told = metrics.told(course.since)
        if all(ended(course.told, fault) for fault in faults if begun(course.told, fault)):
            break
        time.sleep(1)
    return course


@pytest.fixture(scope="module")
def course(metrics, traffic):
    return run(metrics, FAULTS)


@pytest.fixture(scope="module")
def gone(metrics, slow):
    return run(metrics, [EVERYTHING_AWAY])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.alert)
def test_a_fault_is_told_within_two_minutes_once_and_its_end_too(course, fault):
    told_as_firing(course, fault)


def told_as_firing(course, fault):
    told = begun(course.told, fault)
    assert told, f"never told; told were {[(one.name, one.labels.get('model')) for one in course.told]}"
    assert told[0].at - course.began[fault.alert] < WITHIN_S
    assert len(told) == 1, "told more than once"
    assert told[0].labels["server"] == LLM
    assert "runbooks.md#" in told[0].annotations["runbook_url"]
    assert "/d/citadel-" in told[0].annotations["dashboard_url"]
    over = ended(course.told, fault)
    assert len(over) == 1, "its end was not told, or more than once"
    assert over[0].at > course.healed[fault.alert]


def others(course, faults):
    """What else was told. Anomalies are left out: the faults themselves load the machine that all of it is on."""
    wanted = {fault.alert for fault in faults}
    return [
        (one.name, one.labels.get("model"))
        for one in course.told
        if one.status == "firing"
        and one.name not in wanted
        and not of_the_machine(one.labels)
        and one.labels["kind"] != "anomaly"
    ]


def test_nothing_else_was_told_than_the_faults_that_happened(course):
    assert others(course, FAULTS) == []


@pytest.fixture(scope="module")
def slow(credentials, metrics, traffic, course):
    """The model that is asked all the time, three times as slow; and as it was again."""
    rate(credentials)
    latency = f'citadel:signal{{signal="latency", model="{SLOWED}"}}'
    wait_for(f"a band of {SLOWED}", lambda: metrics.query(latency.replace("signal{", "signal:upper{", 1)), 480)
    wait_for(f"a usual {SLOWED}", lambda: not metrics.query(f'ALERTS{{kind="anomaly", model="{SLOWED}"}}'), 300)
    usual = metrics.value(f'citadel:signal:mean{{band="short", signal="latency", model="{SLOWED}"}}')
    # Stopped for s of every 1.5 s, a request waits s/3 more on average: six times the usual for three times in all.
    stop_s = max(0.2, min(6 * usual, 3))
    verbs = (
        f"systemctl kill -s STOP {{unit}}; sleep {stop_s:.2f}; systemctl kill -s CONT {{unit}}; sleep {stop_s / 2:.2f}"
    )
    loop = f"while [ -e /run/citadel-slow ]; do {verbs.format(unit=f'citadel-model@{SLOWED}')}; done"
    since = time.time()
    on(LLM, f"touch /run/citadel-slow; systemd-run -q --collect --unit citadel-slow sh -c '{loop}'")
    fault = Fault("CitadelLatencyAnomaly", LLM, "", "", {"model": SLOWED})
    found = Course(since, began={fault.alert: since})
    try:
        while time.time() < since + WITHIN_S and not begun(metrics.told(since), fault):
            time.sleep(1)
        time.sleep(30)
    finally:
        found.healed[fault.alert] = time.time()
        on(
            LLM,
            "rm -f /run/citadel-slow; sleep 1; systemctl stop citadel-slow; "
            f"systemctl kill -s CONT citadel-model@{SLOWED}",
        )
    over = time.time() + OVER_WITHIN_S
    while time.time() < over and not ended(metrics.told(since), fault):
        time.sleep(1)
    found.told = metrics.told(since)
    return fault, found


def test_a_model_that_becomes_three_times_as_slow_is_told_though_within_its_requirement(slow):
    fault, found = slow
    told_as_firing(found, fault)
    assert others(found, [fault]) == []


def test_a_gateway_that_is_gone_is_one_page_and_not_one_for_each_of_its_parts(gone):
    told_as_firing(gone, EVERYTHING_AWAY)
    assert others(gone, [EVERYTHING_AWAY]) == []

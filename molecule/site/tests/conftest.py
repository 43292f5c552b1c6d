"""What the site's own tests share: the host, traffic that goes on meanwhile, a release to change."""

import contextlib
import shutil
import subprocess
import threading
from pathlib import Path

import httpx2
import openai
import pytest

REPO = Path(__file__).resolve().parents[3]
HOST = "hx-llm-server-01"


@pytest.fixture(scope="session")
def on_host():
    """`on_host(*words)`: what a command on the LLM server says; it has to succeed."""

    def said(*words):
        done = subprocess.run(
            [str(REPO / "bin/lab"), "exec", HOST, *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return said


@pytest.fixture
def source(tmp_path):
    """A copy of what the gateway's release is made from, to be changed."""
    for part in ("src/citadel_llm", "files/requirements"):
        shutil.copytree(REPO / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(REPO / part, tmp_path / part)
    return tmp_path


@pytest.fixture
def traffic(credentials):
    """`with traffic() as outcomes`: plain and streamed requests go on meanwhile.

    "whole" is one answered to its end, "cut" a stream that ended before; what failed before it had begun is there as
    its error.
    """

    @contextlib.contextmanager
    def going_on():
        outcomes, stop = [], threading.Event()

        def ask(streamed):
            client = openai.OpenAI(
                base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=60, max_retries=0
            )
            question = {"model": "phi3", "messages": [{"role": "user", "content": "Hello"}]}
            while not stop.is_set() and len(outcomes) < 20_000:
                begun = False
                try:
                    if streamed:
                        for chunk in client.chat.completions.create(
                            **question, max_tokens=64, stream=True, extra_body={"ignore_eos": True}
                        ):
                            begun, last = True, chunk
                        outcomes.append("whole" if last.choices[0].finish_reason == "length" else "cut")
                    else:
                        client.chat.completions.create(**question, max_tokens=1)
                        outcomes.append("whole")
                except (openai.OpenAIError, httpx2.HTTPError) as error:
                    outcomes.append("cut" if begun else repr(error))

        threads = [threading.Thread(target=ask, args=(streamed,)) for streamed in (True, True, False, False)]
        for thread in threads:
            thread.start()
        try:
            yield outcomes
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    return going_on

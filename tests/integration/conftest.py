"""The running lab, as its callers know it."""

import json
import os
from pathlib import Path

import openai
import pytest


@pytest.fixture(scope="session")
def credentials():
    """`gateway_url`, `admin_key` and whatever else the lab tells its users."""
    if "LAB_DIR" not in os.environ:
        raise pytest.UsageError("these tests need the running lab: bin/lab run pytest tests/integration")
    return json.loads((Path(os.environ["LAB_DIR"]) / "credentials.json").read_text())


@pytest.fixture
def client(credentials):
    """The official client, which does not retry: what fails is seen."""
    with openai.OpenAI(
        base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=60, max_retries=0
    ) as made:
        yield made

"""Who has the section turned off does not pay for the client library."""

import subprocess
import sys

import pytest

HEAVY = {"qdrant_client", "grpc", "numpy", "httpx"}


@pytest.mark.parametrize("module", ["citadel_llm.api.gateway", "citadel_llm.integration.vector.client"])
def test_the_client_library_is_not_imported(module):
    script = f"import sys, {module}; print(' '.join({HEAVY!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []

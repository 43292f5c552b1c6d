"""What the running lab tells its users; for what runs inside `bin/lab run`."""

import json
import os
from pathlib import Path


def known_credentials():
    """By fact, what its hosts have: `gateway_url`, `admin_key`, ..."""
    return json.loads((Path(os.environ["LAB_DIR"]) / "credentials.json").read_text())

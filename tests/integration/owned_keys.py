"""`citadel`, for whose gateway the file's keys belong to users of the database: {name: user id}.

Which user has which key is in $CITADEL_TEST_OWNERS; `NAME:PERMISSION` as the name leaves that one permission out.
"""

import dataclasses
import json
import os
import sys

from citadel_llm.api.identity.permissions import BUILT_IN
from citadel_llm.api.middleware.auth import Authenticator
from citadel_llm.cli import main

_identify = Authenticator.identify
_owners = json.loads(os.environ["CITADEL_TEST_OWNERS"])
_known = {}


def identify(self, authorization):
    principal = _identify(self, authorization)
    if principal.caller in _owners:
        _, _, without = principal.caller.partition(":")
        role = "admin" if principal.caller == "admin" else "developer"
        held = {name: frozenset("*") for name in BUILT_IN[role] if name != without}
        principal = _known.setdefault(
            principal.caller,
            dataclasses.replace(principal, user_id=_owners[principal.caller], unbounded=False, permissions=held),
        )
    return principal


Authenticator.identify = identify
if __name__ == "__main__":
    sys.exit(main())

"""What can be wrong with a request, as REST's status and gRPC's code say it."""

from __future__ import annotations

import grpc


class Refused(Exception):
    """A request that is not done; `str()` is what the caller reads."""

    status = 400
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(Refused):
    """There is no such collection, alias, point or snapshot."""

    status = 404
    code = grpc.StatusCode.NOT_FOUND


class AlreadyThere(Refused):
    """The name is taken."""

    status = 409
    code = grpc.StatusCode.ALREADY_EXISTS


class NotDone(Refused):
    """Qdrant does it, this host does not."""

    status = 501
    code = grpc.StatusCode.UNIMPLEMENTED

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: not done by the lab's vector host (docs/lab-qdrant.md)")

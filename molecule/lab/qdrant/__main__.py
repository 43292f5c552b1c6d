"""`python -m qdrant DATA-FOLDER KEY-FILE [PORT]`: serves until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import uvicorn
import uvloop

from qdrant import graph, rest, rpc
from qdrant.access import Access
from qdrant.port import Port
from qdrant.snapshots import Snapshots
from qdrant.store import Store

_GRACE_S = 5


async def serve(data: Path, access: Access, port: int) -> None:
    """All three protocols on one port, over one store."""
    store = Store(data)
    snapshots = Snapshots(store)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    with tempfile.TemporaryDirectory(prefix="qdrant-") as folder:
        http, grpc = f"{folder}/http", f"{folder}/grpc"
        app = rest.application(store, snapshots, access, [graph.route(store)])
        config = uvicorn.Config(app, uds=http, log_level="warning", access_log=False, lifespan="off")
        web = _Quiet(config)
        serving = asyncio.create_task(web.serve())
        calls = rpc.server(store, snapshots, access, f"unix:{grpc}")
        await calls.start()
        while not web.started:
            await asyncio.sleep(0.01)
        entrance = await Port(http, grpc).open("0.0.0.0", port)
        notify("READY=1")
        print(f"qdrant: {len(store.names())} collections, port {port}", flush=True)
        await ended.wait()
        entrance.close()
        web.should_exit = True
        await calls.stop(_GRACE_S)
        await serving
    store.close()


def notify(state: str) -> None:
    """Tells systemd, where it is that which started us."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            out.send(state.encode())


class _Quiet(uvicorn.Server):
    """Leaves the signals to `serve`."""

    def install_signal_handlers(self) -> None:
        """Not these."""

    def capture_signals(self) -> object:
        """Nor these."""
        return contextlib.nullcontext()


def main() -> None:
    data, key = Path(sys.argv[1]), Path(sys.argv[2]).read_text().strip()
    if not key:
        sys.exit("qdrant: the key file is empty")
    uvloop.run(serve(data, Access(key), int(sys.argv[3]) if len(sys.argv) > 3 else 8000))


if __name__ == "__main__":
    main()

"""Run one gateway instance, on the socket that systemd hands over or on --host and --port."""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
from pathlib import Path

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("CITADEL_CONFIG", "/opt/citadel/config/citadel.yaml"),
        help="the configuration file (default: $CITADEL_CONFIG, else %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on without systemd")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on without systemd; 0 picks one")
    parser.add_argument("--instance", default="1", help="this instance's name in logs and metrics")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    import uvloop  # noqa: PLC0415 — the other verbs must not wait for these imports

    from citadel_llm import __version__  # noqa: PLC0415
    from citadel_llm.api.server import serve  # noqa: PLC0415
    from citadel_llm.api.state import GatewayState  # noqa: PLC0415
    from citadel_llm.integration.metrics import Metrics  # noqa: PLC0415
    from citadel_llm.utils.config import ConfigError, load_config  # noqa: PLC0415
    from citadel_llm.utils.keys import KeyRing, load_keys  # noqa: PLC0415
    from citadel_llm.utils.logging import LogWriter  # noqa: PLC0415
    from citadel_llm.utils.monitoring import Notifier, inherited_sockets  # noqa: PLC0415

    notifier = Notifier(os.environ)
    log = LogWriter(sys.stdout.fileno(), static={"instance": arguments.instance})
    try:
        config = load_config(arguments.config)
        sockets = inherited_sockets(os.environ) or [_listen(arguments.host, arguments.port)]
        metrics = Metrics(arguments.instance, os.environ.get("PROMETHEUS_MULTIPROC_DIR"), __version__)
        keys_file = Path(config.auth.keys_file) if config.auth.keys_file else None

        def load_keyring() -> KeyRing:
            return load_keys(keys_file) if keys_file else KeyRing([])

        load_keyring()
        log.start()
        host, port = sockets[0].getsockname()[:2]
        log.event("info", "starting", address=host, port=port)
        # Modules are not garbage; and a request leaves no cycles behind, so that looking for them can be rare.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        uvloop.run(
            serve(
                lambda: GatewayState(
                    config,
                    load_keyring,
                    metrics,
                    log,
                    instance=arguments.instance,
                    version=__version__,
                ),
                config,
                sockets,
                notifier,
                log,
            )
        )
    except ConfigError as error:
        print(f"citadel: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = error.filename or f"can't listen on {arguments.host}:{arguments.port}"
        print(f"citadel: {what}: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        log.close()
    return 0


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port of 0 to 65535, got {text}")
    return port


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.setblocking(False)
    return sock

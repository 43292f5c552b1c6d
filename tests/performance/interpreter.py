"""The Python that is measured on: the one of a host, which its distribution built with all optimisations.

The gateway runs on a host's `/usr/bin/python3`. A checkout's `.venv` may have another one, and a Python that was built
without profile-guided optimisation (as pyenv builds it) takes a quarter more processor time. Where that is so, the
bench goes on inside the image of the lab's LLM server: in a mount namespace of its own, over which this repository
and the kernel's own trees are laid. Processes, network and cores stay this machine's; all subjects are measured so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from performance.subjects import REPO

__all__ = ["distributions", "enter", "inside", "words"]

_INSIDE = "BENCH_INSIDE"  # set where this already goes on in the image
# FOLDERS (with colons) are laid over IMAGE, under the empty folder WORK; the arguments are the bench's own. Each step
# takes the place of the one before, so that a signal reaches the bench itself; the mounts go with its last process.
_ENTER = """
mount -t tmpfs -o size=2g,mode=0755 bench "$WORK"
root=$WORK/root
mkdir "$WORK/upper" "$WORK/work" "$root"
mount -t overlay bench -o "lowerdir=$IMAGE,upperdir=$WORK/upper,workdir=$WORK/work" "$root"
IFS=:
for folder in $FOLDERS; do
  mkdir -p "$root$folder"
  mount --rbind "$folder" "$root$folder"
done
printf '%s' "$RESOLVERS" >"$root/etc/resolv.conf"
exec chroot "$root" /bin/sh -ec "$GO_ON" sh "$@"
"""
_GO_ON = """
cd "$REPO"
home=build/bench/host
want=$({ python3 -VV; cat files/requirements/uv.txt files/requirements/gateway.txt; } | sha256sum)
if [ "$(cat $home/.lock 2>/dev/null)" != "$want" ]; then
  python3 -m venv --clear $home
  for lock in uv gateway; do
    $home/bin/pip install --quiet --disable-pip-version-check --require-hashes -r files/requirements/$lock.txt
  done
  echo "$want" >$home/.lock
fi
PYTHONPATH=src exec $home/bin/python bin/bench "$@"
"""


def inside() -> bool:
    """Whether this runs in the image already."""
    return _INSIDE in os.environ


def distributions() -> bool:
    """Whether this Python is the distribution's, as a host's is."""
    return Path(sys.base_prefix) == Path("/usr")


def words() -> str:
    """Whose Python this is."""
    if inside():
        return "that of a host, in the image of the lab's LLM server"
    return "the distribution's" if distributions() else "this checkout's own, not a host's"


def enter(arguments: list[str]) -> str:
    """Go on inside the image. Returns only where that is not possible: the reason."""
    sys.path.append(str(REPO / "molecule" / "lab"))
    from images import ensure_image  # noqa: PLC0415 — the lab's modules are found by names of their own
    from settings import Lab, LabError, carried, resolvers  # noqa: PLC0415

    if os.geteuid() != 0:
        return "it takes root to go on in the lab's image"
    try:
        lab, settings, servers = Lab.from_environment(), carried(), resolvers()
        image = ensure_image(lab, lab.llm_release, settings)
    except (LabError, OSError, subprocess.SubprocessError) as failure:
        return str(failure)
    work = REPO / "build" / "bench" / "root"
    work.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= settings.environment
    environment |= {
        _INSIDE: "1",
        "IMAGE": str(image),
        "WORK": str(work),
        "REPO": str(REPO),
        "FOLDERS": ":".join(["/proc", "/sys", "/dev", str(REPO), *settings.binds]),
        "RESOLVERS": servers,
        "GO_ON": _GO_ON,
        "HOME": "/root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    sys.stdout.flush()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _ENTER, "sh", *arguments]
    try:
        os.execvpe("unshare", command, environment)
    except OSError as failure:
        return f"unshare: {failure.strerror}"

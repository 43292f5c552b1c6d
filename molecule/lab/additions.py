"""What a host's services need above the image of its release, installed once and kept by content hash.

An addition is the upper directory of an overlay over the image, so that it holds only what was added.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import metrics
import sql
from settings import METRICS_HOST, SQL_HOST, VECTOR_HOST, Carried, Lab, LabError, alone, resolvers

import vector

# A module says PACKAGES, PROBE (a shell command that succeeds once the services answer), `furnish(root)` (what does
# not differ between labs) and `personalise(root, lab)` (what does; before each boot). It may say AFTER (shell text
# that runs in the root after the packages were installed, with what `place(root)` put there), SOURCES (files that
# all this is made from, beside the module itself) and `recipe()` (what else it is made from).
SERVICES: dict[str, ModuleType] = {SQL_HOST: sql, VECTOR_HOST: vector, METRICS_HOST: metrics}

INSTALL = """
set -e
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
[ $# = 0 ] || apt-get -qq install --no-install-recommends "$@"
apt-get -qq clean
rm /usr/sbin/policy-rc.d
"""


@dataclass(frozen=True)
class Base:
    """What a host's own writes lie above: the image of its release, and additions, the lowest first."""

    image: Path
    additions: tuple[Path, ...] = ()

    @classmethod
    def read(cls, facts: dict[str, object]) -> Base:
        paths: list[str] = list(facts.get("additions", []))  # type: ignore[call-overload]
        return cls(Path(str(facts["image"])), tuple(Path(path) for path in paths))

    def facts(self) -> dict[str, object]:
        return {"image": str(self.image), "additions": [str(path) for path in self.additions]}

    def there(self) -> bool:
        return self.image.is_dir() and all(path.is_dir() for path in self.additions)

    def lower(self) -> list[Path]:
        """The directories of the overlay, the uppermost first."""
        return [*reversed(self.additions), self.image]


def of(host: str) -> ModuleType | None:
    return SERVICES.get(host)


def ensure(lab: Lab, host: str, image: Path, settings: Carried) -> Base:
    """The host's base; an addition is built beside its final name and renamed: a half-built one is never used."""
    service = of(host)
    if service is None:
        return Base(image)
    sources = [Path(__file__), Path(str(service.__file__)), *getattr(service, "SOURCES", [])]
    recipe = b"".join(source.read_bytes() for source in sources) + image.name.encode()
    if hasattr(service, "recipe"):
        recipe += service.recipe()
    target = lab.cache / "additions" / f"{service.__name__}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not target.is_dir():
        with alone(target):
            if not target.is_dir():
                _build(service, image, target, settings)
                _prune(target, service.__name__)
    return Base(image, (target,))


def _build(service: ModuleType, image: Path, target: Path, settings: Carried) -> None:
    what = ", ".join(service.PACKAGES) or service.__name__
    print(f"lab: adding {what} to {image.name} (about 20 seconds)", flush=True)
    building = target.with_name(f".{target.name}.{os.getpid()}")
    upper, work, root = (building / part for part in ("upper", "work", "root"))
    for part in (upper, work, root):
        part.mkdir(parents=True)
    log = target.with_name(f"{target.name}.log")
    options = f"lowerdir={image},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "citadel-lab-build", "-o", options, str(root)], check=True)
    try:
        (root / "etc/resolv.conf").write_text(resolvers())
        if hasattr(service, "place"):
            service.place(root)
        command = [
            "systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit", "--settings=no",
            "--as-pid2", "--resolv-conf=off", "--timezone=off", f"--machine={target.name}",
            *[f"--bind-ro={path}" for path in settings.binds],
            *[f"--setenv={name}={value}" for name, value in settings.environment.items()],
            "sh", "-c", INSTALL + getattr(service, "AFTER", ""), "install", *service.PACKAGES,
        ]  # fmt: skip
        with log.open("w") as output:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-6:])
            raise LabError(f"{what} could not be installed. Log: {log}\n  {tail}")
        (root / "etc/resolv.conf").unlink()
        service.furnish(root)
        subprocess.run(["umount", str(root)], check=True)
        upper.rename(target)
    finally:
        if os.path.ismount(root):
            subprocess.run(["umount", "--lazy", str(root)], check=False)
        shutil.rmtree(building, ignore_errors=True)


def _prune(keep: Path, name: str) -> None:
    """Additions of the same name beyond the three newest, where no mount uses them any more."""
    mounts = Path("/proc/mounts").read_text()
    made = sorted((p for p in keep.parent.glob(f"{name}-*") if p.is_dir()), key=lambda p: p.stat().st_ctime)
    for old in made[:-3]:
        if str(old) not in mounts:
            shutil.rmtree(old, ignore_errors=True)
            old.with_name(f"{old.name}.log").unlink(missing_ok=True)

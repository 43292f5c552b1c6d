"""Root file systems of the lab's hosts, built once by mmdebstrap and kept by content hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from settings import Carried, Lab, LabError, alone, apt_mirror

PACKAGES = [
    "systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "python3", "python3-venv", "python3-apt",
    "ca-certificates", "iproute2", "procps", "curl",
]  # fmt: skip
# user@ takes minutes to stop on a hybrid cgroup tree; the others have no sense in a short-lived host.
MASKED = [
    "user@.service", "apt-daily.timer", "apt-daily-upgrade.timer", "apt-daily.service", "apt-daily-upgrade.service",
    "fstrim.timer", "getty.target", "console-getty.service", "dpkg-db-backup.timer",
    "systemd-networkd-wait-online.service",
]  # fmt: skip


def image_directory(lab: Lab, release: str, settings: Carried) -> Path:
    recipe = hashlib.sha256(Path(__file__).read_bytes() + settings.digest.encode()).hexdigest()[:12]
    return lab.cache / "images" / f"{release}-{recipe}"


def ensure_image(lab: Lab, release: str, settings: Carried) -> Path:
    """The image of a release; built beside its final name and renamed, so that a half-built one is never used."""
    image = image_directory(lab, release, settings)
    if not image.is_dir():
        with alone(image):
            if not image.is_dir():
                _build(image, release, settings)
    return image


def _build(image: Path, release: str, settings: Carried) -> None:
    building = image.with_name(f".{image.name}.{os.getpid()}")
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--skip=cleanup/apt/lists",
        f"--include={','.join(_packages(release))}",
    ]
    if release in {"noble", "jammy"}:
        command += ["--components=main,universe"]
    command += [f"--aptopt={option}" for option in settings.apt]
    command += [release, str(building)]
    if mirror := apt_mirror(release):
        command.append(mirror)
    print(f"lab: building the {release} image (about half a minute)", flush=True)
    log = image.with_name(f"{image.name}.log")
    with log.open("w") as output:
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        shutil.rmtree(building, ignore_errors=True)
        tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-6:])
        raise LabError(
            f"the {release} image could not be built; is {release} in the archives of this machine's apt? "
            f"Log: {log}\n  {tail}"
        )
    _furnish(building, settings)
    building.rename(image)
    _prune(image)


def _packages(release: str) -> list[str]:
    return [*PACKAGES, "apt", "ubuntu-keyring"] if release in {"noble", "jammy"} else PACKAGES


def _furnish(root: Path, settings: Carried) -> None:
    """Everything of a host that does not differ between hosts."""
    for name in MASKED:
        (root / "etc/systemd/system" / name).unlink(missing_ok=True)
        (root / "etc/systemd/system" / name).symlink_to("/dev/null")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("")
    for leftover in ("etc/hostname", "etc/resolv.conf"):
        (root / leftover).unlink(missing_ok=True)
    journal = root / "etc/systemd/journald.conf.d/50-lab.conf"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("[Journal]\nStorage=volatile\nRuntimeMaxUse=128M\n")
    environment = {"LANG": "C.UTF-8", **settings.environment}
    (root / "etc/environment").write_text("".join(f'{k}="{v}"\n' for k, v in sorted(environment.items())))
    if settings.pip:
        (root / "etc/pip.conf").write_text(settings.pip)
    if settings.apt:
        (root / "etc/apt/apt.conf.d/90machine").write_text("\n".join(settings.apt) + "\n")
    bundle = (root / "etc/ssl/certs/ca-certificates.crt").read_text(errors="replace")
    missing = [certificate for certificate in settings.certificates if certificate not in bundle]
    for number, certificate in enumerate(missing):
        (root / f"usr/local/share/ca-certificates/machine-{number}.crt").write_text(certificate + "\n")
    subprocess.run(["chroot", str(root), "update-ca-certificates"], check=True, capture_output=True)


def _prune(keep: Path) -> None:
    """Images of the same release beyond the three newest, where no mount uses them any more."""
    mounts = Path("/proc/mounts").read_text()
    release = keep.name.rsplit("-", 1)[0]
    images = sorted((p for p in keep.parent.glob(f"{release}-*") if p.is_dir()), key=lambda p: p.stat().st_ctime)
    for old in images[:-3]:
        if old != keep and str(old) not in mounts:
            shutil.rmtree(old, ignore_errors=True)
            old.with_name(f"{old.name}.log").unlink(missing_ok=True)

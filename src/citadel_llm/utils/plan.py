"""The plan of a host: which model gets which cores and how much memory.

Pure standard library, since Ansible's filter plugin and the roles' tests read it on the controller.
The entries it reads are `citadel_models` (group_vars/llm_servers/models.yml).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from citadel_llm.models import ProfileError, generated_version, kind_of, profile

ENGINE_OVERHEAD_BYTES = 1_500_000_000  # vLLM's three processes beside weights and KV cache, measured on CPU

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
KINDS = ("generate", "embedding")
_REQUIRED = {"port", "memory", "cpu_cores", "max_tokens", "weights", "kv_cache"}
_OPTIONAL = {
    "kind", "display_name", "repo", "revision", "weights_gb", "path", "package", "dtype", "max_num_seqs", "latency_ms",
    "latency_target_ms", "profile", "seed", "engine_args", "policy", "fallback", "features", "cost_share",
    "prompt_tokens_per_s", "completion_tokens_per_s",
}  # fmt: skip
_SOURCES = ("hub", "path", "package", "generated")
_PINNED = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9A-Za-z.+!]*")
_RANGES = (
    ("port", 1024, 65535),
    ("cpu_cores", 1, 4096),
    ("max_tokens", 1, 10**7),
    ("max_num_seqs", 1, 10**5),
    ("seed", 0, 2**63),
)


class PlanError(ValueError):
    """An entry of `citadel_models` that cannot be served; the text names the entry, the key and what was expected."""


def size_bytes(text: str | int, where: str = "size") -> int:
    """Bytes of a size such as "90GB" (10^9) or "8GiB" (2^30)."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)\s*", str(text).upper())
    if not match or match.group(2) not in _UNITS:
        raise PlanError(f'{where}: {text!r} is no size; write for example "90GB" (10^9 bytes) or "512MiB"')
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def share_cores(wanted: list[int], available: int) -> list[list[int]]:
    """Core numbers for each model, in the models' order.

    Enough cores: consecutive and disjoint. Too few for the sum: shares in proportion to what is wanted
    (largest remainder, at least one core each), disjoint. Fewer cores than models: dealt in turn, shared.
    """
    if not wanted:
        return []
    if available < len(wanted):
        return [[index % available] for index in range(len(wanted))]
    counts = list(wanted)
    if sum(wanted) > available:
        exact = [count * available / sum(wanted) for count in wanted]
        counts = [max(1, int(share)) for share in exact]
        by_remainder = sorted(range(len(wanted)), key=lambda i: (counts[i] - exact[i], i))
        for index in by_remainder[: max(0, available - sum(counts))]:
            counts[index] += 1
        while sum(counts) > available:  # the floor of one core each took too many
            counts[counts.index(max(counts))] -= 1
    cores, start = [], 0
    for count in counts:
        cores.append(list(range(start, start + count)))
        start += count
    return cores


def core_list(cores: list[int]) -> str:
    """Cores as systemd and the kernel write them: [0, 1, 2, 5] is "0-2,5"."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def make_plan(
    models: Mapping[str, Mapping[str, Any]],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    host_cores: int = 0,
    host_memory_bytes: int = 0,
    overcommit: str = "warn",
) -> dict[str, Any]:
    """The plan of one host, as plain data.

    `host_memory_bytes` 0 means unknown: sums are then not judged. `overcommit` is the severity of what does
    not fit: "warn" or "fail". Raises PlanError for an entry that is wrong in itself.
    """
    if overcommit not in ("warn", "fail"):
        raise PlanError(f'citadel_overcommit: {overcommit!r}; write "warn" or "fail"')
    entries = _merged(models, overrides or {})
    cores = share_cores([int(entry["cpu_cores"]) for entry in entries.values()], max(1, int(host_cores)))
    planned = [_model(name, entry, share) for (name, entry), share in zip(entries.items(), cores, strict=True)]
    wanted_cores = sum(int(entry["cpu_cores"]) for entry in entries.values())
    wanted_bytes = sum(model["memory_bytes"] for model in planned)
    shared = 0 < int(host_cores) < len(planned)
    return {
        "cores": {"wanted": wanted_cores, "available": int(host_cores), "shared": shared},
        "memory": {"wanted_bytes": wanted_bytes, "available_bytes": int(host_memory_bytes)},
        "findings": [
            {"severity": overcommit, **finding}
            for finding in [
                *_core_findings(planned, wanted_cores, int(host_cores), shared),
                *_memory_findings(planned, wanted_bytes, int(host_memory_bytes)),
            ]
        ],
        "cost_shares": _cost_shares(entries),
        "models": planned,
    }


def _merged(
    models: Mapping[str, Mapping[str, Any]], overrides: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    if unknown := sorted(set(overrides) - set(models)):
        raise PlanError(f"citadel_model_overrides.{unknown[0]}: no such model; there are: {', '.join(models)}")
    entries: dict[str, dict[str, Any]] = {}
    ports: dict[int, str] = {}
    for name, entry in models.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
            raise PlanError(f"citadel_models.{name}: a name is lower-case letters, digits and '_', from a letter on")
        merged = {**entry, **overrides.get(name, {})}
        _check(name, merged)
        port = merged["port"]
        if port in ports:
            raise PlanError(f"citadel_models.{name}.port: {port} is taken by {ports[port]}")
        ports[port] = name
        entries[name] = merged
    return entries


def _check(name: str, entry: Mapping[str, Any]) -> None:
    where = f"citadel_models.{name}"
    _check_keys(where, entry)
    for key, low, high in _RANGES:
        value = entry.get(key, low)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise PlanError(f"{where}.{key}: {value!r}; expected a whole number from {low} to {high}")
    temperature = entry.get("temperature", 0)
    if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 <= temperature <= 2:
        raise PlanError(f"{where}.temperature: {temperature!r}; expected a number from 0 to 2")
    _check_source(where, entry)
    weights_gb = entry.get("weights_gb", 0)
    if not isinstance(weights_gb, int | float) or isinstance(weights_gb, bool) or weights_gb < 0:
        raise PlanError(f"{where}.weights_gb: {weights_gb!r}; expected the weights' size in GB (10^9 bytes)")
    _check_cost(where, entry)
    for key in ("fallback", "features"):
        names = entry.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PlanError(f"{where}.{key}: {names!r}; expected a list of names")
    if not isinstance(entry.get("engine_args", {}), Mapping):
        raise PlanError(f"{where}.engine_args: {entry['engine_args']!r}; expected options of vLLM by their long names")
    _check_profile(where, name, entry)


def _check_cost(where: str, entry: Mapping[str, Any]) -> None:
    for key, most in (("cost_share", 1.0), ("prompt_tokens_per_s", 1e9), ("completion_tokens_per_s", 1e9)):
        value = entry.get(key, 1)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
            raise PlanError(f"{where}.{key}: {value!r}; expected a number above 0, up to {most:g}")


def _cost_shares(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Each model's part of what the server costs: its own figure; what is left goes by the cores that are wanted."""
    given = sum(entry["cost_share"] for entry in entries.values() if "cost_share" in entry)
    if given > 1.000001:
        raise PlanError(f"citadel_models: the models' cost_share come to {given:g}; expected 1 at most")
    cores = sum(entry["cpu_cores"] for entry in entries.values() if "cost_share" not in entry)
    rest = max(0.0, 1 - given)
    return {
        name: round(entry.get("cost_share") or rest * entry["cpu_cores"] / cores, 6) for name, entry in entries.items()
    }


def _check_keys(where: str, entry: Mapping[str, Any]) -> None:
    kind = entry.get("kind", "generate")
    if kind not in KINDS:
        raise PlanError(f"{where}.kind: {kind!r}; expected one of {', '.join(KINDS)}")
    required = _REQUIRED | ({"temperature"} if kind == "generate" else set())
    for key in sorted(required - set(entry)):
        raise PlanError(f"{where}.{key} is missing")
    if kind == "embedding" and "temperature" in entry:
        raise PlanError(f"{where}.temperature means nothing for an embedding model: leave it out")
    for key in sorted(set(entry) - required - _OPTIONAL):
        raise PlanError(f"{where}.{key} is not known; known are: {', '.join(sorted(required | _OPTIONAL))}")


def _check_source(where: str, entry: Mapping[str, Any]) -> None:
    source = entry["weights"]
    if source not in _SOURCES:
        raise PlanError(f"{where}.weights: {source!r}; expected one of {', '.join(_SOURCES)}")
    if source == "hub" and not (entry.get("repo") and entry.get("revision")):
        raise PlanError(f"{where}: weights from the hub need `repo` and `revision`")
    if source == "path" and not entry.get("path"):
        raise PlanError(f"{where}.path is missing: the directory on the host to take the weights from")
    if source == "package" and not _PINNED.fullmatch(str(entry.get("package", ""))):
        raise PlanError(f"{where}.package: {entry.get('package')!r}; expected a pinned package such as name==1.0")
    if source == "generated" and entry.get("kind") == "embedding":
        raise PlanError(f"{where}.weights: random weights embed nothing; take them from hub, path or package")


def _check_profile(where: str, name: str, entry: Mapping[str, Any]) -> None:
    try:
        described = profile(entry.get("profile", name))
    except ProfileError as error:
        raise PlanError(f"{where}.profile: {error}") from None
    context, kind = described["context"], entry.get("kind", "generate")
    if kind != kind_of(described):
        raise PlanError(f"{where}.kind: {kind!r}, and the model's profile says {kind_of(described)!r}")
    if entry["max_tokens"] > context:
        raise PlanError(
            f"{where}.max_tokens: {entry['max_tokens']} is more than the model's context of {context} tokens"
        )


def _model(name: str, entry: Mapping[str, Any], cores: list[int]) -> dict[str, Any]:
    where = f"citadel_models.{name}"
    return {
        "name": name,
        "kind": entry.get("kind", "generate"),
        "display_name": entry.get("display_name", name),
        "profile": entry.get("profile", name),
        "port": entry["port"],
        "memory_bytes": size_bytes(entry["memory"], f"{where}.memory"),
        "cpu_cores": entry["cpu_cores"],
        "cpus": cores,
        "cpu_list": core_list(cores),
        "max_tokens": entry["max_tokens"],
        "temperature": entry.get("temperature"),
        "repo": entry.get("repo", ""),
        "revision": entry.get("revision", ""),
        "weights": entry["weights"],
        "weights_gb": entry.get("weights_gb", 0),
        "path": entry.get("path", ""),
        "package": entry.get("package", ""),
        "seed": entry.get("seed", 0),
        "weights_version": _weights_version(name, entry),
        "dtype": entry.get("dtype", "auto"),
        "kv_cache_bytes": size_bytes(entry["kv_cache"], f"{where}.kv_cache"),
        "max_num_seqs": entry.get("max_num_seqs", 16),
        "engine_args": dict(entry.get("engine_args", {})),
        "policy": entry.get("policy", "least_outstanding"),
        "fallback": list(entry.get("fallback", [])),
        "features": list(entry.get("features", [])),
        "latency_ms": entry.get("latency_ms", 0),
        "latency_target_ms": entry.get("latency_target_ms", 0),
        "prompt_tokens_per_s": entry.get("prompt_tokens_per_s"),
        "completion_tokens_per_s": entry.get("completion_tokens_per_s"),
        "unit": f"citadel-model@{name}.service",
    }


def _weights_version(name: str, entry: Mapping[str, Any]) -> str:
    """Names the weights' directory: what is the same has the same name, and what changed gets a new one."""
    if entry["weights"] == "generated":
        return generated_version(entry.get("profile", name), entry.get("seed", 0))
    # A mirror whose content changes in place says so by another `revision`; a package's version is in its pin.
    if entry["weights"] == "package":
        source = str(entry["package"])
    else:
        source = f"{entry['repo' if entry['weights'] == 'hub' else 'path']}@{entry.get('revision', '')}"
    return f"{entry['weights']}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _by_kind(models: list[dict[str, Any]], key: str, unit: float) -> str:
    """What each kind adds to a sum, where there is more than one: " (153 generate, 4 embedding)"."""
    sums: dict[str, float] = {}
    for model in models:
        sums[model["kind"]] = sums.get(model["kind"], 0) + model[key] / unit
    return f" ({', '.join(f'{total:.0f} {kind}' for kind, total in sums.items())})" if len(sums) > 1 else ""


def _core_findings(models: list[dict[str, Any]], wanted: int, available: int, shared: bool) -> list[dict[str, str]]:
    if not available or wanted <= available:
        return []
    given = ", ".join(f"{model['name']} {model['cpu_list']}" for model in models)
    what = "models take turns on cores, they are not disjoint" if shared else "cores are shared out in proportion"
    return [
        {
            "check": "cores of all models",
            "wanted": f"{wanted}{_by_kind(models, 'cpu_cores', 1)}",
            "found": f"{available} ({given}; {what})",
            "remedy": "lower cpu_cores of a model in citadel_models, or use a host with more cores",
        }
    ]


def _memory_findings(models: list[dict[str, Any]], wanted: int, available: int) -> list[dict[str, str]]:
    findings = []
    if available and wanted > available:
        findings.append(
            {
                "check": "memory of all models",
                "wanted": f"{wanted / 1e9:.0f} GB{_by_kind(models, 'memory_bytes', 1e9)}",
                "found": f"{available / 1e9:.0f} GB: all models at their bound would not fit",
                "remedy": "lower memory of a model in citadel_models, serve fewer models, or add memory",
            }
        )
    for model in models:
        needed = int(model["weights_gb"] * 1e9) + model["kv_cache_bytes"] + ENGINE_OVERHEAD_BYTES
        if model["weights_gb"] and needed > model["memory_bytes"]:
            findings.append(
                {
                    "check": f"memory of {model['name']}",
                    "wanted": f"{needed / 1e9:.1f} GB: weights {model['weights_gb']}, KV cache "
                    f"{model['kv_cache_bytes'] / 1e9:.1f}, engine {ENGINE_OVERHEAD_BYTES / 1e9:.1f}",
                    "found": f"{model['memory_bytes'] / 1e9:.0f} GB: it would be killed while loading",
                    "remedy": "raise its memory, or name a quantised repo with its weights_gb in citadel_models",
                }
            )
    return findings

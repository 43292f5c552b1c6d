"""Ansible's view of the package: `citadel_plan`, `citadel_profile` and `citadel_collections`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from citadel_llm.integration.vector.collections import CollectionError, collections
from citadel_llm.models import ProfileError, profile
from citadel_llm.utils.plan import PlanError, make_plan


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    def filtered(*arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except (CollectionError, PlanError, ProfileError) as error:
            raise AnsibleFilterError(str(error)) from error

    return filtered


class FilterModule:
    """`citadel_models | citadel_plan`, `name | citadel_profile`, `citadel_plan.models | citadel_collections`."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "citadel_plan": _told(make_plan),
            "citadel_profile": _told(profile),
            "citadel_collections": _told(collections),
        }

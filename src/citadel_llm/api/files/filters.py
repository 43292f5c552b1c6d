"""OpenAI's filters of attributes as Qdrant's.

Attributes are kept in a payload under the hexadecimal digits of their names, so that no name is taken for a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from citadel_llm.api.errors import ApiError
from citadel_llm.integration.vector.points import Filter

__all__ = ["checked_attributes", "filter_of", "payload_of"]

_DEPTH, _MOST = 8, 64
_PAIRS, _KEY, _VALUE = 16, 64, 512  # attributes of a file, as OpenAI has it
_RANGES = frozenset({"gt", "gte", "lt", "lte"})
_LARGEST = 2**53  # whole numbers beyond are not told apart

type Attributes = dict[str, str | float | bool]


def payload_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as they are in a point's payload."""
    return {_name(key): value for key, value in attributes.items()}


def checked_attributes(given: Any) -> Attributes:
    """OpenAI's bounds: 16 pairs, names of 64 characters, values of 512, numbers, or yes and no. Raises ApiError 400."""
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > _PAIRS:
        raise _invalid("attributes", f"expected an object of at most {_PAIRS} pairs")
    for key, value in given.items():
        if not isinstance(key, str) or not 0 < len(key) <= _KEY or "\0" in key:
            raise _invalid("attributes", f"expected names of 1 to {_KEY} characters")
        _check_value(value, f"attributes.{key}")
    return given


def filter_of(given: Any) -> Filter | None:
    """The filter; None for none. Raises ApiError 400, which says where it is wrong."""
    if given is None:
        return None
    budget = [_MOST]
    return _condition(given, "filters", _DEPTH, budget)


def _condition(given: Any, where: str, depth: int, budget: list[int]) -> Filter:
    budget[0] -= 1
    if depth == 0 or budget[0] < 0:
        raise _invalid(where, f"expected at most {_MOST} filters, {_DEPTH} deep")
    if not isinstance(given, dict) or not isinstance(kind := given.get("type"), str):
        raise _invalid(where, "expected an object with a `type`")
    if kind in ("and", "or"):
        parts = given.get("filters")
        if not isinstance(parts, list) or not parts:
            raise _invalid(f"{where}.filters", "expected a list of filters")
        made = [_condition(part, f"{where}.filters[{n}]", depth - 1, budget) for n, part in enumerate(parts)]
        return {"must" if kind == "and" else "should": made}
    key = given.get("key")
    if not isinstance(key, str) or not 0 < len(key) <= _KEY:
        raise _invalid(f"{where}.key", f"expected a name of 1 to {_KEY} characters")
    return _comparison(kind, f"attributes.{_name(key)}", given.get("value"), where, budget)


def _comparison(kind: str, field: str, value: Any, where: str, budget: list[int]) -> Filter:
    if kind in ("in", "nin"):
        if not isinstance(value, list) or not value:
            raise _invalid(f"{where}.value", "expected a list of values")
        budget[0] -= len(value)
        if budget[0] < 0:
            raise _invalid(where, f"expected at most {_MOST} filters and values")
        for one in value:
            _check_value(one, f"{where}.value")
        return {"should" if kind == "in" else "must_not": [_equal(field, one) for one in value]}
    _check_value(value, f"{where}.value")
    if kind in ("eq", "ne"):
        return {"must" if kind == "eq" else "must_not": [_equal(field, value)]}
    if kind not in _RANGES:
        raise _invalid(f"{where}.type", "expected eq, ne, gt, gte, lt, lte, in, nin, and or or")
    if isinstance(value, (str, bool)):
        raise _invalid(f"{where}.value", "expected a number to compare with")
    return {"must": [{"key": field, "range": {kind: value}}]}


def _equal(field: str, value: str | float | bool) -> dict[str, Any]:
    if isinstance(value, (str, bool)):
        return {"key": field, "match": {"value": value}}
    return {"key": field, "range": {"gte": value, "lte": value}}


def _check_value(value: Any, where: str) -> None:
    if isinstance(value, bool) or (isinstance(value, str) and len(value) <= _VALUE and "\0" not in value):
        return
    if isinstance(value, (int, float)) and abs(value) <= _LARGEST:  # not for what is no number, or without end
        return
    raise _invalid(where, f"expected text of at most {_VALUE} characters, a number, true or false")


def _name(key: str) -> str:
    return f"a{key.encode('utf-8', 'surrogatepass').hex()}"


def _invalid(where: str, what: str) -> ApiError:
    return ApiError(400, "invalid_request", f"{where}: {what}", param=where.split(".", 1)[0].split("[", 1)[0])

"""Config schemas: what a key takes, and what is said to everything else."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from geopose.errors import InputError
from geopose.schema.check import checked, key, section


@dataclass
class Item:
    name: str = key()


@dataclass
class Inner:
    kind: str = key("a", choices=("a", "b"))
    rate: float = key(0.5, least=0, above=True, most=1)


@dataclass
class Outer:
    count: int = key(least=1)
    workers: int | str = key("auto", least=0, choices=("auto",))
    limit: float | None = key(None, least=0)
    is_on: bool = key(False)
    free: dict[str, Any] = key()
    items: list[Item] = key(least=1, meaning="a list of at least one item")
    inner: Inner = section(Inner)
    group: Inner = section(Inner, "choose a group")


GOOD: dict[str, Any] = {"count": 3, "free": {"a.b": [1, {"c": None}]}, "items": [{"name": "x"}]}


def test_defaults_come_in_and_values_get_their_type() -> None:
    given = {**GOOD, "group": {"rate": 1}, "limit": 2, "workers": 4, "inner": None}
    assert checked(Outer, given) == {
        "count": 3,
        "workers": 4,
        "limit": 2.0,
        "is_on": False,
        "free": {"a.b": [1, {"c": None}]},
        "items": [{"name": "x"}],
        "inner": {"kind": "a", "rate": 0.5},
        "group": {"kind": "a", "rate": 1.0},
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, "count=0: must be a whole number from 1"),
        ({"count": 2.0}, "count=2.0: must be a whole number from 1"),
        ({"count": True}, "count=true: must be a whole number from 1"),
        ({"count": None}, "count=null: must be a whole number from 1"),
        ({"count": [1]}, r"count=\[1\]: must be a whole number from 1"),
        ({"count": "???"}, "count is not set: must be a whole number from 1"),
        ({"workers": "many"}, "workers=many: must be a whole number from 0 or auto"),
        ({"workers": -1}, "workers=-1: must be a whole number from 0 or auto"),
        ({"workers": 1.5}, "workers=1.5: must be a whole number from 0 or auto"),
        ({"limit": math.nan}, "limit=nan: must be a number from 0 or null"),
        ({"limit": math.inf}, "limit=inf: must be a number from 0 or null"),
        ({"limit": "x\ny"}, "limit=x y: must be a number from 0 or null"),
        ({"is_on": "maybe"}, "is_on=maybe: must be true or false"),
        ({"is_on": None}, "is_on=null: must be true or false"),
        ({"free": [1]}, r"free=\[1\]: must be a mapping"),
        ({"free": {1: 2}}, r"free={1: 2}: must be a mapping"),
        ({"items": []}, r"items=\[\]: must be a list of at least one item"),
        ({"items": {"name": "x"}}, "items=.*: must be a list of at least one item"),
        ({"items": [3]}, r"items\[0\]=3: must hold keys items\[0\]\.name"),
        ({"items": [{"name": "x"}, {}]}, r"items\[1\]\.name is not set: must be text"),
        ({"inner": 3}, r"inner=3: must hold keys inner\.kind, inner\.rate"),
        ({"inner": {"kind": "c"}}, r"inner\.kind=c: must be one of a, b"),
        ({"inner": {"rate": 0}}, r"inner\.rate=0: must be a number above 0 to 1"),
        ({"inner": {"mode": 0}}, r"unknown key inner\.mode; allowed: inner\.kind, inner\.rate"),
        ({"group": None}, "group=null: choose a group"),
        ({"cuont": 1}, "unknown key cuont; allowed: count, free, group"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_would(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}") as caught:
        checked(Outer, {"group": {}, **GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [None, 3, [], "text"])
def test_something_else_than_a_mapping(given: Any) -> None:
    with pytest.raises(InputError, match="must hold keys count"):
        checked(Outer, given)

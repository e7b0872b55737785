"""Folds: the published ones, one city left out, and too little data said plainly."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from geopose.data.folds import split_fold
from geopose.data.layout import ImageRecord
from geopose.errors import InputError


def _records(counts: dict[str, int]) -> list[ImageRecord]:
    cities = [city for city, count in counts.items() for _ in range(count)]
    np.random.default_rng(0).shuffle(cities)
    return [
        ImageRecord(f"{number:03d}", city, 0.5, Path("x.j2k"), None, None)
        for number, city in enumerate(cities)
    ]


@pytest.mark.filterwarnings("ignore:The least populated class")  # of scikit-learn
@pytest.mark.parametrize("few", [41, 2])
def test_folds_are_those_of_the_published_models(few: int) -> None:
    records = _records({"ARG": 37, "ATL": 53, "JAX": few, "OMA": 69})
    cities = np.array([record.city for record in records])
    expected = list(
        StratifiedKFold(n_splits=10, shuffle=True, random_state=42).split(
            np.zeros(len(cities)), cities
        )
    )
    for fold in range(10):
        train, valid = split_fold(records, fold)
        assert [record.image_id for record in train] == [f"{i:03d}" for i in expected[fold][0]]
        assert [record.image_id for record in valid] == [f"{i:03d}" for i in expected[fold][1]]


def test_every_image_validates_once_and_never_trains_then() -> None:
    records = _records({"ARG": 12, "JAX": 25})
    seen: Counter[str] = Counter()
    for fold in range(5):
        train, valid = split_fold(records, fold, num_folds=5)
        assert {r.image_id for r in train} | {r.image_id for r in valid} == {
            r.image_id for r in records
        }
        assert len(train) + len(valid) == len(records)
        seen.update(record.image_id for record in valid)
    assert set(seen.values()) == {1}


def test_region_leaves_out_the_cities_in_alphabetical_order() -> None:
    records = _records({"OMA": 3, "ARG": 2, "JAX": 4})
    for fold, city in enumerate(["ARG", "JAX", "OMA"]):
        train, valid = split_fold(records, fold, "region")
        assert {record.city for record in valid} == {city}
        assert city not in {record.city for record in train}
    with pytest.raises(InputError, match="fold is 3, expected 0 to 2"):
        split_fold(records, 3, "region")


def test_a_rare_city_is_no_reason_for_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, valid = split_fold(_records({"ARG": 20, "JAX": 2}), 0)
    assert len(train) + len(valid) == 22
    assert valid


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"ARG": 9}, {}, "use dataset.num_folds=9"),
        ({}, {}, "num_folds"),
        ({"ARG": 20}, {"fold": 10}, "fold is 10, expected 0 to 9"),
        ({"ARG": 20}, {"fold": -1}, "fold is -1"),
        ({"ARG": 20}, {"fold": True}, "fold is True"),
        ({"ARG": 20}, {"fold": "1"}, "fold is '1'"),
        ({"ARG": 20}, {"num_folds": 1}, "num_folds is 1"),
        ({"ARG": 20}, {"fold_split": "city"}, "expected stratified, region or place"),
        ({"ARG": 20}, {"fold_split": "region"}, "at least two cities"),
    ],
)
def test_impossible_folds_say_what_to_do(counts: dict, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_fold(_records(counts), **{"fold": 0, **options})

"""Splits the training images into a training and a validation part.

In: the records of geopose_train.csv in file order. Out: two lists of records. The stratified folds
are those of the published models, so a fold number means the same images everywhere. Images of one
place are in several of these folds; folds by place keep them together.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from geopose.data.layout import ImageRecord
from geopose.errors import InputError
from geopose.schema.numbers import is_whole

NUM_FOLDS = 10
FOLD_SEED = 42
PLACE = "place"

Split = tuple[list[ImageRecord], list[ImageRecord]]


def split_fold(
    records: Sequence[ImageRecord],
    fold: int,
    fold_split: str = "stratified",
    num_folds: int = NUM_FOLDS,
    places: Mapping[str, str] | None = None,
) -> Split:
    """Training and validation records of one fold.

    Args:
        records: all training records, in the order of the CSV file.
        fold: number of the part to validate on, from 0.
        fold_split: "stratified" = every fold has each city's share of images; "region" = fold k
            leaves out the k-th city in alphabetical order; "place" = as stratified, as well as can
            be with all images of one place in the same fold.
        num_folds: how many parts (not by region).
        places: the place of every image id (by place only).

    Returns:
        (train, valid), both in file order.

    Raises:
        InputError: no such fold or kind of split, or too few images for it.
    """
    if fold_split == "region":
        return _by_city(records, fold)
    if fold_split == PLACE:
        if places is None:
            raise InputError("dataset.fold_split=place needs a table of places; none was given")
        return _by_place(records, fold, num_folds, places)
    if fold_split != "stratified":
        raise InputError(
            f"dataset.fold_split is {fold_split!r}, expected stratified, region or place"
        )
    return _stratified(records, fold, num_folds)


def _by_city(records: Sequence[ImageRecord], fold: int) -> Split:
    cities = sorted({record.city for record in records})
    if len(cities) < 2:
        raise InputError(
            f"dataset.fold_split=region needs at least two cities, there is {', '.join(cities)}; "
            "use dataset.fold_split=stratified"
        )
    _check_fold(fold, len(cities), f"cities {', '.join(cities)}")
    train = [record for record in records if record.city != cities[fold]]
    valid = [record for record in records if record.city == cities[fold]]
    return train, valid


def _stratified(records: Sequence[ImageRecord], fold: int, num_folds: int) -> Split:
    _check_folds(fold, num_folds)
    cities = [record.city for record in records]
    most = max(Counter(cities).values(), default=0)
    if most < num_folds:
        raise InputError(
            f"{num_folds} folds need a city with at least {num_folds} images, the largest has "
            f"{most}; use dataset.num_folds={max(most, 2)} or more images"
        )
    from sklearn.model_selection import StratifiedKFold  # here, as importing it takes a second

    folds = StratifiedKFold(num_folds, shuffle=True, random_state=FOLD_SEED)
    with warnings.catch_warnings():  # a city with fewer images than folds is in some folds only
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        train, valid = list(folds.split(cities, cities))[fold]
    return [records[index] for index in train], [records[index] for index in valid]


def _by_place(
    records: Sequence[ImageRecord], fold: int, num_folds: int, places: Mapping[str, str]
) -> Split:
    """Whole places in every fold, cities spread over the folds as evenly as places allow."""
    _check_folds(fold, num_folds)
    cities = [record.city for record in records]
    groups = [places[record.image_id] for record in records]
    count = len(set(groups))
    if count < num_folds or max(Counter(cities).values()) < num_folds:
        raise InputError(
            f"{num_folds} folds of whole places need as many places and a city with as many "
            f"images, there are {count} places of {len(records)} images; use a smaller "
            "dataset.num_folds"
        )
    from sklearn.model_selection import StratifiedGroupKFold  # likewise

    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=FOLD_SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        train, valid = list(folds.split(cities, cities, groups))[fold]
    return [records[index] for index in train], [records[index] for index in valid]


def _check_folds(fold: int, num_folds: int) -> None:
    if not is_whole(num_folds, 2):
        raise InputError(f"dataset.num_folds is {num_folds!r}, expected a whole number from 2")
    _check_fold(fold, num_folds, f"{num_folds} folds")


def _check_fold(fold: int, count: int, what: str) -> None:
    if not is_whole(fold, 0, count - 1):
        raise InputError(f"dataset.fold is {fold!r}, expected 0 to {count - 1} ({what})")

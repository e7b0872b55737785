"""The shipped inference configs parse, and name the files that a user has to get."""

from urllib.parse import urlparse

import pytest

from geopose.errors import InputError
from geopose.inference.config import load_config
from tests.tiny_run import ROOT

SHIPPED = {
    "fp32_0.8910_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold89_bo1_d4": (4, "model"),
    "fp32_0.8914_b7_fold0_b7_rdtsc_fold1_b6_rdtsc_fold9_bo3_d4": (9, "ensemble"),
    "fp32_0.8914_b6_rdtsc_unet_fold9_b7_unet_fold0_d4_bo1": (2, "model"),
}


def test_every_shipped_config_is_listed_here():
    files = {path.stem for path in (ROOT / "configs/inference").glob("*.yaml")}
    assert set(SHIPPED) <= files


@pytest.mark.parametrize("name", SHIPPED)
def test_published_ensembles(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GEOPOSE_CACHE", str(tmp_path))
    path = ROOT / f"configs/inference/{name}.yaml"
    wanted = set()
    for _ in range(20):  # the error names one missing file after the other
        try:
            config = load_config(path)
            break
        except InputError as error:
            url = next(word for word in str(error).split() if word.startswith("https://"))
            wanted.add(urlparse(url).path.rpartition("/")[2])
            (tmp_path / urlparse(url).path.rpartition("/")[2]).touch()
    assert len(wanted) == SHIPPED[name][0]
    assert [len(entry.files) for entry in config.models] == [1] * SHIPPED[name][0]
    assert (config.tta, config.tta_mode) == ("d4", SHIPPED[name][1])
    assert config.submission_dir.name == name

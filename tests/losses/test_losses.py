"""Losses: hand-computed values, masking, gradients, precision, and how configs build them."""

import math

import numpy as np
import pytest
import torch

from geopose import keys
from geopose.errors import InputError
from geopose.geometry import angle_to_vector, flow_map
from geopose.losses import terms, total
from geopose.metrics import ScoreAccumulator
from tests.training_run import CONFIGS, composed

NAN = math.nan
LOSS_CONFIGS = sorted(path.stem for path in (CONFIGS / "loss").glob("*.yaml"))
LOSS_CONFIGS.remove("base")
PIXEL_LOSSES = [
    terms.HuberLossWithIgnore,
    terms.MSELossWithIgnore,
    terms.SmoothL1LossWithIgnore,
    terms.LogCoshWithIgnore,
]


FACTORS = {
    keys.TARGET_AGL_VARIANCE: torch.tensor([[4.0], [9.0]]),
    keys.TARGET_FLOW_VARIANCE: torch.tensor([[2.0], [5.0]]),
    keys.TARGET_LEAN: torch.tensor([[0.5], [0.1]]),
}


def maps(*rows: list[float]) -> torch.Tensor:
    """A batch with one 1 x 1 x W map a row."""
    return torch.tensor(rows)[:, None, None, :]


@pytest.mark.parametrize(
    ("loss", "error", "expected"),
    [
        (terms.HuberLossWithIgnore(delta=5.0), 3.0, 4.5),
        (terms.HuberLossWithIgnore(delta=5.0), -8.0, 5.0 * (8.0 - 2.5)),
        (terms.MSELossWithIgnore(), -3.0, 9.0),
        (terms.SmoothL1LossWithIgnore(), 3.0, 2.5),
        (terms.LogCoshWithIgnore(), 1.0, math.log(math.cosh(1.0))),
        (terms.LogCoshWithIgnore(), 0.0, 0.0),
        (terms.LogCoshWithIgnore(), 500.0, 500.0 - math.log(2.0)),
    ],
)
def test_values_by_hand(loss: torch.nn.Module, error: float, expected: float) -> None:
    assert loss(maps([error + 2.0]), maps([2.0])).item() == pytest.approx(
        expected, rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("kind", PIXEL_LOSSES)
def test_mean_divides_by_valid_pixels_only(kind: type) -> None:
    output = maps([1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 7.0])
    target = maps([1.5, NAN, 65535.0, 7.0], [NAN, NAN, NAN, 6.0])
    valid = ~torch.isnan(target) & (target != 65535.0)
    expected = kind()(output[valid][None], target[valid][None])
    assert kind(ignore_value=65535)(output, target).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", PIXEL_LOSSES)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_unknown_pixels_send_no_gradient(kind: type, fraction: float) -> None:
    output = maps([1.0, 2.0, 3.0], [4.0, NAN, math.inf]).requires_grad_()
    kind(fraction=fraction)(output, maps([1.0, NAN, 5.0], [6.0, NAN, NAN])).backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
    assert output.grad.flatten()[[1, 4, 5]].tolist() == [0.0, 0.0, 0.0]
    assert output.grad.flatten()[3] != 0.0


@pytest.mark.parametrize("kind", PIXEL_LOSSES)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_batch_without_a_valid_pixel_costs_nothing(kind: type, fraction: float) -> None:
    output = maps([1.0, 2.0]).requires_grad_()
    loss = kind(fraction=fraction)(output, maps([NAN, NAN]))
    loss.backward()
    assert loss.item() == 0.0
    assert output.grad is not None
    assert output.grad.tolist() == [[[[0.0, 0.0]]]]


def test_trimming_keeps_the_smallest_share_of_each_sample() -> None:
    # Sample 1: errors 1, 2, 3, 100 and two unknown -> half of four = 1, 2. Sample 2: 10, 20 -> 10.
    output = maps([1.0, 2.0, 3.0, 100.0, 7.0, 7.0], [10.0, 20.0, 5.0, 5.0, 5.0, 5.0])
    target = maps([0.0, 0.0, 0.0, 0.0, NAN, NAN], [0.0, 0.0, NAN, NAN, NAN, NAN])
    loss = terms.MSELossWithIgnore(fraction=0.5)(output, target)
    assert loss.item() == pytest.approx((1.0 + 4.0 + 100.0) / 3.0)


def test_trimming_with_one_valid_pixel_keeps_it() -> None:
    loss = terms.MSELossWithIgnore(fraction=0.1)(maps([3.0, 1.0]), maps([0.0, NAN]))
    assert loss.item() == 9.0


def test_cosine_loss_by_hand() -> None:
    output = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert terms.CosineSimilarityLoss()(output, target).item() == pytest.approx((0 + 1 + 2) / 3)
    half = terms.CosineSimilarityLoss(gamma=0.5)(output, target).item()
    assert half == pytest.approx((0.0 + 1.0 + math.sqrt(2.0)) / 3, abs=2e-3)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("vector", [[0.6, 0.8], [0.0, 0.0], [-0.6, -0.8]])
def test_cosine_gradient_is_finite_everywhere(gamma: float, vector: list[float]) -> None:
    output = torch.tensor([vector], requires_grad=True)
    terms.CosineSimilarityLoss(gamma=gamma)(output, torch.tensor([[0.6, 0.8]])).backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


def test_perfect_direction_costs_nothing_at_any_gamma() -> None:
    vector = torch.tensor([[0.6, 0.8]])
    for gamma in (0.5, 1.0):
        loss = terms.CosineSimilarityLoss(gamma=gamma)(vector, vector)
        assert loss.item() == pytest.approx(0.0, abs=1e-3)


def test_float32_under_autocast() -> None:
    output = torch.full((1, 1, 8, 8), 300.0, dtype=torch.bfloat16)
    target = torch.full((1, 1, 8, 8), 300.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = terms.MSELossWithIgnore()(output, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.25)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_factor_weighs_the_pixels_of_each_sample(fraction: float) -> None:
    # Half of the four valid pixels of the first sample, and of the two of the second, are 0 and 0.
    output = maps([0.0, 2.0, 0.0, 2.0, 7.0], [0.0, 3.0, 7.0, 7.0, 7.0])
    target = maps([0.0, 0.0, 0.0, 0.0, NAN], [0.0, 0.0, NAN, NAN, NAN])
    loss = terms.MSELossWithIgnore(fraction=fraction)
    value = loss(output + 1.0, target, torch.tensor([[0.5], [2.0]]))
    kept = [1.0, 1.0] if fraction < 1.0 else [1.0, 1.0, 9.0, 9.0]
    second = [1.0] if fraction < 1.0 else [1.0, 16.0]
    expected = 0.5 * sum(kept) + 2.0 * sum(second)
    assert value.item() == pytest.approx(expected / (len(kept) + len(second)))


def test_a_direction_counts_by_the_factor_of_its_sample() -> None:
    output, target = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    loss = terms.CosineSimilarityLoss()(output, target, torch.tensor([[3.0], [0.0]]))
    assert loss.item() == pytest.approx(3.0 / 2)


def test_end_point_error_is_the_mean_length_over_the_known_pixels() -> None:
    target = torch.zeros(1, 2, 1, 3)
    target[0, 0, 0, 2] = NAN  # one component is enough
    output = torch.tensor([[3.0, 0.0, 9.0], [4.0, 2.0, 9.0]]).reshape(1, 2, 1, 3).requires_grad_()
    loss = terms.EndPointLoss()
    value = loss(output, target)
    value.backward()
    assert value.item() == pytest.approx((5.0 + 2.0) / 2, abs=2e-3)
    assert loss.count(target).item() == 2.0
    assert output.grad is not None
    expected = torch.tensor([[0.3, 0.0, 0.0], [0.4, 0.5, 0.0]]).reshape(1, 2, 1, 3)
    torch.testing.assert_close(output.grad, expected, atol=1e-5, rtol=0)
    nothing = terms.EndPointLoss(fraction=0.5)(output.detach(), torch.full((1, 2, 1, 3), NAN))
    assert nothing.item() == 0.0


def test_end_point_error_has_a_gradient_where_there_is_no_error() -> None:
    output = torch.zeros(1, 2, 2, 2, requires_grad=True)
    terms.EndPointLoss()(output, torch.zeros(1, 2, 2, 2)).backward()
    assert output.grad is not None
    assert output.grad.abs().max() == 0.0


def test_twice_the_scale_costs_as_much_as_half_of_it() -> None:
    loss = terms.LogScaleLoss(floor=1e-3, delta=0.1)
    target = torch.tensor([[1.0]])
    twice, half = (loss(target * factor, target).item() for factor in (2.0, 0.5))
    assert twice == pytest.approx(0.1 * (math.log(2.0) - 0.05), rel=1e-4)
    assert half == pytest.approx(twice, rel=1e-4)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 5.0])
@pytest.mark.parametrize("truth", [0.0, 5.0])
def test_any_scale_has_a_finite_slope(scale: float, truth: float) -> None:
    output = torch.tensor([[scale]], requires_grad=True)
    terms.LogScaleLoss()(output, torch.tensor([[truth]])).backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
    assert (output.grad.item() == 0.0) == (scale == truth)


def test_the_flow_of_a_pose_has_directions_of_length_1() -> None:
    loss_config = composed("loss=huber_cos_epe", "loss.losses.magnitude=null").loss
    criterion = total.build_loss(loss_config)
    criterion.fitting(
        [k for k in vars(keys).values() if str(k).startswith("OUTPUT") and "POSE" not in str(k)],
        [k for k in vars(keys).values() if str(k).startswith("TARGET")],
    )
    agl = torch.rand(2, 1, 4, 4) * 50
    direction = torch.nn.functional.normalize(torch.randn(2, 2))
    fields = {"AGL_MASK": agl, "MAGNITUDE_MASK": agl, "VFLOW_SCALE": torch.ones(2, 1)}
    output = {f"OUTPUT_{k}": v for k, v in fields.items()}
    batch = {f"TARGET_{k}": v for k, v in fields.items()}
    batch[keys.TARGET_VFLOW_DIRECTION] = direction
    batch[keys.TARGET_FLOW_MASK] = flow_map(agl, direction)
    output[keys.OUTPUT_VFLOW_DIRECTION] = 7.0 * direction
    assert criterion(output, batch)["epe"].item() == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(InputError, match="epe: this model has no output OUTPUT_MAGNITUDE_MASK"):
        criterion.fitting([keys.OUTPUT_VFLOW_DIRECTION, keys.OUTPUT_AGL_MASK], batch)


def test_r2_is_what_the_score_loses() -> None:
    """The terms of heights and flow of one image, by its own variances, are 1 - R2 each."""
    rng = np.random.default_rng(0)
    true, predicted = (rng.uniform(0, 40, (8, 8)).astype(np.float32) for _ in range(2))
    scale, angle = 0.7, 1.1
    score = ScoreAccumulator()
    score.update("A", predicted, scale, angle, true, scale, angle)
    state, city = score.state()["A"], score.result()["cities"]["A"]
    direction = torch.from_numpy(angle_to_vector(angle).astype(np.float32))[None]
    output, batch = {}, {}
    for fields, agl, kind in ((output, predicted, "OUTPUT"), (batch, true, "TARGET")):
        agl_m = torch.from_numpy(agl)[None, None]
        fields[f"{kind}_AGL_MASK"], fields[f"{kind}_MAGNITUDE_MASK"] = agl_m, agl_m * scale
        fields[f"{kind}_VFLOW_DIRECTION"] = direction
        fields[f"{kind}_FLOW_MASK"] = flow_map(agl_m * scale, direction)
    batch[keys.TARGET_AGL_VARIANCE] = torch.tensor([[state["agl_truth"][2] / 64]]).float()
    batch[keys.TARGET_FLOW_VARIANCE] = torch.tensor([[state["flow_truth"][2] / 64]]).float()
    criterion = total.build_loss(composed("loss=r2_flow").loss)
    terms = criterion(output, batch)
    assert terms["agl"].item() == pytest.approx(1 - city["agl_r2"], rel=1e-4)
    assert terms["magnitude"].item() == pytest.approx(1 - city["vflow_r2"], rel=1e-4)
    assert 2 * terms["flow"].item() == pytest.approx(1 - city["vflow_r2"], rel=1e-4)
    assert {keys.TARGET_AGL_VARIANCE, keys.TARGET_FLOW_VARIANCE} < criterion.batch_keys
    with pytest.raises(InputError, match="there is no target TARGET_AGL_VARIANCE"):
        criterion.fitting(output, set(batch) - {keys.TARGET_AGL_VARIANCE})


@pytest.mark.parametrize("name", LOSS_CONFIGS)
def test_shipped_configs_build_and_reach_their_minimum_at_the_truth(name: str) -> None:
    loss = total.build_loss(composed(f"loss={name}").loss)
    agl = torch.rand(2, 1, 4, 4) * 50
    direction = torch.nn.functional.normalize(torch.randn(2, 2))
    truth = {
        "AGL_MASK": agl,
        "MAGNITUDE_MASK": agl * 0.5,
        "VFLOW_DIRECTION": direction,
        "FLOW_MASK": flow_map(agl * 0.5, direction),
        "VFLOW_SCALE": torch.full((2, 1), 0.5),
    }
    batch = {f"TARGET_{name}": value.clone() for name, value in truth.items()} | FACTORS
    batch[keys.TARGET_AGL_MASK][0, 0, :2] = NAN
    right = loss({f"OUTPUT_{name}": value for name, value in truth.items()}, batch)
    wrong = loss({f"OUTPUT_{name}": value + 0.3 for name, value in truth.items()}, batch)
    assert set(right) == {"loss", *loss.prefixes}
    assert right["loss"].item() == pytest.approx(0.0, abs=1e-5)
    assert wrong["loss"].item() > 0.05


TERM = {"output_key": "o", "target_key": "t", "loss": {"_target_": "torch.nn.MSELoss"}}


@pytest.mark.parametrize(
    "terms",
    [
        [{**TERM, "prefix": "a", "weight": 2}, {**TERM, "prefix": "b", "weight": 0.5}],
        {"a": {**TERM, "weight": 2}, "none": None, "b": {**TERM, "weight": 0.5}},
    ],
    ids=["published list", "by name"],
)
def test_total_is_the_weighted_sum(terms: object) -> None:
    loss = total.build_loss({"losses": terms})
    result = loss({"o": torch.tensor([3.0])}, {"t": torch.tensor([1.0])})
    assert {k: v.item() for k, v in result.items()} == {"loss": 10.0, "a": 4.0, "b": 4.0}


PUBLISHED_HUBER_COS = [
    # (prefix, loss, weight, field): as lists of published training configs say
    ("agl", {"_target_": "geopose.losses.HuberLossWithIgnore", "delta": 5}, 1.0, "AGL_MASK"),
    ("mag", {"_target_": "geopose.losses.HuberLossWithIgnore", "delta": 10}, 1.0, "MAGNITUDE_MASK"),
    (
        "cos",
        {"_target_": "geopose.losses.CosineSimilarityLoss", "eps": 1e-3},
        1.0,
        "VFLOW_DIRECTION",
    ),
    ("mse", {"_target_": "torch.nn.MSELoss"}, 1.0, "VFLOW_DIRECTION"),
]


def test_shipped_huber_cos_is_the_published_one() -> None:
    published = total.build_loss(
        {
            "aggregation": "sum",
            "losses": [
                {
                    "prefix": prefix,
                    "loss": {**loss, "ignore_value": 65535}
                    if "Ignore" in loss["_target_"]
                    else loss,
                    "weight": weight,
                    "output_key": f"OUTPUT_{field}",
                    "target_key": f"TARGET_{field}",
                }
                for prefix, loss, weight, field in PUBLISHED_HUBER_COS
            ],
        }
    )
    agl = torch.rand(2, 1, 4, 4) * 50
    fields = {"AGL_MASK": agl, "MAGNITUDE_MASK": agl * 0.5, "VFLOW_DIRECTION": torch.randn(2, 2)}
    batch = {f"TARGET_{name}": value for name, value in fields.items()}
    output = {f"OUTPUT_{name}": value * 1.7 + 0.1 for name, value in fields.items()}
    shipped = total.build_loss(composed("loss=huber_cos").loss)
    assert torch.equal(shipped(output, batch)["loss"], published(output, batch)["loss"])


def _term(**changes: object) -> dict[str, object]:
    loss = {"_target_": "geopose.losses.HuberLossWithIgnore", "delta": 5}
    return {"loss": loss, "prefix": "a", "target_key": "t", "output_key": "o", **changes}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"losses": [_term(loss={"_target_": "os.system", "command": "true"})]}, "os.system"),
        ({"losses": [_term(loss={"_target_": "torch.nn.MSELoss", "delta": 1})]}, "delta"),
        ({"losses": [_term(wieght=1)]}, "wieght"),
        ({"losses": [_term(weight="much")]}, "much"),
        ({"losses": [_term(), _term()]}, "prefix"),
        ({"losses": [_term(prefix="loss")]}, "prefix"),
        ({"losses": []}, "at least one"),
        ({"losses": {"agl": None}}, "at least one"),
        ({"losses": {"agl": {"loss": {"_target_": "torch.nn.MSELoss"}}}}, "losses.agl: missing"),
        ({"losses": "huber"}, "huber"),
        ({"losses": [_term()], "aggregation": "mean"}, "mean"),
        ({"lossses": [_term()]}, "lossses"),
        ({"losses": [_term(loss={"_target_": "geopose.losses.MSELossWithIgnore", "fraction": 0})]},
         "fraction"),
        ("huber", "huber"),
        ({"losses": [_term(norm_key="TARGET_AGL_MASK")]}, "norm_key: 'TARGET_AGL_MASK' is none of"),
        ({"losses": [_term(weight_key=2)]}, "weight_key: 2 is none of TARGET_LEAN"),
        ({"losses": [_term(weight_key="TARGET_LEAN", loss={"_target_": "torch.nn.MSELoss"})]},
         "weight_key: a MSELoss takes no factors"),
    ],
)  # fmt: skip
def test_bad_configs_name_what_is_wrong(config: object, named: str) -> None:
    with pytest.raises(InputError, match=named):
        total.build_loss(config)


def test_a_term_for_networks_that_have_its_output(caplog: pytest.LogCaptureFixture) -> None:
    criterion = total.build_loss(
        {"losses": [_term(if_predicted=True, output_key="more"), _term(prefix="b")]}
    )
    assert criterion.fitting({"o", "more"}, {"t"}).prefixes == ["a", "b"]
    with caplog.at_level("INFO"):
        assert criterion.fitting({"o"}, {"t"}).prefixes == ["b"]
    assert "loss a: left out" in caplog.text
    with pytest.raises(InputError, match="loss b: this model has no output o"):
        criterion.fitting({"more"}, {"t"})
    alone = total.build_loss({"losses": [_term(if_predicted=True)]})
    with pytest.raises(InputError, match="none of them"):
        alone.fitting({"more"}, {"t"})
    with pytest.raises(InputError, match="if_predicted: 'yes'"):
        total.build_loss({"losses": [_term(if_predicted="yes")]})

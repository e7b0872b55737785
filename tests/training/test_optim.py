"""Optimizers and schedules do what their config says."""

import io
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from timm.optim import list_optimizers
from torch import nn

from geopose.errors import InputError
from geopose.training.optim import build_optimizer, build_scheduler
from geopose.training.resume.position import load_optimizer
from tests.programs import ROOT
from tests.training_run import composed

CONFIGS = ROOT / "configs"
STEPS = 1000


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.head = nn.Linear(4, 1)


def optimizer_config(option: str, **changes: object) -> dict:
    """The optimizer block as train.py composes it."""
    block = OmegaConf.to_container(composed(f"optimizer={option}").optimizer)
    assert isinstance(block, dict)
    return {**block, **changes}


def rates(name: str, lr: float = 1e-3) -> list[float]:
    """The learning rate at every step of a run of STEPS steps."""
    cfg = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"scheduler/{name}.yaml"))
    assert isinstance(cfg, dict)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = build_scheduler(optimizer, cfg, lambda step: step / STEPS, lr, "max")
    values = []
    for _ in range(STEPS):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*values, optimizer.param_groups[0]["lr"]]


SECOND_ORDER = "adahessian"
OPTIMIZERS = sorted(p.stem for p in (CONFIGS / "optimizer").glob("*.yaml") if p.stem != "base")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_shipped_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = Net(), torch.randn(64, 3)
    target = inputs.sum(dim=1, keepdim=True)
    optimizer = build_optimizer(model, optimizer_config(name, lr=1e-2), processes=1)
    losses = []
    for _ in range(200):
        loss = (model.head(model.encoder(inputs)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", list_optimizers(exclude_filters=["bnb*", "fused*", SECOND_ORDER]))
@torch.compiler.set_stance("force_eager")  # kron compiles for most of a minute
def test_every_optimizer_goes_on_from_its_state(name: str) -> None:
    """Steps with a save and a load between them are those without, to the last bit."""
    config = optimizer_config("base", name=name, kwargs={})

    def steps(model: Net, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            model.head(model.encoder(torch.randn(8, 3))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = Net()
    optimizer = build_optimizer(model, config, processes=1)
    steps(model, optimizer, range(7))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    steps(model, optimizer, range(7, 15))
    weights, state = torch.load(file, weights_only=True)
    other = Net()
    resumed = build_optimizer(other, config, processes=1)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    steps(other, resumed, range(7, 15))
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_an_optimizer_that_cannot_run_is_refused() -> None:
    config = optimizer_config("adamw", name=SECOND_ORDER)
    with pytest.raises(InputError, match=f"optimizer.name={SECOND_ORDER}: needs second deriv"):
        build_optimizer(Net(), config, processes=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("name", ["bnbadamw8bit", "fusedadam"])
def test_an_optimizer_without_its_gpu_is_refused(name: str) -> None:
    config = optimizer_config("adamw", name=name)
    with pytest.raises(InputError, match=f"optimizer.name={name}: CUDA required"):
        build_optimizer(Net(), config, processes=1)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_state_of_before_updates_were_fused_goes_on_in_fp16(name: str) -> None:
    def loss(model: Net) -> torch.Tensor:
        return model.head(model.encoder(torch.ones(8, 3))).square().mean()

    model = Net()
    unfused = optimizer_config(name, kwargs={"fused": False})
    before = build_optimizer(model, unfused, processes=1)
    loss(model).backward()
    before.step()
    optimizer = build_optimizer(model, optimizer_config(name), processes=1)
    load_optimizer(optimizer, before.state_dict())
    scaler = torch.amp.GradScaler("cpu")
    optimizer.zero_grad()
    scaler.scale(loss(model)).backward()
    scaler.unscale_(optimizer)
    weight = model.head.weight.detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(model.head.weight, weight)


def test_arguments_that_exclude_each_other() -> None:
    assert build_optimizer(Net(), optimizer_config("adamw", kwargs={"foreach": True}), 1)
    both = optimizer_config("adamw", kwargs={"foreach": True, "fused": True})
    with pytest.raises(InputError, match=r"optimizer\.kwargs of adamw: .*together"):
        build_optimizer(Net(), both, 1)


def test_the_innermost_named_layer_gives_the_rate() -> None:
    model = Net()
    layers = {"encoder": 0.1, "encoder.bias": 0.5}
    optimizer = build_optimizer(model, optimizer_config("adamw", layerwise=layers), processes=1)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(model.encoder.weight)] == pytest.approx(1e-5)
    assert rate[id(model.encoder.bias)] == pytest.approx(5e-5)
    assert rate[id(model.head.weight)] == pytest.approx(1e-4)


@pytest.mark.parametrize("layers", [{"encodr": 0.1}, {"encoder": -1}, {"encoder": "slow"}])
def test_rates_of_layers_that_cannot_be_are_refused(layers: dict) -> None:
    with pytest.raises(InputError, match=r"optimizer\.layerwise"):
        build_optimizer(Net(), optimizer_config("adamw", layerwise=layers), processes=1)


def test_rates_grow_with_processes_and_shrink_for_the_encoder() -> None:
    model = Net()
    optimizer = build_optimizer(model, optimizer_config("adamw_finetune"), processes=4)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(model.head.weight)] == pytest.approx(4e-4)
    assert rate[id(model.encoder.weight)] == pytest.approx(4e-5)
    assert decay[id(model.head.weight)] == pytest.approx(1e-5)
    assert decay[id(model.head.bias)] == 0.0


def test_fp32_adamw_decays_biases_too() -> None:
    model = Net()
    optimizer = build_optimizer(model, optimizer_config("adamw_fp32"), processes=1)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-6}


def test_cosine_ends_at_its_minimum() -> None:
    values = rates("cos")
    assert values[0] == pytest.approx(1e-3)
    assert values[500] == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-3)
    assert values[-1] == pytest.approx(1e-5)


def test_flat_cosine_is_flat_for_a_quarter() -> None:
    values = rates("flat_cos")
    assert values[250] == pytest.approx(1e-3)
    assert values[300] < 1e-3
    assert values[-1] == pytest.approx(5e-6)


def test_one_cycle_rises_holds_and_falls() -> None:
    values = rates("1cycle")
    assert values[0] == pytest.approx(5e-5)
    assert values[250] == pytest.approx(1e-3)
    assert values[600] == pytest.approx(1e-3)
    assert values[-1] == pytest.approx(1e-5)


def test_multistep_falls_five_times_at_each_milestone() -> None:
    values = rates("multistep")
    expected = {299: 1e-3, 301: 2e-4, 601: 4e-5, 801: 8e-6, 901: 1.6e-6}
    for step, value in expected.items():
        assert values[step] == pytest.approx(value)


def test_simple_warms_up_and_steps_twice() -> None:
    values = rates("simple")
    assert values[0] < 1e-4
    assert values[100] == pytest.approx(1e-3)
    assert values[501] == pytest.approx(2e-4)
    assert values[-1] == pytest.approx(4e-5)


def test_disabled_never_moves() -> None:
    assert set(rates("disabled")) == {1e-3}


def test_a_schedule_goes_on_from_its_own_state_and_from_that_of_torchs_kind() -> None:
    """Older checkpoints hold the state of a LambdaLR."""
    cfg = {"name": "flat_cos", "flat": 0.0, "min_lr": 1e-5}

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)

    def schedule(driven: torch.optim.Optimizer) -> Any:
        return build_scheduler(driven, cfg, lambda step: step / 10, 1e-3, "max")

    whole = schedule(first := optimizer())
    older = torch.optim.lr_scheduler.LambdaLR(other := optimizer(), lambda step: 1.0)
    for _ in range(4):
        whole.step()
        other.step()
        older.step()
    states = [whole.state_dict(), older.state_dict()]
    whole.step()
    for state in states:
        resumed = schedule(second := optimizer())
        resumed.load_state_dict(state)
        resumed.step()
        assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"] < 1e-3


def test_plateau_halves_after_its_patience() -> None:
    cfg = OmegaConf.to_container(OmegaConf.load(CONFIGS / "scheduler/plateau.yaml"))
    assert isinstance(cfg, dict)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = build_scheduler(optimizer, cfg, lambda step: 0.0, 1e-3, "max")
    for _ in range(22):
        scheduler.step(0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)
    for _ in range(500):
        scheduler.step(0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(6e-5)


@pytest.mark.parametrize("changes", [{"name": "adamv"}, {"kwargs": {"epsilon": 1.0}}])
def test_a_wrong_optimizer_block_is_named(changes: dict) -> None:
    with pytest.raises(InputError, match="optimizer"):
        build_optimizer(Net(), optimizer_config("adamw", **changes), processes=1)


def test_plateau_lowers_every_group_by_the_same_factor() -> None:
    cfg = OmegaConf.to_container(OmegaConf.load(CONFIGS / "scheduler/plateau.yaml"))
    assert isinstance(cfg, dict)
    optimizer = build_optimizer(Net(), optimizer_config("adamw_finetune"), processes=1)
    scheduler = build_scheduler(optimizer, cfg, lambda step: 0.0, 1e-4, "max")
    for _ in range(500):
        scheduler.step(0.5)
    assert {round(g["lr"], 9) for g in optimizer.param_groups} == {6e-5, 6e-6}


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("flat_cos", {"flat": 1.0}),
        ("1cycle", {"decay": 0}),
        ("1cycle", {"warmup": "x"}),
        ("multistep", {"milestones": 3}),
        ("cos", {"min_lr": "low"}),
    ],
)
def test_impossible_schedules_are_refused(option: str, changes: dict) -> None:
    cfg = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"scheduler/{option}.yaml"))
    assert isinstance(cfg, dict)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    with pytest.raises(InputError, match="scheduler"):
        build_scheduler(optimizer, {**cfg, **changes}, lambda step: 0.0, 1e-3, "max")


def test_an_unknown_schedule_is_named() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    with pytest.raises(InputError, match=r"scheduler\.name=cosine"):
        build_scheduler(optimizer, {"name": "cosine"}, lambda step: 0.0, 1e-3, "max")


def test_a_schedule_never_raises_the_rate_above_the_optimizers() -> None:
    with pytest.raises(InputError, match=r"scheduler\.min_lr"):
        rates("cos", lr=1e-6)

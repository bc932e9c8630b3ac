"""`steepest.torch` does what `torch.optim` does: the same parameters, state, checkpoints, hooks and refusals."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import io
import math
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
ours: Any = pytest.importorskip("steepest.torch")
pytestmark = pytest.mark.torch

from test_torch import variants  # noqa: E402  its table of rules and options

NAMES = ("SGD", "RMSprop", "Adagrad", "Adam", "AdamW", "NAdam")
STATEFUL: dict[str, dict[str, Any]] = {  # options with as much state as there can be
    "SGD": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "RMSprop": {"momentum": 0.9, "centered": True, "weight_decay": 0.1},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"amsgrad": True, "weight_decay": 0.1},
    "NAdam": {"weight_decay": 0.1, "decoupled_weight_decay": True},
}
each_rule = pytest.mark.parametrize("name", NAMES)


def tensors(dtype: Any = None, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (5,), ())
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype or torch.float64).requires_grad_()
        for shape in shapes
    ]


def theirs(name: str, params: Any, **options: Any) -> Any:
    """PyTorch's for-loop implementation."""
    return getattr(torch.optim, name)(params, foreach=False, **options)


@functools.cache
def noise(step: int) -> list[Any]:
    return [p.detach() for p in tensors(seed=1000 + step)]


def give(step: int, *lists: list[Any]) -> None:
    """Gradients of a kind of bowl; one is missing in every third step."""
    for i, (params, x) in enumerate(zip(zip(*lists, strict=True), noise(step), strict=True)):
        for p in params:
            p.grad = None if step % 3 == 1 and i == 1 else (p.detach() + x).to(p.dtype)


def assert_close(a: Any, b: Any, rtol: float = 1e-10, scale: float = 1e-3) -> None:
    """To rtol of the value or, since terms may cancel, of what was added: the largest value, or `scale`."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max([scale, *b.detach().abs().flatten().tolist()]))


def assert_same(a: list[Any], b: list[Any], opt_a: Any = None, opt_b: Any = None, rtol: float = 1e-10) -> None:
    """The same parameters and, in the same layout, state."""
    for p, q in zip(a, b, strict=True):
        assert_close(p, q, rtol)
        if opt_a is None:
            continue
        mine, reference = opt_a.state.get(p, {}), opt_b.state.get(q, {})
        assert {k for k in mine if mine[k] is not None} == {k for k in reference if reference[k] is not None}
        for key, value in reference.items():
            if value is not None:
                assert mine[key].dtype == value.dtype and mine[key].stride() == value.stride()
                assert_close(mine[key], value, rtol, scale=1.0)


@pytest.mark.parametrize(("rule", "options"), list(variants()))
def test_every_rule_and_option_in_float64(rule: Any, options: dict[str, Any]) -> None:
    a, b = tensors(), tensors()
    mine, reference = getattr(ours, rule.__name__)(a, lr=0.01, **options), theirs(rule.__name__, b, lr=0.01, **options)
    for step in range(100):
        if step == 60:
            mine.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 0.003
        give(step, b)
        for p, q in zip(a, b, strict=True):
            p.grad = q.grad
        mine.step()
        reference.step()
    assert_same(a, b, mine, reference)
    assert not any(torch.equal(p, x) for p, x in zip(a, tensors(), strict=True))


@each_rule
def test_float32_step_by_step_from_equal_state(name: str) -> None:
    a, b = tensors(torch.float32), tensors(torch.float32)
    mine = getattr(ours, name)(a, lr=0.01, **STATEFUL[name])
    reference = theirs(name, b, lr=0.01, **STATEFUL[name])
    for step in range(50):
        give(step, b)
        with torch.no_grad():
            for p, q in zip(a, b, strict=True):
                p.copy_(q)
                p.grad = q.grad
        if step:
            mine.load_state_dict(copy.deepcopy(reference.state_dict()))
        mine.step()
        reference.step()
        assert_same(a, b, mine, reference, rtol=1.3e-6)


@each_rule
def test_constructors_are_torchs(name: str) -> None:
    mine, reference = (inspect.signature(getattr(module, name)).parameters for module in (ours, torch.optim))
    shared = {key: value for key, value in mine.items() if key in reference}
    assert list(shared.items()) == list(reference.items())
    assert list(mine)[: len(reference)] == list(reference)
    assert issubclass(getattr(ours, name), getattr(torch.optim, name))


@each_rule
def test_checkpoints_move_there_and_back(name: str, tmp_path: Path) -> None:
    """Every 20 steps a new optimizer takes over from a file, ours and PyTorch's in turns: as PyTorch's alone."""
    a, b = tensors(), tensors()
    mine, reference = (theirs(name, params, lr=0.01, **STATEFUL[name]) for params in (a, b))

    def reloaded(optimizer: Any, new: Any) -> Any:
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        new.load_state_dict(torch.load(tmp_path / "state.pt"))
        assert new.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
        return new

    for step in range(80):
        if step % 20 == 0:
            mine = reloaded(mine, getattr(torch.optim if step % 40 else ours, name)(a))
            reference = reloaded(reference, theirs(name, b))
        give(step, a, b)
        mine.step()
        reference.step()
    assert_same(a, b, mine, reference)


def test_param_groups_hooks_and_closure() -> None:
    calls: list[str] = []

    def train(module: Any) -> tuple[list[Any], Any]:
        params = tensors()
        optimizer = module.AdamW([{"params": params[:2], "weight_decay": 0.3}, {"params": params[2:], "lr": 0.1}], 0.02)
        extra = tensors(seed=5)[0]
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))

        def closure() -> Any:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p - 1).square().sum() for group in optimizer.param_groups for p in group["params"])
            loss.backward()
            return loss

        for step in range(20):
            if step == 10:
                optimizer.add_param_group({"params": extra, "betas": [0.5, 0.6]})
            loss = optimizer.step(closure)
        assert loss.item() < 50
        return [*params, extra], optimizer

    (a, mine), (b, reference) = train(ours), train(torch.optim)
    assert calls == ["before", "after"] * 40
    assert_same(a, b, mine, reference)
    for p in a:
        assert p.grad is not None
    mine.zero_grad(set_to_none=False)
    assert all(bool((p.grad == 0).all()) for p in a)
    mine.zero_grad()
    assert all(p.grad is None for p in a)
    before = [p.clone() for p in a]
    mine.step()
    assert all(torch.equal(p, x) for p, x in zip(a, before, strict=True))


SCHEDULERS: dict[str, Callable[[Any, Any], Any]] = {
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=30),
    "one cycle": lambda s, o: s.OneCycleLR(o, max_lr=0.1, total_steps=60),  # changes betas and momentum too
    "plateau": lambda s, o: s.ReduceLROnPlateau(o, patience=2),
    "lambda": lambda s, o: s.LambdaLR(o, lambda t: 0.9**t),
}


@pytest.mark.parametrize("tensor_rate", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_schedulers(name: str, scheduler: str, tensor_rate: bool) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    a, b = tensors(), tensors()
    rates = [torch.tensor(0.05, dtype=torch.float64) if tensor_rate else 0.05 for _ in range(2)]
    both = [getattr(ours, name)(a, lr=rates[0], **options), theirs(name, b, lr=rates[1], **options)]
    schedules = [SCHEDULERS[scheduler](torch.optim.lr_scheduler, optimizer) for optimizer in both]
    for step in range(50):
        give(step, a, b)
        for optimizer, schedule in zip(both, schedules, strict=True):
            optimizer.step()
            schedule.step(*[1.0] * (scheduler == "plateau"))
    assert_same(a, b, *both)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_max_norm_is_clip_grad_norm(max_norm: float) -> None:
    a, b = tensors(), tensors()
    mine, reference = ours.Adam(a, lr=0.01, max_norm=max_norm), theirs("Adam", b, lr=0.01)
    assert mine.last_norm is None
    for step in range(30):
        give(step, a, b)
        norm = torch.nn.utils.clip_grad_norm_(b, max_norm)
        mine.step()
        reference.step()
        assert mine.last_norm == pytest.approx(float(norm), rel=1e-12)
    assert_same(a, b, mine, reference)
    again = pickle_copy(mine)
    assert again.max_norm == max_norm
    with pytest.raises(ValueError, match=r"max_norm: expected a finite number > 0"):
        ours.Adam(a, max_norm=0.0)


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler(fused: bool | None) -> None:
    a, b = tensors(torch.float32), tensors(torch.float32)
    both = [ours.AdamW(a, lr=0.01, fused=fused), theirs("AdamW", b, lr=0.01)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5) for _ in both]
    for step in range(20):
        give(step, a, b)
        for params, optimizer, scaler in zip((a, b), both, scalers, strict=True):
            scaler.scale(torch.zeros((), requires_grad=True))
            for p in params:
                if p.grad is not None:
                    p.grad.mul_(scaler.get_scale())
            if step == 7:
                params[0].grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() != 1024.0
    assert float(both[0].state[a[0]]["step"]) == 19
    assert_same(a, b, both[0], both[1], rtol=1e-5)


def test_updates_in_place_and_autograd_notices() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
    optimizer = ours.AdamW(model.parameters())
    at = [p.data_ptr() for p in model.parameters()]
    for _ in range(3):
        loss = model(torch.ones(2, 4)).sum()
        loss.backward(retain_graph=True)
        versions = [p._version for p in model.parameters()]
        optimizer.step()
        assert [p._version for p in model.parameters()] == [v + 1 for v in versions]
        assert [p.data_ptr() for p in model.parameters()] == at
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    kept = optimizer.state[model[0].weight]["exp_avg"]
    before = kept.clone()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["exp_avg"] is kept and not torch.equal(kept, before)


def shapes_of(kind: str) -> Any:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return {
        "channels last": lambda: x.to(memory_format=torch.channels_last),
        "transposed": lambda: x[0, 0].clone().t(),
        "every second": lambda: x.clone()[..., ::2],
        "empty": lambda: x[:0].clone(),
    }[kind]().detach()


@pytest.mark.parametrize("gradient", ["alike", "contiguous", "expanded", "negative", "the parameter"])
@pytest.mark.parametrize("kind", ["channels last", "transposed", "every second", "empty"])
def test_every_layout(kind: str, gradient: str) -> None:
    a, b = shapes_of(kind).requires_grad_(), shapes_of(kind).requires_grad_()
    mine, reference = (
        f([p], lr=0.1, **STATEFUL["Adam"])
        for f, p in ((ours.Adam, a), (lambda *args, **kw: theirs("Adam", *args, **kw), b))
    )
    for _ in range(4):
        for p in (a, b):
            g = {
                "alike": lambda p=p: p.detach() * 2,
                "contiguous": lambda p=p: (p.detach() * 2).contiguous(),
                "expanded": lambda p=p: torch.tensor(2.0, dtype=p.dtype).expand(p.shape),
                "negative": lambda p=p: torch.complex(p.detach(), p.detach()).conj().imag,
                "the parameter": lambda p=p: p.detach(),
            }[gradient]()
            p.grad = g
        mine.step()
        reference.step()
    assert a.stride() == b.stride()
    assert_close(a, b) if a.numel() else None
    for key, value in reference.state[b].items():
        assert mine.state[a][key].stride() == value.stride()
        torch.testing.assert_close(mine.state[a][key], value, rtol=1e-10, atol=1e-13)


def test_a_single_gradient_of_opposite_sign() -> None:
    p = torch.ones(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.complex(torch.zeros(1).double(), torch.ones(1).double()).conj().imag
    assert p.grad.is_neg() and p.grad.item() == -1
    ours.SGD([p], lr=1.0).step()
    assert p.item() == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@each_rule
def test_narrow_parameters_have_float32_masters(name: str, dtype: str) -> None:
    """The steps are those of float32, however small; the parameter is the rounded master."""
    narrow = getattr(torch, dtype)
    a = [p.detach().to(narrow).requires_grad_() for p in tensors()]
    b = [p.detach().float().requires_grad_() for p in a]
    options = {**STATEFUL[name], "weight_decay": 0.0}
    mine, reference = getattr(ours, name)(a, lr=1e-4, **options), theirs(name, b, lr=1e-4, **options)
    for step in range(40):
        if step == 20:  # from a file
            saved = io.BytesIO()
            torch.save(mine.state_dict(), saved)
            saved.seek(0)
            mine = getattr(ours, name)(a, lr=1e-4, **options)
            mine.load_state_dict(torch.load(saved))
        give(step, a)
        for p, q in zip(a, b, strict=True):
            q.grad = None if p.grad is None else p.grad.float()
        mine.step()
        reference.step()
    for p, q in zip(a, b, strict=True):
        assert p.dtype == narrow and torch.equal(p, mine.state[p]["master_param"].to(narrow))
        assert_close(mine.state[p]["master_param"], q, 2e-6)
        for key, value in reference.state[q].items():
            assert mine.state[p][key].dtype == torch.float32
            assert_close(mine.state[p][key], value, 1e-4)
    with torch.no_grad():
        a[0].fill_(3.0)  # what a parameter is set to counts
    a[0].grad = torch.zeros_like(a[0])
    a[1].grad = a[2].grad = None
    ours.SGD(a, lr=1.0).step()
    mine.step()
    assert a[0].float().sub(3).abs().max() < 0.1


def test_bfloat16_state_of_torch_is_taken_over() -> None:
    a = [p.detach().bfloat16().requires_grad_() for p in tensors()]
    reference = theirs("AdamW", a, lr=0.01)
    give(0, a)
    reference.step()
    mine = ours.AdamW(a, lr=0.01)
    mine.load_state_dict(reference.state_dict())
    give(2, a)
    mine.step()
    assert {key: x.dtype for key, x in mine.state[a[0]].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq", "master_param"), torch.float32
    )
    again = theirs("AdamW", a, lr=0.01)
    again.load_state_dict(mine.state_dict())
    give(3, a)
    again.step()
    assert again.state[a[0]]["exp_avg"].dtype == torch.bfloat16


def pickle_copy(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("written", [0.0, float("nan")])
def test_what_is_written_to_an_element_of_a_narrow_parameter_leaves_the_others_their_digits(written: float) -> None:
    p, q = (torch.ones(4, dtype=dtype).requires_grad_() for dtype in (torch.bfloat16, torch.float32))
    mine, theirs = ours.SGD([p], lr=1e-3), torch.optim.SGD([q], lr=1e-3)
    for _ in range(200):
        for x, optimizer in ((p, mine), (q, theirs)):
            x.grad = torch.ones_like(x)
            optimizer.step()
            with torch.no_grad():
                x[1] = written
    assert p[[0, 2, 3]].tolist() == q[[0, 2, 3]].bfloat16().tolist() and q[0] < 0.81
    assert torch.equal(p[1:2], torch.tensor([written], dtype=torch.bfloat16)) or math.isnan(written)


def test_the_first_accumulator_of_a_narrow_parameter_is_float32() -> None:
    p = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = ours.Adagrad([p], initial_accumulator_value=0.1)
    for _ in range(2):
        p.grad = torch.full((4,), 0.01, dtype=torch.bfloat16)
        optimizer.step()
    assert_close(optimizer.state[p]["sum"], torch.full((4,), 0.1 + 2 * float(p.grad[0]) ** 2), 1e-6)


def test_a_parameter_with_the_negative_bit() -> None:
    p = torch.tensor([1j]).conj().imag.detach().requires_grad_()
    assert p.is_neg()
    optimizer = ours.SGD([p], lr=0.125)
    for _ in range(2):
        p.grad = torch.ones(1)
        optimizer.step()
    assert p.tolist() == [-1.25]


@pytest.mark.parametrize("are_inside", [True, False])
def test_everything_that_changes_behind_its_back(are_inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced state, options, data and groups count from the next step on.

    Also where a tensor's handle is not found in the Python object, but asked for in every step.
    """
    aoti = torch._C._aoti
    make_handle = aoti.unsafe_alloc_void_ptr_from_tensor
    if not are_inside:
        other = torch.zeros(1)
        monkeypatch.setattr(aoti, "unsafe_alloc_void_ptr_from_tensor", lambda x: make_handle(x if x.numel() else other))

    def train(make: Any) -> tuple[list[Any], Any]:
        params = tensors()
        optimizer = make(params)
        for step in range(27):
            give(step, params)
            p, group = params[0], optimizer.param_groups[0]
            match step:
                case 2:
                    optimizer.state[p]["exp_avg"] = torch.ones_like(p)
                case 4:
                    optimizer.state[p]["exp_avg"].data = torch.full_like(p, 2.0)
                case 6:
                    optimizer.state[p] = {key: x.clone() for key, x in optimizer.state[p].items()}
                case 8:
                    p.data = torch.full_like(p, 0.5)
                case 10:
                    optimizer.state.clear()
                case 12:
                    group["lr"], group["betas"], group["weight_decay"] = (
                        torch.tensor(0.2, dtype=p.dtype),
                        [0.8, 0.9],
                        0.5,
                    )
                case 14:
                    group["lr"].fill_(0.3)
                    group["betas"][0] = 0.7
                case 16:
                    optimizer.state[p]["step"].fill_(1)
                case 18:
                    del group["params"][1]
                case 20:
                    p.data.share_memory_() if p.data.storage_offset() == 0 else None
                    optimizer.state[p]["exp_avg_sq"].share_memory_()
                case 22:
                    group["maximize"] = True
                case 23:
                    torch.utils.swap_tensors(optimizer.state[p]["exp_avg"], torch.full_like(p, 0.1))
                case 25:
                    grad = p.grad
                    torch.utils.swap_tensors(p, torch.full_like(p, 0.3).requires_grad_())
                    p.grad = grad
            optimizer.step()
        return params, optimizer

    a, mine = train(lambda params: ours.AdamW(params, lr=0.1))
    b, reference = train(lambda params: theirs("AdamW", params, lr=0.1))
    assert_same(a, b, mine, reference)


def test_copies_go_on_alone() -> None:
    a = tensors()
    optimizer = ours.AdamW(a, lr=0.1)
    give(0, a)
    optimizer.step()
    for copied in (copy.deepcopy(optimizer), pickle_copy(optimizer)):
        params = copied.param_groups[0]["params"]
        assert all(torch.equal(p, q) and p is not q for p, q in zip(a, params, strict=True))
        give(2, params)
        copied.step()
        fresh = [p.detach().clone().requires_grad_() for p in a]
        reference = theirs("AdamW", fresh, lr=0.1)
        reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        give(2, fresh)
        reference.step()
        assert_same(params, fresh, copied, reference)


def test_refusals_change_nothing() -> None:
    p = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match="empty parameter list"):
        ours.Adam([])
    with pytest.raises(ValueError, match="more than one parameter group"):
        ours.Adam([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match="got one twice"), pytest.warns(UserWarning, match="duplicate"):
        ours.Adam([p, p])
    with pytest.raises(ValueError, match="Invalid learning rate"):
        ours.Adam([p], lr=-1.0)
    with pytest.raises(ValueError, match="non-leaf"):
        ours.Adam([p * 2])
    for option in ("capturable", "differentiable"):
        loaded = ours.Adam([torch.ones(2, requires_grad=True)])
        kept = loaded.state_dict()
        kept["param_groups"][0] |= {option: True, "lr": 0.5}
        with pytest.raises(ValueError, match=f"{option}: expected False"):
            loaded.load_state_dict(kept)
        assert loaded.param_groups[0]["lr"] == 1e-3
        with pytest.raises(ValueError, match=f"{option}: expected False, got True"):
            ours.Adam([p], **{option: True})
    for wrong, why in (
        (torch.zeros(3, dtype=torch.complex64), "got torch.complex64"),
        (torch.zeros(3, device="meta"), "one on meta"),
        (torch.zeros(3, dtype=torch.int32), "got torch.int32"),
        (torch.zeros(3).to_sparse(), "a sparse_coo one"),
    ):
        with pytest.raises(TypeError, match=why):
            ours.SGD([wrong])
    optimizer = ours.AdamW([p, other := torch.zeros(2, requires_grad=True)])
    assert repr(optimizer).startswith("AdamW (")
    other.grad = torch.ones(2)

    def refused(error: type[Exception], why: str) -> None:
        with pytest.raises(error, match=why):
            optimizer.step()
        assert not p.any() and not other.any() and not optimizer.state

    p.grad = torch.ones(3).to_sparse()
    refused(TypeError, r"param_groups\[0\]\['params'\]\[0\]\.grad: .* got a sparse_coo one; make it dense")
    p.grad = torch.ones(3)
    p.grad.data = torch.ones(4)
    refused(ValueError, r"\.grad: expected shape \(3,\), got \(4,\)")
    p.grad = torch.ones(3)
    other.data = p.data[:2]
    refused(ValueError, "overlaps")
    other.data = torch.zeros(1).expand(2)
    refused(ValueError, "got an expanded or overlapping one")


def test_a_later_gradient_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    p, q = (torch.zeros(3, requires_grad=True) for _ in range(2))
    optimizer = ours.SGD([p, q], lr=1.0)
    p.grad = q.grad = torch.ones(3)
    optimizer.step()
    q.grad = torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match="a sparse_coo one"):
        optimizer.step()
    assert torch.equal(p, -torch.ones(3)) and torch.equal(q, -torch.ones(3))
    assert capfd.readouterr() == ("", "")  # nothing that the C interface logged


@pytest.mark.parametrize("name", ["Lion", "Momentum"])
def test_lion_and_momentum(name: str) -> None:
    import numpy as np

    import steepest as sp

    a = tensors()
    arrays = [p.detach().numpy().copy() for p in a]
    mine, core = getattr(ours, name)(a, lr=0.01, weight_decay=0.1), getattr(sp, name)(arrays, lr=0.01, weight_decay=0.1)
    for step in range(20):
        give(step, a)
        if step == 10:
            mine = pickle_copy(mine)
            a = mine.param_groups[0]["params"]
            give(step, a)
        mine.step()
        core.step([None if p.grad is None else p.grad.numpy() for p in a])
    for p, array in zip(a, arrays, strict=True):
        assert np.array_equal(p.detach().numpy(), array)
    with pytest.raises(ValueError, match="lr: expected a finite number >= 0"):
        getattr(ours, name)(a, lr=-1.0)


LOW = pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])


def big(transposed: bool = True) -> list[Any]:
    """Just large enough for low-precision state, with a last group of codes that is not full; and just too small."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn((41, 100), generator=generator)
    return [
        (first.t() if transposed else first).requires_grad_(),
        torch.randn(4095, generator=generator).requires_grad_(),
    ]


def give_noise(step: int, params: list[Any]) -> None:
    for i, p in enumerate(params):
        generator = torch.Generator().manual_seed(100 * step + i)
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator).to(p.dtype))
    if step == 2:
        params[0].grad = None


@LOW
@pytest.mark.parametrize("name", [*NAMES, "Lion", "Momentum"])
def test_low_precision_state_is_the_cores(name: str, state_dtype: Any) -> None:
    """To the bit, also where a checkpoint or a copy goes on."""
    import steepest as sp

    options = {**STATEFUL.get(name, {}), "weight_decay": 0.1, "lr": 0.01}
    options.pop("centered", None)
    a = big()
    arrays = [p.detach().numpy().copy("K") for p in a]
    mine, core = (getattr(m, name)(x, state_dtype=state_dtype, **options) for m, x in ((ours, a), (sp, arrays)))
    if name == "NAdam":
        for p in a:  # the core's is a double, PyTorch's of the default dtype
            mine.state[p]["mu_product"] = torch.ones((), dtype=torch.float64)
    for step in range(8):
        if step == 3:
            saved = io.BytesIO()
            torch.save(mine.state_dict(), saved)
            saved.seek(0)
            mine = getattr(ours, name)(a, state_dtype=state_dtype, **options)
            mine.load_state_dict(torch.load(saved))
            saved.seek(0)
            if name == "NAdam":
                for p, kept in zip(a, torch.load(saved)["state"].values(), strict=True):
                    mine.state[p]["mu_product"] = kept["mu_product"]  # torch rounds it to the parameter's dtype
                saved.seek(0)
            for key, x in torch.load(saved)["state"][0].items():
                assert mine.state[a[0]][key].dtype == x.dtype and torch.equal(mine.state[a[0]][key], x)
        elif step in (5, 6):
            mine = pickle_copy(mine) if step == 5 else copy.deepcopy(mine)
            a = mine.param_groups[0]["params"]
        give_noise(step, a)
        mine.step()
        core.step([None if p.grad is None else p.grad.numpy() for p in a])
    for p, array, kept in zip(a, arrays, core.state_dict()["state"].values(), strict=True):
        assert p.detach().numpy().tobytes("K") == array.tobytes("K")
        for key, x in kept.items():
            if key in ("step", "mu_product"):
                assert key not in mine.state[p] or mine.state[p][key] == x
                continue
            y = mine.state[p][key + "_code" if x.dtype == "uint8" and not key.endswith("_bits") else key]
            y = (y.view(torch.uint16) if y.dtype == torch.bfloat16 else y).numpy()
            assert y.dtype == x.dtype and y.shape == x.shape and y.tobytes("K") == x.tobytes("K")
            if p.numel() >= 4096 and not key.endswith("_scale"):
                assert x.dtype == {"bfloat16": "uint16", "8bit": "uint8"}[state_dtype]


@LOW
def test_low_precision_state_of_bfloat16_parameters(state_dtype: Any) -> None:
    """They are stepped as float32 ones, and a checkpoint keeps every bit."""
    a = [p.detach().bfloat16().requires_grad_() for p in big()]
    b = [p.detach().float().requires_grad_() for p in a]
    mine, wide = (ours.AdamW(x, lr=0.01, state_dtype=state_dtype) for x in (a, b))
    for step in range(4):
        if step == 3:
            saved = copy.deepcopy(mine.state_dict())
            mine = ours.AdamW(a, lr=0.01, state_dtype=state_dtype)
            mine.load_state_dict(saved)
        give_noise(step, a)
        for p, q in zip(a, b, strict=True):
            q.grad = None if p.grad is None else p.grad.float()
        mine.step()
        wide.step()
    for p, q in zip(a, b, strict=True):
        state = dict(mine.state[p])
        assert torch.equal(state.pop("master_param"), q) and state.keys() == wide.state[q].keys()
        for key, x in state.items():
            assert x.dtype == wide.state[q][key].dtype and torch.equal(x, wide.state[q][key])


def test_state_dtypes_move_into_each_other() -> None:
    """State in floating-point numbers is encoded, codes are decoded; torch.optim does not take codes for numbers."""
    a = big()
    reference = theirs("AdamW", a, lr=0.01)
    give_noise(0, a)
    reference.step()
    plain = copy.deepcopy(reference.state_dict())
    mine = ours.AdamW(a, lr=0.01)
    for state_dtype, tolerance in (("8bit", 2**-4), ("bfloat16", 2**-4 + 2**-8), (None, 2**-4 + 2**-8)):
        mine.state_dtype = state_dtype
        if state_dtype == "8bit":
            mine.load_state_dict(plain)
        give_noise(2, a)  # no gradient for the large one: codes stay codes, and numbers numbers
        mine.step()
        assert ("exp_avg" in mine.state[a[0]]) == (state_dtype != "bfloat16")
        a[0].grad = torch.zeros_like(a[0])
        mine.param_groups[0]["betas"] = (1 - 1e-15, 1 - 1e-15)
        mine.step()
        for name in ("exp_avg", "exp_avg_sq"):
            x, first = mine.state[a[0]], plain["state"][0][name]
            if state_dtype == "8bit":
                assert name not in x and x[name + "_code"].dtype == torch.uint8
                assert x[name + "_scale"].shape == (17,)
            else:
                assert x[name].dtype == getattr(torch, state_dtype or "float32") and name + "_code" not in x
                assert ((x[name] - first).abs() <= tolerance * first.abs() + 1e-4 * first.abs().max()).all()
        if state_dtype == "8bit":
            codes = theirs("AdamW", a)
            codes.load_state_dict(mine.state_dict())
            with pytest.raises(KeyError, match="exp_avg"):
                codes.step()


def test_betas_assigned_out_of_range_give_nan_as_the_formula_does() -> None:
    p = torch.ones(3).requires_grad_()
    p.grad = torch.ones(3)
    mine = ours.Adam([p])
    for beta in (1.0, math.nan, math.inf):
        mine.param_groups[0]["betas"] = (0.9, beta)
        with torch.no_grad():
            p.fill_(1.0)
            mine.state.clear()
        mine.step()
        assert p.isnan().all()


def test_state_dtype_is_refused() -> None:
    p = torch.zeros(5000, requires_grad=True)
    with pytest.raises(ValueError, match="expected one of None, 'float32', 'bfloat16', '8bit', got 'int8'"):
        ours.Lion([p], state_dtype="int8")
    with pytest.raises(ValueError, match="state_dtype: expected None or \"float32\" beside centered=True, got '8bit'"):
        ours.RMSprop([p], centered=True, state_dtype="8bit")
    with pytest.raises(ValueError, match="state_dtype: expected None beside float64 parameters"):
        ours.Adam([p.detach().double()], state_dtype="8bit")
    optimizer = ours.Adam([p], state_dtype="8bit")
    p.grad = torch.ones_like(p)
    optimizer.step()
    kept = dict(optimizer.state[p])
    optimizer.state[p]["exp_avg_sq_scale"] = torch.zeros(3)
    before = dict(optimizer.state[p])
    with pytest.raises(ValueError, match=r"state: expected exp_avg_sq_scale of shape \(20,\), got \(3,\)"):
        optimizer.step()
    assert optimizer.state[p] == before
    optimizer.state[p].update(kept)
    del optimizer.state[p]["exp_avg_bits"]
    with pytest.raises(ValueError, match="state: expected exp_avg_bits beside the rest of exp_avg in 8 bits"):
        optimizer.step()
    optimizer.state[p].update(kept)
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def test_a_cycle_through_a_hook_is_collected() -> None:
    """The optimizer that steps in the backward pass."""
    p = torch.ones(3, requires_grad=True)
    optimizer = ours.AdamW([p])
    p.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    p.sum().backward()
    alive = weakref.ref(optimizer)
    p = optimizer = None
    gc.collect()
    assert alive() is None


WORKER = """
import sys, torch, torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
import steepest.torch as ours

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.set_num_threads(1)

def train(make, wrap=True):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    replica = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = make(model.parameters())
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).double()
    for step in range(10):
        if step == 5 and isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer.consolidate_state_dict(to=0)
            state = [optimizer.state_dict() if rank == 0 else None]
            dist.broadcast_object_list(state, src=0)
            optimizer = make(model.parameters())
            optimizer.load_state_dict(state[0])
        optimizer.zero_grad()
        replica(x[rank::2]).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])

expected = train(lambda params: torch.optim.AdamW(params, lr=0.01, foreach=False))
for make in (
    lambda params: ours.AdamW(params, lr=0.01),
    lambda params: ZeroRedundancyOptimizer(params, optimizer_class=ours.AdamW, lr=0.01),
):
    torch.testing.assert_close(train(make), expected, rtol=1e-10, atol=1e-12)
dist.destroy_process_group()
"""


def test_distributed_data_parallel_and_zero_redundancy(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    command = [sys.executable, "-W", "ignore", str(tmp_path / "worker.py")]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)


class Mixin:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def test_subclasses_with_a_constructor_of_their_own() -> None:
    class Own(ours.AdamW):  # type: ignore[misc]
        def __init__(self, params: Any, **kwargs: Any) -> None:
            super().__init__(params, **kwargs)

    class Mixed(Mixin, ours.SGD):  # type: ignore[misc]
        pass

    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    for kind in (Own, Mixed):
        kind([p], lr=0.1).step()
    assert list(inspect.signature(Own).parameters) == ["params", "kwargs"]
    assert p[0].item() == pytest.approx(-0.2)


def test_a_count_of_steps_with_an_axis_is_kept() -> None:
    """As scripts have it whose processes share the state."""
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    optimizer, step = ours.Adam([p]), torch.zeros(1)
    optimizer.state[p].update(step=step, exp_avg=torch.zeros(3), exp_avg_sq=torch.zeros(3))
    optimizer.step()
    optimizer.step()
    assert optimizer.state[p]["step"] is step and step.tolist() == [2]


def test_a_hook_may_bring_the_closure() -> None:
    optimizer = ours.SGD([torch.nn.Parameter(torch.zeros(3))])
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "closure": lambda: 3.0}))
    assert optimizer.step() == 3.0


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_state_is_on_the_cpu_whatever_the_default_device(state_dtype: Any) -> None:
    p = torch.nn.Parameter(torch.zeros(5000))
    p.grad = torch.ones(5000)
    optimizer = ours.Adam([p], state_dtype=state_dtype)
    with torch.device("meta"):
        optimizer.step()
    assert p[0].item() == pytest.approx(-0.001)


def with_gradients(*values: Any) -> list[Any]:
    params = [torch.nn.Parameter(value) for value in values]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def test_memory_that_a_parameter_without_a_gradient_left_may_be_used_again() -> None:
    for n, k in ((1000, 100), (10_000, 1000), (100_000, 10_000)):
        a, b = with_gradients(torch.ones(n), torch.ones(k))
        optimizer, kept = ours.SGD([a, b], lr=1.0), []
        optimizer.step()
        a.grad, a.data = None, torch.ones(1)
        for step in range(10):
            b.grad = torch.ones(k)
            kept.append(b.grad)  # so that the next one lies elsewhere
            optimizer.step()
            assert (b == -1 - step).all()


def test_parameters_that_are_stepped_in_copies_may_not_share_memory() -> None:
    def refuses(*values: Any) -> bool:
        before = [value.clone() for value in values]
        with pytest.raises(ValueError, match="expected memory of its own"):
            ours.SGD(with_gradients(*values), lr=0.25).step()
        return all(map(torch.equal, values, before))

    narrow, base = torch.ones(4, dtype=torch.bfloat16), torch.ones(8)
    assert refuses(narrow[:3], narrow[1:]) and refuses(base[::2], base[::2]) and refuses(base, base[::2])
    assert refuses(torch.zeros(5).unfold(0, 3, 1))
    ours.SGD(with_gradients(base[::2], base[1::2]), lr=0.25).step()
    assert (base == 0.75).all()


def test_options_of_a_refused_step_are_not_kept() -> None:
    a, b = with_gradients(torch.ones(2), torch.ones(2))
    optimizer = ours.SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 0.25}])
    optimizer.step()
    first, second = optimizer.param_groups
    first["lr"], second["lr"] = 1000.0, None
    with pytest.raises(TypeError, match="lr: float"):
        optimizer.step()
    first["lr"], second["lr"] = 0.5, 0.25
    optimizer.step()
    assert (a == 0).all() and (b == 0.5).all()


def test_a_narrow_model_made_wide_has_all_its_digits() -> None:
    model = torch.nn.Linear(3, 1, bias=False).bfloat16()
    optimizer = ours.Adam(model.parameters(), lr=0.0)
    for dtype in (torch.bfloat16, torch.float64):
        model.to(dtype)
        model.weight.grad = torch.ones_like(model.weight)
        with torch.no_grad():
            model.weight.fill_(1 / 3)
        before = model.weight.clone()
        optimizer.step()
        assert torch.equal(model.weight, before)
    assert {x.dtype for name, x in optimizer.state[model.weight].items() if name != "step"} == {torch.float64}
    assert "master_param" not in optimizer.state[model.weight]


def test_groups_have_the_options_of_the_constructor_and_no_hidden_ones() -> None:
    (p,) = with_gradients(torch.ones(3))
    optimizer = ours.Adam([p], betas=(0.5, 0.6))
    optimizer.load_state_dict(torch.optim.SGD([p], lr=0.1).state_dict())
    with pytest.raises(ValueError, match="param_groups: expected the option 'betas' in each"):
        optimizer.step()
    ours.SGD([{"params": [p], "l1": 0.5, "max_value": 0.1}], lr=0.25).step()
    assert (p == 0.75).all()
    for name in ("max_norm", "state_dtype"):
        with pytest.raises(ValueError, match=f"{name}: expected one for all groups"):
            ours.SGD([{"params": [p], name: None}], lr=0.25)


def test_state_that_no_longer_fits_a_parameter_without_a_gradient_stops_no_step() -> None:
    a, b = with_gradients(torch.ones(4), torch.ones(4))
    optimizer = ours.Adam([a, b])
    optimizer.step()
    a.grad, a.data = None, torch.ones(2)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    before = b.clone()
    optimizer.step()
    assert not torch.equal(b, before)
    a.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"state: expected exp_avg of shape \(2,\), got \(4,\)"):
        optimizer.step()


def test_a_count_of_steps_begun_anew_keeps_the_averages() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        (p,) = with_gradients(torch.ones(3, dtype=dtype))
        optimizer = ours.Adam([p])
        optimizer.step()
        average = optimizer.state[p]["exp_avg"].clone()
        optimizer.state[p]["step"] = torch.tensor(0.0)
        p.grad.zero_()
        optimizer.step()
        assert torch.allclose(optimizer.state[p]["exp_avg"], 0.9 * average)


def test_a_wrong_count_of_steps_changes_no_state() -> None:
    a, b = with_gradients(torch.ones(2), torch.ones(2))
    optimizer, a.grad = ours.Adam([a, b]), None
    optimizer.step()
    optimizer.state[b]["step"].fill_(-1)
    a.grad = torch.ones(2)
    with pytest.raises(ValueError, match="state: expected a step >= 0"):
        optimizer.step()
    assert a not in optimizer.state

"""Optimizers for PyTorch's CPU tensors: `torch.optim` with the kernels of `steepest`.

Change the import, and keep the rest: `SGD`, `RMSprop`, `Adagrad`, `Adam`, `AdamW` and `NAdam` are subclasses of
`torch.optim`'s classes of these names, with their constructors, param groups, hooks, errors and checkpoints: a plain
`state_dict` moves from theirs to ours and back, and training continues equal. `Lion` and `Momentum` are there besides.

    >>> import torch
    >>> from steepest.torch import AdamW
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = AdamW(model.parameters(), lr=0.1, max_norm=1.0)
    >>> model(torch.ones(8, 3)).square().mean().backward()
    >>> optimizer.step()

Parameters are float32 or float64, and updated in place without a copy. bfloat16 and float16 parameters are stepped in
float32: their state is float32 and has the parameter itself in float32 as `master_param`, of which they are what is
nearest, ties to even; what is written to an element of theirs goes to its master. Whatever their strides, tensors
work; those with gaps between their elements are stepped in a dense copy, and where a gradient does not lie in memory as
its parameter does, a step copies it first.

Beyond PyTorch's options, by name: `max_norm` scales the gradients of a step by min(1, max_norm / (norm + 1e-6)), norm
being the 2-norm of all of them together, as `clip_grad_norm_` does but in the same pass; it is then `last_norm`.

`state_dtype="bfloat16"` or `"8bit"` keeps the state of parameters of 4,096 elements or more in fewer bytes, by the
rules and to the bits of `steepest.optim` (with `seed=0`; bfloat16 parameters have its masters, but it rounds their ties
away from zero); None (default) and `"float32"` do not. Not for float64
parameters, nor for `RMSprop(centered=True)` (ValueError). In bfloat16 the state has PyTorch's names, and checkpoints
still move there and back. In 8 bits `exp_avg` is `exp_avg_code` (uint8), `exp_avg_scale` (float32, one for 256
elements in the order of memory) and, as it has a sign, `exp_avg_bits` (uint8, one for 8 elements), and so on:
`torch.optim` does not find its state there. Here, state that was kept
otherwise, in a checkpoint or before an assignment to `state_dtype`, is converted by the next step that has a gradient
for it, rounded to nearest. NAdam's `mu_product` stays a tensor of PyTorch's default dtype, where `steepest.optim` has a
float64 number: NAdam has its bits where `mu_product` is given as a float64 tensor.

    >>> big = torch.nn.Linear(64, 64)
    >>> optimizer = AdamW(big.parameters(), state_dtype="8bit")
    >>> big(torch.ones(1, 64)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state[big.weight]["exp_avg_code"].dtype
    torch.uint8

`foreach` and `fused` are accepted and change nothing: there is one implementation. `capturable` and `differentiable`
are refused, since nothing here can be captured in a graph or differentiated. Refused are also tensors that are
sparse, complex, of whole numbers or not on the CPU (TypeError), a parameter that is twice in a group, parameters that
share memory, and gradients that are not of their parameter's shape (ValueError); then nothing is changed.

Different from PyTorch: RMSprop's `centered` variance is not below 0 (where rounding makes PyTorch's negative, it gives
NaN), and state smaller than the smallest normal number becomes 0.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim import optimizer as base

from steepest import _core, optim
from steepest.reference.codecs import from_8bit, to_8bit

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "Momentum", "NAdam", "RMSprop"]

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    raise ImportError(
        f"steepest.torch needs PyTorch 2.10 or newer, found {torch.__version__}: pip install --upgrade torch"
    )

_WIDE = (torch.float32, torch.float64)
_NARROW = (torch.bfloat16, torch.float16)  # stepped in float32
_MASTER = "master_param"
_STATE_DTYPES = (None, "float32", "bfloat16", "8bit")
_SMALLEST = 4096  # elements whose state is kept in fewer bytes, as in steepest.optim
_CODE, _SCALE, _BITS = "_code", "_scale", "_bits"  # of state in 8 bits: what its names end with
_GROUP = 256  # codes that share a scale


@functools.cache
def _functions() -> list[int]:
    """The addresses of what is used of PyTorch's C interface."""
    file = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}.get(sys.platform, "libtorch_cpu.so")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / file))
    looks = ("device_type", "layout", "dtype", "data_ptr", "dim", "sizes", "strides")
    names = ("delete_tensor_object", *(f"get_{name}" for name in looks))
    return [ctypes.cast(library[f"aoti_torch_{name}"], ctypes.c_void_p).value or 0 for name in names]


def _number(x: Any) -> float:
    return float(x.item() if isinstance(x, torch.Tensor) else x)


@functools.cache
def _defaults(rule: Any) -> dict[str, Any]:
    """The rule's options that are data of a step."""
    parameters = inspect.signature(rule).parameters
    not_data = ("params", "max_norm", "nonfinite", "state_dtype", "seed", "master_weights")
    return {name: x.default for name, x in parameters.items() if name not in not_data}


def _check_numbers(**options: Any) -> None:
    for name, value in options.items():
        optim._check_option(name, value.item() if isinstance(value, torch.Tensor) else value, ())


def _check_tensor(name: str, x: Any) -> None:
    """Refuses what the kernels cannot step."""
    remedy = ""
    if x.layout != torch.strided:
        what = f"a {str(x.layout).removeprefix('torch.')} one"
        remedy = "; make it dense (Embedding(sparse=False), x.to_dense()), or use torch.optim.SparseAdam"
    elif x.device.type != "cpu":
        what, remedy = f"one on {x.device}", "; use torch.optim there"
    elif x.dtype not in _WIDE + _NARROW:
        what = str(x.dtype)
    elif torch.utils._python_dispatch.is_traceable_wrapper_subclass(x):
        what = type(x).__name__
    else:
        return
    raise TypeError(f"{name}: expected a dense floating-point tensor on the CPU, got {what}{remedy}")


def _lies_as(target: Any, x: Any, dtype: Any) -> bool:
    fits = x.dtype == dtype and x.device == target.device and x.layout == torch.strided
    return fits and x.stride() == target.stride() and not x.is_neg()


def _laid_out_as(target: Any, x: Any, dtype: Any = None) -> Any:
    """x with the strides, device and (or that given) dtype of target, itself if it has them."""
    dtype = dtype or target.dtype
    return x if _lies_as(target, x, dtype) else torch.empty_like(target, dtype=dtype).copy_(x)


def _filled_like(target: Any, value: float, dtype: Any) -> Any:
    """State in memory of NumPy's, which asks for huge pages: a step over large arrays takes a tenth less."""
    place = target.data_ptr() % 64 if dtype == target.dtype else 0
    flat = torch.from_numpy(_core._zeros(target.numel(), np.dtype(f"u{dtype.itemsize}"), place)).view(dtype)
    return (flat.fill_(value) if value else flat).as_strided(target.shape, target.stride())


def _flat(x: Any) -> Any:
    """The elements of a dense tensor in the order of memory."""
    return x.detach().as_strided((x.numel(),), (1,)).numpy()


def _is_signed(name: str) -> bool:
    """Whether codes of this state have a sign: sums and averages of squares have none."""
    return not (name == "sum" or "_sq" in name or name == "square_avg")


def _parts(name: str, target: Any) -> dict[str, tuple[Any, Any]]:
    """What the names of a coded state's tensors end with, and the shape and dtype of each."""
    n = target.numel()
    parts = {_CODE: (target.shape, torch.uint8), _SCALE: ((-(-n // _GROUP),), torch.float32)}
    return parts | ({_BITS: ((-(-n // 8),), torch.uint8)} if _is_signed(name) else {})


def _coded(name: str, x: Any) -> dict[str, Any]:
    codes, *others = (torch.from_numpy(part) for part in to_8bit(_flat(x), _is_signed(name)) if part is not None)
    return dict(zip(_parts(name, x), (codes.as_strided(x.shape, x.stride()), *others), strict=True))


def _decoded(name: str, coded: dict[str, Any]) -> Any:
    codes, *others = (coded[end].to("cpu", dtype) for end, (_, dtype) in _parts(name, coded[_CODE]).items())
    codes = codes if _is_dense(codes) else codes.contiguous()
    scales, bits = (*(x.contiguous().numpy() for x in others), None)[:2]
    return torch.from_numpy(from_8bit(_flat(codes), scales, bits)).as_strided(codes.shape, codes.stride())


def _keep(kept: dict[str, Any], name: str, target: Any, dtype: Any, first: float) -> None:
    """Has the state of this name as the compiled optimizer takes it: in dtype (uint8: in codes), laid out as target."""
    parts = _parts(name, target)
    for end, shape in {"": target.shape, **{end: shape for end, (shape, _) in parts.items()}}.items():
        given = kept.get(name + end)
        if given is not None and given.shape != shape:
            raise ValueError(f"state: expected {name}{end} of shape {tuple(shape)}, got {tuple(given.shape)}")
    x = kept.get(name)
    coded: dict[str, Any] = {end: kept.get(name + end) for end in parts}
    lacking = [name + end for end, part in coded.items() if part is None]
    if x is None and 0 < len(lacking) < len(coded):
        raise ValueError(f"state: expected {', '.join(lacking)} beside the rest of {name} in 8 bits")
    is_coded = x is None and not lacking
    if is_coded and dtype == torch.uint8 and _lies_as(target, coded[_CODE], dtype):
        for end in parts.keys() - {_CODE}:
            kept[name + end] = coded[end].to("cpu", parts[end][1]).contiguous()
        return
    if is_coded:
        x = _decoded(name, coded)
    for end in parts:
        kept.pop(name + end, None)
    if dtype != torch.uint8:
        kept[name] = _filled_like(target, first, dtype) if x is None else _laid_out_as(target, x, dtype)
        return
    kept.pop(name, None)
    if x is not None or first:
        x = _filled_like(target, first, target.dtype) if x is None else _laid_out_as(target, x)
        coded = _coded(name, x)
    else:
        flat = {end: torch.zeros(shape, dtype=of) for end, (shape, of) in parts.items() if end != _CODE}
        coded = {_CODE: _filled_like(target, 0.0, dtype), **flat}
    kept.update({name + end: part for end, part in coded.items()})


def _is_dense(x: Any) -> bool:
    return bool(torch.empty_like(x, device="meta").stride() == x.stride())


def _followed(master: Any, p: Any) -> Any:
    """The float32 copy of p with those elements of p's that are not its own rounded: elsewhere it has more digits."""
    changed = master.to(p.dtype) != p
    return torch.where(changed, p.to(master.dtype), master) if changed.any() else master


def _check_flags(group: dict[str, Any]) -> None:
    for option in ("capturable", "differentiable"):
        if group.get(option):
            raise ValueError(f"{option}: expected False, got True; a compiled step cannot be, use torch.optim")


class _Steps(torch.optim.Optimizer):
    """What all optimizers here share: it comes before one of torch's classes, and takes its steps."""

    _rule: ClassVar[type[optim.Optimizer]]
    _scalars: ClassVar[dict[str, float]] = {"step": 0.0}  # the state's numbers, and how they start
    _max_norm: float | None = None
    _state_dtype: optim.StateDtype = None
    _tensors: _core.Tensors | None = None  # knows the tensors of the last step
    _optimizer: _core.Optimizer
    _copied: list[tuple[Any, Any]]  # each parameter, and what is stepped in its place

    def __init_subclass__(cls) -> None:
        """Shows the constructor of torch's class, with what is ours."""
        ours = inspect.signature(_Steps.__init__).parameters
        owner = next(c for c in cls.__mro__ if c is not _Steps and "__init__" in vars(c))
        theirs = inspect.signature(vars(owner)["__init__"]).parameters
        extra = [ours[name] for name in ("max_norm", "state_dtype") if name not in theirs]
        cls.__signature__ = inspect.Signature([*list(theirs.values())[1:], *extra])

    def __init__(
        self,
        params: Any,
        *args: Any,
        max_norm: float | None = None,
        state_dtype: optim.StateDtype = None,
        **options: Any,
    ) -> None:
        self.max_norm, self.state_dtype = max_norm, state_dtype
        super().__init__(params, *args, **options)
        self._step_supports_amp_scaling = False  # so that GradScaler unscales the gradients itself

    @property
    def max_norm(self) -> float | None:
        """The bound of the gradients' norm, or None."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        if value is not None:
            optim._check_number("max_norm", value, ())
        self._max_norm, self._tensors = value, None

    @property
    def state_dtype(self) -> optim.StateDtype:
        """How the state is kept: None and "float32" as PyTorch does, or in fewer bytes as "bfloat16" or "8bit"."""
        return self._state_dtype

    @state_dtype.setter
    def state_dtype(self, value: optim.StateDtype) -> None:
        if value not in _STATE_DTYPES:
            raise ValueError(f"state_dtype: expected one of {', '.join(map(repr, _STATE_DTYPES))}, got {value!r}")
        self._state_dtype, self._tensors = value, None

    @property
    def last_norm(self) -> float | None:
        """The norm of the last step's gradients before clipping, if `max_norm` had it computed, else None."""
        return None if self._tensors is None else self._optimizer.last_norm

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; refuses parameters that the kernels cannot step."""
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            _check_flags(group)
            for i, p in enumerate(group["params"]):
                _check_tensor(f"param_groups[{len(self.param_groups) - 1}]['params'][{i}]", p)
            if len({*map(id, group["params"])}) < len(group["params"]):
                raise ValueError("params: expected each parameter once, got one twice")
            self._check_state_dtype(group)
        except Exception:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_max_norm": self._max_norm, "_state_dtype": self._state_dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tensors = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; but what does not have the parameter's dtype on purpose keeps its own."""
        final: dict[str, Any] = {}

        def examine(_: Any, loaded: dict[str, Any]) -> None:
            for group in loaded["param_groups"]:
                _check_flags(group)
            final.update(loaded)

        handle = self.register_load_state_dict_pre_hook(examine)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        params = [p for group in self.param_groups for p in group["params"]]
        numbers = [i for group in final["param_groups"] for i in group["params"]]
        for i, p in zip(numbers, params, strict=True):
            for name, value in final["state"].get(i, {}).items():
                if not isinstance(value, torch.Tensor) or name == "step":
                    continue
                if value.dtype == torch.uint8 or (value.dtype == torch.bfloat16 == self._kept_in(p)):
                    self.state[p][name] = value.to("cpu")
                elif p.dtype in _NARROW:
                    self.state[p][name] = value.to("cpu", torch.float32)

    def _rule_of(self, group: dict[str, Any]) -> type[optim.Optimizer]:
        return self._rule

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group's options in the compiled rule's words."""
        rule: Any = self._rule_of(group)
        options = dict(_defaults(rule))
        for name in options.keys() & group.keys():
            value = group[name]
            options[name] = tuple(map(_number, value)) if name == "betas" else _number(value)
        return dict(rule._core_options(options))

    def _watch(self) -> None:
        """Makes the compiled optimizer anew, for the parameters, options and state as they now are."""
        for name, p in self._named():
            self._check(name, p)
        for group in self.param_groups:
            self._check_state_dtype(group)
        self._tensors = None
        self._optimizer = self._rule._core_class()
        self._optimizer.set_clipping(math.inf if self._max_norm is None else self._max_norm, "propagate")
        self._optimizer.set_precision(None, 0, False)  # the seed; how state is kept, its tensors say
        make_handle = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor
        tensors = _core.Tensors(self._optimizer, torch.Tensor, torch._C._increment_version, make_handle, _functions())
        self._names = [tensors.set_options(i, self._options(group)) for i, group in enumerate(self.param_groups)]
        self._copied = []
        undo: list[tuple[Any, dict[str, Any] | None]] = []
        try:
            entries = [
                self._entry(i, p, names, undo)
                for i, (group, names) in enumerate(zip(self.param_groups, self._names, strict=True))
                for p in group["params"]
            ]
            tensors.watch(self.param_groups, self.state, entries)
        except Exception:
            for p, kept in undo:
                if kept is None:
                    self.state.pop(p, None)
                else:
                    self.state[p].clear()
                    self.state[p].update(kept)
            raise
        tensors.watch_options(self.param_groups)
        self._tensors = tensors

    def _named(self) -> Iterator[tuple[str, Any]]:
        for i, group in enumerate(self.param_groups):
            for k, p in enumerate(group["params"]):
                yield f"param_groups[{i}]['params'][{k}]", p

    @staticmethod
    def _check(name: str, p: Any) -> None:
        _check_tensor(name, p)
        if p.grad is None:
            return
        _check_tensor(f"{name}.grad", p.grad)
        if p.grad.shape != p.shape:
            raise ValueError(f"{name}.grad: expected shape {tuple(p.shape)}, got {tuple(p.grad.shape)}")
        if torch._debug_has_internal_overlap(p) == 1:
            raise ValueError(f"{name}: expected memory of its own for each element, got an expanded tensor; clone it")

    def _check_state_dtype(self, group: dict[str, Any]) -> None:
        value = self._state_dtype
        if value is not None and any(p.dtype == torch.float64 for p in group["params"]):
            raise ValueError(
                f"state_dtype: expected None beside float64 parameters, whose state is float64, got {value!r}; "
                "or convert the model with .float()"
            )
        if value in ("bfloat16", "8bit") and group.get("centered"):
            raise ValueError(
                f'state_dtype: expected None or "float32" beside centered=True, got {value!r}: a variance, as the '
                "difference of two averages, needs more digits"
            )

    def _kept_in(self, p: Any) -> Any:
        """The dtype of a parameter's state; uint8 stands for codes and their scales."""
        if p.dtype == torch.float64:
            return p.dtype
        low = {"bfloat16": torch.bfloat16, "8bit": torch.uint8} if p.numel() >= _SMALLEST else {}
        return low.get(str(self._state_dtype), torch.float32)

    def _entry(
        self, group: int, p: Any, names: list[str], undo: list[tuple[Any, dict[str, Any] | None]]
    ) -> tuple[Any, ...]:
        """What `watch` is told of a parameter; makes its state if there is a gradient for the first time."""
        kept = self.state.get(p, {})
        dtype = self._kept_in(p)
        is_coded = dtype == torch.uint8 and len(names) > 0
        ends = (_CODE, _SCALE, _BITS) if is_coded else ("",)
        keys = [name + end for end in ends for name in names if end != _BITS or _is_signed(name)]
        taken = int(all(kept.get(name) is not None or kept.get(name + _CODE) is not None for name in names))
        scalars = {"step": float(taken), **self._scalars} if is_coded else self._scalars  # the rounding depends on it
        needed = [*scalars, *keys, *[_MASTER] * (p.dtype in _NARROW)]
        if p.grad is None and any(kept.get(name) is None for name in needed):
            return group, p, None, None, None, None, 0
        undo.append((p, dict(kept) if p in self.state else None))
        if needed:
            kept = self.state[p]
        for name, first in scalars.items():
            kept[name] = self._scalar(
                name, kept.get(name, first), base._get_scalar_dtype(self.param_groups[group].get("fused"))
            )
        target = self._target(p, kept)
        for name in names:
            if p.dtype in _NARROW and kept.get("step") == 0 and kept.get(name) is not None and dtype == torch.float32:
                del kept[name]  # what torch's constructor made, in fewer digits
            _keep(kept, name, target, dtype, self.param_groups[group].get("initial_accumulator_value", 0.0))
        state = [kept[key] for key in keys]
        return group, p, target, state, kept.get("step"), kept.get("mu_product"), taken

    @staticmethod
    def _scalar(name: str, x: Any, dtype: Any) -> Any:
        if isinstance(x, torch.Tensor) and x.dtype in _WIDE and x.device.type == "cpu" and x.dim() == 0:
            return x
        return torch.tensor(_number(x), dtype=dtype)

    def _target(self, p: Any, kept: dict[str, Any]) -> Any:
        """The tensor that is stepped: the parameter itself where possible."""
        if p.dtype in _NARROW:
            master = kept.get(_MASTER)
            follows = master is not None and master.shape == p.shape
            kept[_MASTER] = target = _laid_out_as(p, _followed(master, p) if follows else p, torch.float32)
        elif not _is_dense(p) or p.is_neg():
            target = torch.empty_like(p, requires_grad=False)
        else:
            return p
        self._copied.append((p, target))
        return target

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters in place with their gradients; those without one are skipped.

        `closure` computes the gradients anew and returns the loss, which is then returned. A refused step changes
        nothing.
        """
        if (
            base._global_optimizer_pre_hooks
            or base._global_optimizer_post_hooks
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch.autograd._profiler_enabled()
        ):
            return self._observed_step(closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch would record every step for a profiler that is not there

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = "stale" if self._tensors is None else "copies" if self._copied else self._take(None)
        if found != "done":
            with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
                self._careful_step(found)
        return loss

    _observed_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _take(self, gradients: list[Any] | None) -> str:
        """A step of the compiled optimizer, or what is in its way."""
        assert self._tensors is not None
        found = self._tensors.step(self.param_groups, self.state, gradients)
        if found != "options":
            return found
        for i, group in enumerate(self.param_groups):
            if self._tensors.set_options(i, self._options(group)) != self._names[i]:
                return "stale"  # these options need other state
        self._tensors.watch_options(self.param_groups)
        return self._tensors.step(self.param_groups, self.state, gradients)

    def _careful_step(self, found: str) -> None:
        """A step for which something has to be prepared."""
        if found == "stale" or any(p.shape != target.shape for p, target in self._copied):
            self._watch()
        for copies in (False, False, True):
            found = self._take(self._gradients(copies))
            if found == "done":
                break
            if found == "stale":
                self._watch()
        else:
            raise RuntimeError("step: expected tensors that stay as they are during the step, got ones that changed")
        for p, target in self._copied:
            if p.grad is not None:
                p.copy_(target)

    def _gradients(self, copies: bool) -> list[Any]:
        """The gradients as they must lie in memory; and what is stepped in place of a parameter follows it."""
        for p, target in self._copied:
            target.copy_(_followed(target, p) if p.dtype in _NARROW else p)
        targets = {id(p): target for p, target in self._copied}
        gradients = []
        for name, p in self._named():
            self._check(name, p)
            target = targets.get(id(p), p)
            if p.grad is not None and copies:
                gradients.append(torch.empty_like(target).copy_(p.grad))
            else:
                gradients.append(None if p.grad is None else _laid_out_as(target, p.grad))
        return gradients


class SGD(_Steps, torch.optim.SGD):
    """`torch.optim.SGD`: stochastic gradient descent, with momentum if `momentum` > 0; see `steepest.SGD`."""

    _rule, _scalars = optim.SGD, {}


class RMSprop(_Steps, torch.optim.RMSprop):
    """`torch.optim.RMSprop`: steps divided by the root of the averaged squared gradients; see `steepest.RMSprop`."""

    _rule = optim.RMSprop


class Adagrad(_Steps, torch.optim.Adagrad):
    """`torch.optim.Adagrad`: steps divided by the root of the summed squared gradients; see `steepest.Adagrad`."""

    _rule = optim.Adagrad


class Adam(_Steps, torch.optim.Adam):
    """`torch.optim.Adam`: averages of the gradient and of its square, with bias correction; see `steepest.Adam`."""

    _rule = optim.Adam

    def _rule_of(self, group: dict[str, Any]) -> type[optim.Optimizer]:
        return optim.AdamW if group.get("decoupled_weight_decay") else optim.Adam


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`: Adam with decoupled weight decay; see `steepest.AdamW`."""


class NAdam(_Steps, torch.optim.NAdam):
    """`torch.optim.NAdam`: Adam with Nesterov's momentum and a momentum schedule; see `steepest.NAdam`."""

    _rule, _scalars = optim.NAdam, {"step": 0.0, "mu_product": 1.0}


class Lion(_Steps, torch.optim.Optimizer):
    """Steps of one length in every coordinate, the sign of an interpolated momentum; see `steepest.Lion`."""

    _rule, _scalars = optim.Lion, {}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        state_dtype: optim.StateDtype = None,
    ) -> None:
        _check_numbers(lr=lr, betas=betas, weight_decay=weight_decay)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, max_norm=max_norm, state_dtype=state_dtype)


class Momentum(_Steps, torch.optim.Optimizer):
    """Gradient descent along a moving average of the gradients; see `steepest.Momentum`."""

    _rule, _scalars = optim.Momentum, {}

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        max_norm: float | None = None,
        state_dtype: optim.StateDtype = None,
    ) -> None:
        _check_numbers(lr=lr, beta=beta, weight_decay=weight_decay)
        defaults = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, max_norm=max_norm, state_dtype=state_dtype)

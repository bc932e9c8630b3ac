"""What all optimizers share: their tensors are handed to a compiled one, which takes the steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch.optim import optimizer as base

from steepest import _core, optim
from steepest._arguments import check_number
from steepest.torch._state import BITS, CODE, SCALE, followed, is_signed, keep
from steepest.torch._tensors import (
    NARROW,
    WIDE,
    check_tensor,
    functions,
    is_dense,
    laid_out_as,
    overlaps_itself,
    share_memory,
    span_of,
)

_MASTER = "master_param"
_STATE_DTYPES = (None, "float32", "bfloat16", "8bit")
_SMALLEST = 4096  # elements whose state is kept in fewer bytes, as in steepest.optim
_known: dict[Any, dict[str, Any]] = {}


def _number(x: Any) -> float:
    return float(x.item() if isinstance(x, torch.Tensor) else x)


def _defaults(rule: Any) -> dict[str, Any]:
    """The rule's options that are data of a step."""
    if rule not in _known:  # not functools.cache, which torch.compile warns of
        parameters = inspect.signature(rule).parameters
        not_data = ("params", "max_norm", "nonfinite", "state_dtype", "seed", "master_weights")
        _known[rule] = {name: x.default for name, x in parameters.items() if name not in not_data}
    return _known[rule]


def _check_flags(group: dict[str, Any]) -> None:
    for option in ("capturable", "differentiable"):
        if group.get(option):
            raise ValueError(f"{option}: expected False, got True; a compiled step cannot be, use torch.optim")


class Steps(torch.optim.Optimizer):
    """What all optimizers here share: it comes before one of torch's classes, and takes its steps."""

    _rule: ClassVar[type[optim.Optimizer]]
    _scalars: ClassVar[dict[str, float]] = {"step": 0.0}  # the state's numbers, and how they start
    _max_norm: float | None = None
    _state_dtype: optim.StateDtype = None
    _tensors: _core.Tensors | None = None  # knows the tensors of the last step
    _optimizer: _core.Optimizer
    _copied: list[tuple[Any, Any]]  # each parameter, and what is stepped in its place

    def __init_subclass__(cls) -> None:
        """Shows the constructor: that of torch's class with what is ours, or a user's own."""
        ours = inspect.signature(Steps.__init__).parameters
        owner = next(c for c in cls.__mro__ if c is not Steps and "__init__" in vars(c))
        theirs = inspect.signature(vars(owner)["__init__"]).parameters
        is_torchs = owner.__module__.startswith("torch.optim.")
        extra = [ours[name] for name in ("max_norm", "state_dtype")] if is_torchs else []
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
            check_number("max_norm", value, ())
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
            for name in ("max_norm", "state_dtype"):
                if name in group:
                    raise ValueError(f"{name}: expected one for all groups, the constructor's, got a group's own")
            _check_flags(group)
            for i, p in enumerate(group["params"]):
                check_tensor(f"param_groups[{len(self.param_groups) - 1}]['params'][{i}]", p)
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
                elif p.dtype in NARROW:
                    self.state[p][name] = value.to("cpu", torch.float32)

    def _rule_of(self, group: dict[str, Any]) -> type[optim.Optimizer]:
        return self._rule

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group's options in the compiled rule's words."""
        rule: Any = self._rule_of(group)
        options = dict(_defaults(rule))
        for name in filter(self.defaults.__contains__, options):  # a group may have more, which is none of ours
            if name not in group:
                raise ValueError(f"param_groups: expected the option {name!r} in each, got {', '.join(group)}")
            value = group[name]
            try:
                options[name] = tuple(map(_number, value)) if name == "betas" else _number(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from None
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
        tensors = _core.Tensors(self._optimizer, torch.Tensor, torch._C._increment_version, make_handle, functions())
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
            self._check_apart()
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

    def _check_apart(self) -> None:
        """Refuses parameters that share memory: those stepped in a copy, which the compiled optimizer does not see."""
        copied = {id(p) for p, _ in self._copied}
        if not copied:
            return
        spans = sorted((*span_of(p), name, p) for name, p in self._named() if p.numel())
        open_spans: list[Any] = []
        for start, end, name, p in spans:
            open_spans = [other for other in open_spans if other[1] > start]
            for *_, before, q in open_spans:
                if copied & {id(p), id(q)} and p is not q and share_memory(p, q):
                    raise ValueError(f"{name}: expected memory of its own, got some of {before}'s")
            open_spans.append((start, end, name, p))

    def _named(self) -> Iterator[tuple[str, Any]]:
        for i, group in enumerate(self.param_groups):
            for k, p in enumerate(group["params"]):
                yield f"param_groups[{i}]['params'][{k}]", p

    @staticmethod
    def _check(name: str, p: Any) -> None:
        check_tensor(name, p)
        if p.grad is None:
            return
        check_tensor(f"{name}.grad", p.grad)
        if p.grad.shape != p.shape:
            raise ValueError(f"{name}.grad: expected shape {tuple(p.shape)}, got {tuple(p.grad.shape)}")
        if overlaps_itself(p):
            raise ValueError(
                f"{name}: expected memory of its own for each element, got an expanded or overlapping one; clone it"
            )

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
        ends = (CODE, SCALE, BITS) if is_coded else ("",)
        keys = [name + end for end in ends for name in names if end != BITS or is_signed(name)]
        taken = int(all(kept.get(name) is not None or kept.get(name + CODE) is not None for name in names))
        scalars = {"step": float(taken), **self._scalars} if is_coded else self._scalars  # the rounding depends on it
        needed = [*scalars, *keys, *[_MASTER] * (p.dtype in NARROW)]
        shapes = [x.shape for name in names for x in (kept.get(name), kept.get(name + CODE)) if x is not None]
        if p.grad is None and (any(kept.get(name) is None for name in needed) or any(s != p.shape for s in shapes)):
            return group, p, None, None, None, None, 0
        undo.append((p, dict(kept) if p in self.state else None))
        if needed:
            kept = self.state[p]
        for name, first in scalars.items():
            kept[name] = self._scalar(
                name, kept.get(name, first), base._get_scalar_dtype(self.param_groups[group].get("fused"))
            )
        if p.dtype not in NARROW and p in self.state:
            kept.pop(_MASTER, None)
        target = self._target(p, kept)
        for name in names:
            made = kept.get(name)
            if kept.get("step") == 0 and dtype == torch.float32 and made is not None and made.dtype in NARROW:
                del kept[name]  # what torch's constructor made, in fewer digits
            keep(kept, name, target, dtype, self.param_groups[group].get("initial_accumulator_value", 0.0))
        state = [kept[key] for key in keys]
        return group, p, target, state, kept.get("step"), kept.get("mu_product"), taken

    @staticmethod
    def _scalar(name: str, x: Any, dtype: Any) -> Any:
        if name == "step" and not 0 <= _number(x) < 2**53:
            raise ValueError(f"state: expected a step >= 0, got {x!r}")
        if isinstance(x, torch.Tensor) and x.dtype in WIDE and x.device.type == "cpu" and x.numel() == 1:
            return x
        return torch.tensor(_number(x), dtype=dtype, device="cpu")

    def _target(self, p: Any, kept: dict[str, Any]) -> Any:
        """The tensor that is stepped: the parameter itself where possible."""
        if p.dtype in NARROW:
            master = kept.get(_MASTER)
            follows = master is not None and master.shape == p.shape
            kept[_MASTER] = target = laid_out_as(p, followed(master, p) if follows else p, torch.float32)
        elif not is_dense(p) or p.is_neg():
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
            return self._observed_step() if closure is None else self._observed_step(closure)  # as hooks see it
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
        options = [self._options(group) for group in self.param_groups]  # or all of them are refused
        if [self._tensors.set_options(i, each) for i, each in enumerate(options)] != self._names:
            return "stale"  # these options need other state
        self._tensors.watch_options(self.param_groups)
        return self._tensors.step(self.param_groups, self.state, gradients)

    def _careful_step(self, found: str) -> None:
        """A step for which something has to be prepared."""
        if found == "stale" or any(self._is_stale(p, target) for p, target in self._copied):
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

    @staticmethod
    def _is_stale(p: Any, target: Any) -> bool:
        """Whether p has become another tensor than the one that is stepped in a copy."""
        is_wide = p.dtype in WIDE
        dtype = p.dtype if is_wide else torch.float32
        return p.shape != target.shape or target.dtype != dtype or (is_wide and is_dense(p) and not p.is_neg())

    def _gradients(self, copies: bool) -> list[Any]:
        """The gradients as they must lie in memory; and what is stepped in place of a parameter follows it."""
        for p, target in self._copied:
            target.copy_(followed(target, p) if p.dtype in NARROW else p)
        targets = {id(p): target for p, target in self._copied}
        gradients = []
        for name, p in self._named():
            self._check(name, p)
            target = targets.get(id(p), p)
            if p.grad is not None and copies:
                gradients.append(torch.empty_like(target).copy_(p.grad))
            else:
                gradients.append(None if p.grad is None else laid_out_as(target, p.grad))
        return gradients

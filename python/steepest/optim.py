"""Optimizers: one small class per rule, one compiled call per step.

Every optimizer takes `params` as one array, a sequence of arrays, a mapping of names to arrays, or a
sequence of param groups (`{"params": ..., "lr": ..., ...}`, each with options of its own). Arrays are
float32 or float64, contiguous, and updated in place; nothing is ever copied or converted.

Options of every optimizer, by name (`lr` to `maximize` also by group):

- `lr`: a rate >= 0, or a schedule: any callable `step -> float`, `schedule(0)` being the first step's.
- `l1`, and where `weight_decay` is decoupled `l2`: penalties, adding l1 sgn(p) + l2 p to the gradient.
- `max_value`: clips each element of the gradient to [-max_value, max_value].
- `maximize`: follows the gradient up.
- `max_norm`: scales the gradients by min(1, max_norm / (norm + 1e-6)), norm being the 2-norm of all
  of them together; it is then `last_norm`.
- `nonfinite`: what a gradient that is not finite, or would not be when scaled, does: `"propagate"`, `"skip"`
  the step, or `"raise"` FloatingPointError; the latter two change nothing.
- `state_dtype`: how the state of float32 and bfloat16 arrays is kept: `"float32"`, `"bfloat16"` or `"8bit"`;
  None (default) as the parameter is. The rule computes in float32. Arrays under 4,096 elements keep float32
  state. Not for the variance of `RMSprop(centered=True)`, nor for float64 arrays.
- `seed`: of the stochastic rounding of low-precision state, an integer from 0 to 2**32 - 1; None rounds to
  nearest. In bfloat16, averages of squares are rounded stochastically (they change by less than half a unit per
  step, and to nearest would stick), the others to nearest; in 8 bits, both stochastically. The random bits
  are those of the seed, the array's step and the element: the same with any number of threads, and for all
  of an element's state.
- `master_weights`: what makes bfloat16 parameters float32: `"split"`, the 16 bits that they lack, or
  `"float32"`, a whole copy; the bits of the parameters are the same.

bfloat16 arrays have the dtype of the package `ml_dtypes`, with gradients of the same; it is not needed
otherwise. Parameters that are changed by hand between steps are taken as they are.

State of 8 bits: 256 elements share a float32 scale (`exp_avg_scale` and so on), in the order of memory; a code has
five bits of exponent and three of mantissa for averages of squares (what is below 2^-31 of the group's largest is kept
as the smallest code, never as 0) and four of either beside a sign for the others (below 2^-15 it is 0): nine bits, of
which the last stands in an array of its own (`exp_avg_bits`, eight to a byte). Infinity and NaN stay what and where
they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from steepest import _core
from steepest._arguments import (
    arrays_of,
    check_keys,
    check_number,
    check_option,
    check_seed,
    container,
    entries,
    mask_list,
)

Array: TypeAlias = NDArray[Any]
Params: TypeAlias = Array | Mapping[Any, Any] | Iterable[Any]  # mypy calls arrays of two dtypes `object`
Rate: TypeAlias = float | Callable[[int], float]
StateDtype: TypeAlias = Literal["float32", "bfloat16", "8bit"] | None
Precision: TypeAlias = tuple[StateDtype, int | None, str]  # state_dtype, seed, master_weights


def _dtype_name(x: Any) -> str:
    return "bfloat16" if x.dtype == _core._bfloat16_bits and x.dtype.metadata else str(x.dtype)


class ParamGroup(MutableMapping[str, Any]):
    """The options of a group, and its `"params"`. An assignment is checked at once; a refused one changes nothing."""

    def __init__(self, optimizer: Optimizer, params: Any, options: dict[str, Any]) -> None:
        self._rule, self._core = type(optimizer), optimizer._core  # not the optimizer: a cycle would outlive its use
        self._index, self._params = len(optimizer.param_groups), params
        leaves = arrays_of(params)
        wide, narrow = np.dtype(np.float64), np.dtype(np.float32)  # bfloat16 is computed in float32
        self._dtypes = {wide if x.dtype == wide else narrow for x in leaves if isinstance(x, np.ndarray)}
        self._options = self._checked(options)

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        checked = {name: check_option(name, value, self._dtypes) for name, value in options.items()}
        self._rule._check_together(checked)
        return checked

    def __getitem__(self, name: str) -> Any:
        return self._params if name == "params" else self._options[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._options:
            raise KeyError(f"{name!r} cannot be set; the options of this group are {', '.join(self._options)}")
        self._replace({name: value})

    def _replace(self, changed: dict[str, Any]) -> None:
        options = self._checked(self._options | changed)
        self._core.set_options(self._index, self._rule._core_options(options))
        self._options = options

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name!r} cannot be removed from a param group; assign another value")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._options))

    def __len__(self) -> int:
        return 1 + len(self._options)

    def __repr__(self) -> str:
        return repr({**self._options, "params": f"<{len(arrays_of(self._params))} arrays>"})


class Optimizer:
    """What all optimizers share; use one of the rules.

    Attributes: `param_groups`, a list of mappings whose options may be assigned between steps;
    `lr`, the rate of the first group; `steps`, the number of steps taken; `last_norm`, the norm of the
    last step's gradients if `max_norm` or `nonfinite` had it computed, else None.
    """

    _core_class: ClassVar[type[_core.Optimizer]]

    def __init__(
        self,
        params: Params,
        *,
        max_norm: float | None,
        nonfinite: str,
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
        **options: Any,
    ) -> None:
        if type(self) is Optimizer:
            raise TypeError("Optimizer is what the rules share: use Adam, SGD, ...")
        params = container(params)
        if max_norm is not None:
            check_number("max_norm", max_norm, ())
        if nonfinite not in ("propagate", "skip", "raise"):
            raise ValueError(f'nonfinite: expected "propagate", "skip" or "raise", got {nonfinite!r}')
        for name, value, choices in (
            ("state_dtype", state_dtype, (None, "float32", "bfloat16", "8bit")),
            ("master_weights", master_weights, ("split", "float32")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
        grouped = isinstance(params, Sequence) and any(isinstance(group, Mapping) for group in params)
        groups = cast("list[Mapping[str, Any]]", list(params) if grouped else [{"params": params}])
        self._defaults = options
        self._start(max_norm, nonfinite, grouped, (state_dtype, check_seed(seed), master_weights))
        for group in groups:
            self._add_group(group)

    def _start(self, max_norm: float | None, nonfinite: str, grouped: bool, precision: Precision) -> None:
        self._max_norm, self._nonfinite, self._precision = max_norm, nonfinite, precision
        self._core = self._core_class()
        self._core.grouped = grouped
        self._core.set_clipping(math.inf if max_norm is None else max_norm, nonfinite)
        state_dtype, seed, master_weights = precision
        self._core.set_precision(state_dtype, seed, master_weights == "float32")
        self.param_groups: list[ParamGroup] = []

    def _add_group(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group, Mapping):
            raise TypeError(f'param group: expected a mapping with "params", got {type(group).__name__}')
        if "params" not in group:
            raise ValueError(f'param group: expected a mapping with "params", got the keys {list(group)}')
        options = {name: value for name, value in group.items() if name != "params"}
        if surplus := options.keys() - self._defaults.keys():
            raise ValueError(
                f"param group: expected options among {', '.join(self._defaults)}, got {', '.join(map(str, surplus))}"
            )
        params = container(group["params"])
        if not isinstance(params, np.ndarray) and len(params) == 0:
            raise ValueError("params: expected at least one array, got none")
        added = ParamGroup(self, params, {**self._defaults, **options})
        self._core.add_group(params, self._core_options(dict(added._options)))
        self.param_groups.append(added)

    @classmethod
    def _check_together(cls, options: dict[str, Any]) -> None:
        """Refuses options that do not go together."""

    @classmethod
    def _core_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The options in the compiled rule's words."""
        if "betas" in options:
            options = options | dict(zip(("beta1", "beta2"), options["betas"], strict=True))
        return {"l2": options["weight_decay"], "decoupled_decay": 0.0, **options}

    def step(self, grads: Any, grad_scale: float = 1.0) -> None:
        """Updates the parameters in place with the gradients.

        `grads` has the structure of `params` (with param groups: a sequence with one entry for each);
        each gradient has its parameter's dtype, shape and memory order, and None skips the parameter,
        whose own count of steps then lags. The gradients are multiplied by `grad_scale` (to undo loss
        scaling, or to average accumulated ones).

        Raises TypeError for a wrong dtype and ValueError for a wrong structure, shape, layout, or
        parameters that were replaced; FloatingPointError with `nonfinite="raise"`. A refused step changes nothing.

            >>> import numpy as np, steepest as sp
            >>> w = np.array([1.0, -1.0])
            >>> sp.SGD(w, lr=0.5).step(np.array([1.0, 1.0]))
            >>> w
            array([ 0.5, -1.5])
        """
        self._core.step(grads, grad_scale)

    def set_masks(self, masks: Any) -> None:
        """From the next step on, keeps the weights that a mask has False for at zero: they are pruned.

        `masks` has the structure of `params` (with param groups: a sequence with one entry for each);
        each is a bool array of its parameter's shape, and is copied. None, like a name that a mapping
        leaves out, keeps all: `set_masks(None)` lifts every mask. They replace those in force.

        A pruned weight counts as +0 with a gradient of +0 in all that a step does, norm and penalties
        included, whatever the arrays hold (also NaN); it is exactly +0 afterwards, and its state decays. The masks
        are part of `state_dict`, so a resumed run keeps them.

        Raises TypeError for a mask that is not a bool array, and ValueError for a wrong structure or
        shape; then nothing is changed.

            >>> import numpy as np, steepest as sp
            >>> w = np.array([1.0, 2.0])
            >>> opt = sp.SGD({"w": w}, lr=0.5)
            >>> opt.set_masks({"w": np.array([True, False])})
            >>> opt.step({"w": np.array([1.0, 1.0])})
            >>> w
            array([0.5, 0. ])
        """
        grouped, count = self._core.grouped, len(self.param_groups)
        by_group = entries("masks", masks, count) if grouped and masks is not None else [masks] * count
        flat = []
        for i, (group, given) in enumerate(zip(self.param_groups, by_group, strict=True)):
            flat += mask_list(f"masks[{i}]" if grouped else "masks", group["params"], given)
        self._core.set_masks(flat)

    @property
    def masks(self) -> Any:
        """Copies of the masks in force, in the structure of `params`: a bool array or None for each."""
        kept = iter(self._core.masks())
        groups: list[Any] = []
        for group in self.param_groups:
            params = group["params"]
            masks = [next(kept) for _ in arrays_of(params)]
            if isinstance(params, Mapping):
                groups.append(dict(zip(params, masks, strict=True)))
            else:
                groups.append(masks[0] if isinstance(params, np.ndarray) else masks)
        return groups if self._core.grouped else groups[0]

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds `{"params": ..., option: value, ...}`; gradients then come as a sequence, an entry per group."""
        self._add_group(group)
        self._core.grouped = True

    @property
    def lr(self) -> Any:
        """The rate of the next step of the first group. Assign a number or a schedule for all groups."""
        rate = self.param_groups[0]["lr"]
        return rate(self.steps) if callable(rate) else rate

    @lr.setter
    def lr(self, rate: Rate) -> None:
        for group in self.param_groups:
            group._checked(group._options | {"lr": rate})
        for group in self.param_groups:
            group["lr"] = rate

    @property
    def grouped(self) -> bool:
        """Whether gradients come as a sequence with an entry for each param group."""
        return self._core.grouped

    @property
    def steps(self) -> int:
        """The number of steps taken."""
        return self._core.steps

    @property
    def last_norm(self) -> float | None:
        """The norm of grad_scale times the last step's gradients, before clipping, if it was computed."""
        return self._core.last_norm

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """The state as plain arrays and numbers; with `copy=False` the arrays themselves, which later steps change.

        `{"steps": int, "state": {i: {"step": int, name: array, ...}}, "param_groups": [{option: value,
        "params": [i, ...]}]}`, i counting the parameters; names as in `torch.optim`, and "mask" where
        `set_masks` gave one. A schedule is given as its current rate.
        """
        groups, first = [], 0
        for group in self.param_groups:
            count = len(arrays_of(group["params"]))
            options = {name: group[name] for name in group if name != "params"}
            if callable(options["lr"]):
                options["lr"] = options["lr"](self.steps)
            groups.append({**options, "params": list(range(first, first + count))})
            first += count
        return {
            "steps": self.steps,
            "state": dict(enumerate(self._core.snapshot(copy))),
            "param_groups": groups,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, copy: bool = True) -> None:
        """Takes over what `state_dict` gave; a schedule in force stays, and goes on at the loaded step.

        With `copy=False` the arrays in it become the state, as they are: memory maps, for state larger than
        memory, which a step then streams through. Raises TypeError or ValueError if it does not fit these
        parameters; then nothing is changed.

            >>> import numpy as np, steepest as sp
            >>> w = np.ones(3)
            >>> opt = sp.Adam(w)
            >>> saved = opt.state_dict(copy=False)
            >>> saved["state"][0]["exp_avg"] = m = np.zeros(3)  # or np.lib.format.open_memmap("m.npy", "w+", ...)
            >>> opt.load_state_dict(saved, copy=False)
            >>> opt.step(np.full(3, 2.0))
            >>> m
            array([0.2, 0.2, 0.2])
        """
        check_keys("state_dict", state_dict, ("steps", "state", "param_groups"))
        state, groups = state_dict["state"], state_dict["param_groups"]
        if not isinstance(groups, Sequence) or len(groups) != len(self.param_groups):
            raise ValueError(f"param_groups: expected a sequence of {len(self.param_groups)}, got {groups!r}")
        checked, first = [], 0
        for i, (group, saved) in enumerate(zip(self.param_groups, groups, strict=True)):
            name = f"param_groups[{i}]"
            check_keys(name, saved, tuple(group))
            numbers = list(range(first, first + len(arrays_of(group["params"]))))
            if not isinstance(saved["params"], Sequence) or list(saved["params"]) != numbers:
                raise ValueError(f"{name}: expected the parameters {numbers}, got {saved['params']!r}")
            first += len(numbers)
            kept = {"params", "lr"} if callable(group["lr"]) else {"params"}
            changed = {option: value for option, value in saved.items() if option not in kept}
            checked.append(group._checked(group._options | changed))
        check_keys("state", state, tuple(range(first)))
        core_options = [self._core_options(options) for options in checked]
        self._core.restore([state[i] for i in range(first)], state_dict["steps"], core_options, copy)
        for group, options in zip(self.param_groups, checked, strict=True):
            group._options = options

    def __getstate__(self) -> dict[str, Any]:
        return {
            "defaults": self._defaults,
            "shared": (self._max_norm, self._nonfinite, self._core.grouped, self._precision),
            "groups": [dict(group) for group in self.param_groups],
            "state": (self._core.snapshot(), self.steps),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._defaults = state["defaults"]
        self._start(*state["shared"])
        for group in state["groups"]:
            self._add_group(group)
        self._core.restore(*state["state"])

    def __repr__(self) -> str:
        leaves = [x for group in self.param_groups for x in arrays_of(group["params"])]
        dtypes = "/".join(sorted({_dtype_name(x) for x in leaves}))
        options = {name: value for name, value in self.param_groups[0].items() if name != "params"}
        if len(self.param_groups) > 1:
            options = {"groups": len(self.param_groups)}
        elements = sum(x.size for x in leaves)
        listed = [f"{name}={value!r}" for name, value in options.items()]
        listed += [f"max_norm={self._max_norm!r}"] * (self._max_norm is not None)
        listed += [f"state_dtype={self._precision[0]!r}"] * (self._precision[0] is not None)
        return (
            f"{type(self).__name__}({', '.join(listed)}; {len(leaves)} arrays, {elements:,} elements, "
            f"{dtypes}; step {self.steps})"
        )


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if `momentum` > 0.

    b = momentum b + (1 - dampening) g, the first b being g;  p -= lr b, or with `nesterov`
    p -= lr (g + momentum b). `weight_decay` adds weight_decay p to g. This is `torch.optim.SGD`.
    `lr_in_velocity=True` is the form of Keras and scikit-learn, which differs once the rate changes:
    v = momentum v - lr g;  p += v, or with `nesterov` p += momentum v - lr g.

        >>> import numpy as np, steepest as sp
        >>> w = np.array([2.0])
        >>> opt = sp.SGD(w, lr=0.1, momentum=0.9)
        >>> for _ in range(2):
        ...     opt.step(w.copy())
        >>> w.round(3)
        array([1.44])
    """

    _core_class = _core.SGD

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        lr_in_velocity: bool = False,
        l1: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay,
                         nesterov=nesterov, lr_in_velocity=lr_in_velocity, l1=l1, max_value=max_value,
                         maximize=maximize, max_norm=max_norm, nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip

    @classmethod
    def _check_together(cls, options: dict[str, Any]) -> None:
        if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
            raise ValueError("nesterov: expected momentum > 0 and dampening = 0 beside it")
        if options["lr_in_velocity"] and options["dampening"] != 0:
            raise ValueError("lr_in_velocity: expected dampening = 0 beside it")


class Momentum(Optimizer):
    """Gradient descent along a moving average of the gradients.

    v = beta v + (1 - beta) g;  p -= lr v. The moving-average form of momentum, without bias
    correction; `SGD(momentum=...)` is the accumulating one, whose steps are 1 / (1 - beta) times as
    long. `weight_decay` adds weight_decay p to g.

        >>> import numpy as np, steepest as sp
        >>> w = np.array([2.0])
        >>> sp.Momentum(w, lr=1.0).step(np.array([1.0]))
        >>> w
        array([1.9])
    """

    _core_class = _core.Momentum

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        *,
        l1: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, weight_decay=weight_decay, l1=l1, max_value=max_value,
                         maximize=maximize, max_norm=max_norm, nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip


class RMSprop(Optimizer):
    """Steps divided by the root of a moving average of the squared gradients.

    s = alpha s + (1 - alpha) g^2;  p -= lr g / (sqrt(s) + eps). `centered` divides by the root of the
    variance s - mean(g)^2 instead (not below 0); with `momentum`, b = momentum b + g / (...) and
    p -= lr b. `weight_decay` adds weight_decay p to g. This is `torch.optim.RMSprop`;
    `eps_inside_sqrt=True` is Keras' and optax's g / sqrt(s + eps). Tieleman and Hinton, 2012, lecture 6.5.

        >>> import numpy as np, steepest as sp
        >>> w = np.array([1.0])
        >>> sp.RMSprop(w, lr=0.01).step(np.array([3.0]))
        >>> w.round(6)
        array([0.9])
    """

    _core_class = _core.RMSprop

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        eps_inside_sqrt: bool = False,
        l1: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum,
                         centered=centered, eps_inside_sqrt=eps_inside_sqrt, l1=l1, max_value=max_value,
                         maximize=maximize, max_norm=max_norm, nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients so far.

    s += g^2;  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps), t counting from 1; s starts at
    `initial_accumulator_value`. `weight_decay` adds weight_decay p to g. This is `torch.optim.Adagrad`;
    `eps_inside_sqrt=True` is Keras' and optax's g / sqrt(s + eps). Duchi, Hazan and Singer, 2011.

        >>> import numpy as np, steepest as sp
        >>> w = np.array([1.0])
        >>> sp.Adagrad(w, lr=0.1).step(np.array([3.0]))
        >>> w.round(6)
        array([0.9])
    """

    _core_class = _core.Adagrad

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        eps_inside_sqrt: bool = False,
        l1: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, lr_decay=lr_decay, weight_decay=weight_decay,
                         initial_accumulator_value=initial_accumulator_value, eps=eps,
                         eps_inside_sqrt=eps_inside_sqrt, l1=l1, max_value=max_value,
                         maximize=maximize, max_norm=max_norm, nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip


class Adam(Optimizer):
    """Moving averages of the gradient and of its square, both with bias correction.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr m_hat / (sqrt(v_hat) + eps) with
    m_hat = m / (1 - b1^t), v_hat = v / (1 - b2^t), t counting each parameter's steps from 1.
    `amsgrad` takes the largest v so far. `weight_decay` adds weight_decay p to g (see `AdamW` for the
    decoupled kind). This is `torch.optim.Adam`; `epsilon_hat=True` is the form of Keras, TensorFlow and
    scikit-learn, p -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps). Kingma and Ba, 2015.

        >>> import numpy as np, steepest as sp
        >>> w = np.array([1.0, 1.0])
        >>> sp.Adam(w, lr=0.1).step(np.array([5.0, -0.01]))
        >>> w.round(4)
        array([0.9, 1.1])
    """

    _core_class = _core.Adam

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        epsilon_hat: bool = False,
        l1: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad,
                         epsilon_hat=epsilon_hat, l1=l1, max_value=max_value,
                         maximize=maximize, max_norm=max_norm, nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip


class AdamW(Optimizer):
    """Adam with decoupled weight decay: p (1 - lr weight_decay) takes the place of p.

    Otherwise as `Adam`, `epsilon_hat` and `amsgrad` included; `l2` adds l2 p to g. This is
    `torch.optim.AdamW`. Loshchilov and Hutter, 2019.

        >>> import numpy as np, steepest as sp
        >>> w = np.array([1.0])
        >>> sp.AdamW(w, lr=0.1, weight_decay=0.1).step(np.array([2.0]))
        >>> w.round(4)
        array([0.89])
    """

    _core_class = _core.Adam

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        epsilon_hat: bool = False,
        l1: float = 0.0,
        l2: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad,
                         epsilon_hat=epsilon_hat, l1=l1, l2=l2, max_value=max_value,
                         maximize=maximize, max_norm=max_norm, nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip

    @classmethod
    def _core_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        return super()._core_options({**options, "decoupled_decay": options["weight_decay"]})


class NAdam(Optimizer):
    """Adam with Nesterov's momentum and a momentum schedule.

    mu_t = b1 (1 - 0.96^(t momentum_decay) / 2);  p -= lr ((1 - mu_t) / (1 - mu_1 ... mu_t) g
    + mu_t+1 / (1 - mu_1 ... mu_t+1) m) / (sqrt(v_hat) + eps), m and v as in `Adam`. `weight_decay` adds
    weight_decay p to g, or with `decoupled_weight_decay` p (1 - lr weight_decay) takes the place of p;
    `l2` adds l2 p to g in either case. This is `torch.optim.NAdam`. Dozat, 2016.

        >>> import numpy as np, steepest as sp
        >>> w = np.array([1.0])
        >>> sp.NAdam(w, lr=0.1).step(np.array([2.0]))
        >>> w.round(3)
        array([0.894])
    """

    _core_class = _core.NAdam

    def __init__(
        self,
        params: Params,
        lr: Rate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                         momentum_decay=momentum_decay, decoupled_weight_decay=decoupled_weight_decay,
                         l1=l1, l2=l2, max_value=max_value,
                         maximize=maximize, max_norm=max_norm, nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip

    @classmethod
    def _core_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        decay = options["weight_decay"]
        if options["decoupled_weight_decay"]:
            return super()._core_options({**options, "decoupled_decay": decay})
        return super()._core_options({**options, "l2": options["l2"] + decay})


class Lion(Optimizer):
    """Steps of one length in every coordinate: the sign of an interpolated momentum.

    p = p (1 - lr weight_decay) - lr sgn(b1 m + (1 - b1) g);  m = b2 m + (1 - b2) g, with sgn(0) = 0.
    `l2` adds l2 p to g. The paper's rule and the defaults of its authors' release. Chen et al., 2023,
    "Symbolic Discovery of Optimization Algorithms".

        >>> import numpy as np, steepest as sp
        >>> w = np.array([1.0, 1.0])
        >>> sp.Lion(w, lr=0.1).step(np.array([5.0, -0.01]))
        >>> w
        array([0.9, 1.1])
    """

    _core_class = _core.Lion

    def __init__(
        self,
        params: Params,
        lr: Rate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        max_value: float | None = None,
        maximize: bool = False,
        max_norm: float | None = None,
        nonfinite: str = "propagate",
        state_dtype: StateDtype = None,
        seed: int | None = 0,
        master_weights: str = "split",
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, l1=l1, l2=l2,
                         max_value=max_value, maximize=maximize, max_norm=max_norm,
                         nonfinite=nonfinite,
                         state_dtype=state_dtype, seed=seed, master_weights=master_weights)  # fmt: skip

    @classmethod
    def _core_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        return super()._core_options({**options, "decoupled_decay": options["weight_decay"]})

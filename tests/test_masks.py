"""Masks of an optimizer: pruned weights stay at zero. That steps are exact with them is in the table of cases."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest as sp
from steepest import nn, optim, reference

W = np.array([1.0, -2.0, 3.0, -4.0])
KEPT = np.array([True, False, True, False])
RULES = [getattr(optim, name) for name in reference.RULES]


def bits(x: Any) -> bytes:
    return np.ascontiguousarray(x).tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_a_pruned_weight_is_plus_zero_whatever_was_there(rule: Any) -> None:
    w, g = W.copy(), np.array([1.0, np.nan, 1.0, -np.inf])
    w[3] = np.nan
    alone = w[KEPT].copy()
    optimizer, other = rule(w, weight_decay=0.1, max_norm=0.5), rule(alone, weight_decay=0.1, max_norm=0.5)
    optimizer.set_masks(KEPT)
    for _ in range(3):
        optimizer.step(g)
        other.step(g[KEPT])
        assert bits(w[~KEPT]) == bits(np.zeros(2))
        assert bits(w[KEPT]) == bits(alone)
        assert optimizer.last_norm == other.last_norm
    for name, value in optimizer.state_dict()["state"][0].items():
        if name not in ("step", "mask", "mu_product"):
            assert np.isfinite(value).all(), name


def test_a_lifted_mask_lets_weights_move_again() -> None:
    w = W.copy()
    optimizer = sp.SGD(w, lr=0.5)
    optimizer.set_masks(KEPT)
    optimizer.step(np.ones(4))
    optimizer.set_masks(None)
    assert optimizer.masks is None
    optimizer.step(np.ones(4))
    assert w.tolist() == [0.0, -0.5, 2.0, -0.5]


def test_a_gradient_that_is_not_finite_counts_only_where_it_is_kept() -> None:
    w = W.copy()
    optimizer = sp.SGD(w, nonfinite="raise")
    optimizer.set_masks(KEPT)
    optimizer.step(np.where(KEPT, 1, np.nan))
    with pytest.raises(FloatingPointError, match="gradient of params"):
        optimizer.step(np.where(KEPT, np.nan, 1))


@pytest.mark.parametrize(
    ("params", "masks", "expected"),
    [
        (lambda: W.copy(), KEPT, KEPT),
        (lambda: [W.copy(), W.copy()], [None, KEPT], [None, KEPT]),
        (lambda: {"a": W.copy(), "b": W.copy()}, {"b": KEPT}, {"a": None, "b": KEPT}),
        (lambda: [{"params": W.copy()}, {"params": {"b": W.copy()}}], [None, {"b": KEPT}], [None, {"b": KEPT}]),
        (lambda: [{"params": [W.copy()]}], None, [[None]]),
    ],
    ids=["array", "sequence", "mapping", "groups", "none"],
)
def test_masks_have_the_structure_of_params(params: Callable[[], Any], masks: Any, expected: Any) -> None:
    optimizer = sp.Adam(params())
    optimizer.set_masks(masks)
    assert repr(optimizer.masks) == repr(expected)


def test_a_mask_is_copied_in_the_order_of_its_parameter() -> None:
    w = np.asfortranarray(np.ones((3, 5), np.float32))
    mask = np.arange(15).reshape(3, 5) % 2 == 0
    optimizer, kept = sp.SGD(w), mask.copy()
    optimizer.set_masks(mask)
    mask[...] = False
    optimizer.masks[...] = False
    optimizer.step(np.zeros_like(w))
    assert np.array_equal(w, kept)


def test_masks_that_do_not_fit_are_refused_whole() -> None:
    a, b = W.copy(), W.copy()
    optimizer = sp.Adam([{"params": {"a": a, "b": b}}, {"params": [W.copy()]}])
    optimizer.set_masks([{"a": KEPT}, None])
    before = bits(pickle.dumps(optimizer.state_dict()))
    refused: list[tuple[Any, type[Exception], str]] = [
        ({"a": KEPT}, TypeError, "masks: expected a sequence of 2, got dict"),
        ([None], ValueError, "masks: expected a sequence of 2, got 1"),
        ([KEPT, None], TypeError, r"masks\[0\]: expected a mapping with names of params, got ndarray"),
        ([{"c": KEPT}, None], ValueError, r"masks\[0\]: expected names of params, got also \['c'\]"),
        ([None, KEPT], TypeError, r"masks\[1\]: expected a sequence of 1, got ndarray"),
        ([{"a": None}, [KEPT.astype(int)]], TypeError, r"masks\[1\]\[0\]: expected a numpy.ndarray of bool.*int64"),
        ([{"a": None, "b": [True]}, None], TypeError, r"masks\[0\]\['b'\]: expected a numpy.ndarray of bool.*list"),
        ([{"a": None}, [KEPT[:3]]], ValueError, r"masks\[1\]\[0\]: expected the shape of .* \(4,\), got \(3,\)"),
        ([{"a": np.ma.array(KEPT)}, None], TypeError, "expected a numpy.ndarray of bool"),
    ]
    for masks, error, words in refused:
        with pytest.raises(error, match=words):
            optimizer.set_masks(masks)
        assert bits(pickle.dumps(optimizer.state_dict())) == before


def _reloaded(optimizer: sp.Optimizer) -> sp.Optimizer:
    new = sp.AdamW([x.copy() for x in optimizer.param_groups[0]["params"]])
    new.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    return new


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), _reloaded])
def test_a_copy_keeps_the_masks(way: Any) -> None:
    g = [np.ones(4), np.ones(3)]
    optimizer = sp.AdamW([W.copy(), np.ones(3)])
    optimizer.set_masks([KEPT, None])
    optimizer.step(g)
    other = way(optimizer)
    optimizer.step(g)
    other.step(g)
    assert repr(other.masks) == repr([KEPT, None])
    for x, y in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert bits(x) == bits(y)


def test_a_state_without_a_mask_lifts_it_and_one_that_does_not_fit_is_refused() -> None:
    optimizer = sp.SGD(W.copy())
    without = optimizer.state_dict()
    optimizer.set_masks(KEPT)
    saved = optimizer.state_dict()
    saved["state"][0]["mask"] = KEPT[:2]
    with pytest.raises(ValueError, match=r"state\[0\]\['mask'\]: expected the shape"):
        optimizer.load_state_dict(saved)
    assert np.array_equal(optimizer.masks, KEPT)
    optimizer.load_state_dict(without)
    assert optimizer.masks is None


def test_a_checkpoint_keeps_the_masks(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Dense(5), nn.ReLU(), nn.Dense(2)], input_shape=3)
    optimizer = sp.Adam(model.param_groups(), max_norm=1.0)
    kept = np.arange(25) % 3 > 0
    masks = [kept, None]
    optimizer.set_masks(masks)
    sp.save(tmp_path / "m.safetensors", model, optimizer=optimizer)
    saved = sp.load(tmp_path / "m.safetensors")
    assert saved.optimizer is not None
    assert repr(saved.optimizer.masks) == repr(masks)
    for chosen, its_model in ((optimizer, model), (saved.optimizer, saved.model)):
        its_model.grads[...] = 1
        chosen.step(its_model.gradients())
    assert bits(saved.model.params) == bits(model.params)
    assert np.count_nonzero(model.params[:25]) == kept.sum()

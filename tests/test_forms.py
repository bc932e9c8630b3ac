"""The rules that PyTorch does not have, and the forms of other frameworks, written apart from our formulas.

In float64, over 100 steps at a rate that changes, to 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import steepest as sp

Array = NDArray[Any]
STEPS = 100


def rate(step: int) -> float:
    return 0.02 if step < 50 else 0.005


def gradient(step: int) -> Array:
    return np.random.default_rng(step).standard_normal(12) + 0.3


def run(opt: Callable[[Array], sp.Optimizer], rule: Callable[[Array, Array, float, int], Array]) -> None:
    """Both from the same point along the same gradients; rule(p, g, lr, t) is the other one's update."""
    p = np.linspace(-1, 1, 12)
    expected = p.copy()
    ours = opt(p)
    for step in range(STEPS):
        ours.step(gradient(step))
        expected = rule(expected, gradient(step), rate(step), step + 1)
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("wd", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98)])
def test_lion_is_the_papers_listing(betas: tuple[float, float], wd: float) -> None:
    """Chen et al. 2023, the program of section 2: update = interp(g, m, beta1), and so on."""
    state = {"m": np.zeros(12)}

    def interp(x: Array, y: Array, a: float) -> Array:
        return (1 - a) * x + a * y

    def train(weight: Array, gradient: Array, lr: float, t: int) -> Array:
        m = state["m"]
        update = interp(gradient, m, betas[0])
        update = np.sign(update)
        state["m"] = interp(gradient, m, betas[1])
        update = update + weight * wd
        update = update * lr
        return weight - update

    run(lambda p: sp.Lion(p, lr=rate, betas=betas, weight_decay=wd), train)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_momentum_is_a_moving_average(l2: float) -> None:
    v = np.zeros(12)

    def rule(p: Array, g: Array, lr: float, t: int) -> Array:
        nonlocal v
        v = 0.8 * v + 0.2 * (g + l2 * p)
        return p - lr * v

    run(lambda p: sp.Momentum(p, lr=rate, beta=0.8, weight_decay=l2), rule)


@pytest.mark.parametrize("nesterov", [False, True])
def test_keras_sgd(nesterov: bool) -> None:
    """velocity = momentum * velocity - learning_rate * g;
    w = w + velocity, or with nesterov w = w + momentum * velocity - learning_rate * g."""
    velocity = np.zeros(12)

    def rule(w: Array, g: Array, learning_rate: float, t: int) -> Array:
        nonlocal velocity
        velocity = 0.9 * velocity - learning_rate * g
        return w + 0.9 * velocity - learning_rate * g if nesterov else w + velocity

    run(lambda p: sp.SGD(p, lr=rate, momentum=0.9, nesterov=nesterov, lr_in_velocity=True), rule)


def test_both_forms_of_momentum_agree_only_while_the_rate_does_not_change() -> None:
    points = []
    for lr in (lambda step: 0.1, rate):
        for in_velocity in (False, True):
            p = np.linspace(-1, 1, 12)
            opt = sp.SGD(p, lr=lr, momentum=0.9, lr_in_velocity=in_velocity)
            for step in range(STEPS):
                opt.step(gradient(step))
            points.append(p)
    np.testing.assert_allclose(points[0], points[1], rtol=1e-12)
    assert np.abs(points[2] - points[3]).max() > 1e-3


@pytest.mark.parametrize("amsgrad", [False, True])
def test_keras_adam(amsgrad: bool) -> None:
    """alpha = learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t);  w -= alpha m / (sqrt(v) + epsilon)."""
    m, v, v_hat = np.zeros(12), np.zeros(12), np.zeros(12)

    def rule(w: Array, g: Array, learning_rate: float, t: int) -> Array:
        nonlocal m, v, v_hat
        alpha = learning_rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        m = m + (g - m) * (1 - 0.9)
        v = v + (g * g - v) * (1 - 0.999)
        v_hat = np.maximum(v_hat, v)
        return w - m * alpha / (np.sqrt(v_hat if amsgrad else v) + 1e-3)

    run(lambda p: sp.Adam(p, lr=rate, eps=1e-3, amsgrad=amsgrad, epsilon_hat=True), rule)


def test_keras_adamw() -> None:
    """w -= learning_rate * weight_decay * w, and then Adam's update."""
    m, v = np.zeros(12), np.zeros(12)

    def rule(w: Array, g: Array, learning_rate: float, t: int) -> Array:
        nonlocal m, v
        w = w - w * 0.1 * learning_rate
        alpha = learning_rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + (1 - 0.999) * g**2
        return w - alpha * m / (np.sqrt(v) + 1e-3)

    run(lambda p: sp.AdamW(p, lr=rate, eps=1e-3, weight_decay=0.1, epsilon_hat=True), rule)


@pytest.mark.parametrize("centered", [False, True])
def test_keras_rmsprop(centered: bool) -> None:
    """v = rho v + (1 - rho) g^2;  w -= learning_rate g / sqrt(v + epsilon), or v - mean^2 if centered."""
    v, mean = np.zeros(12), np.zeros(12)

    def rule(w: Array, g: Array, learning_rate: float, t: int) -> Array:
        nonlocal v, mean
        v = 0.9 * v + (1 - 0.9) * g**2
        mean = 0.9 * mean + (1 - 0.9) * g
        variance = v - mean**2 if centered else v
        new: Array = w - learning_rate * g / np.sqrt(variance + 1e-3)
        return new

    run(lambda p: sp.RMSprop(p, lr=rate, alpha=0.9, eps=1e-3, centered=centered, eps_inside_sqrt=True), rule)


def test_keras_adagrad() -> None:
    """accumulator += g^2;  w -= learning_rate g / sqrt(accumulator + epsilon)."""
    accumulator = np.full(12, 0.1)

    def rule(w: Array, g: Array, learning_rate: float, t: int) -> Array:
        nonlocal accumulator
        accumulator = accumulator + g**2
        return np.asarray(w - learning_rate * g / np.sqrt(accumulator + 1e-3))

    run(lambda p: sp.Adagrad(p, lr=rate, eps=1e-3, initial_accumulator_value=0.1, eps_inside_sqrt=True), rule)


@pytest.mark.parametrize("nesterov", [False, True])
def test_scikit_learn_sgd(nesterov: bool) -> None:
    optimizers: Any = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    theirs = optimizers.SGDOptimizer([np.zeros(12)], momentum=0.9, nesterov=nesterov)

    def rule(p: Array, g: Array, lr: float, t: int) -> Array:
        theirs.learning_rate = lr
        theirs.update_params([p], [g])
        return p

    run(lambda p: sp.SGD(p, lr=rate, momentum=0.9, nesterov=nesterov, lr_in_velocity=True), rule)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_scikit_learn_adam(eps: float) -> None:
    optimizers: Any = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    theirs = optimizers.AdamOptimizer([np.zeros(12)], epsilon=eps)

    def rule(p: Array, g: Array, lr: float, t: int) -> Array:
        theirs.learning_rate_init = lr
        theirs.update_params([p], [g])
        return p

    run(lambda p: sp.Adam(p, lr=rate, eps=eps, epsilon_hat=True), rule)

"""Layers, and the model that strings them together.

All parameters of a model live in one flat array and all gradients in another, so that an optimizer
step over the whole model is one kernel call. Activations live in buffers that are made once.

>>> from steepest import nn
>>> model = nn.Sequential([nn.Dense(128), nn.ReLU(), nn.Dense(10)], input_shape=784, seed=0)
>>> model.params.size
101770
"""

from steepest.nn import init
from steepest.nn.activations import Activation, LeakyReLU, ReLU, Sigmoid, Tanh
from steepest.nn.convolution import Conv2D
from steepest.nn.layer import Layer, Parameter
from steepest.nn.layers import Dense, Dropout, Flatten, Reshape
from steepest.nn.pooling import AvgPool2D, MaxPool2D
from steepest.nn.sequential import Sequential

__all__ = [
    "Activation",
    "AvgPool2D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "Layer",
    "LeakyReLU",
    "MaxPool2D",
    "Parameter",
    "ReLU",
    "Reshape",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "init",
]

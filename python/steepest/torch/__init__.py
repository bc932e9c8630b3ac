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
NaN), `amsgrad`'s maximum does not keep a NaN, and state smaller than the smallest normal number becomes 0.
"""

try:
    import torch
except ImportError as error:
    raise ImportError("steepest.torch needs PyTorch 2.10 or newer: pip install torch") from error
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    raise ImportError(
        f"steepest.torch needs PyTorch 2.10 or newer, found {torch.__version__}: pip install --upgrade torch"
    )

from steepest.torch._optimizers import SGD, Adagrad, Adam, AdamW, Lion, Momentum, NAdam, RMSprop

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "Momentum", "NAdam", "RMSprop"]

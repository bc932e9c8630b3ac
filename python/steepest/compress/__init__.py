"""Makes trained models smaller and quicker: quantisation, pruning, distillation.

Imported only when asked for: `import steepest` does not bring it.
"""

__all__: list[str] = []

"""Operations on arrays: what each computes, and how it is best computed on each kind of device.

Every operation has a definition of a few lines: a function `..._definition`, or its docstring. The
form that runs may differ by platform, but its result and gradient equal the definition's but for
rounding; tests/vsr_jax/ops compares them. No code outside this package chooses a form by device.
"""

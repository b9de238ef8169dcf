"""Operations on arrays: what each computes, and how it is best computed on each kind of device.

Every operation states its definition in a few lines, a function `..._definition` or its docstring.
What it runs instead may differ by platform, but equals the definition but for rounding, with its
gradient; tests/vsr_jax/ops tie every form to the definition. Nothing outside of this package asks
which device it runs on in order to choose a form.
"""

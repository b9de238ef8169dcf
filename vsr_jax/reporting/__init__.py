"""The parts of `vsr_jax.report`: what sweeps hold, compared, drawn and written up.

`sweeps` reads folders, `papers` has the papers' numbers, `comparison` computes, `sections` says
what a report shows, `figures` draws, and `pages` writes it as HTML and Markdown.
"""

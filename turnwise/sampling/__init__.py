"""Samplers: tokens in, tokens and logprobs out.

    scripted   a fake that plays given completions (shipped, torch-free)
    embedded   our own engine in this process: a thread around `engine`
    process    the engine served over a channel;  handle   the other end of it (torch-free)

Inside the engine: `scheduler` decides what the next step computes, `slots` knows what is cached,
`layout` lays a step out as index arrays, `model` computes it, `choose` picks the tokens.
"""
